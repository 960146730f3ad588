//! A route that reads through: Postgres, then an HTTP source, whose responses are persisted in Postgres.

use futures::future::join_all;
use http::StatusCode;

use super::harness::{Answer, Database, Origin, Policy, Sidecar, reply, until};

const ITEMS: &str =
    "create table items (key text, page text, value jsonb, unique nulls not distinct (key, page))";

/// The policy's `spec`; `WRITE` is the statement that persists.
const SPEC: &str = r#"
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
- {name: store, http: {url: "http://STORE/v1"}}
routes:
- name: item
  match: {path: "/data/{key}"}
  ttl: 60s
  from:
  - {postgres: {source: catalog, query: "select value from items where key = {key} and page is not distinct from {query.page}"}}
  - {http: {source: store, path: "/products/{key}?page={query.page}", persist: {source: catalog, statement: "WRITE"}}}
"#;

const KEEP: &str =
    "insert into items values ({key}, {query.page}, {body}::jsonb) on conflict (key, page) do nothing";

/// A store that has everything, a few keys aside.
async fn store() -> Origin {
    Origin::start(|seen| async move {
        let path = seen.path.split('?').next().unwrap_or_default();
        let mut reply =
            reply(&[("content-type", "application/json")], format!("{{\"asked\": \"{}\"}}", seen.path));
        *reply.status_mut() = match path {
            "/v1/products/none" => StatusCode::NOT_FOUND,
            "/v1/products/moved" => StatusCode::FOUND,
            "/v1/products/broken" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        };
        reply
    })
    .await
}

async fn policy(database: &Database, store: &Origin, keep: &str) -> Policy {
    let spec = SPEC.replace("STORE", &store.address.to_string()).replace("WRITE", keep);
    Policy::new(&database.serve(&spec))
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_persist_one_row_and_read_it_from_postgres_then() {
    let (database, store, origin) = (Database::new(ITEMS).await, store().await, Origin::numbered(&[]).await);
    let policy = policy(&database, &store, KEEP).await;
    let mut pods = vec![];
    for _ in 0..2 {
        pods.push(Sidecar::start(&policy, origin.address).await);
    }
    let answers = join_all((0..20).map(|number| pods[number % pods.len()].get("/data/pen"))).await;
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    }
    // One pod may find what the other has kept already.
    let of_store = |answer: &Answer| answer.body == r#"{"asked": "/v1/products/pen?page="}"#;
    assert!(answers.iter().any(of_store), "{answers:?}");
    let rows = "select count(*) from items where key = 'pen' and page is null";
    until("the row is persisted", async || (database.number(rows).await == 1).then_some(())).await;
    let asked = store.calls();
    let another = Sidecar::start(&policy, origin.address).await;
    let answer = another.get("/data/pen").await;
    assert_eq!(answer.body, r#"{"value": {"asked": "/v1/products/pen?page="}}"#);
    let hit = another.get("/data/pen").await;
    assert_eq!((hit.hit(), &hit.body), (Some("l1"), &answer.body));
    assert!(hit.header("date").ends_with(" GMT"), "what a source responded has the time at which it came");
    assert!(answer.cache_status().ends_with("detail=postgres"), "{}", answer.cache_status());
    assert_eq!((store.calls(), origin.calls()), (asked, 0));
    assert_eq!(database.number("select count(*) from items").await, 1);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_parts_of_urls_and_statements_and_never_more() {
    let (database, store, origin) = (Database::new(ITEMS).await, store().await, Origin::numbered(&[]).await);
    let policy = policy(&database, &store, KEEP).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (asked, store_sees) in [
        (
            "/data/a%27%29;drop%20table%20items;--?page=1",
            "/v1/products/a%27%29%3Bdrop%20table%20items%3B--?page=1",
        ),
        ("/data/b?page=1%26admin=1%23x", "/v1/products/b?page=1%26admin%3D1%23x"),
        ("/data/c?page=%27%7C%7C%28select+1%29--", "/v1/products/c?page=%27%7C%7C%28select%201%29--"),
    ] {
        let answer = sidecar.get(asked).await;
        assert_eq!(answer.body, format!("{{\"asked\": \"{store_sees}\"}}"), "{asked}");
    }
    until("all are kept", async || (database.number("select count(*) from items").await == 3).then_some(()))
        .await;
    let kept = "select count(*) from items where (key, page) in (values ('b', '1&admin=1#x'), ('c', '''||(select 1)--'))";
    assert_eq!(database.number(kept).await, 2);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_cannot_be_persisted_is_still_served() {
    let (database, store, origin) = (Database::new(ITEMS).await, store().await, Origin::numbered(&[]).await);
    let nowhere = "insert into nowhere values ({body}) on conflict do nothing";
    let policy = policy(&database, &store, nowhere).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for number in 0..10 {
        assert_eq!(sidecar.get(&format!("/data/{number}")).await.status, 200);
    }
    assert_eq!(sidecar.get("/data/0").await.hit(), Some("l1"));
    assert_eq!(sidecar.policy().await["tiers"]["postgres/catalog"], "up");
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_source_response_is_neither_stored_nor_persisted() {
    let (database, store, origin) = (Database::new(ITEMS).await, store().await, Origin::numbered(&[]).await);
    let policy = policy(&database, &store, KEEP).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, status) in [("/data/none", 404), ("/data/moved", 502), ("/data/broken", 502)] {
        for _ in 0..2 {
            assert_eq!(sidecar.get(path).await.status, status, "{path}");
        }
    }
    assert_eq!(sidecar.get("/data/pen").await.status, 200);
    until("the one row is persisted", async || {
        (database.number("select count(*) from items where key = 'pen'").await == 1).then_some(())
    })
    .await;
    assert_eq!(database.number("select count(*) from items").await, 1);
    assert_eq!(origin.calls(), 0);
    database.drop_schema().await;
}
