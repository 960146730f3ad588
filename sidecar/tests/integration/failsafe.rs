//! Fallbacks for sources that fail or take too long.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::join_all;
use http::StatusCode;
use tokio::sync::Semaphore;

use super::harness::{
    Answer, Database, Fault, Folder, Origin, Policy, RedisServer, Relay, Sidecar, reply, until,
};

/// The switch that makes an application fail.
#[derive(Clone, Debug, Default)]
struct Switch(Arc<AtomicBool>);

impl Switch {
    fn fail(&self, whether: bool) {
        self.0.store(whether, Ordering::SeqCst);
    }

    fn fails(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// An application that responds with the request's number, or with 503.
async fn switched() -> (Origin, Switch) {
    let switch = Switch::default();
    let of_origin = switch.clone();
    let origin = Origin::start(move |seen| {
        let mut reply = reply(&[("content-type", "application/json")], seen.number.to_string());
        if of_origin.fails() {
            *reply.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        async { reply }
    })
    .await;
    (origin, switch)
}

fn stands_in(answer: &Answer, body: &str) -> bool {
    answer.status == 200 && answer.body == body && answer.cache_status().ends_with("detail=stale-if-error")
}

async fn until_it_stands_in(pod: &Sidecar, path: &str) -> String {
    until("the stored response is served as a fallback", async || {
        let answer = pod.get(path).await;
        assert_eq!(answer.status, 200);
        answer.cache_status().ends_with("detail=stale-if-error").then_some(answer.body)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_application_is_retried_at_intervals() {
    let failing = Switch::default();
    let (of_origin, permits) = (failing.clone(), Arc::new(Semaphore::new(0)));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let (failing, gate) = (of_origin.clone(), Arc::clone(&gate));
        async move {
            let mut reply = reply(&[], seen.number.to_string());
            if failing.fails() {
                gate.acquire().await.unwrap().forget();
                *reply.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            reply
        }
    })
    .await;
    let policy = Policy::new(
        r#"
routes:
- {name: rarely, match: {path: "/rarely"}, ttl: 1s, staleIfError: 10m, retryInterval: 1h}
- {name: often, match: {path: "/often"}, ttl: 1s, staleIfError: 10m, retryInterval: 200ms}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let rarely = sidecar.get("/rarely").await.body;
    let often = sidecar.get("/often").await.body;
    failing.fail(true);
    let asking = join_all((0..10).map(async |_| {
        until("the response is stale", async || {
            Some(sidecar.get("/rarely").await).filter(|answer| answer.hit().is_none())
        })
        .await
    }));
    let letting_go = async {
        until("the request reaches the application", async || (origin.calls() == 3).then_some(())).await;
        permits.add_permits(100);
    };
    let (answers, ()) = tokio::join!(asking, letting_go);
    assert!(answers.iter().all(|answer| stands_in(answer, &rarely)), "{answers:?}");
    for _ in 0..20 {
        assert!(stands_in(&sidecar.get("/rarely").await, &rarely));
    }
    let head = sidecar.request(http::Method::HEAD, "/rarely", &[], "").await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "1"));
    assert_eq!(origin.calls(), 3, "one failure is enough for an hour");
    until("the application gets requests again and again", async || {
        let answer = sidecar.get("/often").await;
        assert!(answer.status == 200 && answer.body == often, "{answer:?}");
        (origin.calls() > 6).then_some(())
    })
    .await;
    failing.fail(false);
    until("the application has recovered", async || {
        (sidecar.get("/often").await.body != often).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_past_its_l1_ttl_is_a_fallback() {
    let (origin, failing) = switched().await;
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 10m, l1TTL: 200ms, staleIfError: 10m, retryInterval: 1h}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    failing.fail(true);
    let stored = until_it_stands_in(&sidecar, "/a").await;
    let asked = origin.calls();
    for _ in 0..20 {
        assert!(stands_in(&sidecar.get("/a").await, &stored));
    }
    assert_eq!(origin.calls(), asked);
}

const SHARED: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1s, staleIfError: 10m, retryInterval: 1h}
- {name: wrapped, match: {path: "/wrapped/{page}"}, ttl: 1s, staleIfError: 10m, retryInterval: 1h, envelope: true}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn response_stored_by_one_pod_is_a_fallback_in_another() {
    let (origin, failing) = switched().await;
    let policy = Policy::new(SHARED);
    let a = Sidecar::start(&policy, origin.address).await;
    a.get("/wrapped/a").await;
    a.get("/a").await;
    policy.until_stored(&mut RedisServer::shared().await, 2).await;
    failing.fail(true);
    let b = Sidecar::start(&policy, origin.address).await;
    assert_eq!(until_it_stands_in(&b, "/a").await, "2");
    // An older response is stale as well.
    for source in ["l2", "l1"] {
        let answer = b.get("/wrapped/a").await;
        assert!(answer.body.starts_with(&format!(r#"{{"source":"{source}","data":1,"#)), "{answer:?}");
    }
    let asked = origin.calls();
    assert!(stands_in(&b.get("/a").await, "2"));
    assert_eq!(origin.calls(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_stored_response_is_the_fallback() {
    let (origin, failing) = switched().await;
    let policy = Policy::new(SHARED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    a.get("/a").await;
    let newer =
        until("another response", async || Some(b.get("/a").await.body).filter(|body| body != "1")).await;
    until("Redis has it", async || {
        let another = Sidecar::start(&policy, origin.address).await;
        (another.get("/a").await.body != "1").then_some(())
    })
    .await;
    failing.fail(true);
    let newest = until_it_stands_in(&b, "/a").await;
    assert!(newest >= newer);
    assert_ne!(until_it_stands_in(&a, "/a").await, "1", "Redis has a newer one");
}

/// A store that responds with the request's number; all but the first response wait for permits.
async fn slow_store() -> (Origin, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let store = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            if seen.number > 1 {
                gate.acquire().await.unwrap().forget();
            }
            reply(&[("content-type", "application/json")], seen.number.to_string())
        }
    })
    .await;
    (store, permits)
}

fn reading_from(store: &Origin, ttl: &str) -> String {
    r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
sources:
- {name: store, http: {url: "http://STORE", timeout: 300ms, hardTimeout: 60s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: TTL, staleIfError: 10m, from: [{http: {source: store, path: "/{page}"}}]}
"#
    .replace("STORE", &store.address.to_string())
    .replace("TTL", ttl)
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_response_is_served_when_a_source_is_slow_and_its_response_is_stored() {
    let (store, permits) = slow_store().await;
    let policy = Policy::new(&reading_from(&store, "1s"));
    let sidecar = Sidecar::start(&policy, store.address).await;
    sidecar.get("/a").await;
    assert_eq!(until_it_stands_in(&sidecar, "/a").await, "1");
    assert_eq!(store.calls(), 2, "the request to the store is still waiting");
    assert!(stands_in(&sidecar.get("/a").await, "1"));
    assert_eq!(store.calls(), 2);
    policy.change(&reading_from(&store, "1h"));
    sidecar.until_it_serves(&policy).await;
    permits.add_permits(1);
    until("the late response is stored", async || {
        let answer = sidecar.get("/a").await;
        (answer.hit().is_some() && answer.body == "2").then_some(())
    })
    .await;
    assert_eq!(store.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_waits_for_another_no_longer_than_for_the_source() {
    let (store, permits) = slow_store().await;
    let policy = Policy::new(&reading_from(&store, "1s"));
    let (a, b) = (Sidecar::start(&policy, store.address).await, Sidecar::start(&policy, store.address).await);
    a.get("/a").await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    b.get("/a").await;
    assert_eq!(until_it_stands_in(&a, "/a").await, "1");
    assert_eq!(until_it_stands_in(&b, "/a").await, "1");
    assert_eq!(store.calls(), 2, "before the other pod would have sent its own request");
    permits.add_permits(10);
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_source_is_a_failure_without_a_stored_response() {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let store = Origin::start(move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(&[], "late")
        }
    })
    .await;
    let policy = Policy::new(&reading_from(&store, "1s").replace("60s", "500ms"));
    let sidecar = Sidecar::start(&policy, store.address).await;
    assert_eq!(sidecar.get("/a").await.status, 502);
    permits.add_permits(10);
    until("another request to the store", async || (sidecar.get("/a").await.status == 200).then_some(()))
        .await;
}

const LAST: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
routes:
- {name: own, match: {path: "/own/{page}"}, lastKnownGood: {source: catalog}}
- {name: page, match: {path: "/{page}"}, ttl: 1s, tags: ["page:{page}"], lastKnownGood: {source: catalog}}
"#;

const ROWS: &str = "select count(*) from larder_last_known_good";

async fn until_kept(database: &Database, rows: i64) {
    until("the last good responses are persisted", async || {
        let made = "select count(*) from information_schema.tables \
                    where table_name = 'larder_last_known_good' and table_schema = current_schema()";
        (database.number(made).await == 1 && database.number(ROWS).await == rows).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_good_response_outlives_redis_and_pods_but_no_purge() {
    let (database, redis) = (Database::new("").await, RedisServer::start().await);
    let origin = Origin::numbered(&[]).await;
    let relay = Relay::to(origin.address).await;
    let address = ([127, 0, 0, 1], relay.port).into();
    let policy = Policy::new(&redis.serve(&database.serve(LAST)));
    let first = Sidecar::start(&policy, address).await;
    let stored = first.get("/a").await.body;
    first.get("/b").await;
    until_kept(&database, 2).await;
    drop((first, relay));
    redis.say(&["FLUSHALL"]).await;
    let second = Sidecar::start(&policy, address).await;
    assert_eq!(until_it_stands_in(&second, "/a").await, stored);
    assert_eq!(second.get("/a").await.body, stored);
    assert_eq!(second.get("/c").await.status, 502);
    assert_eq!(second.get_with("/a", &[("authorization", "Bearer a")]).await.status, 502);
    assert_eq!(second.purge(r#"{"tags": ["page:a"]}"#).await.status, 200);
    assert_eq!(second.get("/a").await.status, 502);
    redis.say(&["FLUSHALL"]).await;
    let third = Sidecar::start(&policy, address).await;
    for pod in [&second, &third] {
        assert_eq!(pod.get("/a").await.status, 502);
        assert_eq!(pod.get("/b").await.status, 200, "the response was not purged");
    }
    assert_eq!(third.purge(r#"{"prefixes": ["/c"]}"#).await.status, 200);
    assert_eq!(second.get("/b").await.status, 200, "the response is under another prefix");
    assert_eq!(third.purge(r#"{"prefixes": ["/B/"]}"#).await.status, 200);
    for pod in [&third, &second] {
        assert_eq!(pod.get("/b").await.status, 502);
    }
    redis.say(&["FLUSHALL"]).await;
    let fourth = Sidecar::start(&policy, address).await;
    assert_eq!(fourth.get("/b").await.status, 502, "postgres was told");
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_good_response_is_not_served_that_redis_alone_knows_to_be_purged() {
    let (database, redis) = (Database::new("").await, RedisServer::start().await);
    let to_redis = Relay::to(([127, 0, 0, 1], redis.port).into()).await;
    let folder = Folder::new();
    let (far_redis, no_database) = (folder.join("redis"), folder.join("database"));
    fs::write(&far_redis, format!("redis://{}/", to_redis.address())).unwrap();
    fs::write(&no_database, "postgres://larder@127.0.0.1:1/postgres?sslmode=disable").unwrap();
    let file = |path: &Path| format!("{{file: {}}}", path.display());
    let (origin, failing) = switched().await;
    let policy = Policy::new(&redis.serve(&LAST.replace("DATABASE", &file(&no_database))));
    let far_policy =
        policy.twin(&database.serve(LAST).replace("{env: LARDER_TEST_REDIS_URL}", &file(&far_redis)));
    let first = Sidecar::start(&far_policy, origin.address).await;
    let kept = first.get("/b").await.body;
    first.get("/a").await;
    until_kept(&database, 2).await;
    drop(first);
    let near = Sidecar::start_at_once(&policy, origin.address).await;
    let far = Sidecar::start(&far_policy, origin.address).await;
    until("redis takes purges", async || {
        (near.purge(r#"{"tags": ["page:x"]}"#).await.status == 200).then_some(())
    })
    .await;
    failing.fail(true);
    to_redis.bus_suffers(Fault::Parted);
    assert_eq!(near.purge(r#"{"tags": ["page:a"]}"#).await.status, 200);
    assert_eq!(far.get("/a").await.status, 503, "postgres was not told");
    assert_eq!(until_it_stands_in(&far, "/b").await, kept, "the response was not purged");
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_good_response_is_stale_where_nobody_remembers_a_soft_purge() {
    let database = Database::new("").await;
    let (origin, failing) = switched().await;
    let policy = Policy::new(&database.serve(
        r#"
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1h, retryInterval: 200ms, tags: ["page:{page}"], lastKnownGood: {source: catalog}}
"#,
    ));
    let first = Sidecar::start(&policy, origin.address).await;
    let stored = first.get("/a").await.body;
    until_kept(&database, 1).await;
    assert_eq!(first.purge(r#"{"tags": ["page:a"], "soft": true}"#).await.status, 200);
    drop(first);
    failing.fail(true);
    let second = Sidecar::start(&policy, origin.address).await;
    assert_eq!(until_it_stands_in(&second, "/a").await, stored);
    failing.fail(false);
    until("the application is asked", async || (second.get("/a").await.body != stored).then_some(())).await;
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn must_revalidate_response_is_no_last_good_response() {
    let database = Database::new("").await;
    let origin = Origin::start(|seen| async move {
        let control = if seen.path == "/own/a" { "max-age=1, must-revalidate" } else { "max-age=1" };
        reply(&[("cache-control", control)], "body")
    })
    .await;
    let relay = Relay::to(origin.address).await;
    let address = ([127, 0, 0, 1], relay.port).into();
    let policy = Policy::new(&database.serve(LAST));
    let sidecar = Sidecar::start(&policy, address).await;
    sidecar.get("/own/a").await;
    sidecar.get("/own/b").await;
    until("the other one is kept", async || {
        let made = "select count(*) from information_schema.tables \
                    where table_name = 'larder_last_known_good' and table_schema = current_schema()";
        (database.number(made).await == 1 && database.number(ROWS).await >= 1).then_some(())
    })
    .await;
    drop(relay);
    assert!(!until_it_stands_in(&sidecar, "/own/b").await.is_empty());
    until("the response is not served any more", async || {
        let answer = sidecar.get("/own/a").await;
        assert!(answer.hit().is_some() || answer.status == 502, "{answer:?}");
        (answer.status == 502).then_some(())
    })
    .await;
    database.drop_schema().await;
}
