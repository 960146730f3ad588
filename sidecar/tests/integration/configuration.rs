//! A policy that changes in use.

use super::harness::{Origin, Policy, RedisServer, Sidecar, Wire, until};

const CACHED: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn response_stored_under_other_keys_or_tags_is_not_served() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(&CACHED.replace("60s", "60s, key: {ignoreHeaders: [authorization]}"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get_with("/a", &[("authorization", "alice")]).await.body, "1");
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    for (number, changed) in ["key: {headers: [authorization]}", "tags: [\"page:{page}\"]"].iter().enumerate()
    {
        policy.change(&CACHED.replace("60s", &format!("60s, {changed}")));
        sidecar.until_it_serves(&policy).await;
        assert_eq!(sidecar.get("/a").await.body, (number + 2).to_string(), "{changed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lower_ttl_shortens_stored_responses() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    let hit = sidecar.get("/a").await;
    assert!(
        hit.cache_status().starts_with("larder; hit; ttl=59") || hit.cache_status().contains("ttl=60"),
        "{}",
        hit.cache_status()
    );
    policy.change(&CACHED.replace("60s", "30s"));
    sidecar.until_it_serves(&policy).await;
    let ttl =
        sidecar.get("/a").await.cache_status().split(['=', ';']).nth(3).unwrap().parse::<u64>().unwrap();
    assert!(ttl <= 30, "{ttl}");
    policy.change(&CACHED.replace("60s", "1ms"));
    sidecar.until_it_serves(&policy).await;
    let stale = sidecar.get("/a").await;
    assert_eq!((stale.body.as_str(), stale.cache_status().contains("fwd=stale")), ("2", true));
    assert_eq!(sidecar.metric("larder_config_reloads_total", &["result=\"ok\""]).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_kept_out_and_reported_until_a_good_one_comes() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    let before = sidecar.policy().await["hash"].clone();
    for (broken, reason) in [
        (CACHED.replace("60s", "2 minutes"), "\"2 minutes\" is not a duration"),
        (CACHED.replace("/{page}\"]", "/{other}\"]"), "uses {other}"),
        ("{".to_owned(), "can't read the policy"),
    ] {
        policy.change(&broken);
        until(reason, async || {
            let said = sidecar.policy().await;
            assert_eq!(said["hash"], before);
            said["error"].as_str().is_some_and(|error| error.contains(reason)).then_some(())
        })
        .await;
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "{reason}");
    }
    assert_eq!(sidecar.metric("larder_config_reloads_total", &["result=\"refused\""]).await, 3.0);
    policy.change(&CACHED.replace("60s", "50s"));
    sidecar.until_it_serves(&policy).await;
    assert!(sidecar.policy().await["error"].is_null());
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "the stored responses stayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_starts_with_a_broken_file_passes_and_reports_the_reason() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    policy.write("kind: Nonsense");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(
        sidecar.get("/a").await.cache_status(),
        "larder; fwd=bypass; fwd-status=200; detail=no-policy"
    );
    let said = sidecar.policy().await;
    assert_eq!(
        (said["state"].as_str(), said["hash"].is_null(), said["error"].is_string()),
        (Some("absent"), true, true)
    );
    policy.change(CACHED);
    sidecar.until_it_serves(&policy).await;
    assert_eq!(sidecar.metric("larder_config_reloads_total", &["result=\"refused\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanishes_means_pass_through() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    policy.vanish();
    sidecar.until_state("absent").await;
    let passed = sidecar.get("/a").await;
    assert_eq!((passed.body.as_str(), passed.cache_status().contains("no-policy")), ("2", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_back_serves_nothing_that_a_write_in_between_made_stale() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.get("/a").await.body;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    policy.vanish();
    sidecar.until_state("absent").await;
    sidecar.put("/a").await;
    policy.change(CACHED);
    sidecar.until_it_serves(&policy).await;
    assert_ne!(sidecar.get("/a").await.body, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_policy_passes_and_a_resumed_one_serves_nothing_that_a_write_made_stale() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let (written, kept) = (sidecar.get("/a").await.body, sidecar.get("/b").await.body);
    policy.change(&format!("suspend: true\n{CACHED}"));
    sidecar.until_state("suspended").await;
    let passed = sidecar.get("/a").await;
    assert_ne!(passed.body, written);
    assert_eq!(passed.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=suspended");
    sidecar.put("/a").await;
    policy.change(CACHED);
    sidecar.until_state("serving").await;
    let fresh = sidecar.get("/a").await;
    assert_eq!((fresh.hit(), fresh.body != written), (None, true));
    assert_eq!(sidecar.get("/b").await.body, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_under_way_while_the_policy_changes_purges_under_the_new_one() {
    let (origin, let_go) = Origin::holding_writes().await;
    let without_redis =
        CACHED.replace("l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}", "");
    let policy = Policy::new(&without_redis);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let writing = async { sidecar.put("/a").await };
    let changing = async {
        until("the write", async || (origin.calls() == 1).then_some(())).await;
        policy.change(CACHED);
        sidecar.until_it_serves(&policy).await;
        let old = sidecar.get("/a").await.body;
        let_go.add_permits(1);
        old
    };
    let (_, old) = tokio::join!(writing, changing);
    assert_ne!(sidecar.get("/a").await.body, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_drops_no_connection() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut kept = Wire::to(sidecar.address).await;
    for ttl in ["60s", "50s", "40s"] {
        policy.change(&CACHED.replace("60s", ttl));
        sidecar.until_it_serves(&policy).await;
        kept.ask("/a").await;
        let (head, body) = kept.answer().await;
        assert!(head.starts_with("http/1.1 200") && body == "1", "{head}{body}");
    }
}
