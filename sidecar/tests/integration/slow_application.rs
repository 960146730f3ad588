//! The application's timeout (`application.timeout`).

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};

use super::harness::{Origin, Policy, RawOrigin, Sidecar, Steps, Wire, header, read_head, reply, until};

const SPEC: &str = r#"
application: {timeout: 500ms}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
- {name: brief, match: {path: "/brief/{page}"}, ttl: 1s, staleIfError: 10m}
"#;

const TIMEOUT: Duration = Duration::from_millis(500);

/// An application that responds with a request's number until it is set to hang.
async fn hangs_when_told() -> (Origin, Arc<AtomicBool>, Arc<AtomicUsize>) {
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (hangs, cancelled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (told, count) = (Arc::clone(&hangs), Arc::clone(&cancelled));
    let origin = Origin::start(move |seen| {
        let (hangs, guard) = (told.load(Ordering::SeqCst), Guard(Arc::clone(&count)));
        async move {
            if hangs {
                pending::<()>().await;
            }
            std::mem::forget(guard);
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    (origin, hangs, cancelled)
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_does_not_begin_in_time_is_a_504_and_its_request_is_cancelled() {
    let (origin, hangs, cancelled) = hangs_when_told().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    hangs.store(true, Ordering::SeqCst);
    let requests = [(Method::GET, "/a"), (Method::GET, "/no/route/at/all"), (Method::HEAD, "/a")];
    for (number, (method, path)) in requests.into_iter().enumerate() {
        let is_head = method == Method::HEAD;
        let began = Instant::now();
        let answer = sidecar.request(method, path, &[], "body").await;
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{path}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert!(is_head || answer.body.contains("in time"), "{}", answer.body);
        let timeouts = sidecar.metric("larder_upstream_errors_total", &["reason=\"timeout\""]).await;
        assert_eq!(timeouts, (number + 1) as f64);
        assert!(sidecar.logged("the application did not respond").unwrap().contains("\"timeout\""));
        assert!(began.elapsed() > TIMEOUT / 2, "{path}: {:?}", began.elapsed());
        until("the application sees the request end", async || {
            (cancelled.load(Ordering::SeqCst) == number + 1).then_some(())
        })
        .await;
    }
    hangs.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_response_is_served_instead_of_one_that_does_not_begin_in_time() {
    let (origin, hangs, _cancelled) = hangs_when_told().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/brief/a").await.body, "1");
    hangs.store(true, Ordering::SeqCst);
    let answer = until("the stale response is served", async || {
        let answer = sidecar.get("/brief/a").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "1"));
        answer.hit().is_none().then_some(answer)
    })
    .await;
    assert!(answer.cache_status().ends_with("detail=stale-if-error"), "{}", answer.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn application_without_a_timeout_takes_as_long_as_its_client_waits() {
    let origin = Origin::start(|_| async {
        sleep(TIMEOUT * 3).await;
        reply(&[], "late")
    })
    .await;
    let policy = Policy::new(&SPEC.replace("application: {timeout: 500ms}", ""));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, "late");
    assert_eq!(sidecar.get("/no/route").await.body, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_breaks_off_unless_it_is_a_stream_of_events() {
    let origin = Steps::answering(
        |head| {
            let kind = if head.contains("/events") { "text/event-stream; charset=utf-8" } else { "text/plain" };
            vec![
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nContent-Length: 4\r\n\r\nfi"
                ),
                "ll".into(),
            ]
        },
        false,
    )
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut events = Wire::asking(sidecar.address, "/events").await;
    for path in ["/a", "/no/route"] {
        let mut client = Wire::asking(sidecar.address, path).await;
        assert_eq!(header(&client.head().await, "content-length"), "4");
        assert_eq!(client.rest().await, b"fi", "{path}");
    }
    events.head().await;
    assert_eq!(events.bytes(2).await, "fi");
    sleep(TIMEOUT * 2).await;
    // Both that broke off may still take a step.
    origin.let_go(3);
    assert_eq!(events.bytes(2).await, "ll");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_goes_on_may_take_longer_in_sum() {
    let origin = RawOrigin::start(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n").await.unwrap();
        for _ in 0..8 {
            sleep(TIMEOUT / 4).await;
            stream.write_all(b"x").await.unwrap();
        }
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, "xxxxxxxx");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_a_client_takes_for_its_body_does_not_count() {
    let (origin, hangs, _cancelled) = hangs_when_told().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (told, expected) in [(false, "http/1.1 200"), (true, "http/1.1 504")] {
        hangs.store(told, Ordering::SeqCst);
        let mut client = Wire::to(sidecar.address).await;
        client.say("PUT /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\n").await;
        for _ in 0..4 {
            sleep(TIMEOUT / 2).await;
            client.say("x").await;
        }
        let head = timeout(Duration::from_secs(5), client.head()).await.unwrap();
        assert!(head.starts_with(expected), "{head}");
    }
}
