//! Writes that are refused because their purge could not be made to hold in every pod.

use super::{
    super::harness::{Fault, Origin, Policy, Sidecar, free_port, until},
    ALONE, SHARED, Stand, three,
};

/// The same policy, which refuses writes.
fn refusing(spec: &str) -> String {
    spec.replace("invalidation:\n", "invalidation:\n  onPurgeFailure: Refuse\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_write_is_refused_while_another_sidecar_does_not_respond() {
    let (policy, origin) = (Policy::new(&refusing(ALONE)), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let [a, _, c] = &sidecars;
    until("it passes", async || (a.put("/a").await.status == 200).then_some(())).await;
    c.freeze();
    let calls = origin.calls();
    for _ in 0..3 {
        let refused = a.put("/a").await;
        assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (503, "1"), "{}", refused.body);
        assert!(refused.body.contains("could not be purged in every pod"), "{}", refused.body);
    }
    assert_eq!(origin.calls(), calls, "the application saw none of them");
    assert_eq!(a.put("/not/a/page").await.status, 200, "a write that makes nothing stale");
    assert_eq!(a.get("/b").await.status, 200);
    c.thaw();
    until("it passes again", async || (a.put("/a").await.status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn address_at_which_nobody_has_been_and_a_sidecar_that_has_ended_refuse_no_write() {
    let (policy, origin) = (Policy::new(&refusing(ALONE)), Origin::numbered(&[]).await);
    let [a, b, nobody] = [free_port(), free_port(), free_port()];
    let first = Sidecar::among(&policy, origin.address, a, &[a, b, nobody]).await;
    let mut second = Sidecar::among(&policy, origin.address, b, &[a, b, nobody]).await;
    let passes = async || (first.put("/a").await.status == 200).then_some(());
    until("it passes", passes).await;
    second.terminate();
    assert!(second.ended().await);
    for _ in 0..3 {
        assert_eq!(first.put("/a").await.status, 200, "it said that it leaves");
    }
    let third = Sidecar::among(&policy, origin.address, b, &[a, b, nobody]).await;
    until("another one is there", passes).await;
    third.kill();
    until("one that is gone without a word counts", async || {
        (first.put("/a").await.status == 503).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_whose_response_may_purge_is_refused_as_well() {
    let spec = refusing(ALONE).replace("invalidation:\n", "invalidation:\n  fromResponses: true\n");
    let (policy, origin) = (Policy::new(&spec), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let [a, _, c] = &sidecars;
    let page = "/not/a/page";
    until("it passes", async || (a.put(page).await.status == 200).then_some(())).await;
    c.freeze();
    let calls = origin.calls();
    assert_eq!(a.put(page).await.status, 503);
    assert_eq!(origin.calls(), calls, "the application has not seen it");
    c.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_other_sidecars_no_write_is_refused() {
    let (policy, origin) = (Policy::new(&refusing(ALONE)), Origin::numbered(&[]).await);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.put("/a").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_is_refused_while_neither_redis_nor_every_sidecar_responds() {
    let stand = Stand::of(&refusing(SHARED)).await;
    let [a, _, c] = &stand.sidecars;
    c.freeze();
    assert_eq!(a.put("/a").await.status, 200, "redis takes it");
    c.thaw();
    stand.cut_off().await;
    until("the others take it", async || (a.put("/a").await.status == 200).then_some(())).await;
    c.freeze();
    assert_eq!(a.put("/a").await.status, 503);
    stand.relay.suffer(Fault::Nothing);
    until("redis takes it again", async || (a.put("/a").await.status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_is_refused_at_once_when_redis_is_cut_and_another_sidecar_does_not_respond() {
    let stand = Stand::of(&refusing(SHARED)).await;
    let [a, _, c] = &stand.sidecars;
    assert_eq!(a.put("/a").await.status, 200);
    c.freeze();
    assert_eq!(a.put("/a").await.status, 200, "redis takes it");
    let calls = stand.origin.calls();
    stand.relay.suffer(Fault::Parted);
    assert_eq!(a.put("/a").await.status, 503);
    assert_eq!(stand.origin.calls(), calls, "the application has not seen it");
    c.thaw();
    until("the others take it", async || (a.put("/a").await.status == 200).then_some(())).await;
}
