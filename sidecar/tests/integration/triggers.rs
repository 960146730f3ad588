//! Triggers that `larder sql trigger` prints.

use std::{collections::BTreeSet, future::poll_fn};

use larder_policy::trigger::Trigger;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::listening::{open, trigger};

/// A client that writes, and hears what triggers say of it.
struct Writer {
    client: Client,
    payloads: mpsc::UnboundedReceiver<String>,
    _connection: AbortOnDropHandle<()>,
}

impl Writer {
    async fn connect(url: &str) -> Self {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let (sender, payloads) = mpsc::unbounded_channel();
        let connection = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message {
                    sender.send(notification.payload().to_owned()).unwrap();
                }
            }
        });
        client.batch_execute("listen shop").await.unwrap();
        Self { client, payloads, _connection: AbortOnDropHandle::new(connection) }
    }

    async fn run(&self, statements: &str) {
        self.client.batch_execute(statements).await.unwrap();
    }

    /// Writes, and returns what the triggers name.
    async fn names(&mut self, write: &str) -> Vec<String> {
        self.run(write).await;
        self.run("").await;
        let mut found = BTreeSet::new();
        while let Ok(payload) = self.payloads.try_recv() {
            assert!(payload.len() < 8_000);
            let payload: Value = serde_json::from_str(&payload).unwrap();
            for kind in ["tags", "paths", "prefixes"] {
                let names = payload[kind].as_array().into_iter().flatten();
                found.extend(names.map(|name| format!("{kind} {}", name.as_str().unwrap())));
            }
            for fact in ["everything", "soft"] {
                found.extend((payload[fact] == true).then(|| fact.to_owned()));
            }
        }
        found.into_iter().collect()
    }
}

