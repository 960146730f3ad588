//! Memory of the process.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Request;
use tokio::{net::TcpStream, task::AbortHandle};

use super::harness::{Origin, Policy, Sidecar, Wire, reply};

mod admin;
mod bodies;
mod churn;
mod full;
mod heads;
mod parts;
mod readers;
mod response_heads;
mod shared;

const SPEC: &str = r#"
l1: {maxSize: 32Mi, maxObjectSize: 1Mi}
routes:
- {name: page, match: {path: "/{length}/{number}"}, ttl: 1h}
"#;

const MAX_SIZE: u64 = 32 << 20;
/// Half of the memory that the operator requires beside `l1.maxSize` under the container's limit.
const BESIDE: u64 = 16 << 20;
/// The allocator takes a few tenths of a second to return freed memory; with its own settings it would take 10 s.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The limit of the sidecar's container where the policy does not say otherwise.
const LIMIT: u64 = 128 << 20;

/// Time in which memory would grow if it did.
const AFTERMATH: Duration = Duration::from_millis(1_500);
/// Length of a large response, in bytes: as much as may be stored.
const LARGE: usize = 16 << 20;

const LARGE_AND_SMALL: &str = r#"
l1: {maxSize: 64Mi, maxObjectSize: 16Mi}
routes:
- {name: large, match: {path: "/large/{number}"}, ttl: 1h}
- {name: small, match: {path: "/small/{number}"}, ttl: 1h}
"#;

/// Clients that request `<path><number>` and read nothing.
async fn ask_and_read_nothing(address: SocketAddr, count: usize, path: &str) -> Vec<Wire> {
    let ask = async |number| {
        let mut wire = Wire::narrow(address).await;
        wire.ask(&format!("{path}{number}")).await;
        wire
    };
    stream::iter(0..count).map(ask).buffer_unordered(64).collect().await
}

/// A client that requests `<path><number>` over a connection of HTTP/2, with a hundred numbers from `first` on, and releases no
/// response.
async fn hold_streams(
    address: SocketAddr,
    client: &h2::client::Builder,
    path: String,
    first: usize,
) -> AbortHandle {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, driver) = client.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(async move {
        let ask = async {
            let mut responses = Vec::new();
            for number in first..first + 100 {
                let request = Request::get(format!("http://shop.test{path}{number}")).body(()).unwrap();
                sender = sender.ready().await?;
                responses.push(sender.send_request(request, true)?.0);
            }
            std::future::pending::<Result<(), h2::Error>>().await
        };
        let _ = tokio::join!(driver, ask);
    })
    .abort_handle()
}

/// Starts a sidecar with a memory limit of 128 MiB.
async fn limited(origin: SocketAddr, arguments: &[&str]) -> Sidecar {
    let arguments: Vec<_> =
        ["--memory-limit", "128Mi"].into_iter().chain(arguments.iter().copied()).collect();
    Sidecar::launch(origin, &arguments).await
}

async fn until_resident_is_below(sidecar: &Sidecar, bytes: u64, within: Duration) {
    let began = Instant::now();
    while sidecar.resident() > bytes {
        assert!(began.elapsed() < within, "{} MiB", sidecar.resident() >> 20);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn fill(sidecar: &Sidecar, length: usize, answers: usize) {
    let ask = async |number| assert_eq!(sidecar.get(&format!("/{length}/{number}")).await.body.len(), length);
    stream::iter(0..answers).for_each_concurrent(8, ask).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evicted_responses_leave_the_process() {
    let origin = Origin::start(|seen| async move {
        let length = seen.path.split('/').nth(1).unwrap().parse().unwrap();
        reply(&[], "x".repeat(length))
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut evicted = 0.0;
    for (length, answers) in [(20_000, 3_000), (900_000, 400), (64, 31_000), (900_001, 400)] {
        fill(&sidecar, length, answers).await;
        let before = std::mem::replace(&mut evicted, sidecar.metric("larder_l1_evictions_total", &[]).await);
        assert!(evicted > before, "nothing had to go for {length}");
        let held = sidecar.metric("larder_l1_bytes", &[]).await;
        assert!(held > 0.9 * MAX_SIZE as f64, "L1 is not full of {length}: {held}");
        until_resident_is_below(&sidecar, MAX_SIZE + BESIDE, RELEASE_TIMEOUT).await;
    }
}
