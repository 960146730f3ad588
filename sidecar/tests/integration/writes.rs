//! Purges by writes, in every sidecar.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::harness::{Origin, Policy, RedisServer, Sidecar, reply, two};

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"]}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn get_through_another_sidecar_after_a_write_is_fresh() {
    let origin = Origin::stateful(&[]).await;
    let policy = Policy::new(SPEC);
    let [a, b] = two(&policy, &origin).await;
    for _ in 0..50 {
        let written = a.put("/a").await;
        assert_eq!(b.get("/a").await.body, written.body);
        assert_eq!(a.get("/a").await.body, written.body);
    }
    assert_eq!(b.get("/a").await.hit(), Some("l1"), "the response is in memory in between");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_hangs_does_not_hold_up_writers_for_long() {
    let origin = Origin::stateful(&[]).await;
    let policy = Policy::new(SPEC);
    let [a, b] = two(&policy, &origin).await;
    b.freeze();
    let asked_at = Instant::now();
    assert_eq!(a.put("/a").await.status, 200);
    assert!(asked_at.elapsed() < Duration::from_secs(1), "{:?}", asked_at.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn barrier_is_in_redis_before_the_response_to_the_write_leaves() {
    let policy = Policy::new(SPEC);
    let origin = Origin::stateful(&[]).await;
    let [a, b] = two(&policy, &origin).await;
    let mut redis = RedisServer::shared().await;
    let mut order = async || -> u64 {
        redis::cmd("HGET").arg(policy.barriers()).arg("s").query_async(&mut redis).await.unwrap()
    };
    let before = order().await;
    for number in 1..=50 {
        let sidecar = if number % 2 == 0 { &a } else { &b };
        sidecar.put("/a").await;
        assert_eq!(order().await, before + number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_with_an_upgrade_header_purges() {
    // Java's HttpClient asks for h2c on the first request of a connection, a PUT among them.
    let origin = Origin::stateful(&[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, "0");
    for protocol in ["h2c", "something"] {
        let upgrade =
            [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", protocol), ("http2-settings", "AAMA")];
        let written = sidecar.request(Method::PUT, "/a", &upgrade, "x").await;
        assert_eq!(sidecar.get("/a").await.body, written.body, "{protocol}");
    }
    let asked =
        sidecar.get_with("/a", &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]).await;
    assert_eq!(asked.hit(), Some("l1"), "a GET with an h2c upgrade may be served from the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_refused_write_purges_nothing() {
    let origin = Origin::start(|seen| async move {
        let mut answer = reply(&[], seen.number.to_string());
        if seen.method == Method::PUT {
            *answer.status_mut() = match &seen.body[..] {
                b"written" => StatusCode::FORBIDDEN,
                b"outdated" => StatusCode::CONFLICT,
                _ => StatusCode::BAD_GATEWAY,
            };
        }
        answer
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let stored = sidecar.get("/a").await.body;
    assert_eq!(sidecar.put("/a").await.status, 403);
    assert_eq!(sidecar.get("/a").await.body, stored);
    assert_eq!(sidecar.request(Method::PUT, "/a", &[], "outdated").await.status, 409);
    let fresh = sidecar.get("/a").await.body;
    assert_ne!(fresh, stored, "the state differs from the writer's, and perhaps from the stored response's");
    assert_eq!(sidecar.request(Method::PUT, "/a", &[], "else").await.status, 502);
    assert_ne!(sidecar.get("/a").await.body, fresh, "the write may have been done before it failed");
}
