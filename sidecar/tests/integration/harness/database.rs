//! A schema of a test's own in Postgres.

use std::{fs, path::PathBuf};

use larder_policy::spec::Postgres;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::{Folder, Relay, environment, unique};

/// A schema of a test's own.
pub(crate) struct Database {
    schema: String,
    folder: Folder,
    client: Client,
    _connection: AbortOnDropHandle<()>,
}

impl Database {
    /// A schema in which `statements` have been run.
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

    /// From now on it is reached through a relay; dropped, it is gone.
    pub(crate) async fn through_a_relay(&self) -> Relay {
        let server = Self::server();
        let relay = Relay::to(server.parse().unwrap()).await;
        self.reach_by(|url| url.replace(&server, &format!("127.0.0.1:{}", relay.port)));
        relay
    }

    /// From now on it is looked for where nobody is.
    pub(crate) fn reach_in_vain(&self) {
        self.reach_by(|url| url.replace(&Self::server(), "127.0.0.1:1"));
    }

    /// The address and port of the server.
    fn server() -> String {
        let url = environment("LARDER_TEST_POSTGRES_URL");
        url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned()
    }

    /// What a source is made from.
    pub(crate) fn source(&self, settings: &str) -> Postgres {
        serde_yaml::from_str(&self.serve(&format!("{{urlFrom: DATABASE, {settings}}}"))).unwrap()
    }

    /// What a source is made from that is reached as this one is now, whatever changes.
    pub(crate) fn source_as_now(&self, settings: &str) -> Postgres {
        let (url, copy) = (self.folder.join("url"), self.folder.join(&unique("url")));
        fs::copy(url, &copy).unwrap();
        serde_yaml::from_str(&format!("{{urlFrom: {{file: {}}}, {settings}}}", copy.display())).unwrap()
    }

    /// Where its URL is.
    pub(crate) fn url_file(&self) -> PathBuf {
        self.folder.join("url")
    }

    /// Its name.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// A policy's `spec` with this database in place of `DATABASE`.
    pub(crate) fn serve(&self, spec: &str) -> String {
        spec.replace("DATABASE", &format!("{{file: {}}}", self.folder.join("url").display()))
    }

    /// Runs statements.
    pub(crate) async fn run(&self, statements: &str) {
        self.client.batch_execute(statements).await.unwrap();
    }

    /// A number that a query gives.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        self.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Takes the schema away. A test that fails leaves it behind for whoever looks into it.
    pub(crate) async fn drop_schema(self) {
        self.run(&format!("drop schema {} cascade", self.schema)).await;
    }
}
