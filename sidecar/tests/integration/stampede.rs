//! Leases: of many pods that miss the same response, one requests it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
use http::Method;
use redis::aio::MultiplexedConnection;
use tokio::sync::Semaphore;

use super::harness::{
    Answer, Cluster, Fault, Origin, Policy, RedisServer, Relay, Sidecar, Wire, reply, until,
};

const SPEC: &str = r#"
l1: {maxObjectSize: 16Mi}
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s, hardTimeout: 10s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"]}
"#;

async fn three(policy: &Policy, origin: &Origin) -> Vec<Sidecar> {
    join_all((0..3).map(|_| Sidecar::start(policy, origin.address))).await
}

/// Sends each pod `times` requests at once.
async fn ask(pods: &[Sidecar], times: usize, path: &str) -> Vec<Answer> {
    join_all((0..times).flat_map(|_| pods.iter().map(|pod| pod.get(path)))).await
}

/// An application that responds with the request's number when it gets a permit.
async fn held(headers: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(headers, seen.number.to_string())
        }
    })
    .await;
    (origin, permits)
}

async fn until_asked(origin: &Origin, times: usize) {
    until(&format!("{times} requests"), async || (origin.calls() >= times).then_some(())).await;
}

/// Returns the number of keys of the policy whose kind begins with one of these letters: `l`, leases; `w`, waiting pods.
async fn kept(redis: &mut MultiplexedConnection, policy: &Policy, kinds: &str) -> usize {
    let pattern = format!("{}*}}:[{kinds}]*", policy.barriers().trim_end_matches("barriers:"));
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(redis).await.unwrap();
    keys.len()
}

async fn until_somebody_waits(redis: &mut MultiplexedConnection, policy: &Policy) {
    until("a pod waits for another", async || (kept(redis, policy, "w").await > 0).then_some(())).await;
}

async fn until_nothing_is_leased(redis: &mut MultiplexedConnection, policy: &Policy) {
    until("no lease is left", async || (kept(redis, policy, "lw").await == 0).then_some(())).await;
}

/// Time spans of requests at an application.
#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<Vec<(Instant, Instant)>>>);

impl Spans {
    fn add(&self, began: Instant) {
        self.0.lock().unwrap().push((began, Instant::now()));
    }

    /// Returns the length of the longest sequence of requests that did not overlap.
    fn rounds(&self) -> usize {
        let mut spans = self.0.lock().unwrap().clone();
        spans.sort_unstable_by_key(|(_, ended)| *ended);
        let (mut rounds, mut last) = (0, None);
        for (began, ended) in spans {
            if last.is_none_or(|last| last <= began) {
                (rounds, last) = (rounds + 1, Some(ended));
            }
        }
        rounds
    }
}

