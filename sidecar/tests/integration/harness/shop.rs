//! A shop whose database tells what changes.

use std::fs;

use super::{Authority, Folder, Policy, PostgresServer, Relay};

/// A Postgres server of a test's own, and the file with the URL by which policies reach it.
pub(crate) struct Shop {
    pub(crate) server: PostgresServer,
    pub(crate) folder: Folder,
    spec: &'static str,
}

impl Shop {
    /// Starts the server and runs statements. Policies have this `spec`, with the file in place of `DATABASE`.
    pub(crate) async fn open(spec: &'static str, statements: &str) -> Self {
        let authority = Authority::new();
        let server = PostgresServer::start(&authority.certify("127.0.0.1")).await;
        let shop = Self { server, folder: Folder::new(), spec };
        fs::write(shop.folder.join("ca"), authority.pem()).unwrap();
        shop.reach_by(&shop.url());
        shop.server.run(statements).await;
        shop
    }

    /// Returns the URL for the user that may do all.
    pub(crate) fn url(&self) -> String {
        self.server.url("larder", PostgresServer::PASSWORD, "disable")
    }

    /// Changes the URL, atomically.
    pub(crate) fn reach_by(&self, url: &str) {
        fs::write(self.folder.join("written"), url).unwrap();
        fs::rename(self.folder.join("written"), self.folder.join("url")).unwrap();
    }

    /// Starts a relay to the server, and returns it with the URL through it.
    pub(crate) async fn relay(&self) -> (Relay, String) {
        let relay = Relay::to(([127, 0, 0, 1], self.server.port).into()).await;
        let url = self.url().replace(&self.server.port.to_string(), &relay.port.to_string());
        (relay, url)
    }

    /// Returns the `spec` with these lines before it.
    pub(crate) fn spec(&self, head: &str) -> String {
        let file = format!("{{file: {}}}", self.folder.join("url").display());
        format!("{head}{}", self.spec.replace("DATABASE", &file))
    }

    /// Returns a policy of this `spec`.
    pub(crate) fn policy(&self, head: &str) -> Policy {
        Policy::new(&self.spec(head))
    }

    /// Ends the connections of feeds that are of this kind, and returns their number.
    pub(crate) async fn end_connections(&self, kind: &str) -> i64 {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'larder-feed'";
        self.server.number(&format!("{end} and backend_type = '{kind}'")).await
    }
}
