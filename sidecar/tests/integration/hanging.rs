//! Hung requests to the application, and their cost for other requests of the same key.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use http::StatusCode;
use tokio::sync::Semaphore;

use super::harness::{Answer, Origin, Policy, RedisServer, Sidecar, Steps, Wire, header, reply, two, until};

/// A route with a collapse timeout of half a second.
const SPEC: &str = r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, collapseTimeout: 500ms}
"#;

const COLLAPSE_TIMEOUT: Duration = Duration::from_millis(500);

/// An application that never responds to its first `hung` requests, and to every other with its number after `takes`.
async fn hanging(hung: usize, takes: Duration, headers: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::start(move |seen| async move {
        if seen.number <= hung {
            pending::<()>().await;
        }
        tokio::time::sleep(takes).await;
        reply(headers, seen.number.to_string())
    })
    .await
}

/// Sends a request on a connection of its own, and waits until the application has it.
async fn hang(sidecar: &Sidecar, origin: &Origin, path: &str) -> Wire {
    let before = origin.calls();
    let wire = Wire::asking(sidecar.address, path).await;
    until("the request hangs", async || (origin.calls() > before).then_some(())).await;
    wire
}

/// Sends so many requests, one after another, as probes do.
async fn probe(sidecar: &Sidecar, times: usize, path: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..times {
        answers.push(sidecar.get(path).await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_request_costs_its_key_one_collapse_timeout() {
    type Case = (u16, &'static [(&'static str, &'static str)]);
    const CASES: [Case; 5] = [
        (200, &[]),
        (200, &[("cache-control", "no-store")]),
        (200, &[("set-cookie", "a=b")]),
        (404, &[]),
        (503, &[]),
    ];
    join_all(CASES.map(async |(status, headers)| {
        let origin = Origin::start(move |seen| async move {
            if seen.number == 1 {
                pending::<()>().await;
            }
            let mut reply = reply(headers, seen.number.to_string());
            *reply.status_mut() = StatusCode::from_u16(status).unwrap();
            reply
        })
        .await;
        let policy = Policy::new(&SPEC.replace("500ms", "1s"));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let _hung = hang(&sidecar, &origin, "/health").await;
        let began = Instant::now();
        let answers = probe(&sidecar, 15, "/health").await;
        // If each waited alone for the hung request, all would take 15 s.
        assert!(began.elapsed() < Duration::from_secs(5), "{status} {headers:?}: {:?}", began.elapsed());
        assert!(answers.iter().all(|answer| answer.status == status), "{answers:?}");
        if (status, headers.is_empty()) == (200, true) {
            assert_eq!(origin.calls(), 2);
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collapse_timeout_defaults_to_five_seconds() {
    let origin = hanging(1, Duration::ZERO, &[]).await;
    let policy = Policy::new(&SPEC.replace(", collapseTimeout: 500ms", ""));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let _hung = hang(&sidecar, &origin, "/health").await;
    let began = Instant::now();
    assert_eq!(sidecar.get("/health").await.body, "2");
    let waited = began.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(8)).contains(&waited), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_cold_requests_cause_one_slow_upstream_request() {
    let origin = hanging(0, Duration::from_secs(2), &[("cache-control", "max-age=60")]).await;
    let policy = Policy::new(&SPEC.replace(", collapseTimeout: 500ms", ""));
    let pods = [Sidecar::start(&policy, origin.address).await, Sidecar::bare(origin.address).await];
    let answers = join_all((0..100).flat_map(|_| pods.iter().map(|pod| pod.get("/cold")))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(origin.calls(), pods.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_requests_behind_a_hung_one_retries() {
    let origin = hanging(1, Duration::from_millis(200), &[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let _hung = hang(&sidecar, &origin, "/a").await;
    let answers = join_all((0..30).map(|_| sidecar.get("/a"))).await;
    assert!(answers.iter().all(|answer| answer.body == "2"), "{answers:?}");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_that_hang_cost_two_collapse_timeouts_and_a_request_each() {
    let origin = hanging(2, Duration::ZERO, &[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let _hung = hang(&sidecar, &origin, "/a").await;
    let began = Instant::now();
    // Half a collapse timeout later, so that they may wait for the second request to its end.
    tokio::time::sleep(COLLAPSE_TIMEOUT / 2).await;
    let clients = join_all((0..10).map(|_| Wire::asking(sidecar.address, "/a"))).await;
    let mut answered = 0;
    for mut client in clients {
        // The hung request of one client hangs as it would without a sidecar.
        let answer = tokio::time::timeout(Duration::from_secs(3), client.answer()).await;
        answered += usize::from(answer.is_ok_and(|(head, _)| head.starts_with("http/1.1 200")));
    }
    assert_eq!(answered, 9);
    assert_eq!(origin.calls(), 3);
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_waits_for_others_at_most_twice_the_collapse_timeout() {
    let origin = Origin::start(|seen| async move {
        if seen.header("x-hangs") == "yes" {
            pending::<()>().await;
        }
        reply(&[], seen.number.to_string())
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let hangs = "GET /a HTTP/1.1\r\nHost: shop.test\r\nX-Hangs: yes\r\n\r\n";
    let mut hung = Vec::new();
    for _ in 0..5 {
        let mut wire = Wire::to(sidecar.address).await;
        wire.say(hangs).await;
        hung.push(wire);
    }
    until("one hangs", async || (origin.calls() == 1).then_some(())).await;
    let began = Instant::now();
    assert_eq!(sidecar.get("/a").await.status, 200);
    assert!(began.elapsed() < COLLAPSE_TIMEOUT * 2 + Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn late_response_serves_requests_that_wait_for_the_next_one() {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            if seen.number == 1 {
                gate.acquire().await.unwrap().forget();
            } else {
                pending::<()>().await;
            }
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    let policy = Policy::new(&SPEC.replace("500ms", "2s"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut first = hang(&sidecar, &origin, "/a").await;
    let others = join_all((0..5).map(|_| Wire::asking(sidecar.address, "/a"))).await;
    until("one request goes forward again", async || (origin.calls() == 2).then_some(())).await;
    permits.add_permits(1);
    let began = Instant::now();
    assert_eq!(first.answer().await.1, "1");
    let mut answered = 0;
    for mut client in others {
        let answer = tokio::time::timeout(Duration::from_secs(1), client.answer()).await;
        answered += usize::from(answer.is_ok_and(|(_, body)| body == "1"));
    }
    assert_eq!(answered, 4, "all but the one that went forward again");
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_response_does_not_replace_a_later_requested_one() {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            if seen.number == 1 {
                gate.acquire().await.unwrap().forget();
            }
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut first = hang(&sidecar, &origin, "/a").await;
    assert_eq!(sidecar.get("/a").await.body, "2");
    permits.add_permits(1);
    assert_eq!(first.answer().await.1, "1", "the hung request's client has waited for it");
    for answer in probe(&sidecar, 5, "/a").await {
        assert_eq!((answer.body.as_str(), answer.hit()), ("2", Some("l1")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_hangs_is_followed_by_another_while_stale_responses_are_served() {
    let origin = Origin::start(|seen| async move {
        if (2..=3).contains(&seen.number) {
            pending::<()>().await;
        }
        reply(&[], seen.number.to_string())
    })
    .await;
    let spec = SPEC.replace("ttl: 60s", "ttl: 1s, staleWhileRevalidate: 10m");
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, "1");
    let mut calls = Vec::new();
    until("the response is refreshed", async || {
        let began = Instant::now();
        let answer = sidecar.get("/a").await;
        assert!(began.elapsed() < COLLAPSE_TIMEOUT, "no client waits for a refresh");
        assert_eq!(answer.hit(), Some("l1"));
        let count = origin.calls();
        if calls.last().is_none_or(|(_, last)| *last != count) {
            calls.push((Instant::now(), count));
        }
        (answer.body == "4").then_some(())
    })
    .await;
    let at = |count| calls.iter().find(|(_, calls)| *calls >= count).unwrap().0;
    assert!(at(3) - at(2) > COLLAPSE_TIMEOUT / 2 && at(4) - at(3) > COLLAPSE_TIMEOUT / 2, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_stored_by_another_pod_serves_waiting_requests() {
    let origin = hanging(1, Duration::ZERO, &[]).await;
    let policy = Policy::new(&format!(
        "l2: {{redis: {{urlFrom: {{env: LARDER_TEST_REDIS_URL}}, timeout: 2s, hardTimeout: 10s}}}}{}",
        SPEC.replace("500ms", "2s")
    ));
    let [a, b] = two(&policy, &origin).await;
    let _hung = hang(&a, &origin, "/a").await;
    let began = Instant::now();
    let (mine, theirs) = tokio::join!(a.get("/a"), b.get("/a"));
    assert_eq!((mine.body.as_str(), theirs.body.as_str()), ("2", "2"));
    assert_eq!(origin.calls(), 2, "{} {}", mine.cache_status(), theirs.cache_status());
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // The lease of the hung request has expired.
    let (_redis, began) = (RedisServer::shared().await, Instant::now());
    assert_eq!(b.get("/b").await.body, "3");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_body_is_not_joined_and_does_not_replace_a_later_requested_one() {
    let count = AtomicUsize::new(0);
    let origin = Steps::answering(
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => vec!["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi".into(), "ll".into()],
            _ => vec!["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext".into()],
        },
        false,
    )
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut first = Wire::asking(sidecar.address, "/a").await;
    first.head().await;
    assert_eq!(first.bytes(2).await, "fi");
    let mut early = Wire::asking(sidecar.address, "/a").await;
    assert!(header(&early.head().await, "cache-status").ends_with("; collapsed"));
    assert_eq!(early.bytes(2).await, "fi", "the body has not stalled yet");
    until("the body has stalled", async || {
        let answer = tokio::time::timeout(Duration::from_millis(50), sidecar.get("/a")).await;
        answer.is_ok_and(|answer| answer.body == "next").then_some(())
    })
    .await;
    assert_eq!(origin.asked(), 2);
    origin.let_go(1);
    assert_eq!(
        (first.bytes(2).await, early.bytes(2).await),
        ("ll".into(), "ll".into()),
        "the clients had begun"
    );
    for answer in probe(&sidecar, 3, "/a").await {
        assert_eq!((answer.body.as_str(), answer.hit()), ("next", Some("l1")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_behind_a_body_without_bytes_turn_to_the_next_one() {
    let count = AtomicUsize::new(0);
    let origin = Steps::answering(
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => vec!["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".into(), "fill".into()],
            _ => vec!["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext".into()],
        },
        false,
    )
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut first = Wire::asking(sidecar.address, "/a").await;
    first.head().await;
    let answers = join_all((0..10).map(|_| sidecar.get("/a"))).await;
    assert!(answers.iter().all(|answer| answer.body == "next"), "{answers:?}");
    assert_eq!(origin.asked(), 2);
    origin.let_go(1);
    assert_eq!(first.bytes(4).await, "fill");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_does_not_make_a_body_stall() {
    const LENGTH: usize = 12 << 20;
    let origin = Origin::start(|_| async { reply(&[], "x".repeat(LENGTH)) }).await;
    let policy =
        Policy::new(&format!("l1: {{maxSize: 64Mi, maxObjectSize: 16Mi}}{}", SPEC.replace("500ms", "100ms")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut slow = Wire::narrow(sidecar.address).await;
    slow.ask("/a").await;
    slow.head().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sidecar.get("/a").await.body.len(), LENGTH);
    assert_eq!(origin.calls(), 1);
}