/// An application that takes this long for each request.
async fn slow(headers: &'static [(&'static str, &'static str)], takes: Duration) -> (Origin, Spans) {
    let spans = Spans::default();
    let log = spans.clone();
    let origin = Origin::start(move |seen| {
        let log = log.clone();
        async move {
            let began = Instant::now();
            tokio::time::sleep(takes).await;
            log.add(began);
            reply(headers, seen.number.to_string())
        }
    })
    .await;
    (origin, spans)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pods_send_one_request_and_the_bus_wakes_the_waiting_pods() {
    let (origin, permits) = held(&[]).await;
    let policy = Policy::new(SPEC);
    let pods = three(&policy, &origin).await;
    let mut redis = RedisServer::shared().await;
    let mut quickest = Duration::MAX;
    for round in 1..=5 {
        let path = format!("/{round}");
        let release = async {
            until_somebody_waits(&mut redis, &policy).await;
            permits.add_permits(1);
            Instant::now()
        };
        let (released, answers) = tokio::join!(release, ask(&pods, 20, &path));
        quickest = quickest.min(released.elapsed());
        for answer in &answers {
            assert_eq!((answer.status.as_u16(), &answer.body), (200, &round.to_string()));
        }
        assert_eq!(origin.calls(), round);
        until_nothing_is_leased(&mut redis, &policy).await;
    }
    // Without the bus each would wait for what is left of the lease's term, 1.3 s at least.
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_takes_over_from_one_that_dies() {
    let (origin, permits) = held(&[]).await;
    let policy = Policy::new(SPEC);
    let mut pods = three(&policy, &origin).await;
    let mut redis = RedisServer::shared().await;
    let holder = pods.remove(0);
    let _client = Wire::asking(holder.address, "/a").await;
    until_asked(&origin, 1).await;
    let killing = async {
        until_somebody_waits(&mut redis, &policy).await;
        drop(holder);
        until_asked(&origin, 2).await;
        permits.add_permits(10);
    };
    let ((), answers) = tokio::join!(killing, ask(&pods, 10, "/a"));
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == "2"), "{answers:?}");
    assert_eq!(origin.calls(), 2);
    until_nothing_is_leased(&mut redis, &policy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_that_waited_for_another_is_patient_with_redis() {
    let (origin, permits) = held(&[]).await;
    let redis = RedisServer::start().await;
    let relay = Relay::to(([127, 0, 0, 1], redis.port).into()).await;
    redis.set_url(&format!("redis://{}/", relay.address()));
    let policy = Policy::new(&redis.serve(SPEC).replace("timeout: 2s,", "timeout: 250ms,"));
    let pods = three(&policy, &origin).await;
    let until_waited = async |times: f64| {
        until("pods wait for another", async || {
            let waited = |pod| Sidecar::metric(pod, "larder_leases_total", &["outcome=\"waited\""]);
            (join_all(pods.iter().map(waited)).await.iter().sum::<f64>() >= times).then_some(())
        })
        .await;
    };
    let slowing = async {
        until_waited(2.0).await;
        relay.suffer(Fault::Slow(Duration::from_millis(300)));
        // When the lease's term is over they ask for it again, and hear that it was renewed.
        until_waited(4.0).await;
        permits.add_permits(10);
    };
    let ((), answers) = tokio::join!(slowing, ask(&pods, 10, "/a"));
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == "1"), "{answers:?}");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_each_pod_sends_one_request() {
    let (origin, permits) = held(&[]).await;
    let mut redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let pods = three(&policy, &origin).await;
    let killing = async {
        until_somebody_waits(&mut redis.connection().await, &policy).await;
        until_asked(&origin, 1).await;
        assert_eq!(origin.calls(), 1);
        redis.kill();
        until_asked(&origin, 3).await;
        permits.add_permits(10);
    };
    let ((), answers) = tokio::join!(killing, ask(&pods, 10, "/a"));
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(origin.calls(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn unstorable_response_does_not_serialise_pods() {
    let (origin, spans) = slow(&[("cache-control", "no-store")], Duration::from_secs(1)).await;
    let policy = Policy::new(SPEC);
    let mut pods = three(&policy, &origin).await;
    pods.extend(three(&policy, &origin).await);
    let answers = ask(&pods, 1, "/a").await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(origin.calls(), 6);
    assert!(spans.rounds() <= 3, "{spans:?}");
    until_nothing_is_leased(&mut RedisServer::shared().await, &policy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_waits_for_no_other_pod() {
    let (origin, permits) = held(&[]).await;
    let policy = Policy::new(SPEC);
    let pods = three(&policy, &origin).await;
    let letting_go = async {
        until_asked(&origin, 3).await;
        permits.add_permits(3);
    };
    let heads = join_all(pods.iter().map(|pod| pod.request(Method::HEAD, "/a", &[], "")));
    let ((), answers) = tokio::join!(letting_go, heads);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_in_mid_fetch_ends_the_lease_with_the_fetch() {
    let (origin, permits) = held(&[]).await;
    let policy = Policy::new(SPEC);
    let pods = three(&policy, &origin).await;
    let mut redis = RedisServer::shared().await;
    let [a, b, c] = &pods[..] else { panic!("three") };
    let purging = async {
        until_asked(&origin, 1).await;
        assert_eq!(b.purge(r#"{"tags": ["page:a"]}"#).await.status, 200);
        let after = async {
            until_somebody_waits(&mut redis, &policy).await;
            permits.add_permits(1);
            until_asked(&origin, 2).await;
            permits.add_permits(10);
        };
        let ((), from_a, from_c) = tokio::join!(after, a.get("/a"), c.get("/a"));
        [from_a, from_c]
    };
    let (before, after) = tokio::join!(a.get("/a"), purging);
    assert_eq!(before.body, "1");
    assert!(after.iter().all(|answer| answer.status == 200 && answer.body != "1"), "{after:?}");
    until_nothing_is_leased(&mut redis, &policy).await;
    for pod in &pods {
        assert_ne!(pod.get("/a").await.body, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_do_not_wait_for_one_another() {
    const LANGUAGES: [&str; 8] = ["cs", "da", "de", "en", "es", "fi", "fr", "it"];
    let (origin, spans) = slow(&[("vary", "accept-language")], Duration::from_millis(800)).await;
    let policy = Policy::new(SPEC);
    let pods = three(&policy, &origin).await;
    let asking = LANGUAGES.iter().flat_map(|language| {
        pods.iter().map(async |pod| (*language, pod.get_with("/a", &[("accept-language", *language)]).await))
    });
    let mut bodies = HashMap::<_, Vec<_>>::new();
    for (language, answer) in join_all(asking).await {
        assert_eq!(answer.status, 200);
        bodies.entry(language).or_default().push(answer.body);
    }
    for same in bodies.values() {
        assert!(same.iter().all(|body| *body == same[0]), "{bodies:?}");
    }
    assert_eq!(origin.calls(), LANGUAGES.len());
    // One pod learns of the variants; then each pod requests its own, and learns that; then the rest.
    assert!(spans.rounds() <= 5, "{spans:?}");
    until_nothing_is_leased(&mut RedisServer::shared().await, &policy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_holds_up_no_other_pod() {
    const LENGTH: usize = 12 << 20;
    let origin = Origin::start(|_| async { reply(&[], "x".repeat(LENGTH)) }).await;
    let policy = Policy::new(SPEC);
    // Writing so large a response to Redis counts in the memory budget.
    let path = policy.path();
    let arguments = ["--policy", path.to_str().unwrap(), "--memory-limit", "512Mi"];
    let pods = join_all((0..2).map(|_| Sidecar::launch(origin.address, &arguments))).await;
    join_all(pods.iter().map(|pod| pod.until_tiers_are("up"))).await;
    let mut slow = Wire::narrow(pods[0].address).await;
    slow.ask("/a").await;
    slow.head().await;
    assert_eq!(pods[1].get("/a").await.body.len(), LENGTH);
    assert_eq!(origin.calls(), 1, "the response was stored while the first client read nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_take_turns_in_a_cluster_that_lost_a_server() {
    let mut cluster = Cluster::start().await;
    let policy = Policy::new(&cluster.serve(SPEC));
    let asked = Arc::<Mutex<HashMap<String, usize>>>::default();
    let counts = Arc::clone(&asked);
    let origin = Origin::start(move |seen| {
        *counts.lock().unwrap().entry(seen.path).or_default() += 1;
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            reply(&[], "body")
        }
    })
    .await;
    let pods = three(&policy, &origin).await;
    let ask_for = async |name: &str, keys: usize| {
        for key in 0..keys {
            let answers = ask(&pods, 3, &format!("/{name}-{key}")).await;
            assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        }
        let asked = asked.lock().unwrap();
        let counts: Vec<_> =
            asked.iter().filter(|(path, _)| path.contains(name)).map(|(_, count)| *count).collect();
        counts
    };
    assert_eq!(ask_for("whole", 9).await, [1; 9]);
    let lost = (cluster.server_of(&policy.barriers()).await + 1) % 3;
    cluster.servers[lost].kill();
    let counts = ask_for("partial", 18).await;
    assert!(counts.iter().all(|count| *count <= pods.len()), "once for each pod at most: {counts:?}");
    let once = counts.iter().filter(|count| **count == 1).count();
    assert!(once >= 6, "two thirds of the keys have kept their server: {counts:?}");
}
