//! Clients of the admin port that have no token.

use http::StatusCode;

use super::{LIMIT, RELEASE_TIMEOUT, until_resident_is_below};
use crate::integration::harness::{Origin, Sidecar, Wire};

/// Growth of memory that an idle sidecar may have.
const NOISE: u64 = 8 << 20;

async fn unfinished_heads(count: usize, length: usize) {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let (before, peak) = (sidecar.resident(), sidecar.peak());
    let head = format!("GET /livez HTTP/1.1\r\nHost: larder\r\nX-Long: {}", "x".repeat(length));
    let mut wires = Vec::new();
    for number in 0..count {
        let mut wire = Wire::to(sidecar.admin).await;
        wire.try_to_say(&head).await;
        wires.push(wire);
        if number % 50 == 0 {
            assert_eq!(sidecar.admin_anew("/livez").await, StatusCode::OK);
        }
    }
    assert_eq!(sidecar.admin_anew("/livez").await, StatusCode::OK);
    assert_eq!(sidecar.admin_anew("/metrics").await, StatusCode::OK);
    assert!(peak.bytes() < LIMIT / 2, "{} MiB", peak.bytes() >> 20);
    // All of them are still there, as far as their clients are concerned.
    until_resident_is_below(&sidecar, before + NOISE, RELEASE_TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_heads_on_the_admin_port_hold_little_and_not_for_long() {
    unfinished_heads(600, 400_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_heads_that_are_small_enough_give_way_to_probes() {
    unfinished_heads(600, 12_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_head_on_the_admin_port_ends_its_connection() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::to(sidecar.admin).await;
    wire.say("GET /livez HTTP/1.1\r\nHost: larder\r\nX-").await;
    assert_eq!(wire.rest().await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_body_on_the_admin_port_ends_its_connection() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::to(sidecar.admin).await;
    let token = crate::integration::harness::TOKEN;
    wire.say(format!(
        "POST /purge HTTP/1.1\r\nHost: larder\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{"
    ))
    .await;
    let rest = String::from_utf8(wire.rest().await).unwrap();
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
}
