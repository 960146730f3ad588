//! Stale responses: stale-while-revalidate and stale-if-error (RFC 5861).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::StatusCode;
use tokio::{io::AsyncWriteExt, sync::Semaphore};

use super::harness::{Origin, Policy, RawOrigin, RedisServer, Relay, Sidecar, read_head, reply, until};

/// An application whose first response has `headers` and whose later ones, which are fresh for long, wait for permits.
async fn slow_the_second_time(headers: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            if seen.number == 1 {
                return reply(headers, "1");
            }
            gate.acquire().await.unwrap().forget();
            reply(&[("cache-control", "max-age=60")], seen.number.to_string())
        }
    })
    .await;
    (origin, permits)
}

#[tokio::test(flavor = "multi_thread")]
async fn response_allows_stale_while_revalidate() {
    let (origin, permits) =
        slow_the_second_time(&[("cache-control", "max-age=5, stale-while-revalidate=60"), ("age", "15")])
            .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    for _ in 0..3 {
        let stale = sidecar.get("/").await;
        assert_eq!((stale.hit(), stale.body.as_str()), (Some("l1"), "1"));
        assert!(stale.ttl().is_some_and(|ttl| ttl <= -10), "{}", stale.cache_status());
        until("the background request", async || (origin.calls() == 2).then_some(())).await;
    }
    assert_eq!(sidecar.get_with("/", &[("range", "bytes=0-0")]).await.status, 206);
    assert_eq!(sidecar.get_with("/", &[("if-none-match", "\"x\"")]).await.hit(), Some("l1"));
    assert_eq!(origin.calls(), 2, "one request for all");
    let asked = origin.last();
    assert!(!asked.headers.contains_key("range") && !asked.headers.contains_key("if-none-match"));
    permits.add_permits(1);
    until("the response is fresh", async || (sidecar.get("/").await.body == "2").then_some(())).await;
    assert!(sidecar.get("/").await.ttl().is_some_and(|ttl| ttl > 0));
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn route_allows_stale_while_revalidate() {
    let (origin, permits) = slow_the_second_time(&[("cache-control", "must-revalidate")]).await;
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1s, staleWhileRevalidate: 10m}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    until("the response is stale", async || {
        let answer = sidecar.get("/a").await;
        assert_eq!(answer.hit(), Some("l1"));
        answer.ttl().is_some_and(|ttl| ttl < 0).then_some(())
    })
    .await;
    assert_eq!(origin.calls(), 2);
    permits.add_permits(1);
    until("the response is revalidated", async || (sidecar.get("/a").await.body == "2").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_allows_stale_responses_while_revalidating_and_on_errors() {
    let failing = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&failing);
    let origin = Origin::start(move |seen| {
        let mut reply = reply(&[], seen.number.to_string());
        if fails.load(Ordering::SeqCst) {
            *reply.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        async { reply }
    })
    .await;
    let policy = Policy::new(
        r#"
routes:
- {name: both, match: {path: "/both"}, ttl: 1s, grace: 10m}
- {name: on-error, match: {path: "/on-error"}, ttl: 1s, grace: 10m, staleWhileRevalidate: 0s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/both", "/on-error"] {
        failing.store(false, Ordering::SeqCst);
        let first = sidecar.get(path).await.body;
        failing.store(true, Ordering::SeqCst);
        let stale = until("the response is stale", async || {
            let answer = sidecar.get(path).await;
            assert_eq!((answer.status.as_u16(), &answer.body), (200, &first), "{path}");
            let is_stale = answer.hit().is_none() || answer.ttl().is_some_and(|ttl| ttl < 0);
            is_stale.then_some(answer)
        })
        .await;
        assert_eq!(stale.hit().is_some(), path == "/both", "{}", stale.cache_status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_error_gives_way_to_a_stale_response_and_is_never_stale_itself() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- name: page
  match: {path: "/{page}"}
  ttl: 1s
  grace: 10m
  retryInterval: 100ms
  statuses: [{code: 200}, {code: 5xx, ttl: 1s}]
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let failing = [("x-status", "503")];
    let first = sidecar.get("/good").await.body;
    until("many failures", async || {
        let answer = sidecar.get_with("/good", &failing).await;
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &first));
        (origin.calls() >= 4).then_some(())
    })
    .await;
    let error = sidecar.get_with("/bad", &failing).await;
    assert_eq!(error.status, 503);
    let stored = sidecar.get("/bad").await;
    assert_eq!((stored.status.as_u16(), stored.hit(), &stored.body), (503, Some("l1"), &error.body));
    until("the error is expired", async || {
        let answer = sidecar.get("/bad").await;
        assert!(answer.ttl().is_none_or(|ttl| ttl >= 0), "{}", answer.cache_status());
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_response_from_redis_is_revalidated() {
    let (origin, permits) =
        slow_the_second_time(&[("cache-control", "max-age=5, stale-while-revalidate=600"), ("age", "15")])
            .await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}}
"#,
    );
    let a = Sidecar::start(&policy, origin.address).await;
    let b = Sidecar::start(&policy, origin.address).await;
    a.get("/a").await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    let stale = b.get("/a").await;
    assert_eq!((stale.hit(), stale.body.as_str()), (Some("l2"), "1"));
    assert!(
        stale.ttl().is_some_and(|ttl| ttl <= -10),
        "the response is as old as when it came: {}",
        stale.cache_status()
    );
    until("the background request", async || (origin.calls() == 2).then_some(())).await;
    permits.add_permits(1);
    until("the response is fresh", async || (b.get("/a").await.body == "2").then_some(())).await;
    // A response that one sidecar has revalidated is found in Redis by the other.
    until("the other sidecar has the response", async || (a.get("/a").await.body == "2").then_some(())).await;
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn background_revalidation_may_be_a_304() {
    let origin = Origin::start(|seen| async move {
        let mut answer = reply(&[("etag", "\"a\""), ("cache-control", "max-age=60")], "");
        if seen.header("if-none-match") == "\"a\"" {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return answer;
        }
        let control = "max-age=0, stale-while-revalidate=60";
        reply(&[("etag", "\"a\""), ("cache-control", control)], seen.number.to_string())
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    until("the response is fresh", async || {
        let answer = sidecar.get("/").await;
        assert_eq!((answer.hit(), answer.body.as_str()), (Some("l1"), "1"));
        answer.ttl().is_some_and(|ttl| ttl > 0).then_some(())
    })
    .await;
    assert_eq!(origin.calls(), 2);
}

const STALE: &[(&str, &str)] = &[("cache-control", "max-age=5, stale-if-error=60"), ("age", "15")];

#[tokio::test(flavor = "multi_thread")]
async fn stale_response_is_served_instead_of_an_error() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (status, stands_in) in
        [("500", true), ("502", true), ("503", true), ("504", true), ("501", false), ("404", false)]
    {
        let path = format!("/{status}");
        let stored = [("x-say", "cache-control: max-age=5, stale-if-error=60"), ("x-say", "age: 15")];
        let stored = sidecar.get_with(&path, &stored).await;
        let answer = sidecar.get_with(&path, &[("x-status", status)]).await;
        let expected = if stands_in {
            format!("larder; fwd=stale; fwd-status={status}; detail=stale-if-error")
        } else {
            format!("larder; fwd=stale; fwd-status={status}")
        };
        assert_eq!(answer.cache_status(), expected);
        assert_eq!(answer.status == 200 && answer.body == stored.body, stands_in, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_hangs_up_or_is_missing_counts_as_an_error() {
    let failing = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&failing);
    let origin = RawOrigin::start(move |mut stream| {
        let fails = Arc::clone(&fails);
        async move {
            while !read_head(&mut stream).await.is_empty() {
                if fails.load(Ordering::SeqCst) {
                    return;
                }
                let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=5, stale-if-error=60\r\nAge: 15\r\n\
                     Content-Length: 3\r\n\r\nold";
                stream.write_all(head.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let relay = Relay::to(origin.address).await;
    let sidecar = Sidecar::bare(([127, 0, 0, 1], relay.port).into()).await;
    sidecar.get("/").await;
    failing.store(true, Ordering::SeqCst);
    let stands_in = async || {
        let answer = sidecar.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "old"));
        assert_eq!(answer.cache_status(), "larder; fwd=stale; detail=stale-if-error");
    };
    stands_in().await;
    drop(relay);
    stands_in().await;
    assert_eq!(sidecar.get("/else").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn must_revalidate_response_is_never_served_instead_of_an_error() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for word in ["must-revalidate", "proxy-revalidate", "no-cache"] {
        let path = format!("/{word}");
        let control =
            format!("cache-control: max-age=5, stale-if-error=60, stale-while-revalidate=60, {word}");
        sidecar.get_with(&path, &[("x-say", &control), ("x-say", "age: 15"), ("x-say", "etag: \"a\"")]).await;
        let answer = sidecar.get_with(&path, &[("x-status", "503")]).await;
        assert_eq!(
            (answer.status.as_u16(), answer.cache_status()),
            (503, "larder; fwd=stale; fwd-status=503"),
            "{word}"
        );
    }
    // Without a window, nothing stands in either.
    sidecar.get_with("/none", &[("x-say", "cache-control: max-age=0"), ("x-say", "etag: \"a\"")]).await;
    assert_eq!(sidecar.get_with("/none", &[("x-status", "503")]).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn route_limits_stale_if_error() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- {name: long, match: {path: "/long/{page}"}, staleIfError: 10m}
- {name: never, match: {path: "/never/{page}"}, staleIfError: 0s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let lines: Vec<_> = STALE.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let stored: Vec<_> =
        lines.iter().map(|line| ("x-say", line.as_str())).chain([("x-say", "etag: \"a\"")]).collect();
    for (path, status) in [("/long/a", 200), ("/never/a", 503)] {
        sidecar.get_with(path, &stored).await;
        assert_eq!(sidecar.get_with(path, &[("x-status", "503")]).await.status.as_u16(), status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_revalidation_leaves_the_stored_response() {
    let origin = Origin::start(|seen| async move {
        let mut answer =
            reply(&[("cache-control", "max-age=5, stale-while-revalidate=600"), ("age", "15")], "1");
        if seen.number > 1 {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        answer
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    until("several renewals have failed", async || {
        let answer = sidecar.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (200, Some("l1")));
        (origin.calls() > 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_get_response_serves_head_and_is_revalidated_by_get() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (path, window) in [("/error", "stale-if-error"), ("/renewed", "stale-while-revalidate")] {
        let control = format!("cache-control: max-age=5, {window}=60");
        let stored = sidecar.get_with(path, &[("x-say", &control), ("x-say", "age: 15")]).await;
        let head = sidecar.request(http::Method::HEAD, path, &[("x-status", "503")], "").await;
        assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "1"), "{path}");
        assert_eq!(stored.body.len(), 1);
    }
    until("the response is revalidated", async || {
        (origin.last().path == "/renewed" && origin.calls() == 4).then_some(())
    })
    .await;
    assert_eq!(origin.last().method, http::Method::GET);
}

#[tokio::test(flavor = "multi_thread")]
async fn response_found_unstorable_is_not_served_stale_from_redis() {
    let origin = Origin::start(|seen| async move {
        let control = if seen.number == 1 { "max-age=5, stale-while-revalidate=600" } else { "no-store" };
        reply(&[("cache-control", control), ("age", "15")], seen.number.to_string())
    })
    .await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}}
"#,
    );
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    a.get("/a").await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    assert_eq!(a.get("/a").await.body, "1", "the response is served while it is revalidated");
    until("the first pod knows", async || (a.get("/a").await.hit().is_none()).then_some(())).await;
    until("the other pod knows", async || (b.get("/a").await.hit().is_none()).then_some(())).await;
    assert_ne!(b.get("/a").await.body, "1");
}
