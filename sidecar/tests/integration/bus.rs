//! The bus under lag, pause and partition: a purge that was acknowledged holds, and a pod that can't be reached stops serving
//! what it may have missed within the grace.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use http::Method;
use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval, sleep},
};

use super::harness::{Fault, Folder, Origin, Policy, RedisServer, Relay, Sidecar, reply, until};

const SPEC: &str = r#"
l1: {busGrace: 1s}
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 500ms}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 10m, tags: ["page:{page}"]}
- {name: tagged, match: {path: "/tagged/{page}"}, ttl: 10m, tagsFrom: {headers: [xkey]}}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {tags: ["page:{page}"]}}
"#;

/// The `busGrace` of these pods.
const GRACE: Duration = Duration::from_secs(1);
/// Tolerance for a busy machine in a time measured from outside.
const SLACK: Duration = Duration::from_millis(500);

/// Two pods that share a Redis: `near` reaches it directly, `far` through a relay.
struct Stand {
    redis: RedisServer,
    relay: Relay,
    origin: Origin,
    policy: Policy,
    near: Sidecar,
    far: Sidecar,
    far_policy: Policy,
    _folder: Folder,
}

impl Stand {
    async fn new(redis: RedisServer, origin: Origin) -> Self {
        let relay = Relay::to(([127, 0, 0, 1], redis.port).into()).await;
        let (policy, far_policy) = (Policy::new(&redis.serve(SPEC)), Policy::new(""));
        let folder = Folder::new();
        let far_url = folder.join("url");
        fs::write(&far_url, format!("redis://{}/\n", relay.address())).unwrap();
        let text = fs::read_to_string(policy.path()).unwrap();
        let near_url = redis.url_file();
        far_policy.write(&text.replace(near_url.to_str().unwrap(), far_url.to_str().unwrap()));
        let near = Sidecar::start(&policy, origin.address).await;
        let far = Sidecar::start(&far_policy, origin.address).await;
        Self { redis, relay, origin, policy, near, far, far_policy, _folder: folder }
    }

    /// Stores a page in the memory of both pods. Returns its body.
    async fn store(&self, path: &str) -> String {
        let stored = self.near.get(path).await.body;
        until("the response is in the memory of the far pod", async || {
            let seen = self.far.get(path).await;
            assert_eq!(seen.body, stored);
            (seen.hit() == Some("l1")).then_some(())
        })
        .await;
        stored
    }

    /// Reads a page in the far pod until the grace has long been over, and nothing says `old` later than the grace after
    /// `written_at`. Returns how many times something did.
    async fn assert_not_stale_for_long(
        &self,
        path: &str,
        old: &str,
        written_at: Instant,
        what: &str,
    ) -> usize {
        let mut stale = 0;
        while written_at.elapsed() < GRACE + SLACK * 3 {
            let asked_at = Instant::now();
            let seen = self.far.get(path).await;
            if seen.body == old {
                stale += 1;
                let late = asked_at.duration_since(written_at);
                assert!(late <= GRACE + SLACK, "{what}: stale {late:?} after: {}", seen.cache_status());
            }
            sleep(Duration::from_millis(5)).await;
        }
        stale
    }
}

/// An application whose pages contain the number of writes so far.
async fn stateful() -> Origin {
    Origin::stateful(&[("xkey", "shared")]).await
}

/// Writes pages of which nobody reads any, so many a second however long one takes, until it is told to end. Returns how long
/// each took.
async fn write_others(pod: &Sidecar, per_second: u32, ends: &AtomicBool) -> Vec<Duration> {
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut writing, mut took) = (FuturesUnordered::new(), Vec::new());
    while !ends.load(Ordering::SeqCst) {
        tokio::select! {
            _ = ticks.tick() => {
                let path = format!("/other-{}", took.len() + writing.len());
                writing.push(async move {
                    let asked_at = Instant::now();
                    assert_eq!(pod.put(&path).await.status, 200);
                    asked_at.elapsed()
                });
            }
            Some(write) = writing.next() => took.push(write),
        }
    }
    took.extend(writing.collect::<Vec<_>>().await);
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_by_the_hundred_neither_hold_up_a_far_pod_nor_their_writers() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    stand.relay.suffer(Fault::Far(Duration::from_millis(5)));
    let ends = AtomicBool::new(false);
    let reading = async {
        sleep(Duration::from_secs(3)).await;
        let old = stand.store("/item").await;
        assert_eq!(stand.near.put("/item").await.status, 200);
        let written_at = Instant::now();
        stand.assert_not_stale_for_long("/item", &old, written_at, "while others are written").await;
        ends.store(true, Ordering::SeqCst);
    };
    let (mut took, ()) = tokio::join!(write_others(&stand.near, 200, &ends), reading);
    took.sort();
    let median = took[took.len() / 2];
    assert!(took.len() > 300, "{} writes", took.len());
    // Without patience for a pod that does not acknowledge in time (100 ms), it is about a round trip to the far pod.
    assert!(median < Duration::from_millis(90), "{median:?}, of {}", took.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_stopped_serves_nothing_that_was_purged_meanwhile() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    for round in 0..2 {
        let pages: Vec<_> = (0..20).map(|page| format!("/{round}-{page}")).collect();
        let mut stored = Vec::new();
        for page in &pages {
            stored.push(stand.store(page).await);
        }
        stand.far.freeze();
        let ends = AtomicBool::new(false);
        let writing = async {
            for answer in join_all(pages.iter().map(|page| stand.near.put(page))).await {
                assert_eq!(answer.status, 200);
            }
            sleep(GRACE + GRACE / 2).await;
            ends.store(true, Ordering::SeqCst);
        };
        let (others, ()) = tokio::join!(write_others(&stand.near, 200, &ends), writing);
        assert!(others.len() > 100, "{} writes", others.len());
        // The first reply after it continues is to the first command sent before.
        let reading = join_all(pages.iter().cycle().take(200).map(|page| stand.far.get(page)));
        let going_on = async {
            sleep(Duration::from_millis(100)).await;
            stand.far.thaw();
        };
        let (seen, ()) = tokio::join!(reading, going_on);
        for (number, seen) in seen.iter().enumerate() {
            let (page, stored) = (&pages[number % pages.len()], &stored[number % pages.len()]);
            assert_ne!(&seen.body, stored, "{page}: {}", seen.cache_status());
        }
        stand.far.until_tiers_are("up").await;
    }
}

