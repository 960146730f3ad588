//! Two faults at once while pods move, and pods that have never been at the Redis that the others left.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use super::{
    super::harness::{Fault, RedisServer, Relay, Sidecar, until},
    Pods, SPEC, assert_purges_cross, number, purge, renamed, write,
};

/// A purge of `/page` and of each of these paths.
const PURGED: &str = r#"{"tags": ["page:page", "page:a", "page:b", "page:c", "page:d", "page:e", "page:f", "page:g", "page:h"]}"#;
const PATHS: [&str; 8] = ["/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h"];

async fn relay_to(redis: &RedisServer) -> Relay {
    Relay::to(([127, 0, 0, 1], redis.port).into()).await
}

/// A spec whose Redis is reached through a relay.
fn through(relay: &Relay, redis: &RedisServer, spec: &str) -> String {
    let url = redis.file("relayed-url");
    std::fs::write(&url, format!("redis://127.0.0.1:{}/", relay.port)).unwrap();
    spec.replace("{env: LARDER_TEST_REDIS_URL}", &format!("{{file: {}}}", url.display()))
}

/// Waits until a pod has the page in memory, and returns its number.
async fn in_memory(sidecar: &Sidecar) -> usize {
    until("the page in memory", async || (sidecar.get("/page").await.hit() == Some("l1")).then_some(()))
        .await;
    number(sidecar, "/page").await
}

