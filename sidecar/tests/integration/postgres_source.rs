//! A Postgres source on its own: TLS, values, writes, limits.

use std::{fs, sync::Arc, time::Duration};

use bytes::Bytes;
use larder_policy::{Values, spec, sql::BoundQuery};
use larder_sidecar::sources::postgres::{PostgresError, PostgresSource};

use super::harness::{Authority, Database, Folder, PostgresServer, until};

fn query(text: &str) -> BoundQuery {
    BoundQuery::new(text, &["key"]).unwrap()
}

fn statement(text: &str) -> BoundQuery {
    BoundQuery::statement(text, &["key", "body"]).unwrap()
}

async fn fetch(source: &PostgresSource, text: &str) -> Result<Option<Bytes>, PostgresError> {
    source.fetch(&query(text), &Values::default()).await
}

async fn answer(source: &PostgresSource, text: &str) -> String {
    String::from_utf8(fetch(source, text).await.unwrap().unwrap().to_vec()).unwrap()
}

/// A URL and perhaps a CA in files that may change.
struct Secrets(Folder);

impl Secrets {
    fn new(url: &str, ca: Option<&str>) -> Self {
        let secrets = Self(Folder::new());
        secrets.write("url", url);
        ca.into_iter().for_each(|ca| secrets.write("ca", ca));
        secrets
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join("written"), text).unwrap();
        fs::rename(self.0.join("written"), self.0.join(name)).unwrap();
    }

    fn source(&self) -> PostgresSource {
        let file = |name: &str| self.0.join(name);
        let ca = file("ca").exists().then(|| format!("caFrom: {{file: {}}}, ", file("ca").display()));
        let spec = format!(
            "{{urlFrom: {{file: {}}}, {}statementTimeout: 5s}}",
            file("url").display(),
            ca.unwrap_or_default()
        );
        PostgresSource::start(serde_yaml::from_str::<spec::Postgres>(&spec).unwrap())
    }
}

const IS_ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

