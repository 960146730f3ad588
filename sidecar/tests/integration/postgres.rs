//! Responses from Postgres.

use std::time::{Duration, Instant};

use http::Method;

use super::harness::{Database, Origin, Policy, Sidecar, until};

const ITEMS: &str = "
create table items (key int primary key, value jsonb, shelf text);
insert into items values (1, '{\"name\": \"pen\", \"price\": 1.50}', 'a'), (2, null, 'b'), (3, '[]', 'b');
create sequence visits;
create function write_item() returns int language sql as 'insert into items values (99) returning key';
";

const SPEC: &str = r#"
sources:
- {name: catalog, postgres: {urlFrom: DATABASE, statementTimeout: 1s}}
routes:
- {name: item, match: {path: "/item/{key}"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select key, value from items where key = {key}::int"}}]}
- {name: shelf, match: {path: "/shelf/{shelf}"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select key from items where shelf = {shelf} order by key"}}]}
- {name: function, match: {path: "/function/{x}"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select write_item() as key where {x} = 'x'"}}]}
- {name: insert, match: {path: "/insert/{x}"}, ttl: 60s, from: [{postgres: {source: catalog, query: "with w as (insert into items values (98, null, {x}) returning key) select key from w"}}]}
- {name: sequence, match: {path: "/sequence"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select nextval('visits')"}}]}
- {name: slow, match: {path: "/slow"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select pg_sleep(30)::text"}}]}
- {name: broken, match: {path: "/broken"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select nothing from nowhere"}}]}
"#;

async fn start(database: &Database) -> (Origin, Policy, Sidecar) {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(&database.serve(SPEC));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    (origin, policy, sidecar)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_is_an_object_several_are_an_array_and_none_is_a_404() {
    let database = Database::new(ITEMS).await;
    let (origin, _policy, sidecar) = start(&database).await;
    let one = sidecar.get("/item/1").await;
    assert_eq!(one.body, r#"{"key": 1, "value": {"name": "pen", "price": 1.50}}"#);
    assert_eq!(one.header("content-type"), "application/json");
    assert_eq!(one.cache_status(), "larder; fwd=uri-miss; fwd-status=200; stored; detail=postgres");
    database.run("delete from items where key = 1").await;
    let hit = sidecar.get("/item/1").await;
    assert_eq!(
        (hit.hit(), hit.body.as_str(), hit.header("content-type")),
        (Some("l1"), one.body.as_str(), "application/json")
    );
    assert_eq!(sidecar.get("/shelf/b").await.body, r#"[{"key": 2},{"key": 3}]"#);
    let head = sidecar.request(Method::HEAD, "/shelf/b", &[], "").await;
    assert_eq!((head.status.as_u16(), head.body.as_str()), (200, ""));
    let none = sidecar.get("/item/4").await;
    assert_eq!((none.status.as_u16(), none.header("content-type")), (404, "application/problem+json"));
    assert_eq!(origin.calls(), 0);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_can_not_be_cast_is_a_404_and_no_fault_of_the_tiers() {
    let database = Database::new(ITEMS).await;
    let (_origin, _policy, sidecar) = start(&database).await;
    for value in ["abc", "99999999999999999999", "1.5", "%00", "1%00"] {
        for _ in 0..3 {
            assert_eq!(sidecar.get(&format!("/item/{value}")).await.status, 404, "{value}");
        }
    }
    assert_eq!(sidecar.get("/item/1").await.status, 200);
    assert_eq!(sidecar.metric("larder_tier_errors_total", &[]).await, 0.0);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_looks_like_sql_is_only_text() {
    let database = Database::new(ITEMS).await;
    let (_origin, _policy, sidecar) = start(&database).await;
    for value in [
        "b'%20or%20'1'='1",
        "b';drop%20table%20items;--",
        "%27%20union%20select%201--",
        "$1",
        "%7Bshelf%7D",
        "b%5C",
    ] {
        assert_eq!(sidecar.get(&format!("/shelf/{value}")).await.status, 404, "{value}");
    }
    assert_eq!(database.number("select count(*) from items").await, 3);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_write_nothing() {
    let database = Database::new(ITEMS).await;
    let (_origin, _policy, sidecar) = start(&database).await;
    for path in ["/insert/x", "/function/x", "/sequence"] {
        assert_eq!(sidecar.get(path).await.status, 502, "{path}");
    }
    assert_eq!(database.number("select count(*) from items").await, 3);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_statement_is_a_502_in_time() {
    let database = Database::new(ITEMS).await;
    let (_origin, _policy, sidecar) = start(&database).await;
    let asked_at = Instant::now();
    assert_eq!(sidecar.get("/slow").await.status, 502);
    let took = asked_at.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(2), "{took:?}");
    until("the statement ends in Postgres too", async || {
        let running = "select count(*) from pg_stat_activity where state = 'active' and application_name = 'larder' \
                       and query like '%pg_sleep(30)%'";
        (database.number(running).await == 0).then_some(())
    })
    .await;
    assert_eq!(sidecar.get("/item/1").await.status, 200);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_postgres_refuses_does_not_take_its_source_from_other_routes() {
    let database = Database::new(ITEMS).await;
    let (_origin, _policy, sidecar) = start(&database).await;
    for _ in 0..10 {
        assert_eq!(sidecar.get("/broken").await.status, 502);
    }
    assert_eq!(sidecar.get("/item/1").await.status, 200);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bypassing_request_is_served_by_the_source() {
    let database = Database::new(ITEMS).await;
    let (origin, _policy, sidecar) = start(&database).await;
    for header in [("cookie", "a=b"), ("range", "bytes=0-0,2-2")] {
        let answer = sidecar.get_with("/item/3", &[header]).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"key": 3, "value": []}"#));
        assert!(answer.cache_status().starts_with("larder; fwd=bypass; fwd-status=200; detail="));
    }
    assert_eq!(sidecar.get("/item/3").await.hit(), None, "the response was not stored");
    assert_eq!(origin.calls(), 0);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_source_is_reported_up_or_down() {
    let database = Database::new(ITEMS).await;
    let relay = database.through_a_relay().await;
    let (_origin, _policy, sidecar) = start(&database).await;
    sidecar.until_tiers_are("up").await;
    drop(relay);
    sidecar.until_tiers_are("down").await;
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_stored_rows_are_served_and_others_are_a_502() {
    let database = Database::new(ITEMS).await;
    let relay = database.through_a_relay().await;
    let (_origin, _policy, sidecar) = start(&database).await;
    assert_eq!(sidecar.get("/item/1").await.status, 200);
    drop(relay);
    for _ in 0..10 {
        let asked_at = Instant::now();
        assert_eq!(sidecar.get("/item/2").await.status, 502);
        assert!(asked_at.elapsed() < Duration::from_secs(2));
        assert_eq!(sidecar.get("/item/1").await.hit(), Some("l1"));
    }
    assert_eq!(sidecar.policy().await["tiers"]["postgres/catalog"], "down");
    // A Secret that changed: it is there again, elsewhere.
    database.reach_by(|url| url);
    until("Postgres again", async || (sidecar.get("/item/2").await.status == 200).then_some(())).await;
    database.drop_schema().await;
}
