//! Caching of "not found" from every source.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::future::join_all;
use http::StatusCode;

use super::harness::{Database, Origin, Policy, RedisServer, Sidecar, Wire, reply, until};

const ITEMS: &str = "create table items (key text primary key, value jsonb)";

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
- {name: store, http: {url: "http://STORE"}}
routes:
- name: item
  match: {path: "/data/{key}"}
  ttl: 10m
  TTL
  tags: ["item:{key}"]
  from:
  - {postgres: {source: catalog, query: "select value from items where key = {key}"}}
  - http:
      source: store
      path: "/{key}"
      persist: {source: catalog, statement: "insert into items values ({key}, {body}::jsonb) on conflict do nothing"}
"#;

/// A store that is empty until it is filled.
async fn store() -> (Origin, Arc<AtomicBool>) {
    let filled = Arc::new(AtomicBool::new(false));
    let is_filled = Arc::clone(&filled);
    let store = Origin::start(move |_| {
        let mut reply = reply(&[("content-type", "application/json")], r#"{"of": "store"}"#);
        if !is_filled.load(Ordering::SeqCst) {
            *reply.status_mut() = StatusCode::NOT_FOUND;
        }
        async { reply }
    })
    .await;
    (store, filled)
}

fn policy(database: &Database, store: &Origin, ttl: &str) -> Policy {
    let spec = SPEC.replace("STORE", &store.address.to_string()).replace("  TTL\n", &format!("  {ttl}\n"));
    Policy::new(&database.serve(&spec))
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_cached_for_its_ttl() {
    let (database, (store, _)) = (Database::new(ITEMS).await, store().await);
    let policy = policy(&database, &store, "notFoundTTL: 10m");
    let (a, b) = (Sidecar::start(&policy, store.address).await, Sidecar::start(&policy, store.address).await);
    let answers = join_all((0..20).map(|number| [&a, &b][number % 2].get("/data/none"))).await;
    assert!(
        answers.iter().all(|answer| answer.status == 404 && answer.body == answers[0].body),
        "{answers:?}"
    );
    for pod in [&a, &b] {
        let answer = pod.get("/data/none").await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (404, Some("l1")));
        assert!(answer.ttl().is_some_and(|ttl| (500..=600).contains(&ttl)), "{}", answer.cache_status());
    }
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    let c = Sidecar::start(&policy, store.address).await;
    assert_eq!((c.get("/data/none").await.hit(), store.calls()), (Some("l2"), 1));
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_requested_again_after_its_ttl() {
    let (database, (store, filled)) = (Database::new(ITEMS).await, store().await);
    let policy = policy(&database, &store, "notFoundTTL: 1s");
    let sidecar = Sidecar::start(&policy, store.address).await;
    assert_eq!(sidecar.get("/data/a").await.status, 404);
    filled.store(true, Ordering::SeqCst);
    let answer = until("the row is there", async || {
        let answer = sidecar.get("/data/a").await;
        assert!(answer.status == 200 || answer.hit().is_some(), "{answer:?}");
        Some(answer).filter(|answer| answer.status == 200)
    })
    .await;
    assert_eq!(answer.body, r#"{"of": "store"}"#);
    assert!(sidecar.get("/data/a").await.ttl().is_some_and(|ttl| ttl > 500), "that has the route's ttl");
    assert_eq!(store.calls(), 2);
    // The response was persisted, and Postgres comes first.
    until("it is kept", async || (database.number("select count(*) from items").await == 1).then_some(()))
        .await;
    assert_eq!(sidecar.purge(r#"{"tags": ["item:a"]}"#).await.status, 200);
    let answer = sidecar.get("/data/a").await;
    assert!(answer.cache_status().ends_with("detail=postgres"), "{}", answer.cache_status());
    assert_eq!(store.calls(), 2);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_not_cached_with_a_ttl_of_0() {
    let (database, (store, _)) = (Database::new(ITEMS).await, store().await);
    let policy = policy(&database, &store, "notFoundTTL: 0s");
    let sidecar = Sidecar::start(&policy, store.address).await;
    for asked in 1..=4 {
        let answer = sidecar.get("/data/a").await;
        assert_eq!((answer.status.as_u16(), answer.hit(), store.calls()), (404, None, asked));
    }
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_drops_not_found_in_every_pod() {
    let (database, (store, _)) = (Database::new(ITEMS).await, store().await);
    let policy = policy(&database, &store, "notFoundTTL: 1h");
    let (a, b) = (Sidecar::start(&policy, store.address).await, Sidecar::start(&policy, store.address).await);
    for pod in [&a, &b] {
        assert_eq!(pod.get("/data/a").await.status, 404);
    }
    database.run("insert into items values ('a', '{}')").await;
    assert_eq!(b.get("/data/a").await.hit(), Some("l1"));
    assert_eq!(a.purge(r#"{"tags": ["item:a"]}"#).await.status, 200);
    for pod in [&b, &a] {
        let answer = pod.get("/data/a").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"value": {}}"#));
    }
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bypassing_request_is_not_stored_when_the_application_has_the_last_word() {
    let database = Database::new(ITEMS).await;
    let origin = Origin::start(|seen| async move {
        let person = [seen.header("cookie"), seen.header("x-preview")].concat();
        reply(&[("content-type", "application/json")], format!("\"{person}\""))
    })
    .await;
    let policy = Policy::new(&database.serve(
        r#"
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
routes:
- name: item
  match: {path: "/data/{key}"}
  ttl: 10m
  bypass: {headers: {x-preview: "1"}}
  from:
  - {postgres: {source: catalog, query: "select value from items where key = {key}"}}
  - {application: {}}
"#,
    ));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, name, value) in [("/data/a", "cookie", "session=alice"), ("/data/b", "x-preview", "1")] {
        let own = sidecar.get_with(path, &[(name, value)]).await;
        assert_eq!(own.body, format!("\"{value}\""));
        assert!(!own.cache_status().contains("stored"), "{}", own.cache_status());
        assert_eq!(sidecar.get(path).await.body, "\"\"", "{name}");
    }
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_gets_the_body_that_came_with_a_request() {
    let store = store().await.0;
    let application = Origin::numbered(&[]).await;
    let spec = SPEC.replace("STORE", &store.address.to_string()).replace("  TTL\n", "");
    let from = spec.find("  - {postgres: {source").unwrap();
    let spec =
        format!("{}  - http: {{source: store, path: \"/{{key}}\"}}\n  - application: {{}}\n", &spec[..from]);
    let database = Database::new(ITEMS).await;
    let policy = Policy::new(&database.serve(&spec));
    let sidecar = Sidecar::start(&policy, application.address).await;
    // Bytes that are read as a body must not be read as the next request.
    let body = "GET /other HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    let with_body =
        format!("GET /data/a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut wire = Wire::to(sidecar.address).await;
    wire.say(with_body).await;
    let (head, answer) = wire.answer().await;
    assert!(head.contains("detail=content") && answer == "1", "{head}");
    assert_eq!(application.last().body, body);
    wire.ask("/data/b").await;
    assert_eq!(wire.answer().await.1, "2");
    assert_eq!(application.calls(), 2);
}