const LATE_MESSAGES: Fault = Fault::Far(Duration::from_secs(3));

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_redis_can_not_reach_serves_nothing_stale_after_the_grace() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    for fault in [Fault::Parted, Fault::Silent, LATE_MESSAGES, Fault::Cut] {
        let old = stand.store("/item").await;
        assert!(stand.far.metric("larder_bus_lag_seconds", &[]).await < GRACE.as_secs_f64());
        stand.relay.suffer(fault);
        assert_eq!(stand.near.put("/item").await.status, 200);
        let written_at = Instant::now();
        stand.assert_not_stale_for_long("/item", &old, written_at, &format!("{fault:?}")).await;
        assert!(stand.far.metric("larder_bus_lag_seconds", &[]).await > GRACE.as_secs_f64(), "{fault:?}");
        assert_eq!(stand.far.policy().await["tiers"]["redis"], "down", "{fault:?}");
        stand.relay.suffer(Fault::Nothing);
        stand.far.until_tiers_are("up").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_begins_to_listen_under_a_changed_policy_serves_nothing_that_is_purged_meanwhile() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    stand.relay.suffer(Fault::Far(Duration::from_millis(10)));
    let text = fs::read_to_string(stand.far_policy.path()).unwrap();
    for round in 0..3 {
        stand.far_policy.write(&text.replace("page:{page}", &format!("{round}:{{page}}")));
        // The file is looked at every second.
        let changed_at = Instant::now();
        while changed_at.elapsed() < Duration::from_secs(2) {
            let old = stand.far.get("/item").await.body;
            assert_eq!(stand.near.put("/item").await.status, 200);
            let seen = stand.far.get("/item").await;
            assert_ne!(seen.body, old, "round {round}, {:?}: {}", changed_at.elapsed(), seen.cache_status());
        }
        stand.far.until_it_serves(&stand.far_policy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_bus_alone_is_gone_serves_nothing_stale_after_the_grace() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    for fault in [Fault::Parted, Fault::Silent, LATE_MESSAGES] {
        let old = stand.store("/item").await;
        stand.relay.bus_suffers(fault);
        assert_eq!(stand.near.put("/item").await.status, 200);
        let written_at = Instant::now();
        stand.assert_not_stale_for_long("/item", &old, written_at, &format!("{fault:?}")).await;
        stand.relay.suffer(Fault::Nothing);
        stand.far.until_tiers_are("up").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_bus_is_gone_finds_no_response_in_redis_whose_own_tag_was_purged() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    let old = stand.near.get("/tagged/a").await.body;
    stand.policy.until_stored(&mut stand.redis.connection().await, 1).await;
    stand.relay.bus_suffers(Fault::Parted);
    assert_eq!(stand.near.put("/other").await.status, 200);
    assert_eq!(stand.near.purge(r#"{"tags": ["shared"]}"#).await.status, 200);
    let seen = stand.far.get("/tagged/a").await;
    assert_ne!(seen.body, old, "{}", seen.cache_status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_is_no_proof() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    let old = stand.store("/item").await;
    stand.redis.freeze();
    // No pod can acknowledge it; the far pod's entries are as old as the silence.
    let frozen_at = Instant::now();
    assert_eq!(stand.near.put("/item").await.status, 200);
    stand.assert_not_stale_for_long("/item", &old, frozen_at, "frozen").await;
    stand.redis.thaw();
    until("the far pod hears of the purge", async || {
        (stand.far.get("/item").await.body != old).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_too_narrow_for_the_purges_is_left_behind() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    let ends = AtomicBool::new(false);
    let reading = async {
        let old = stand.store("/item").await;
        stand.relay.bus_suffers(Fault::Narrow(4_000));
        sleep(GRACE + GRACE / 2).await;
        assert_eq!(stand.near.put("/item").await.status, 200);
        let written_at = Instant::now();
        stand.assert_not_stale_for_long("/item", &old, written_at, "narrow").await;
        ends.store(true, Ordering::SeqCst);
    };
    tokio::join!(write_others(&stand.near, 200, &ends), reading);
    stand.relay.suffer(Fault::Nothing);
    stand.far.until_tiers_are("up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_redis_gave_up_on_reads_all_barriers_again() {
    let limits = ["--client-output-buffer-limit", "pubsub 1mb 512kb 1"];
    let stand = Stand::new(RedisServer::start_with(&limits).await, stateful().await).await;
    let direct = Sidecar::start(&stand.policy, stand.origin.address).await;
    let old = stand.store("/item").await;
    assert_eq!(direct.get("/item").await.body, old);
    assert_eq!(direct.get("/item").await.hit(), Some("l1"));
    direct.freeze();
    assert_eq!(stand.near.put("/item").await.status, 200);
    // More than the sockets and the limit take together.
    let (barriers, junk) = (stand.policy.barriers(), "x".repeat(512 << 10));
    for _ in 0..40 {
        stand.redis.say(&["PUBLISH", &barriers, &junk]).await;
    }
    sleep(GRACE).await;
    direct.thaw();
    assert_ne!(direct.get("/item").await.body, old);
    until("the far pod hears of purges again", async || {
        direct.until_tiers_are("up").await;
        let stored = direct.get("/again").await.body;
        (direct.get("/again").await.hit() == Some("l1")).then_some(stored)
    })
    .await;
    let stored = direct.get("/again").await.body;
    assert_eq!(stand.near.put("/again").await.status, 200);
    assert_ne!(direct.get("/again").await.body, stored);
}

/// An application as [`stateful`], whose first page waits for a permit in mid-body.
async fn held() -> (Origin, Arc<Semaphore>) {
    let (state, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let let_go = Arc::clone(&gate);
    let origin = Origin::start(move |seen| {
        let written = usize::from(seen.method == Method::PUT);
        let now = state.fetch_add(written, Ordering::SeqCst) + written;
        let gate = Arc::clone(&gate);
        async move {
            if seen.number == 1 {
                gate.acquire().await.unwrap().forget();
            }
            reply(&[], now.to_string())
        }
    })
    .await;
    (origin, let_go)
}

#[tokio::test(flavor = "multi_thread")]
async fn fill_longer_than_the_grace_is_as_old_as_its_request() {
    for fault in [Fault::Parted, Fault::Cut] {
        let (origin, let_go) = held().await;
        let stand = Stand::new(RedisServer::start().await, origin).await;
        let filling = stand.far.get("/item");
        let meanwhile = async {
            until("the application has the request", async || (stand.origin.calls() == 1).then_some(()))
                .await;
            stand.relay.suffer(fault);
            assert_eq!(stand.near.put("/item").await.status, 200);
            let written_at = Instant::now();
            sleep(GRACE + SLACK).await;
            // The requests join the fill in progress, and do not accept its response.
            let joining = join_all((0..5).map(|_| stand.far.get("/item")));
            let arriving = async {
                sleep(Duration::from_millis(200)).await;
                let_go.add_permits(1);
            };
            let (joined, ()) = tokio::join!(joining, arriving);
            for seen in joined {
                assert_eq!(seen.body, "1", "{fault:?}: joined {}", seen.cache_status());
            }
            written_at
        };
        let (first, written_at) = tokio::join!(filling, meanwhile);
        assert_eq!(first.body, "0");
        while written_at.elapsed() < GRACE * 3 {
            let seen = stand.far.get("/item").await;
            assert_eq!(seen.body, "1", "{fault:?}: stored {}", seen.cache_status());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_while_a_changed_policy_connects_to_redis_holds_in_every_pod() {
    let stand = Stand::new(RedisServer::start().await, stateful().await).await;
    let old = stand.store("/item").await;
    stand.relay.suffer(Fault::Far(Duration::from_millis(20)));
    let text = fs::read_to_string(stand.far_policy.path()).unwrap().replace("page:{page}", "renamed:{page}");
    stand.far_policy.write(&text);
    let hash = larder_policy::document::hash(&text);
    until("the new policy", async || (stand.far.policy().await["hash"] == hash).then_some(())).await;
    let written = stand.far.put("/item").await;
    assert_eq!(stand.near.get("/item").await.body, written.body, "{old} was stored before");
}
