//! Lifetimes of stored responses under routes with more than a `ttl`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;

use super::harness::{Origin, Policy, RedisServer, Sidecar, reply, until};

/// An application that counts the most requests that it had at once.
async fn slow(takes: Duration) -> (Origin, Arc<AtomicUsize>) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen_most = Arc::clone(&most);
    let origin = Origin::start(move |seen| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&seen_most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(takes).await;
            now.fetch_sub(1, Ordering::SeqCst);
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    (origin, most)
}

/// Sends requests to pods until the application has had so many. Returns the number of responses that were no hits.
async fn misses_until_asked(pods: &[&Sidecar], origin: &Origin, times: usize) -> usize {
    let (done, misses) = (AtomicBool::new(false), AtomicUsize::new(0));
    let asking = join_all((0..8).map(|number| {
        let pod = pods[number % pods.len()];
        let (done, misses) = (&done, &misses);
        async move {
            while !done.load(Ordering::SeqCst) {
                let answer = pod.get("/a").await;
                assert_eq!(answer.status, 200);
                misses.fetch_add(usize::from(answer.hit().is_none()), Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }
    }));
    let watching = async {
        until("the application has another request", async || (origin.calls() >= times).then_some(())).await;
        done.store(true, Ordering::SeqCst);
    };
    tokio::join!(asking, watching);
    misses.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn popular_response_is_refreshed_before_it_expires() {
    let (origin, most) = slow(Duration::from_millis(400)).await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 3s, earlyRefresh: XFetch}
"#,
    );
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    a.get("/a").await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    assert_eq!(b.get("/a").await.hit(), Some("l2"));
    assert_eq!(misses_until_asked(&[&a, &b], &origin, 5).await, 0);
    assert_eq!(most.load(Ordering::SeqCst), 1, "one pod refreshes the response at a time");
    // Without early refresh some client waits at each end.
    let policy = Policy::new("routes:\n- {name: page, match: {path: \"/{page}\"}, ttl: 1s}");
    let alone = Sidecar::start(&policy, origin.address).await;
    let before = origin.calls();
    assert!(misses_until_asked(&[&alone], &origin, before + 3).await > 2);
}

/// Sends requests until a refresh has failed, and many after that.
async fn one_failed_renewal_is_enough(l2: &str) {
    let failing = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&failing);
    let origin = Origin::start(move |seen| {
        let mut reply = reply(&[], seen.number.to_string());
        if fails.load(Ordering::SeqCst) {
            *reply.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        async { reply }
    })
    .await;
    let route = r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1s, staleWhileRevalidate: 10m, staleIfError: 10m, retryInterval: 1h}
"#;
    let policy = Policy::new(&[l2, route].concat());
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    failing.store(true, Ordering::SeqCst);
    until("the background request", async || {
        assert_eq!(sidecar.get("/a").await.body, "1");
        (origin.calls() == 2).then_some(())
    })
    .await;
    // The failure may still be on its way; after that there is no further request.
    let mut asked = 0;
    until("no further request", async || {
        for _ in 0..50 {
            assert_eq!(sidecar.get("/a").await.body, "1");
        }
        let before = std::mem::replace(&mut asked, origin.calls());
        (before == asked).then_some(())
    })
    .await;
    assert!(asked <= 3, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_early_refresh_is_not_retried_at_once() {
    one_failed_renewal_is_enough("").await;
    one_failed_renewal_is_enough("l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_takes_the_newer_response_from_redis_after_its_l1_ttl() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: short, match: {path: "/short"}, ttl: 10m, l1TTL: 1s, clientDirectives: Honor}
- {name: long, match: {path: "/long"}, ttl: 10m, l1TTL: 5m, clientDirectives: Honor}
"#,
    );
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let mut redis = RedisServer::shared().await;
    for (stored, path) in [(1, "/short"), (2, "/long")] {
        let old = a.get(path).await.body;
        policy.until_stored(&mut redis, stored).await;
        let new = b.get_with(path, &[("cache-control", "no-cache")]).await.body;
        assert_ne!(new, old);
    }
    until("the newer one", async || {
        let answer = a.get("/short").await;
        assert!(answer.hit().is_some(), "{}", answer.cache_status());
        (answer.body == "2").then_some(())
    })
    .await;
    assert_eq!((a.get("/long").await.body.as_str(), origin.calls()), ("3", 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_stores_responses_for_their_l2_ttl() {
    let origin = Origin::numbered(&[("etag", "\"a\"")]).await;
    let redis = RedisServer::start().await;
    let spec = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1h, staleIfError: 1d, l2TTL: 100s}
"#;
    let policy = Policy::new(&redis.serve(&spec.replace("1d", "24h")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    policy.until_stored(&mut redis.connection().await, 1).await;
    let keys: Vec<String> = redis.ask(&["KEYS", "*:entry"]).await;
    let left: i64 = redis.ask(&["PTTL", &keys[0]]).await;
    assert!((50_000..=100_000).contains(&left), "{left}");
    assert!(sidecar.get("/a").await.ttl().is_some_and(|ttl| ttl > 3_000), "its life is another matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_above_the_l2_limit_stays_in_its_pod() {
    let origin =
        Origin::start(|seen| async move { reply(&[], "x".repeat(seen.path[1..].parse().unwrap())) }).await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s, maxObjectSize: 4Ki}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 10m}
"#,
    );
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    for size in ["/8000", "/100"] {
        a.get(size).await;
        assert_eq!(a.get(size).await.hit(), Some("l1"));
    }
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    assert_eq!((b.get("/100").await.hit(), b.get("/8000").await.hit()), (Some("l2"), None));
}

const TTL_FROM: &str = r#"
routes:
- {name: header, match: {path: "/header/{page}"}, ttl: 1h, ttlFrom: {header: x-ttl}}
- {name: json, match: {path: "/json/{page}"}, ttl: 1h, ttlFrom: {json: /meta/ttl}}
"#;

/// An application that states the TTL that the request wants, in a header or in its content.
async fn origin_that_says_a_ttl() -> Origin {
    Origin::start(|seen| async move {
        let said = seen.header("x-want").to_owned();
        if seen.path.starts_with("/json") {
            return reply(&[], said);
        }
        reply(&[("x-ttl", &said)], "body")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn response_states_its_own_ttl() {
    let origin = origin_that_says_a_ttl().await;
    let policy = Policy::new(TTL_FROM);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let cases = [
        ("/header/1", "300", 300),
        ("/header/2", "5m", 300),
        ("/header/3", "soon", 3_600),
        ("/header/4", "-5m", 3_600),
        ("/header/5", "", 3_600),
        ("/json/1", r#"{"meta": {"ttl": 300}}"#, 300),
        ("/json/2", r#"{"meta": {"ttl": "5m"}}"#, 300),
        ("/json/3", r#"{"meta": {"ttl": []}}"#, 3_600),
        ("/json/4", r#"{"meta": {"ttl": "#, 3_600),
        ("/json/5", "", 3_600),
    ];
    let near =
        |ttl: Option<i64>, expected: i64| ttl.is_some_and(|ttl| (expected - 60..=expected).contains(&ttl));
    for (path, said, expected) in cases {
        sidecar.get_with(path, &[("x-want", said)]).await;
        let answer = sidecar.get(path).await;
        assert!(near(answer.ttl(), expected), "{said}: {}", answer.cache_status());
    }
    // Stored responses follow the present policy.
    policy.change(&TTL_FROM.replace(", ttlFrom: {header: x-ttl}", "").replace("1h", "2h"));
    sidecar.until_it_serves(&policy).await;
    for (path, expected) in [("/header/1", 7_200), ("/header/3", 7_200), ("/json/1", 300), ("/json/3", 7_200)]
    {
        let answer = sidecar.get(path).await;
        assert!(near(answer.ttl(), expected), "{path}: {}", answer.cache_status());
    }
    assert_eq!(origin.calls(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_states_no_lifetime_is_not_served_again() {
    let origin = Origin::start(|seen| async move {
        let said = seen.header("x-want").to_owned();
        if seen.path.starts_with("/json") {
            return reply(&[], format!(r#"{{"meta": {{"ttl": {said}}}}}"#));
        }
        reply(&[("x-ttl", &said)], "body")
    })
    .await;
    let policy = Policy::new(TTL_FROM);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (page, said) in ["0", "-1", "-0.5", "-1e9"].into_iter().enumerate() {
        for path in [format!("/header/{page}"), format!("/json/{page}")] {
            let before = origin.calls();
            for _ in 0..2 {
                assert_eq!(sidecar.get_with(&path, &[("x-want", said)]).await.hit(), None, "{path}: {said}");
            }
            assert_eq!(origin.calls(), before + 2, "{path}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revalidated_response_states_its_ttl_again() {
    let origin = Origin::start(|seen| async move {
        let is_asked_whether = seen.header("if-none-match") == "\"a\"";
        let ttl = if is_asked_whether { "300" } else { "1" };
        let mut reply = reply(&[("etag", "\"a\""), ("x-ttl", ttl)], r#"{"meta": {"ttl": 1}}"#);
        if is_asked_whether {
            *reply.status_mut() = http::StatusCode::NOT_MODIFIED;
            *reply.body_mut() = Default::default();
        }
        reply
    })
    .await;
    let policy = Policy::new(TTL_FROM);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, most) in [("/header/a", 300), ("/json/a", 1)] {
        let before = origin.calls();
        until("the revalidation request", async || {
            sidecar.get(path).await;
            (origin.calls() == before + 2).then_some(())
        })
        .await;
        let answer = sidecar.get(path).await;
        assert!(answer.ttl().is_none_or(|ttl| ttl <= most), "{path}: {}", answer.cache_status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_stored_together_expire_apart() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 2000s, ttlJitterPercent: 50}
"#,
    );
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let paths: Vec<_> = (0..24).map(|number| format!("/{number}")).collect();
    join_all(paths.iter().map(|path| a.get(path))).await;
    policy.until_stored(&mut RedisServer::shared().await, paths.len()).await;
    let mut ttls = vec![];
    for path in &paths {
        let (in_a, in_b) = (a.get(path).await.ttl().unwrap(), b.get(path).await.ttl().unwrap());
        assert!((900..=2_000).contains(&in_a), "{in_a}");
        assert!((in_a - in_b).abs() < 60, "the same in each pod: {in_a}, {in_b}");
        ttls.push(in_a);
    }
    ttls.sort_unstable();
    ttls.dedup_by_key(|ttl| *ttl / 50);
    assert!(ttls.len() > 6, "{ttls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ttl_of_0_or_less_from_the_response_makes_it_stale() {
    let origin = origin_that_says_a_ttl().await;
    let policy = Policy::new(TTL_FROM);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, said) in [
        ("/header/10", "0"),
        ("/header/11", "-5"),
        ("/header/12", "0s"),
        ("/json/10", r#"{"meta": {"ttl": 0}}"#),
        ("/json/11", r#"{"meta": {"ttl": -5}}"#),
        ("/json/12", r#"{"meta": {"ttl": "0s"}}"#),
    ] {
        let before = origin.calls();
        for _ in 0..3 {
            let answer = sidecar.get_with(path, &[("x-want", said)]).await;
            assert!(answer.status == 200 && answer.hit().is_none(), "{path} {said}");
        }
        assert_eq!(origin.calls(), before + 3, "{path} {said}");
    }
}
