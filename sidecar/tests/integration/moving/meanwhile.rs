//! Reads and writes through both pods all the time, while they move one after another.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use super::{super::harness::Sidecar, Pods, SPEC, number, without_redis};

/// Writes and reads through both pods all the time while `steps` are taken. No read is older than a write that was answered before.
async fn assert_nothing_is_stale_during(pods: &Pods, steps: impl AsyncFnOnce()) {
    let is_done = AtomicBool::new(false);
    let written = AtomicUsize::new(0);
    let writing = async {
        while !is_done.load(SeqCst) {
            for sidecar in &pods.sidecars {
                let number: usize = sidecar.put("/page/edit").await.body.parse().unwrap();
                written.fetch_max(number, SeqCst);
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    };
    let reading = async |sidecar: &Sidecar| {
        let (mut reads, mut stale) = (0, 0);
        while !is_done.load(SeqCst) {
            let least = written.load(SeqCst);
            stale += usize::from(number(sidecar, "/page").await < least);
            reads += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (reads, stale)
    };
    let steps = async {
        steps().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        is_done.store(true, SeqCst);
    };
    let [a, b] = &pods.sidecars;
    let (a, b, (), ()) = tokio::join!(reading(a), reading(b), writing, steps);
    assert_eq!((a.1, b.1), (0, 0), "stale, of {} and {} reads", a.0, b.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stale_while_pods_move_by_a_policy_one_after_another() {
    let pods = Pods::start().await;
    assert_nothing_is_stale_during(&pods, async || {
        for pod in [0, 1] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            pods.change(pod, SPEC).await;
            pods.until_it_has(&pods.other, pod + 1).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stale_while_pods_move_by_their_files_one_after_another() {
    let pods = Pods::start().await;
    assert_nothing_is_stale_during(&pods, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        pods.change_file();
        pods.until_it_has(&pods.other, 1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        pods.one.set_url(&format!("redis://127.0.0.1:{}/", pods.other.port));
        pods.until_it_has(&pods.other, 2).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stale_while_pods_move_to_another_version_at_another_redis() {
    let pods = Pods::start().await;
    let renamed = SPEC.replace("page:{page}", "p:{page}");
    assert_nothing_is_stale_during(&pods, async || {
        for pod in [0, 1] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            pods.change(pod, &renamed).await;
            pods.until_it_has(&pods.other, pod + 1).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stale_while_pods_do_without_redis_one_after_another() {
    let pods = Pods::start().await;
    assert_nothing_is_stale_during(&pods, async || {
        for pod in [0, 1] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            pods.policies[pod].change(&without_redis());
            pods.sidecars[pod].until_it_serves(&pods.policies[pod]).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    })
    .await;
}
