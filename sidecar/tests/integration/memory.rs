//! What the process takes of memory, which is what a container is killed for.

use futures::{StreamExt, stream};

use super::harness::{Origin, Policy, Sidecar, reply, until};

const SPEC: &str = r#"
l1: {maxSize: 32Mi, maxObjectSize: 1Mi}
routes:
- {name: page, match: {path: "/{length}/{number}"}, ttl: 1h}
"#;

/// `l1.maxSize`, and half of what the operator wants free beside it under the container's limit.
const MOST: u64 = (32 + 16) << 20;

async fn fill(sidecar: &Sidecar, length: usize, answers: usize) {
    let ask = async |number| assert_eq!(sidecar.get(&format!("/{length}/{number}")).await.body.len(), length);
    stream::iter(0..answers).for_each_concurrent(8, ask).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_l1_lets_go_of_leaves_the_process_whatever_takes_its_place() {
    let origin = Origin::start(|seen| async move {
        let length = seen.path.split('/').nth(1).unwrap().parse().unwrap();
        reply(&[], "x".repeat(length))
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    // Each of them is more than there is room for.
    for (length, answers) in [(20_000, 3_000), (900_000, 400), (64, 31_000), (900_001, 400)] {
        fill(&sidecar, length, answers).await;
        assert!(sidecar.metric("larder_l1_evictions_total", &[]).await > 0.0);
        until("memory is near the bound", async || (sidecar.resident() <= MOST).then_some(())).await;
    }
}
