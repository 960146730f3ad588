//! Requests whose clients have left: the application sees the request end, unless another client still waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::sleep};

use super::harness::{Origin, Policy, Sidecar, Steps, Wire, reply, until};

const SPEC: &str = r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: [page]}
- {name: renewed, match: {path: "/renewed/{page}"}, ttl: 1s, staleWhileRevalidate: 10m}
invalidation: {onWrite: [{match: {path: "/{page}"}, purge: {tags: [page]}}]}
"#;

/// Longer than a fetch goes on without any client.
const LONG: Duration = Duration::from_millis(2500);

/// Counts requests whose connection ended before their response.
#[derive(Clone, Default)]
struct Cancelled(Arc<AtomicUsize>);

struct Guard(Cancelled);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Cancelled {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn until(&self, count: usize) {
        until("the application sees the request end", async || (self.count() == count).then_some(())).await;
    }
}

/// An application that responds with the request's number once it gets a permit.
async fn held() -> (Origin, Arc<Semaphore>, Cancelled) {
    let (permits, cancelled) = (Arc::new(Semaphore::new(0)), Cancelled::default());
    let (gate, count) = (Arc::clone(&permits), cancelled.clone());
    let origin = Origin::start(move |seen| {
        let (gate, guard) = (Arc::clone(&gate), Guard(count.clone()));
        async move {
            gate.acquire().await.unwrap().forget();
            std::mem::forget(guard);
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    (origin, permits, cancelled)
}

async fn until_asked(origin: &Origin, times: usize) {
    until("the application has the request", async || (origin.calls() == times).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_is_cancelled_when_its_last_client_leaves() {
    let (origin, _permits, cancelled) = held().await;
    let (policy, shared) = (
        Policy::new(SPEC),
        Policy::new(&format!(
            "l2: {{redis: {{urlFrom: {{env: LARDER_TEST_REDIS_URL}}, timeout: 2s}}}}{SPEC}"
        )),
    );
    let pods = [
        Sidecar::bare(origin.address).await,
        Sidecar::start(&policy, origin.address).await,
        Sidecar::start(&shared, origin.address).await,
    ];
    for (number, pod) in pods.iter().enumerate() {
        let client = Wire::asking(pod.address, "/a").await;
        until_asked(&origin, number + 1).await;
        drop(client);
        cancelled.until(number + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_goes_on_for_joined_clients_and_ends_with_the_last() {
    let (origin, permits, cancelled) = held().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let connected = async |count: u32| {
        until("the clients", async || {
            (sidecar.metric("larder_connections", &[]).await >= f64::from(count)).then_some(())
        })
        .await;
    };
    let first = Wire::asking(sidecar.address, "/a").await;
    until_asked(&origin, 1).await;
    let mut second = Wire::asking(sidecar.address, "/a").await;
    connected(2).await;
    drop(first);
    sleep(LONG).await;
    assert_eq!(cancelled.count(), 0);
    permits.add_permits(1);
    assert_eq!(second.answer().await.1, "1");
    assert_eq!(origin.calls(), 1);

    let (first, second) =
        (Wire::asking(sidecar.address, "/b").await, Wire::asking(sidecar.address, "/b").await);
    until_asked(&origin, 2).await;
    connected(3).await;
    drop((first, second));
    cancelled.until(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_goes_on_when_its_client_has_left() {
    let (origin, permits, cancelled) = held().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    permits.add_permits(1);
    assert_eq!(sidecar.get("/a").await.body, "1");
    assert!(sidecar.get("/a").await.hit().is_some());
    for (number, method) in [(2, "POST"), (3, "PUT"), (4, "DELETE")] {
        let mut client = Wire::to(sidecar.address).await;
        client.say(format!("{method} /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n")).await;
        until_asked(&origin, number).await;
    }
    sleep(LONG).await;
    assert_eq!(cancelled.count(), 0);
    permits.add_permits(4);
    until("the responses that the write made stale are purged", async || {
        sidecar.get("/a").await.hit().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_goes_on_without_a_client() {
    let (origin, permits, cancelled) = held().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    permits.add_permits(1);
    assert_eq!(sidecar.get("/renewed/a").await.body, "1");
    until("the response is refreshed", async || {
        sidecar.get("/renewed/a").await;
        (origin.calls() == 2).then_some(())
    })
    .await;
    sleep(LONG).await;
    assert_eq!(cancelled.count(), 0);
    permits.add_permits(1);
    until("the response is refreshed", async || (sidecar.get("/renewed/a").await.body == "2").then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_ends_with_its_last_reader_even_if_other_pods_might_want_it() {
    let origin = Steps::new(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi", "ll"], false).await;
    let policy = Policy::new(&format!(
        "l2: {{redis: {{urlFrom: {{env: LARDER_TEST_REDIS_URL}}, timeout: 2s}}}}{SPEC}"
    ));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut client = Wire::asking(sidecar.address, "/a").await;
    client.head().await;
    assert_eq!(client.bytes(2).await, "fi");
    drop(client);
    until("nothing of the response is stored", async || {
        let count = sidecar.metric("larder_not_stored_total", &["reason=\"incomplete\""]).await;
        (count == 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_comes_in_time_is_stored_though_its_client_has_left() {
    let (origin, permits, cancelled) = held().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = Wire::asking(sidecar.address, "/a").await;
    until_asked(&origin, 1).await;
    drop(client);
    permits.add_permits(1);
    until("the response is stored", async || {
        (sidecar.metric("larder_l1_entries", &[]).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(cancelled.count(), 0);
}