#[tokio::test(flavor = "multi_thread")]
async fn tls_follows_the_url_and_trusts_only_the_ca() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = PostgresServer::start(&authority.certify("127.0.0.1")).await;
    let url = |mode| server.url("larder", PostgresServer::PASSWORD, mode);
    for (mode, is_encrypted) in
        [("verify-full", true), ("verify-ca", true), ("require", true), ("prefer", true), ("disable", false)]
    {
        let ca = is_encrypted.then(|| authority.pem());
        let secrets = Secrets::new(&url(mode), ca.as_deref());
        let said = answer(&secrets.source(), IS_ENCRYPTED).await;
        assert_eq!(said, format!("{{\"ssl\": {is_encrypted}}}"), "{mode}");
    }
    let other_name = url("require").replace("127.0.0.1", "localhost");
    for (why, url, ca) in [
        ("another CA", url("require"), Some(stranger.pem())),
        ("the system's roots", url("verify-full"), None),
        ("rename the parameter", other_name, Some(authority.pem())),
        ("prefer is not plain text for whoever asks", url("prefer"), Some(stranger.pem())),
        ("a CA and no TLS", url("disable"), Some(authority.pem())),
    ] {
        let source = Secrets::new(&url, ca.as_deref()).source();
        let error = fetch(&source, "select 1 as one").await.unwrap_err().to_string();
        assert!(error.contains("caFrom") && !error.contains(PostgresServer::PASSWORD), "{why}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_url_or_ca_is_kept_out_until_it_changes() {
    const USER: &str = "select current_user as name";
    let authority = Authority::new();
    let server = PostgresServer::start(&authority.certify("127.0.0.1")).await;
    let first = server.url("larder", PostgresServer::PASSWORD, "require");
    let secrets = Secrets::new(&first, Some(&authority.pem()));
    let source = secrets.source();
    assert_eq!(answer(&source, USER).await, r#"{"name": "larder"}"#);
    assert_eq!(source.last_error(), None);
    for (file, bad, says) in [
        ("url", server.url("larder", "wrong-password", "require"), "authentication failed"),
        ("url", first.replace("@127.0.0.1", "@127.0.0.1:x"), "percent-encoded"),
        ("url", format!("{first}&sslmode=allow"), "sslmode"),
        ("ca", Authority::new().pem(), "caFrom"),
        ("ca", "no certificate".to_owned(), "no certificate"),
    ] {
        let good = fs::read_to_string(secrets.0.join(file)).unwrap();
        secrets.write(file, &bad);
        let last_error = until("an error", async || source.last_error()).await;
        assert!(last_error.contains(says), "{last_error}");
        assert!(
            !last_error.contains("wrong-password") && !last_error.contains(PostgresServer::PASSWORD),
            "{last_error}"
        );
        assert_eq!(answer(&source, USER).await, r#"{"name": "larder"}"#, "the last good value still works");
        secrets.write(file, &good);
        until("no error", async || source.last_error().is_none().then_some(())).await;
    }
    server.run("create role second login password 'open'").await;
    secrets.write("url", &server.url("second", "open", "require"));
    until("the new user", async || (answer(&source, USER).await == r#"{"name": "second"}"#).then_some(()))
        .await;
    assert_eq!(source.last_error(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn source_without_its_secret_works_once_the_secret_exists() {
    let database = Database::new("").await;
    let url = fs::read_to_string(database.url_file()).unwrap();
    fs::remove_file(database.url_file()).unwrap();
    let source = PostgresSource::start(database.source("statementTimeout: 1s"));
    assert!(matches!(fetch(&source, "select 1 as one").await, Err(PostgresError::Failed(_))));
    assert!(source.last_error().is_some() && !source.is_up());
    fs::write(database.url_file(), url).unwrap();
    until("a response", async || fetch(&source, "select 1 as one").await.ok()).await;
    assert_eq!(source.last_error(), None);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_never_statements() {
    let database = Database::new("create table items (name text); insert into items values ('pen')").await;
    let source = PostgresSource::start(database.source("statementTimeout: 2s"));
    let query = query("select {query.name} as name, {query.name} is null as missing from items");
    let ask = async |sent: Option<&str>| {
        let values = Values { query: sent, ..Values::default() };
        let found = source.fetch(&query, &values).await.unwrap().unwrap();
        serde_json::from_slice::<serde_json::Value>(&found).unwrap()
    };
    for name in ["'; drop table items; --", "' or '1'='1", "$1", "{query.name}", "\\", "\" \u{1F58A} \n", ""]
    {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let found = ask(Some(&format!("x=1&name={encoded}&name=second"))).await;
        assert_eq!(found, serde_json::json!({"name": name, "missing": false}));
    }
    for sent in [None, Some(""), Some("nam=1&x=name")] {
        assert_eq!(ask(sent).await, serde_json::json!({"name": null, "missing": true}), "{sent:?}");
    }
    assert_eq!(database.number("select count(*) from items").await, 1);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_persist_statements_write() {
    let database = Database::new("create table items (key text primary key, value jsonb)").await;
    let source = PostgresSource::start(database.source("maxConnectionsPerPod: 1"));
    let insert = "insert into items values ('a', '{}') returning key";
    let write = format!("with written as ({insert}) select key from written");
    let refused = async || {
        // Nothing that a statement did to the connection lets a query write.
        for text in [write.as_str(), "select set_config('transaction_read_only', 'off', false)"] {
            let error = fetch(&source, text).await.unwrap_err();
            assert!(matches!(error, PostgresError::Refused(_)), "{error}");
        }
    };
    refused().await;
    let keep = statement("insert into items values ('b', {body}::jsonb) on conflict do nothing");
    let body = |body| Values { body: Some(body), ..Values::default() };
    assert_eq!(source.execute(&keep, &body("{\"price\": 1.50}")).await.unwrap(), 1);
    assert_eq!(source.execute(&keep, &body("[]")).await.unwrap(), 0);
    refused().await;
    for _ in 0..10 {
        let error = source.execute(&keep, &body("not JSON")).await.unwrap_err();
        assert!(matches!(error, PostgresError::Refused(_)) && error.to_string().contains("json"), "{error}");
    }
    assert_eq!(answer(&source, "select value from items").await, r#"{"value": {"price": 1.50}}"#);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_inserts_persist_one_row() {
    let database = Database::new("create table items (key text primary key, value text)").await;
    let pods: Vec<_> = (0..4)
        .map(|_| PostgresSource::start(database.source("statementTimeout: 10s, maxConnectionsPerPod: 2")))
        .collect();
    let keep = statement("insert into items values ('a', {body}) on conflict do nothing");
    let values = Values { body: Some("{}"), ..Values::default() };
    let all = (0..20).map(|number| pods[number % pods.len()].execute(&keep, &values));
    let touched: u64 = futures::future::try_join_all(all).await.unwrap().into_iter().sum();
    assert_eq!((touched, database.number("select count(*) from items").await), (1, 1));
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_exhausted_is_not_a_dead_server() {
    let database = Database::new("").await;
    let source = PostgresSource::start(database.source("maxConnectionsPerPod: 1, statementTimeout: 3s"));
    let source = Arc::new(source);
    let slow = format!("select pg_sleep(30)::text, '{}'", database.schema());
    let occupant = tokio::spawn({
        let (source, slow) = (Arc::clone(&source), slow.clone());
        async move { fetch(&source, &slow).await }
    });
    let running = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(30)%{}%' \
         and application_name = 'larder'",
        database.schema()
    );
    until("the statement runs", async || (database.number(&running).await == 1).then_some(())).await;
    let waiting = (0..10).map(|_| fetch(&source, &slow));
    for outcome in futures::future::join_all(waiting).await {
        assert!(matches!(outcome, Err(PostgresError::Busy(1))), "{outcome:?}");
    }
    assert!(matches!(occupant.await.unwrap(), Err(PostgresError::Deadline(_))));
    assert_eq!(answer(&source, "select 1 as one").await, r#"{"one": 1}"#);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_late_ends_in_postgres_too_and_leaves_its_connection() {
    let database = Database::new("").await;
    let source = PostgresSource::start(database.source("maxConnectionsPerPod: 1, statementTimeout: 500ms"));
    let slow = format!("select pg_sleep(30)::text, '{}'", database.schema());
    let error = fetch(&source, &slow).await.unwrap_err();
    assert!(
        matches!(error, PostgresError::Deadline(limit) if limit == Duration::from_millis(500)),
        "{error}"
    );
    until("another connection answers", async || fetch(&source, "select 1 as one").await.ok()).await;
    let running = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(30)%{}%' \
         and application_name = 'larder'",
        database.schema()
    );
    until("the connection ended", async || (database.number(&running).await == 0).then_some(())).await;
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_postgres_ended_is_replaced() {
    let database = Database::new("").await;
    let source = PostgresSource::start(database.source("maxConnectionsPerPod: 1"));
    let pid = "select pg_backend_pid() as pid";
    let first = answer(&source, pid).await;
    let number = first.trim_matches(|c: char| !c.is_ascii_digit());
    database.run(&format!("select pg_terminate_backend({number})")).await;
    let second = until("a response", async || fetch(&source, pid).await.ok()).await.unwrap();
    assert_ne!(second, first);
    database.drop_schema().await;
}