async fn until_it_is_stale(sidecar: &Sidecar, old: usize) {
    until("it is stale", async || (number(sidecar, "/page").await > old).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_does_not_reach_the_new_redis_holds_in_pods_that_moved() {
    let pods = Pods::start().await;
    let relay = relay_to(&pods.other).await;
    let (policy, moved) = pods.another(&pods.one.serve(SPEC)).await;
    let purging = &pods.sidecars[0];
    pods.policies[0].change(&through(&relay, &pods.other, SPEC));
    purging.until_it_serves(&pods.policies[0]).await;
    policy.change(&pods.other.serve(SPEC));
    moved.until_it_serves(&policy).await;
    pods.until_it_has(&pods.other, 2).await;
    let (_policy, another) = pods.another(&pods.other.serve(SPEC)).await;
    assert_purges_cross([purging, &moved], purge).await;
    let old = in_memory(&moved).await;
    relay.suffer(Fault::Parted);
    purging.purge(PURGED).await;
    assert!(number(&moved, "/page").await > old);
    until_it_is_stale(&another, old).await;
    // The new Redis has ordered it, so what others store there from now on is used.
    let mut seen = vec![];
    for path in PATHS {
        another.get(path).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        seen.push(moved.get(path).await.hit().map(str::to_owned));
        if seen.last().unwrap().as_deref() == Some("l2") {
            return;
        }
    }
    panic!("nothing that another pod stored was used: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_does_not_reach_the_old_redis_is_passed_on_by_another_pod() {
    let pods = Pods::start().await;
    let relay = relay_to(&pods.one).await;
    let (policy, purging) = pods.another(&through(&relay, &pods.one, SPEC)).await;
    policy.change(&pods.other.serve(SPEC));
    purging.until_it_serves(&policy).await;
    pods.change(0, SPEC).await;
    pods.until_it_has(&pods.other, 2).await;
    let old = &pods.sidecars[1];
    assert_purges_cross([&purging, old], purge).await;
    let number = in_memory(old).await;
    relay.suffer(Fault::Parted);
    let purged_at = Instant::now();
    assert!(purge(&purging).await, "its own Redis has it");
    until_it_is_stale(old, number).await;
    assert!(purged_at.elapsed() < Duration::from_secs(5), "before the old one is let go of");
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_is_read_after_a_gap_reaches_pods_that_have_not_moved() {
    let pods = Pods::start().await;
    let relay = relay_to(&pods.other).await;
    let [moved, old] = &pods.sidecars;
    pods.policies[0].change(&through(&relay, &pods.other, SPEC));
    moved.until_it_serves(&pods.policies[0]).await;
    pods.until_it_has(&pods.other, 1).await;
    let (_policy, new) = pods.another(&pods.other.serve(SPEC)).await;
    assert_purges_cross([moved, old], purge).await;
    let number = in_memory(old).await;
    relay.suffer(Fault::Cut);
    pods.until_it_has(&pods.other, 1).await;
    assert!(purge(&new).await);
    relay.suffer(Fault::Nothing);
    until_it_is_stale(old, number).await;
}

/// A write through a pod that names nothing for it, while another pod has moved, makes stale what a third stored under another version.
async fn assert_unnamed_write_crosses(from_new: bool, [old, moved, new]: [&str; 3]) {
    let pods = Pods::start_with(old).await;
    pods.change(0, moved).await;
    pods.until_it_has(&pods.other, 1).await;
    let (_policy, new) = pods.another(&pods.other.serve(new)).await;
    // What was told while they came is told.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let old = &pods.sidecars[1];
    let [writer, reader] = if from_new { [&new, old] } else { [old, &new] };
    let number = in_memory(reader).await;
    assert!(write(writer).await);
    until_it_is_stale(reader, number).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_without_a_name_crosses_from_a_pod_that_began_at_the_new_redis() {
    assert_unnamed_write_crosses(true, [SPEC, &renamed(), &renamed()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_without_a_name_crosses_to_a_pod_that_began_at_the_new_redis() {
    assert_unnamed_write_crosses(false, [&renamed(), &renamed(), SPEC]).await;
}

/// The first pod moves to another database of its server by `change`; purges cross between both.
async fn assert_purges_cross_between_databases(change: impl FnOnce(&Pods, &str)) {
    let pods = Pods::start().await;
    change(&pods, &format!("redis://127.0.0.1:{}/1", pods.one.port));
    let [a, b] = &pods.sidecars;
    until("it is at the other database", async || {
        pods.one.ask::<String>(&["INFO", "keyspace"]).await.contains("db1").then_some(())
    })
    .await;
    a.until_tiers_are("up").await;
    assert_purges_cross([a, b], purge).await;
    assert_purges_cross([a, b], write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_a_file_names_another_database_in_one_pod() {
    assert_purges_cross_between_databases(|pods, url| pods.change_file_to(url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_a_policy_names_another_database_in_one_pod() {
    assert_purges_cross_between_databases(|pods, url| {
        let file = pods.one.file("other-url");
        std::fs::write(&file, url).unwrap();
        let file = format!("{{file: {}}}", file.display());
        pods.policies[0].change(&SPEC.replace("{env: LARDER_TEST_REDIS_URL}", &file));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stale_in_pods_that_moved_while_the_one_that_writes_loses_either_redis_in_turn() {
    let pods = Pods::start().await;
    let relays = [relay_to(&pods.one).await, relay_to(&pods.other).await];
    let (policy, writing) = pods.another(&through(&relays[0], &pods.one, SPEC)).await;
    policy.change(&through(&relays[1], &pods.other, SPEC));
    writing.until_it_serves(&policy).await;
    pods.change(0, SPEC).await;
    pods.until_it_has(&pods.other, 2).await;
    let [moved, old] = &pods.sidecars;
    assert_purges_cross([&writing, old], purge).await;
    // Each number of the page, and when its write was answered.
    let written = Mutex::new(vec![(Instant::now(), 0)]);
    let is_done = AtomicBool::new(false);
    let writes = async {
        while !is_done.load(SeqCst) {
            let number: usize = writing.put("/page/edit").await.body.parse().unwrap();
            written.lock().unwrap().push((Instant::now(), number));
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    let stale_reads = async |sidecar: &Sidecar, allowed: Duration| {
        let (mut reads, mut stale) = (0, vec![]);
        while !is_done.load(SeqCst) {
            let asked_at = Instant::now();
            let settled = |(at, _): &&(Instant, usize)| *at + allowed <= asked_at;
            let least = written.lock().unwrap().iter().filter(settled).map(|(_, number)| *number).max();
            let read = number(sidecar, "/page").await;
            reads += 1;
            if least.is_some_and(|least| read < least) {
                stale.push((read, least));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(stale.is_empty(), "{} of {reads} reads are stale: {stale:?}", stale.len());
    };
    let faults = async {
        for relay in &relays {
            relay.suffer(Fault::Parted);
            tokio::time::sleep(Duration::from_secs(3)).await;
            relay.suffer(Fault::Nothing);
            writing.until_tiers_are("up").await;
            // Longer than the longest pause before the former is connected with again.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        is_done.store(true, SeqCst);
    };
    // Others tell the Redis which the pod can't tell.
    let late = Duration::from_secs(3);
    tokio::join!(
        writes,
        faults,
        stale_reads(moved, Duration::ZERO),
        stale_reads(&writing, Duration::ZERO),
        stale_reads(old, late)
    );
}