fn of_odd(tags: &[&str], prefixes: &[&str]) -> Trigger {
    let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Trigger { table: "odd".into(), tags: list(tags), prefixes: list(prefixes), ..trigger() }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_fails_because_of_a_trigger() {
    let shop = open(&trigger()).await;
    let mut writer = Writer::connect(&shop.url()).await;
    writer
        .run(
            "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             create table odd (id text collate loose, name text collate \"POSIX\", team text collate \"en-x-icu\")",
        )
        .await;
    writer.run(&of_odd(&["{id}:{name}", "{name}", "{team}"], &["/{id}/{team}"]).sql().unwrap()).await;
    let insert = "insert into odd values ('A', 'b', 'c'), ('a', 'b', 'c')";
    let expected = ["prefixes /A/c", "prefixes /a/c", "tags A:b", "tags a:b", "tags b", "tags c"];
    assert_eq!(writer.names(insert).await, expected, "collations differ");
    writer.run("alter table odd rename name to nickname").await;
    assert_eq!(writer.names(insert).await, ["everything"], "a column has another name");

    let mistyped = of_odd(&["{nicknam}"], &[]).sql().unwrap();
    let error = writer.client.batch_execute(&mistyped).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("nicknam"), "{error}");
    writer.run("rollback").await;

    writer.run("create database bytes encoding 'SQL_ASCII' template template0").await;
    let mut writer = Writer::connect(&shop.url().replace("/postgres?", "/bytes?")).await;
    writer.run("create table odd (id text)").await;
    writer.run(&of_odd(&["{id}"], &[]).sql().unwrap()).await;
    assert_eq!(writer.names("insert into odd values (chr(255))").await, ["everything"], "no text");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_do_not_depend_on_settings_of_the_session_that_writes() {
    let shop = open(&trigger()).await;
    let mut writer = Writer::connect(&shop.url()).await;
    writer
        .run("create table odd (day date, instant timestamptz, span interval, raw bytea, ratio float8, name text)")
        .await;
    let tags = ["{day}", "{instant}", "{span}", "{raw}", "{ratio}", "it's \\ {name}"];
    writer.run(&of_odd(&tags, &[]).sql().unwrap()).await;
    let insert = "truncate odd; insert into odd values
        (date '2026-01-02', timestamptz '2026-01-02 03:04:05Z', interval '1 day 2 hours', decode('6162', 'hex'), 1 / 3.0::float8, 'a b')";
    writer.names(insert).await;
    let usual = writer.names(insert.strip_prefix("truncate odd;").unwrap()).await;
    let of_bytes = usual.iter().find(|name| name.ends_with("%78%36%31%36%32"));
    assert!(usual.len() == 6 && of_bytes.is_some(), "{usual:?}");
    writer
        .run(
            "set standard_conforming_strings = off; set datestyle = 'SQL, DMY'; set intervalstyle = iso_8601;
             set timezone = 'Asia/Tokyo'; set bytea_output = escape; set extra_float_digits = -5",
        )
        .await;
    assert_eq!(writer.names(insert.strip_prefix("truncate odd;").unwrap()).await, usual);
}

#[tokio::test(flavor = "multi_thread")]
async fn value_leads_out_of_no_folder_and_an_empty_one_is_no_tag() {
    let shop = open(&trigger()).await;
    let mut writer = Writer::connect(&shop.url()).await;
    writer.run("create table odd (name text)").await;
    let trigger =
        Trigger { paths: vec!["/p/{name}".into()], ..of_odd(&["{name}"], &["/u/{name}", "/u/.{name}/x"]) };
    writer.run(&trigger.sql().unwrap()).await;
    for value in ["..", "../..", "a/..", "%2e%2E", "%252e.", "..;a", "..\\.."] {
        let names = writer.names(&format!("insert into odd values ('{value}')")).await;
        for name in ["prefixes /u/", "prefixes /p/"] {
            assert!(names.iter().any(|known| known == name), "{value}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("paths ")), "{value}: {names:?}");
    }
    assert_eq!(
        writer.names("insert into odd values ('.')").await,
        ["prefixes /p/", "prefixes /u/", "tags ."]
    );
    assert_eq!(writer.names("insert into odd values ('')").await, ["paths /p/", "prefixes /u/"]);
    assert_eq!(
        writer.names("insert into odd values ('a.b..c')").await,
        ["paths /p/a.b..c", "prefixes /u/.a.b..c/x", "prefixes /u/a.b..c", "tags a.b..c"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_names_rows_before_and_after_in_payloads_that_postgres_takes() {
    let trigger = Trigger {
        tags: vec!["user:{id}".into(), "it's a \"team\\\":{team}".into()],
        paths: vec!["/api/users/{id}".into()],
        prefixes: vec!["/teams/{team}".into()],
        soft: true,
        ..trigger()
    };
    let shop = open(&trigger).await;
    let mut writer = Writer::connect(&shop.url()).await;
    let mut names = async |write: &str| writer.names(write).await;
    assert_eq!(
        names("update users set team = 'b/ü' where id = '1'").await,
        [
            "paths /api/users/1",
            "prefixes /teams/%622f%c3%bc".replace("%622f", "%62%2f").as_str(),
            "prefixes /teams/a",
            "soft",
            "tags it's a \"team\\\":%62%2f%c3%bc",
            "tags it's a \"team\\\":a",
            "tags user:1",
        ]
    );
    assert_eq!(
        names("insert into users (id) values ('new')").await,
        ["paths /api/users/new", "soft", "tags user:new"],
        "no name has a value that is missing"
    );
    assert_eq!(names("update users set name = 'x' where id = 'none'").await, [""; 0]);
    assert_eq!(
        names("update users set name = 'y' where id in (select n::text from generate_series(1, 400) as n)")
            .await
            .len(),
        805
    );
    assert_eq!(
        names("update users set name = 'z' where id <> 'new'").await,
        ["everything", "soft"],
        "too many rows"
    );
    assert_eq!(names("insert into users values (repeat('x', 5000), 'long')").await, ["everything", "soft"]);
    assert_eq!(names("truncate users").await, ["everything", "soft"]);
}
