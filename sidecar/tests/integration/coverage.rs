//! A policy that relies on seeing every write, and the operator's word that every pod has a sidecar.

use super::harness::{Origin, Policy, RedisServer, Sidecar, until};

const CACHED: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#;

const FIRST: &str = "2026-01-01T00:00:00.000001Z";
const SECOND: &str = "2026-01-01T00:00:01.000001Z";

#[tokio::test(flavor = "multi_thread")]
async fn compiled_policy_passes_until_every_pod_is_covered() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for number in ["1", "2"] {
        let passed = sidecar.get("/a").await;
        assert_eq!(passed.body, number);
        assert_eq!(passed.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=waiting-for-pods");
    }
    assert_eq!(sidecar.policy().await["state"], "waiting");
    until("the metric", async || {
        (sidecar.metric("larder_state", &["state=\"waiting\""]).await == 1.0).then_some(())
    })
    .await;
    policy.cover("Serving", FIRST);
    sidecar.until_state("serving").await;
    assert_eq!(sidecar.get("/a").await.body, "3");
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
    assert_eq!(sidecar.metric("larder_config_reloads_total", &["result=\"ok\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_that_starts_after_coverage_serves_at_once() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    policy.cover("Serving", FIRST);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.policy().await["state"], "serving");
    sidecar.get("/a").await;
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_coverage_passes_and_serves_no_earlier_response() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    policy.cover("Serving", FIRST);
    let one = Sidecar::start(&policy, origin.address).await;
    let old = one.get("/a").await.body;
    assert_eq!(one.get("/a").await.hit(), Some("l1"));
    policy.until_stored(&mut RedisServer::shared().await, 1).await;

    policy.cover("Interrupted", SECOND);
    one.until_state("waiting").await;
    assert_eq!(
        one.get("/a").await.cache_status(),
        "larder; fwd=bypass; fwd-status=200; detail=waiting-for-pods"
    );
    // The sidecar has stored nothing itself, and finds nothing in Redis either.
    let other = Sidecar::start(&policy, origin.address).await;
    policy.cover("Serving", SECOND);
    for sidecar in [&one, &other] {
        sidecar.until_state("serving").await;
    }
    let fresh = one.get("/a").await;
    assert_eq!((fresh.hit(), fresh.body != old), (None, true), "{fresh:?}");
    until("a response stored by one pod is found by the other", async || {
        (other.get("/a").await.body == fresh.body).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interruption_between_two_looks_is_noticed() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    policy.cover("Serving", FIRST);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.get("/a").await.body;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    policy.cover("Serving", SECOND);
    until("the old response is gone", async || {
        let answer = sidecar.get("/a").await;
        (answer.body != old).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_through_a_pod_that_waits_purges_in_one_that_serves() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    policy.cover("Serving", FIRST);
    let serving = Sidecar::start(&policy, origin.address).await;
    let waiting = Sidecar::start(&policy.elsewhere(), origin.address).await;
    assert_eq!(waiting.policy().await["state"], "waiting");
    let old = serving.get("/a").await.body;
    assert_eq!(serving.get("/a").await.hit(), Some("l1"));
    waiting.put("/a").await;
    assert_ne!(serving.get("/a").await.body, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn coverage_of_another_policy_or_none_allows_nothing() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    policy.cover("Serving", FIRST);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    for text in [r#"{"policy":"another","state":"Serving","since":"2026-01-01T00:00:00Z"}"#, "", "Serving"] {
        policy.write_coverage(text);
        sidecar.until_state("waiting").await;
        assert_eq!(sidecar.get("/a").await.hit(), None, "{text:?}");
        policy.cover("Serving", FIRST);
        sidecar.until_state("serving").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_policy_file_does_not_hide_an_interruption() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::compiled(CACHED);
    policy.cover("Serving", FIRST);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    policy.write("kind: Nonsense");
    until("the refusal", async || sidecar.policy().await["error"].is_string().then_some(())).await;
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
    policy.cover("Interrupted", SECOND);
    sidecar.until_state("waiting").await;
    assert_eq!(sidecar.get("/a").await.hit(), None);
}
