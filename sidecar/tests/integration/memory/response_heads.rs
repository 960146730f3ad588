//! Responses with large heads: of many requests at the same time, to clients that read and to clients that do not.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Response;
use http_body_util::Full;
use tokio::time::sleep;

use super::{AFTERMATH, LIMIT, ask_and_read_nothing, hold_streams, limited};
use crate::integration::harness::{Origin, Policy, Wire, reply};

/// Length of a head, in bytes: almost the maximum.
const HEAD: usize = 125_000;
const LINES: usize = 500;

const SPEC: &str = r#"
l1: {maxSize: 64Mi, maxObjectSize: 1Mi}
routes:
- {name: page, match: {path: "/page/{number}"}, ttl: 1h}
"#;

async fn origin() -> Origin {
    Origin::start(|seen| async move {
        if seen.path.starts_with("/small/") {
            return reply(&[], "small");
        }
        reply_with_a_large_head()
    })
    .await
}

pub(super) fn reply_with_a_large_head() -> Response<Full<Bytes>> {
    let names: Vec<_> = (0..LINES).map(|number| format!("x-{number}")).collect();
    let value = "v".repeat(HEAD / LINES - 12);
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    reply(&fields, "body")
}

/// Checks memory, and that other clients get responses.
async fn stays_within_the_limit<T, A: Future<Output = T>>(attack: impl FnOnce(SocketAddr) -> A) {
    let origin = origin().await;
    let policy = Policy::new(SPEC);
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    let mut wire = Wire::to(sidecar.address).await;
    wire.ask("/page/0").await;
    assert!(wire.head().await.len() > HEAD / 10 * 9);
    drop(wire);
    let peak = sidecar.peak();
    let held = attack(sidecar.address).await;
    sleep(AFTERMATH).await;
    assert!(peak.bytes() < LIMIT, "{} MiB", peak.bytes() >> 20);
    drop(held);
    assert_eq!(sidecar.get("/small/1").await.body, "small");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_response_heads_for_clients_that_do_not_read_stay_within_the_limit() {
    stays_within_the_limit(async |address| ask_and_read_nothing(address, 300, "/other/").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_response_heads_that_are_stored_stay_within_the_limit() {
    stays_within_the_limit(async |address| ask_and_read_nothing(address, 300, "/page/0?").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_response_heads_over_http2_stay_within_the_limit() {
    let mut client = h2::client::Builder::new();
    client.max_header_list_size(1 << 20);
    let ask =
        async |address, connection| hold_streams(address, &client, format!("/other/{connection}-"), 0).await;
    let attack = async |address| {
        let clients: Vec<_> = stream::iter(0..10).then(|number| ask(address, number)).collect().await;
        clients
    };
    stays_within_the_limit(attack).await;
}
