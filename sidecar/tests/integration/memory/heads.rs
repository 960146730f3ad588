//! Clients that begin requests and do not finish them.

use std::time::Duration;

use super::{LIMIT, RELEASE_TIMEOUT, limited, until_resident_is_below};
use crate::integration::harness::{Origin, Sidecar, Wire, header, reply, until};

/// Growth of memory that may remain after the attack.
const NOISE: u64 = 12 << 20;

/// Sends `bytes` on so many connections and leaves them open, while others request stored and unstored responses.
async fn attack(sidecar: &Sidecar, count: usize, bytes: &[u8]) {
    let peak = sidecar.peak();
    let before = sidecar.resident();
    let mut wires = Vec::new();
    for number in 0..count {
        let mut wire = Wire::to(sidecar.address).await;
        wire.try_to_say(bytes).await;
        wires.push(wire);
        if number % 100 == 0 {
            ordinary_requests(sidecar, number).await;
        }
    }
    ordinary_requests(sidecar, count).await;
    assert!(peak.bytes() < LIMIT, "{} MiB", peak.bytes() >> 20);
    drop(wires);
    until_resident_is_below(sidecar, before + NOISE, RELEASE_TIMEOUT).await;
}

/// Requests a hit and a miss, on a new connection.
async fn ordinary_requests(sidecar: &Sidecar, number: usize) {
    let mut wire = Wire::to(sidecar.address).await;
    for path in ["/stored", &format!("/missed/{number}")] {
        wire.ask(path).await;
        let (head, _) = wire.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{number} {path}: {head}");
        assert_eq!(header(&head, "cache-status").contains("hit"), path == "/stored", "{head}");
    }
}

async fn sidecar() -> (Origin, Sidecar) {
    let origin = Origin::start(|_| async { reply(&[("cache-control", "max-age=600")], "whole") }).await;
    let sidecar = limited(origin.address, &[]).await;
    assert_eq!(sidecar.get("/stored").await.body, "whole");
    (origin, sidecar)
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_heads_stay_within_the_limit_and_others_are_served() {
    let (_origin, sidecar) = sidecar().await;
    let head = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Long: {}", "x".repeat(60_000));
    attack(&sidecar, 3_000, head.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_unfinished_heads_stay_within_the_limit_and_others_are_served() {
    let (_origin, sidecar) = sidecar().await;
    let head = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Long: {}", "x".repeat(7_000));
    attack(&sidecar, 3_000, head.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_stay_within_the_limit_and_others_are_served() {
    let (_origin, sidecar) = sidecar().await;
    attack(&sidecar, 3_000, b"GET /stored HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_stay_within_the_limit_and_others_are_served() {
    let (_origin, sidecar) = sidecar().await;
    attack(&sidecar, 3_000, b"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_on_a_connection_at_once_stay_within_the_limit() {
    let (_origin, sidecar) = sidecar().await;
    let requests = "GET /stored HTTP/1.1\r\nHost: shop.test\r\n\r\n".repeat(1_000);
    attack(&sidecar, 500, requests.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_heads_over_http2_stay_within_the_limit_and_others_are_served() {
    let (_origin, sidecar) = sidecar().await;
    // The preface, empty settings, and a header block of 48 kB that does not end: fields of 4,000 bytes, in frames of 16,000.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut block = Vec::new();
    while block.len() < 48_000 {
        block.extend_from_slice(b"\x00\x01x\x7f\xa1\x1e");
        block.extend_from_slice(&[b'v'; 4_000]);
    }
    for (at, piece) in block.chunks(16_000).enumerate() {
        let length = u32::try_from(piece.len()).unwrap().to_be_bytes();
        bytes.extend_from_slice(&length[1..]);
        bytes.extend_from_slice(if at == 0 { b"\x01\x01\0\0\0\x01" } else { b"\x09\0\0\0\0\x01" });
        bytes.extend_from_slice(piece);
    }
    attack(&sidecar, 1_000, &bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_head_that_makes_room_is_a_503_with_retry_after() {
    let (_origin, sidecar) = sidecar().await;
    let head = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Long: {}", "x".repeat(60_000));
    let mut first = Wire::to(sidecar.address).await;
    first.say(&head).await;
    let mut others = Vec::new();
    for _ in 0..200 {
        let mut wire = Wire::to(sidecar.address).await;
        wire.try_to_say(&head).await;
        others.push(wire);
    }
    let answer = first.head().await;
    assert!(answer.starts_with("http/1.1 503 "), "{answer:?}");
    assert_eq!(header(&answer, "retry-after"), "1");
    until("refusals to be counted", async || {
        (sidecar.metric("larder_refused_requests_total", &["overloaded"]).await > 50.0).then_some(())
    })
    .await;
    // A client that sends a large head at once is not affected.
    let mut wire = Wire::to(sidecar.address).await;
    wire.say(format!("{head}\r\n\r\n")).await;
    let answer = tokio::time::timeout(Duration::from_secs(5), wire.head()).await.unwrap();
    assert!(answer.starts_with("http/1.1 200 "), "{answer:?}");
}
