//! A Postgres schema of a test's own.

use std::{fs, path::PathBuf};

use larder_policy::spec::Postgres;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::{Folder, Relay, environment, unique};

/// A Postgres schema of a test's own.
pub(crate) struct Database {
    schema: String,
    folder: Folder,
    client: Client,
    _connection: AbortOnDropHandle<()>,
}

impl Database {
    /// Creates a schema and runs `statements` in it.
    pub(crate) async fn new(statements: &str) -> Self {
        let url = environment("LARDER_TEST_POSTGRES_URL");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        let connection = AbortOnDropHandle::new(tokio::spawn(async { connection.await.unwrap() }));
        let schema = unique("itest");
        client.batch_execute(&format!("create schema {schema}; set search_path to {schema}")).await.unwrap();
        client.batch_execute(statements).await.unwrap();
        let database = Self { schema, folder: Folder::new(), client, _connection: connection };
        database.reach_by(|url| url);
        database
    }

    /// Changes the URL by which policies of [`Database::serve`] reach it.
    pub(crate) fn reach_by(&self, change: impl FnOnce(String) -> String) {
        let url = change(environment("LARDER_TEST_POSTGRES_URL"));
        let text = format!("{url}?options=-csearch_path%3D{}\n", self.schema);
        fs::write(self.folder.join("url"), text).unwrap();
    }

    /// Routes further connections through a relay. Without the relay the database is gone.
    pub(crate) async fn through_a_relay(&self) -> Relay {
        let server = Self::server();
        let relay = Relay::to(server.parse().unwrap()).await;
        self.reach_by(|url| url.replace(&server, &format!("127.0.0.1:{}", relay.port)));
        relay
    }

    /// Points further connections at an address where nothing listens.
    pub(crate) fn reach_in_vain(&self) {
        self.reach_by(|url| url.replace(&Self::server(), "127.0.0.1:1"));
    }

    /// Returns the server's address and port.
    fn server() -> String {
        let url = environment("LARDER_TEST_POSTGRES_URL");
        url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned()
    }

    /// Returns the settings of a source.
    pub(crate) fn source(&self, settings: &str) -> Postgres {
        serde_yaml::from_str(&self.serve(&format!("{{urlFrom: DATABASE, {settings}}}"))).unwrap()
    }

    /// Returns the settings of a source that keeps the present URL, whatever changes later.
    pub(crate) fn source_as_now(&self, settings: &str) -> Postgres {
        let (url, copy) = (self.folder.join("url"), self.folder.join(&unique("url")));
        fs::copy(url, &copy).unwrap();
        serde_yaml::from_str(&format!("{{urlFrom: {{file: {}}}, {settings}}}", copy.display())).unwrap()
    }

    /// Returns the path of the file with the URL.
    pub(crate) fn url_file(&self) -> PathBuf {
        self.folder.join("url")
    }

    /// Returns the schema's name.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// Returns a policy's `spec` with this database in place of `DATABASE`.
    pub(crate) fn serve(&self, spec: &str) -> String {
        spec.replace("DATABASE", &format!("{{file: {}}}", self.folder.join("url").display()))
    }

    /// Runs statements.
    pub(crate) async fn run(&self, statements: &str) {
        self.client.batch_execute(statements).await.unwrap();
    }

    /// Returns the number that a query selects.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        self.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Drops the schema. A test that fails leaves it behind for inspection.
    pub(crate) async fn drop_schema(self) {
        self.run(&format!("drop schema {} cascade", self.schema)).await;
    }
}
