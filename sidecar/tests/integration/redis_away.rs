//! Redis gone, slow, read-only or restored: requests still get responses, and no stale one is served for long.

use std::time::{Duration, Instant};

use super::harness::{Origin, Policy, RedisServer, Sidecar, tagged_pages, until};

const BRIEF: &str = tagged_pages!(
    "l1: {busGrace: 500ms}",
    "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 200ms}}"
);

const GRACE: Duration = Duration::from_millis(500);
/// Tolerance for a busy machine in a time measured from outside.
const SLACK: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_responses_continue_and_none_is_older_than_the_grace() {
    let mut redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut filled_at = Instant::now();
    sidecar.get("/a").await;
    redis.kill();
    let killed_at = Instant::now();
    while killed_at.elapsed() < Duration::from_secs(3) {
        let asked_at = Instant::now();
        let answer = sidecar.get("/a").await;
        assert_eq!(answer.status, 200);
        assert!(asked_at.elapsed() < Duration::from_secs(1), "{:?}", asked_at.elapsed());
        match answer.hit() {
            None => filled_at = asked_at,
            Some(tier) => {
                let trusted = killed_at.elapsed() <= GRACE + SLACK || filled_at.elapsed() <= GRACE + SLACK;
                assert!(trusted, "{tier} served what is {:?} old", filled_at.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(origin.calls() >= 4, "stored responses were requested again, {} times", origin.calls());
    assert!(origin.calls() <= 15, "and was served in between: {} times", origin.calls());
    assert_eq!(sidecar.policy().await["tiers"]["redis"], "down");
    redis.restart().await;
    sidecar.until_tiers_are("up").await;
    sidecar.get("/b").await;
    policy.until_stored(&mut redis.connection().await, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_grace_costs_no_hits_while_redis_is_well() {
    let policy = Policy::new(BRIEF);
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    let since = Instant::now();
    let (mut asked, mut from_memory) = (0, 0);
    while since.elapsed() < Duration::from_secs(3) {
        asked += 1;
        from_memory += usize::from(sidecar.get("/a").await.hit() == Some("l1"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A heartbeat may be late on a busy machine; half of them are not.
    assert!(from_memory * 10 >= asked * 8, "{from_memory} of {asked} from memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_made_while_redis_is_frozen_holds_when_it_goes_on() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF));
    let origin = Origin::numbered(&[]).await;
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let old = a.get("/a").await.body;
    policy.until_stored(&mut redis.connection().await, 1).await;
    assert_eq!(b.get("/a").await.body, old);
    redis.freeze();
    let asked_at = Instant::now();
    assert_eq!(a.put("/a").await.status, 200);
    assert!(asked_at.elapsed() < Duration::from_secs(3), "the writer waited {:?}", asked_at.elapsed());
    assert_ne!(a.get("/a").await.body, old, "in the pod that made the write the purge holds at once");
    redis.thaw();
    until("the other sidecar is fresh", async || (b.get("/a").await.body != old).then_some(())).await;
    // A connected pod has sent Redis all pending purges.
    a.until_tiers_are("up").await;
    let newcomer = Sidecar::start(&policy, origin.address).await;
    for sidecar in [&newcomer, &a, &b] {
        assert_ne!(sidecar.get("/a").await.body, old);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_while_redis_is_down_holds_when_redis_returns_with_its_data() {
    let mut redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.get("/a").await.body;
    policy.until_stored(&mut redis.connection().await, 1).await;
    redis.say(&["SAVE"]).await;
    redis.kill();
    assert_eq!(sidecar.put("/a").await.status, 200);
    let pending = sidecar.purge(r#"{"paths": ["/b"]}"#).await;
    assert_eq!(
        (pending.status.as_u16(), pending.body.contains("\"pending\"")),
        (202, true),
        "{}",
        pending.body
    );
    redis.restart().await;
    sidecar.until_tiers_are("up").await;
    let newcomer = Sidecar::start(&policy, origin.address).await;
    assert_ne!(newcomer.get("/a").await.body, old);
    assert_ne!(sidecar.get("/a").await.body, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_frozen_redis_no_longer_than_the_timeout() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    redis.freeze();
    let mut waits = Vec::new();
    for number in 0..20 {
        let asked_at = Instant::now();
        assert_eq!(sidecar.get(&format!("/{number}")).await.status, 200);
        waits.push(asked_at.elapsed());
    }
    let longest = waits.iter().max().unwrap();
    assert!(*longest < Duration::from_millis(200) + SLACK, "{waits:?}");
    let slow = waits.iter().filter(|wait| **wait > Duration::from_millis(190)).count();
    assert!(slow <= 7, "the breaker keeps Redis off the path: {waits:?}");
    redis.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_reaches_redis_although_lookups_gave_up() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF).replace("200ms", "20ms"));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    redis.freeze();
    for number in 0..6 {
        sidecar.get(&format!("/{number}")).await;
    }
    assert_eq!(sidecar.policy().await["tiers"]["redis"], "down");
    redis.thaw();
    let purged = sidecar.purge(r#"{"paths": ["/a"]}"#).await;
    assert_eq!(purged.status, 200, "{}", purged.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_refuses_writes_is_no_bus() {
    // Out of memory, or a replica after a failover: it replies to pings, but no purge gets through it.
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF).replace("500ms", "2s"));
    let origin = Origin::numbered(&[]).await;
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let old = a.get("/a").await.body;
    policy.until_stored(&mut redis.connection().await, 1).await;
    assert_eq!(b.get("/a").await.body, old);
    redis.say(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(a.put("/a").await.status, 200);
    let written_at = Instant::now();
    until("the other sidecar is fresh", async || (b.get("/a").await.body != old).then_some(())).await;
    let took = written_at.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    redis.say(&["CONFIG", "SET", "maxmemory", "0"]).await;
    a.until_tiers_are("up").await;
    b.until_tiers_are("up").await;
    assert_ne!(Sidecar::start(&policy, origin.address).await.get("/a").await.body, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_redis_closed_is_opened_again() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(BRIEF));
    let origin = Origin::numbered(&[]).await;
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let mut own = redis.connection().await;
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).exec_async(&mut own).await.unwrap();
    let mut page = 0;
    until("a hit from L2", async || {
        page += 1;
        let path = format!("/{page}");
        a.get(&path).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        (b.get(&path).await.hit() == Some("l2")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_wrong_password_responses_continue_and_redis_is_reported_down() {
    let redis = RedisServer::start().await;
    redis.say(&["CONFIG", "SET", "requirepass", "secret"]).await;
    let policy = Policy::new(&redis.serve(BRIEF));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start_at_once(&policy, origin.address).await;
    for _ in 0..5 {
        assert_eq!(sidecar.get("/a").await.status, 200);
    }
    assert_eq!(sidecar.policy().await["tiers"]["redis"], "down");
    assert_eq!(sidecar.admin("/readyz").await.status, 200, "readiness does not depend on Redis");
    until("metrics say so", async || {
        let text = sidecar.admin("/metrics").await.body;
        let down = text.lines().any(|line| {
            line.starts_with("larder_tier_up{") && line.contains("redis") && line.ends_with(" 0")
        });
        down.then_some(())
    })
    .await;
}
