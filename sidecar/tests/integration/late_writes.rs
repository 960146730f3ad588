//! Writes that the application carries out after `application.timeout`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::harness::{Database, Origin, Policy, RawOrigin, Sidecar, Wire, read_head, reply, until};

const NAMED: &str = r#"
application: {timeout: 500ms}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: [page]}
- {name: list, match: {path: "/lists/{list}"}, ttl: 60s, tags: [page]}
invalidation: {onWrite: [{match: {path: "/{page}"}, purge: {tags: [page]}}]}
"#;
const UNNAMED: &str = r#"
application: {timeout: 500ms}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#;

const PERSISTED: &str = r#"
application: {timeout: 500ms}
sources:
- {name: db, postgres: {urlFrom: DATABASE}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1ms, tags: [page], lastKnownGood: {source: db}}
invalidation: {onWrite: [{match: {path: "/{page}"}, purge: {tags: [page]}}]}
"#;

const TIMEOUT: Duration = Duration::from_millis(500);

/// An application that responds with the number of writes that it has carried out. It carries one out when it gets a permit.
struct Slow {
    origin: Origin,
    permits: Arc<Semaphore>,
    cancelled: Arc<AtomicUsize>,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Slow {
    async fn start() -> Self {
        let (permits, cancelled) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        let written = Arc::<AtomicUsize>::default();
        let (gate, count) = (Arc::clone(&permits), Arc::clone(&cancelled));
        let origin = Origin::start(move |seen| {
            let (gate, guard) = (Arc::clone(&gate), Guard(Arc::clone(&count)));
            let written = Arc::clone(&written);
            async move {
                if !seen.method.is_safe() {
                    gate.acquire().await.unwrap().forget();
                    written.fetch_add(1, Ordering::SeqCst);
                }
                std::mem::forget(guard);
                let mut reply = reply(&[], written.load(Ordering::SeqCst).to_string());
                if seen.header("x-fail") == "yes" {
                    *reply.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                reply
            }
        })
        .await;
        Self { origin, permits, cancelled }
    }

    fn carry_out(&self) {
        self.permits.add_permits(1);
    }
}

/// Stores `path` and finds it stored, with the response for so many writes.
async fn is_stored(sidecar: &Sidecar, path: &str, writes: &str) {
    until("the response is stored", async || {
        let answer = sidecar.get(path).await;
        assert_eq!(answer.body, writes, "{path}");
        answer.hit().map(|_| ())
    })
    .await;
}

async fn is_renewed(sidecar: &Sidecar, path: &str, writes: &str) {
    until(&format!("{path} is purged"), async || (sidecar.get(path).await.body == writes).then_some(()))
        .await;
}

async fn in_progress(sidecar: &Sidecar) -> f64 {
    sidecar.metric("larder_requests_in_progress", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn late_write_purges_again_when_its_response_comes() {
    for (spec, paths) in [(NAMED, &["/a", "/lists/b"][..]), (UNNAMED, &["/a"])] {
        for (number, method) in [Method::PUT, Method::POST, Method::DELETE].into_iter().enumerate() {
            let slow = Slow::start().await;
            let policy = Policy::new(spec);
            let sidecar = Sidecar::start(&policy, slow.origin.address).await;
            for path in paths {
                is_stored(&sidecar, path, "0").await;
            }
            let body = if number == 2 { "" } else { "body" };
            let answer = sidecar.request(method.clone(), "/a", &[], body).await;
            assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{method}");
            for path in paths {
                // The stored response is purged where a rule says so, and the application responds with the same again.
                assert_eq!(sidecar.get(path).await.hit().is_some(), spec == UNNAMED, "{method} {path}");
                is_stored(&sidecar, path, "0").await;
            }
            sleep(TIMEOUT).await;
            assert_eq!(slow.cancelled.load(Ordering::SeqCst), 0, "{method}: it goes on");
            slow.carry_out();
            for path in paths {
                is_renewed(&sidecar, path, "1").await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_write_purges_again_with_and_without_its_client() {
    let slow = Slow::start().await;
    let policy = Policy::new(NAMED);
    let sidecar = Sidecar::start(&policy, slow.origin.address).await;
    is_stored(&sidecar, "/a", "0").await;
    let mut client = Wire::to(sidecar.address).await;
    client.say("PUT /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\n\r\nx").await;
    until("the application has the request", async || (slow.origin.calls() == 2).then_some(())).await;
    drop(client);
    until("the write is late", async || {
        let late = sidecar.metric("larder_upstream_errors_total", &["reason=\"timeout\""]).await;
        (late == 1.0).then_some(())
    })
    .await;
    is_stored(&sidecar, "/a", "0").await;
    slow.carry_out();
    is_renewed(&sidecar, "/a", "1").await;

    // The connection of one that stays takes further requests meanwhile.
    let mut client = Wire::to(sidecar.address).await;
    client.say("PUT /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\n\r\nx").await;
    assert!(client.answer().await.0.starts_with("http/1.1 504"));
    client.ask("/a").await;
    assert_eq!(client.answer().await.1, "1");
    slow.carry_out();
    is_renewed(&sidecar, "/a", "2").await;
    client.ask("/a").await;
    assert_eq!(client.answer().await.1, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_write_over_http2_purges_again() {
    let slow = Slow::start().await;
    let policy = Policy::new(NAMED);
    let sidecar = Sidecar::start(&policy, slow.origin.address).await;
    is_stored(&sidecar, "/a", "0").await;
    let answer = put_over_http2(sidecar.address).await;
    assert_eq!(answer, StatusCode::GATEWAY_TIMEOUT);
    is_stored(&sidecar, "/a", "0").await;
    slow.carry_out();
    is_renewed(&sidecar, "/a", "1").await;
}

async fn put_over_http2(address: SocketAddr) -> StatusCode {
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = Request::put("http://shop.test/a").body(Full::new(Bytes::from("body"))).unwrap();
    // The connection ends with the response.
    timeout(Duration::from_secs(15), sender.send_request(request)).await.unwrap().unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn late_write_purges_again_when_its_connection_ends_or_its_body_stalls() {
    for (number, last_words) in ["", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx"].into_iter().enumerate()
    {
        let (written, permits) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
        let (count, gate) = (Arc::clone(&written), Arc::clone(&permits));
        let origin = RawOrigin::start(move |mut stream| {
            let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
            async move {
                if read_head(&mut stream).await.starts_with("PUT") {
                    gate.acquire().await.unwrap().forget();
                    count.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(last_words.as_bytes()).await.unwrap();
                    if !last_words.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    return;
                }
                let body = count.load(Ordering::SeqCst).to_string();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let policy = Policy::new(NAMED);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        is_stored(&sidecar, "/a", "0").await;
        assert_eq!(sidecar.put("/a").await.status, StatusCode::GATEWAY_TIMEOUT, "{number}");
        is_stored(&sidecar, "/a", "0").await;
        permits.add_permits(1);
        is_renewed(&sidecar, "/a", "1").await;
        until("the write has ended", async || (in_progress(&sidecar).await == 0.0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_write_makes_the_last_good_response_be_forgotten_again() {
    let database = Database::new("").await;
    let slow = Slow::start().await;
    let policy = Policy::new(&database.serve(PERSISTED));
    let sidecar = Sidecar::start(&policy, slow.origin.address).await;
    assert_eq!(sidecar.put("/a").await.status, StatusCode::GATEWAY_TIMEOUT);
    let fails = async || sidecar.get_with("/a", &[("x-fail", "yes")]).await.status.is_server_error();
    until("the last good one stands in", async || {
        assert_eq!(sidecar.get("/a").await.body, "0");
        // The first purge has reached Postgres by then.
        sleep(TIMEOUT).await;
        (!fails().await).then_some(())
    })
    .await;
    assert!(!fails().await);
    slow.carry_out();
    until("the response is forgotten", async || fails().await.then_some(())).await;
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_write_counts_as_in_progress_until_it_ends() {
    let slow = Slow::start().await;
    let policy = Policy::new(NAMED);
    let sidecar = Sidecar::start(&policy, slow.origin.address).await;
    assert_eq!(sidecar.put("/a").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(in_progress(&sidecar).await, 1.0);
    slow.carry_out();
    until("the write has ended", async || (in_progress(&sidecar).await == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_response_to_a_late_write_does_not_reach_its_client() {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = RawOrigin::start(move |mut stream| {
        let gate = Arc::clone(&gate);
        async move {
            if read_head(&mut stream).await.starts_with("PUT") {
                gate.acquire().await.unwrap().forget();
                stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </late>\r\n\r\n").await.unwrap();
                std::future::pending::<()>().await;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await.unwrap();
        }
    })
    .await;
    let policy = Policy::new(NAMED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say("PUT /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n").await;
    assert!(client.answer().await.0.starts_with("http/1.1 504"));
    permits.add_permits(1);
    sleep(TIMEOUT / 2).await;
    client.ask("/other/a").await;
    let (head, body) = client.answer().await;
    assert!(head.starts_with("http/1.1 200") && body == "x", "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_not_sent_in_time_is_never_sent() {
    let origin = Origin::numbered(&[]).await;
    let address = origin.address;
    let policy = Policy::new(NAMED);
    let sidecar = Sidecar::start(&policy, address).await;
    assert_eq!(sidecar.get("/other/a").await.body, "1");
    drop(origin);
    until("the application is gone", async || TcpStream::connect(address).await.err()).await;
    assert_eq!(sidecar.put("/a").await.status, StatusCode::GATEWAY_TIMEOUT);
    let origin = Origin::start_on(address, |_| async { reply(&[], "") }).await;
    sleep(TIMEOUT * 3).await;
    assert_eq!(origin.calls(), 0);
}
