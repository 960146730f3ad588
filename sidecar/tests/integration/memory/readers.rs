//! Clients that request large responses and do not read them.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http2::handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::sleep};

use super::{AFTERMATH, LARGE, LARGE_AND_SMALL, LIMIT, limited};
use crate::integration::harness::{Origin, Policy, Sidecar, Wire, reply};

const SHARED: &str = r#"
l1: {maxSize: 64Mi, maxObjectSize: 16Mi}
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}}}
routes:
- {name: large, match: {path: "/large/{number}"}, ttl: 1h}
- {name: small, match: {path: "/small/{number}"}, ttl: 1h}
"#;

async fn sidecar(policy: &Policy) -> (Origin, Sidecar) {
    let large = Bytes::from(vec![b'x'; LARGE]);
    let origin = Origin::start(move |seen| {
        let body = if seen.path.contains("/large/") { large.clone() } else { Bytes::from_static(b"small") };
        async move { reply(&[], body) }
    })
    .await;
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    sidecar.until_tiers_are("up").await;
    (origin, sidecar)
}

/// Checks memory while others request stored and unstored responses. The attack stores nothing that evicts the former.
async fn watch(sidecar: &Sidecar, attack: impl Future) {
    watch_with(sidecar, attack, async || {
        is_hit(sidecar).await;
        is_served(sidecar).await;
    })
    .await;
}

/// Checks memory during an attack that stores large responses: a small one may be evicted between any two requests for it.
async fn watch_evicting(sidecar: &Sidecar, attack: impl Future) {
    watch_with(sidecar, attack, async || is_served(sidecar).await).await;
}

async fn watch_with(sidecar: &Sidecar, attack: impl Future, ordinary_requests: impl AsyncFn()) {
    assert_eq!(sidecar.get("/small/0").await.body, "small");
    let peak = sidecar.peak();
    let mut held = std::pin::pin!(attack);
    let held = loop {
        tokio::select! {
            held = &mut held => break held,
            () = sleep(Duration::from_millis(100)) => ordinary_requests().await,
        }
    };
    let until = tokio::time::Instant::now() + AFTERMATH;
    while tokio::time::Instant::now() < until {
        ordinary_requests().await;
        sleep(Duration::from_millis(100)).await;
    }
    eprintln!("peak: {} MiB", peak.bytes() >> 20);
    assert!(peak.bytes() < LIMIT, "{} MiB", peak.bytes() >> 20);
    drop(held);
}

/// Requests a response that is stored.
async fn is_hit(sidecar: &Sidecar) {
    assert_eq!(sidecar.get("/small/0").await.hit(), Some("l1"));
}

/// Requests a response that may be stored, and one that is not.
async fn is_served(sidecar: &Sidecar) {
    let missed = fastrand::u32(1..);
    for number in [0, missed] {
        assert_eq!(sidecar.get(&format!("/small/{number}")).await.body, "small");
    }
}

async fn slow(address: SocketAddr, path: &str) -> Wire {
    let mut wire = Wire::narrow(address).await;
    wire.ask(path).await;
    wire
}

async fn slow_readers(sidecar: &Sidecar, count: usize, path: impl Fn(usize) -> String) -> Vec<Wire> {
    let mut wires = Vec::new();
    for number in 0..count {
        wires.push(slow(sidecar.address, &path(number)).await);
    }
    wires
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_as_long_as_may_be_is_stored_within_the_default_limit() {
    let policy = Policy::new(LARGE_AND_SMALL);
    let (_origin, sidecar) = sidecar(&policy).await;
    assert_eq!(sidecar.get("/large/1").await.body.len(), LARGE);
    assert_eq!(sidecar.get("/large/1").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_different_responses_stay_within_the_limit() {
    let policy = Policy::new(LARGE_AND_SMALL);
    let (_origin, sidecar) = sidecar(&policy).await;
    watch(&sidecar, slow_readers(&sidecar, 40, |number| format!("/large/{number}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_responses_that_are_for_other_pods_too_stay_within_the_limit() {
    let policy = Policy::new(SHARED);
    let (_origin, sidecar) = sidecar(&policy).await;
    // The sidecar reads ahead of the clients, and stores what it has read.
    watch_evicting(&sidecar, slow_readers(&sidecar, 40, |number| format!("/large/{number}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_one_response_stay_within_the_limit() {
    let policy = Policy::new(LARGE_AND_SMALL);
    let (_origin, sidecar) = sidecar(&policy).await;
    watch(&sidecar, slow_readers(&sidecar, 200, |_| "/large/1".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_unstored_responses_stay_within_the_limit() {
    let policy = Policy::new(LARGE_AND_SMALL);
    let (_origin, sidecar) = sidecar(&policy).await;
    watch(&sidecar, slow_readers(&sidecar, 150, |number| format!("/other/large/{number}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_evicted_responses_stay_within_the_limit() {
    let policy = Policy::new(LARGE_AND_SMALL);
    let (_origin, sidecar) = sidecar(&policy).await;
    let attack = async {
        let mut wires = Vec::new();
        for number in 0..20 {
            let path = format!("/large/{number}");
            let fast = Wire::asking(sidecar.address, &path).await;
            wires.push(slow(sidecar.address, &path).await);
            drop(read_all(fast).await);
            wires.push(slow(sidecar.address, &path).await);
            // Less than L1 can hold was stored since the last request.
            is_hit(&sidecar).await;
        }
        wires
    };
    watch_evicting(&sidecar, attack).await;
    assert!(sidecar.metric("larder_l1_evictions_total", &[]).await > 0.0, "nothing was evicted");
}

async fn read_all(mut wire: Wire) -> Wire {
    let head = wire.head().await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    wire.skip(LARGE).await;
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_over_http2_stay_within_the_limit() {
    let policy = Policy::new(LARGE_AND_SMALL);
    let (_origin, sidecar) = sidecar(&policy).await;
    let attack = async {
        let mut held: Vec<(_, Vec<http::Response<Incoming>>)> = Vec::new();
        for connection in 0..4 {
            let stream = TcpStream::connect(sidecar.address).await.unwrap();
            let (mut sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(driver);
            let mut answers = Vec::new();
            for number in 0..50 {
                let uri = format!("http://shop.test/large/{connection}-{number}");
                let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
                sender.ready().await.unwrap();
                answers.push(sender.send_request(request).await.unwrap());
            }
            held.push((sender, answers));
        }
        held
    };
    watch(&sidecar, attack).await;
}
