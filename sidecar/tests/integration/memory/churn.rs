//! Churn at full load. `./dev bench soak` is the same for ten minutes, with a release build.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;

use super::{MAX_SIZE, SPEC};
use crate::integration::harness::{Origin, Policy, Sidecar, reply};

const SPAN: Duration = Duration::from_secs(12);
/// Time after which the sizes change.
const PHASE: Duration = Duration::from_secs(2);
const CLIENTS: u64 = 24;
/// Memory that was freed and that the allocator has not given back yet: its thread looks every 100 ms, and later on a machine that is
/// busy with other tests.
const UNRETURNED: u64 = 16 << 20;

/// Returns the length of the object of this number: of all orders of magnitude, small, or large.
fn length(phase: u64, number: u64) -> u64 {
    let mixed = (phase << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    match phase % 3 {
        0 => 256 << (mixed % 12),
        1 => 256 + mixed % 4096,
        _ => (512 << 10) + mixed % (512 << 10),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn churn_of_all_sizes_stays_within_l1_and_the_budget() {
    let whole = Bytes::from(vec![b'x'; 1 << 20]);
    let origin = Origin::start(move |seen| {
        let length: usize = seen.path.split('/').nth(1).unwrap().parse().unwrap();
        let body = whole.slice(..length);
        async move { reply(&[], body) }
    })
    .await;
    let policy = Policy::new(SPEC);
    let policy_file = policy.path();
    let arguments = ["--policy", policy_file.to_str().unwrap(), "--memory-limit", "96Mi"];
    let sidecar = Sidecar::launch(origin.address, &arguments).await;
    let budget = sidecar.metric("larder_memory_budget_bytes", &[]).await as u64;
    let (before, peak, began) = (sidecar.resident(), sidecar.peak(), Instant::now());
    let ask = async |client: u64| {
        for round in 0.. {
            let phase = began.elapsed().as_secs() / PHASE.as_secs();
            if began.elapsed() > SPAN {
                break;
            }
            // Some are asked for again, most are not.
            let number = (client * 7919 + round * round) % 1500;
            let length = length(phase, number);
            let answer = sidecar.get(&format!("/{length}/{phase}-{number}")).await;
            assert_eq!((answer.status.as_u16(), answer.body.len() as u64), (200, length));
        }
    };
    join_all((0..CLIENTS).map(ask)).await;
    assert!(sidecar.metric("larder_l1_evictions_total", &[]).await > 0.0);
    let taken = peak.bytes().saturating_sub(before);
    let most = MAX_SIZE + budget + UNRETURNED;
    assert!(taken <= most, "{} MiB of {}", taken >> 20, most >> 20);
}
