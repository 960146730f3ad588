//! Clients that make the sidecar hold as much as they can beside a full L1.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::{task::AbortHandle, time::sleep};

use super::{
    AFTERMATH, LARGE, LARGE_AND_SMALL, LIMIT, ask_and_read_nothing, hold_streams, limited, response_heads,
};
use crate::integration::harness::{Origin, Policy, Sidecar, reply};

const SMALL: usize = 20_000;
/// Memory that a release build takes once L1 is full; a debug build takes some 20 MiB more.
const FULL: u64 = 84 << 20;

/// Fills L1, lets clients hold the connections that `attack` returns, and checks the memory of the process.
async fn stays_within_the_limit<T, A: Future<Output = T>>(attack: impl FnOnce(SocketAddr) -> A) {
    let large = Bytes::from(vec![b'x'; LARGE]);
    let origin = Origin::start(move |seen| {
        let body = if seen.path.contains("/large/") { large.clone() } else { large.slice(..SMALL) };
        async move {
            if seen.path.starts_with("/never/") {
                std::future::pending::<()>().await;
            }
            if seen.path.starts_with("/heads/") {
                return response_heads::reply_with_a_large_head();
            }
            reply(&[], body)
        }
    })
    .await;
    let policy = Policy::new(LARGE_AND_SMALL);
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    fill_l1(&sidecar).await;
    let (before, peak) = (sidecar.resident(), sidecar.peak());
    let held = attack(sidecar.address).await;
    sleep(AFTERMATH).await;
    let taken = peak.bytes().saturating_sub(before);
    assert!(taken < LIMIT - FULL, "{} MiB", taken >> 20);
    drop(held);
}

async fn fill_l1(sidecar: &Sidecar) {
    for number in 0..4 {
        assert_eq!(sidecar.get(&format!("/large/{number}")).await.body.len(), LARGE);
    }
    for number in 0..100 {
        sidecar.get(&format!("/small/{number}")).await;
    }
    assert_eq!(sidecar.get("/small/0").await.hit(), Some("l1"));
}

/// Connections of HTTP/2 whose clients leave the window of a response closed.
async fn close_windows(address: SocketAddr, connections: usize, path: &str) -> Vec<AbortHandle> {
    let mut client = h2::client::Builder::new();
    client.initial_window_size(0);
    let open = async |connection| hold_streams(address, &client, path.to_owned(), connection * 100).await;
    stream::iter(0..connections).map(open).buffer_unordered(32).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_beside_a_full_l1_stay_within_the_limit() {
    stays_within_the_limit(async |address| ask_and_read_nothing(address, 400, "/other/large/").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_new_responses_beside_a_full_l1_stay_within_the_limit() {
    stays_within_the_limit(async |address| ask_and_read_nothing(address, 400, "/large/new-").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_response_heads_beside_a_full_l1_stay_within_the_limit() {
    stays_within_the_limit(async |address| ask_and_read_nothing(address, 300, "/heads/").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_beside_a_full_l1_stay_within_the_limit() {
    stays_within_the_limit(async |address| ask_and_read_nothing(address, 1_000, "/never/").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_windows_of_a_few_connections_beside_a_full_l1_stay_within_the_limit() {
    stays_within_the_limit(async |address| close_windows(address, 10, "/other/large/").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_windows_of_many_connections_beside_a_full_l1_stay_within_the_limit() {
    stays_within_the_limit(async |address| close_windows(address, 200, "/small/").await).await;
}
