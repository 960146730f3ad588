//! Fills that overlap purges, and lost barriers.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::harness::{Origin, Policy, RedisServer, Sidecar, reply, tagged_pages, until};

const TAGGED: &str = tagged_pages!("l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}");

/// An application that responds with a request's number when it gets a permit.
async fn held() -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let let_through = Arc::clone(&gate);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    (origin, let_through)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_began_before_a_purge_is_never_served_or_stored() {
    let (origin, gate) = held().await;
    let policy = Policy::new(TAGGED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let filling = async { a.get("/a").await };
    let purging = async {
        until("the fill", async || (origin.calls() == 1).then_some(())).await;
        assert_eq!(b.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
        gate.add_permits(100);
    };
    let (old, ()) = tokio::join!(filling, purging);
    assert_eq!(old.body, "1");
    assert_ne!(b.get("/a").await.body, "1");
    assert_ne!(a.get("/a").await.body, "1");
    assert_eq!(a.metric("larder_not_stored_total", &["reason=\"purged\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_began_before_a_purge_is_not_revived_by_lost_barriers() {
    let (origin, gate) = held().await;
    let policy = Policy::new(TAGGED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let filling = async { a.get("/a").await };
    let purging = async {
        until("the fill", async || (origin.calls() == 1).then_some(())).await;
        assert_eq!(b.purge(r#"{"tags": ["page:a"]}"#).await.status, 200);
        forget(&policy).await;
        gate.add_permits(100);
    };
    let (old, ()) = tokio::join!(filling, purging);
    assert_eq!(old.body, "1");
    for sidecar in [&b, &a, &Sidecar::start(&policy, origin.address).await] {
        assert_ne!(sidecar.get("/a").await.body, "1");
    }
}

/// Deletes the barriers in Redis, as an eviction does.
async fn forget(policy: &Policy) {
    redis::cmd("DEL").arg(policy.barriers()).exec_async(&mut RedisServer::shared().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_barriers_revive_nothing() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(TAGGED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    assert_eq!(a.get("/a").await.body, "1");
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    assert_eq!(b.get("/a").await.body, "1");
    assert_eq!(a.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
    forget(&policy).await;
    // One that has seen nothing but Redis, then those that had it in memory.
    let newcomer = Sidecar::start(&policy, origin.address).await;
    for sidecar in [&newcomer, &b, &a] {
        assert_ne!(sidecar.get("/a").await.body, "1");
    }
    // And purges go on working in the new generation.
    let stored = a.get("/a").await.body;
    forget(&policy).await;
    assert_eq!(b.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
    until("the new generation is heard of", async || (a.get("/a").await.body != stored).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restored_from_an_earlier_state_revives_nothing() {
    let mut redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let old = a.get("/a").await.body;
    policy.until_stored(&mut redis.connection().await, 1).await;
    redis.say(&["SAVE"]).await;
    for _ in 0..5 {
        assert_eq!(a.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
    }
    let late = b.get("/b").await.body;
    redis.kill();
    b.until_tiers_are("down").await;
    a.until_tiers_are("down").await;
    redis.restart().await;
    b.until_tiers_are("up").await;
    a.until_tiers_are("up").await;
    let newcomer = Sidecar::start(&policy, origin.address).await;
    assert_ne!(newcomer.get("/a").await.body, old, "purged after Redis had saved");
    // The new numbers start below those that the sidecars know: a purge must reach fills above them.
    b.get("/b").await;
    assert_eq!(a.purge(r#"{"paths": ["/b"]}"#).await.status, 200);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_ne!(b.get("/b").await.body, late);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_purges_even_if_its_client_left_before_the_response() {
    let (origin, let_through) = Origin::holding_writes().await;
    let policy = Policy::new(TAGGED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let stored = sidecar.get("/a").await.body;
    tokio::select! {
        _ = sidecar.put("/a") => panic!("the write got a response"),
        () = until("the write", async || (origin.calls() == 2).then_some(())) => {}
    }
    let_through.add_permits(1);
    until("the purge", async || (sidecar.get("/a").await.body != stored).then_some(())).await;
}
