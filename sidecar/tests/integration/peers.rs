//! Purges from pod to pod: without Redis, and where a pod is cut off from it.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

mod refusing;
mod trust;

use super::harness::{Fault, Origin, Policy, RedisServer, Relay, Sidecar, free_port, tagged_pages, until};

/// Pages without Redis.
const ALONE: &str = tagged_pages!("l1: {busGrace: 1s}");
/// Pages with Redis, and a prefix that a write purges.
const SHARED: &str = tagged_pages!(
    "l1: {busGrace: 1s}",
    "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 200ms}}"
);

/// Three sidecars that tell one another of purges, and their ports.
async fn three(policies: [&Policy; 3], origin: &Origin) -> [Sidecar; 3] {
    let ports = [free_port(), free_port(), free_port()];
    let [a, b, c] = policies;
    let sidecars = [
        Sidecar::among(a, origin.address, ports[0], &ports).await,
        Sidecar::among(b, origin.address, ports[1], &ports).await,
        Sidecar::among(c, origin.address, ports[2], &ports).await,
    ];
    for sidecar in &sidecars {
        sidecar.until_peers(2).await;
    }
    sidecars
}

fn report(body: &str) -> Value {
    serde_json::from_str(body).unwrap()
}

/// Stores a path in the memory of each. Returns its bodies.
async fn stored(sidecars: &[Sidecar], path: &str) -> Vec<String> {
    let mut bodies = vec![];
    for sidecar in sidecars {
        bodies.push(sidecar.get(path).await.body);
        until("a hit", async || (sidecar.get(path).await.hit() == Some("l1")).then_some(())).await;
    }
    bodies
}

/// Purges until two others acknowledge it in time, which a busy machine may not let them at once.
async fn purge_everywhere(sidecar: &Sidecar, body: &'static str) {
    until("all acknowledge a purge", async || {
        let purged = sidecar.purge(body).await;
        let peers = &report(&purged.body)["peers"];
        let are_all = peers["acknowledged"] == 2;
        assert_eq!(are_all, peers["missing"] == json!([]), "{}", purged.body);
        assert_eq!(purged.status.as_u16(), if are_all { 200 } else { 202 });
        are_all.then_some(())
    })
    .await;
}

/// Waits until a sidecar no longer has the response.
async fn until_it_is_gone(sidecar: &Sidecar, path: &str, old: &str) {
    until("it is gone", async || (sidecar.get(path).await.body != old).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_no_sidecar_serves_a_response_from_before_a_write() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    for round in 0..30 {
        let path = format!("/page-{}", round % 3);
        let before = stored(&sidecars, &path).await;
        let (writer, prefix) = (&sidecars[round % 3], round % 2 == 0);
        if prefix {
            purge_everywhere(writer, r#"{"prefixes": ["/"], "tags": ["none"]}"#).await;
        } else {
            writer.put(&path).await;
        }
        for (sidecar, before) in sidecars.iter().zip(before) {
            assert_ne!(sidecar.get(&path).await.body, before, "round {round}");
        }
    }
    let acknowledged = sidecars[0].metric("larder_peer_purges_total", &[r#"outcome="acknowledged""#]).await;
    assert!(acknowledged >= 20.0, "{acknowledged}");
    assert!(sidecars[0].metric("larder_peer_purges_total", &[r#"outcome="heard""#]).await >= 20.0);
    let reachable = async || sidecars[0].metric("larder_peers", &[r#"state="reachable""#]).await == 2.0;
    until("the peers are in the metrics", async || reachable().await.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_each_sidecar_is_asked_for_is_told_by_none() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let before = stored(&sidecars, "/a").await;
    for (place, sidecar) in sidecars.iter().enumerate() {
        let body = r#"{"tags": ["page:a"]}"#;
        let purged = sidecar.with_token(Method::POST, "/purge?each_pod=true", body).await;
        assert_eq!(
            (purged.status.as_u16(), report(&purged.body).get("peers")),
            (200, None),
            "{}",
            purged.body
        );
        for (other, (sidecar, before)) in sidecars.iter().zip(&before).enumerate() {
            assert_eq!(sidecar.get("/a").await.body == *before, other > place);
        }
    }
    let refused = sidecars[0].with_token(Method::POST, "/purge?each_pod=all", "{}").await;
    assert_eq!(refused.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_purge_reaches_every_sidecar_without_redis() {
    let spec = ALONE.replace("ttl: 60s", "ttl: 60s, staleWhileRevalidate: 60s");
    let (policy, origin) = (Policy::new(&spec), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    stored(&sidecars, "/a").await;
    assert_eq!(sidecars[0].purge(r#"{"tags": ["page:a"], "soft": true}"#).await.status, 200);
    for sidecar in &sidecars {
        let stale = sidecar.get("/a").await;
        assert!(stale.ttl().is_some_and(|ttl| ttl <= 0), "{}", stale.cache_status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_of_another_version_hears_of_every_write() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let other =
        policy.twin(&ALONE.replace("page:", "site:").replace("\"/{page}\"}, purge", "\"/x/{page}\"}, purge"));
    let sidecars = three([&policy, &other, &policy], &origin).await;
    let before = stored(&sidecars, "/a").await;
    // The other version has no rule for it, and another name for the tag.
    sidecars[0].request(Method::POST, "/b", &[], "").await;
    assert_ne!(sidecars[1].get("/a").await.body, before[1]);
    assert_eq!(sidecars[2].get("/a").await.body, before[2]);
    let before = stored(&sidecars, "/a").await;
    // A write for which its version names nothing.
    sidecars[1].request(Method::POST, "/elsewhere/b", &[], "").await;
    assert_eq!(sidecars[1].get("/a").await.body, before[1]);
    assert_ne!(sidecars[0].get("/a").await.body, before[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_through_a_sidecar_that_ends_reaches_those_that_it_did_not_know() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let [a, b, c] = [free_port(), free_port(), free_port()];
    // The first and the third know only the second.
    let first = Sidecar::among(&policy, origin.address, a, &[b]).await;
    let second = Sidecar::among(&policy, origin.address, b, &[a, c]).await;
    let third = Sidecar::among(&policy, origin.address, c, &[b]).await;
    second.until_peers(2).await;
    let sidecars = [first, second, third];
    let before = stored(&sidecars, "/a").await;
    sidecars[0].put("/a").await;
    sidecars[0].kill();
    assert_ne!(sidecars[1].get("/a").await.body, before[1]);
    until_it_is_gone(&sidecars[2], "/a", &before[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_hangs_is_named_waited_for_once_and_told_when_it_is_back() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let before = stored(&sidecars, "/a").await;
    let [a, _, c] = &sidecars;
    c.freeze();
    let purged = a.purge(r#"{"tags": ["page:a"]}"#).await;
    let told = report(&purged.body);
    assert!(told["peers"]["missing"].as_array().unwrap().contains(&json!(c.admin.to_string())), "{told}");
    assert_eq!(purged.status, 202);
    assert!(told["pending"].as_str().unwrap().starts_with("not acknowledged by 127.0.0.1:"), "{told}");
    let since = Instant::now();
    for _ in 0..20 {
        a.put("/a").await;
    }
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let unreachable = a.policy().await["peers"]["unreachable"].clone();
    assert_eq!(unreachable[c.admin.to_string()], "no reply in time");
    c.thaw();
    until_it_is_gone(c, "/a", &before[2]).await;
    purge_everywhere(a, r#"{"tags": ["page:a"]}"#).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_missed_more_than_is_remembered_purges_everything() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let before = stored(&sidecars, "/kept").await;
    let [a, b, c] = &sidecars;
    c.freeze();
    for round in 0..14 {
        let tags: Vec<_> = (0..500).map(|number| format!("{round}-{number}")).collect();
        let body: &'static str = json!({ "tags": tags }).to_string().leak();
        a.purge(body).await;
    }
    c.thaw();
    until_it_is_gone(c, "/kept", &before[2]).await;
    assert!(c.logged("purges of another pod were missed").is_some());
    assert_eq!(b.get("/kept").await.body, before[1], "it missed none");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_policys_token_is_taken() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let before = stored(&sidecars, "/a").await;
    let [a, b, c] = &sidecars;
    c.set_token("another");
    // It counts within a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let told = report(&a.purge(r#"{"tags": ["page:a"]}"#).await.body);
    assert_eq!(told["peers"]["missing"], json!([c.admin.to_string()]));
    assert_ne!(b.get("/a").await.body, before[1]);
    assert_eq!(c.get("/a").await.body, before[2]);
    c.set_token(super::harness::TOKEN);
    until_it_is_gone(c, "/a", &before[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_begins_is_told_from_its_first_request_on() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let [a, b] = [free_port(), free_port()];
    let first = Sidecar::among(&policy, origin.address, a, &[a, b]).await;
    for round in 0..5 {
        let second = Sidecar::among(&policy, origin.address, b, &[a, b]).await;
        let before = second.get("/a").await.body;
        first.put("/a").await;
        assert_ne!(second.get("/a").await.body, before, "round {round}");
        second.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_begins_waits_for_one_that_refuses_it_at_first() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let [a, b] = [free_port(), free_port()];
    // The first knows the second only if that makes itself known.
    let first =
        Sidecar::among_addresses(&policy, origin.address, ("127.0.0.2", a), &format!("127.0.0.1:{a}")).await;
    let relay = Relay::at(([127, 0, 0, 2], a).into(), first.admin).await;
    relay.suffer(Fault::Cut);
    let known = relay.address().to_string();
    let mends = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        relay.suffer(Fault::Nothing);
    };
    let second = Sidecar::among_addresses(&policy, origin.address, ("127.0.0.1", b), &known);
    let (second, ()) = tokio::join!(second, mends);
    let before = second.get("/a").await.body;
    first.put("/a").await;
    assert_ne!(second.get("/a").await.body, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_ends_hands_on_purges_that_were_not_acknowledged() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let sidecars = three([&policy; 3], &origin).await;
    let before = stored(&sidecars, "/a").await;
    let [a, b, c] = &sidecars;
    b.freeze();
    c.freeze();
    a.put("/a").await;
    a.terminate();
    tokio::time::sleep(Duration::from_millis(300)).await;
    b.thaw();
    c.thaw();
    until_it_is_gone(b, "/a", &before[1]).await;
    until_it_is_gone(c, "/a", &before[2]).await;
}

/// Two sidecars that reach Redis, and one that reaches it through a relay.
struct Stand {
    redis: RedisServer,
    relay: Relay,
    origin: Origin,
    sidecars: [Sidecar; 3],
    _policies: [Policy; 2],
}

impl Stand {
    async fn new() -> Self {
        Self::of(SHARED).await
    }

    async fn of(spec: &str) -> Self {
        let (redis, origin) = (RedisServer::start().await, Origin::numbered(&[]).await);
        let relay = Relay::to(([127, 0, 0, 1], redis.port).into()).await;
        let policy = Policy::new(&redis.serve(spec));
        let far = policy.elsewhere();
        let url = redis.file("relayed-url");
        std::fs::write(&url, format!("redis://{}/\n", relay.address())).unwrap();
        let text = std::fs::read_to_string(policy.path()).unwrap();
        far.write(&text.replace(redis.url_file().to_str().unwrap(), url.to_str().unwrap()));
        let sidecars = three([&far, &policy, &policy], &origin).await;
        for sidecar in &sidecars {
            sidecar.until_tiers_are("up").await;
        }
        Self { redis, relay, origin, sidecars, _policies: [policy, far] }
    }

    async fn cut_off(&self) {
        self.relay.suffer(Fault::Cut);
        self.sidecars[0].until_tiers_are("down").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_through_a_sidecar_cut_off_from_redis_outlives_it() {
    let stand = Stand::new().await;
    let sidecars = &stand.sidecars;
    for page in ["/a", "/b"] {
        stored(sidecars, page).await;
    }
    stand.cut_off().await;
    let before = stored(&sidecars[1..], "/a").await;
    let orders = stand.orders().await;
    sidecars[0].put("/a").await;
    sidecars[0].kill();
    for (sidecar, before) in sidecars[1..].iter().zip(&before) {
        assert_ne!(sidecar.get("/a").await.body, *before);
    }
    until("redis has it", async || (stand.orders().await > orders).then_some(())).await;
    // One that has nothing in memory finds nothing older in Redis.
    let newcomer = Sidecar::start(&stand._policies[0], stand.origin.address).await;
    assert!(!before.contains(&newcomer.get("/a").await.body));
    // What the others store is good for all again.
    let body = sidecars[1].get("/a").await.body;
    until("a hit by Redis", async || (sidecars[2].get("/a").await.body == body).then_some(())).await;
    assert_eq!(stand.orders().await, orders + 1, "ordered once, although two pods told it");
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_by_redis_holds_in_a_sidecar_that_redis_does_not_reach() {
    let stand = Stand::new().await;
    let [far, near, _] = &stand.sidecars;
    let before = far.stored("/a").await;
    stand.relay.suffer(Fault::Cut);
    // It trusts what it has for a while yet.
    until("the sidecar hears of nothing at redis", async || (stand.listeners().await < 3).then_some(()))
        .await;
    near.put("/a").await;
    assert_ne!(far.get("/a").await.body, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_through_a_sidecar_cut_off_from_redis_names_the_others() {
    let stand = Stand::new().await;
    stand.cut_off().await;
    let purged = stand.sidecars[0].purge(r#"{"tags": ["page:a"]}"#).await;
    assert_eq!(purged.status, 202);
    assert_eq!(report(&purged.body)["peers"], json!({"acknowledged": 2, "missing": []}), "{}", purged.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_not_told_directly_while_all_hear_of_redis() {
    let stand = Stand::new().await;
    for _ in 0..20 {
        stand.sidecars[1].put("/a").await;
        let purged = stand.sidecars[1].purge(r#"{"tags": ["page:a"]}"#).await;
        assert_eq!(report(&purged.body).get("peers"), None);
    }
    for sidecar in &stand.sidecars {
        assert_eq!(sidecar.metric("larder_peer_purges_total", &[]).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_whose_bus_is_silent_is_told_directly() {
    let stand = Stand::new().await;
    let sidecars = &stand.sidecars;
    let before = stored(sidecars, "/a").await;
    let orders = stand.orders().await;
    stand.relay.bus_suffers(Fault::Silent);
    let purged = sidecars[1].purge(r#"{"tags": ["page:a"]}"#).await;
    let told = report(&purged.body);
    assert_eq!((purged.status.as_u16(), &told["redis"]), (200, &json!(true)));
    assert_eq!(told["peers"], json!({"acknowledged": 2, "missing": []}));
    assert_ne!(sidecars[0].get("/a").await.body, before[0]);
    stand.relay.bus_suffers(Fault::Nothing);
    sidecars[0].until_tiers_are("up").await;
    // Nobody had to tell Redis again.
    assert!(stand.orders().await <= orders + 2);
    let body = sidecars[1].get("/a").await.body;
    until("shared again", async || (sidecars[0].get("/a").await.body == body).then_some(())).await;
}

impl Stand {
    /// Returns the number of purges that Redis has ordered.
    async fn orders(&self) -> u64 {
        self.redis.ask::<Option<u64>>(&["HGET", &self.barriers().await, "s"]).await.unwrap_or(0)
    }

    /// Returns the number of sidecars that hear of purges at Redis.
    async fn listeners(&self) -> usize {
        self.redis.ask::<(String, usize)>(&["PUBSUB", "NUMSUB", &self.barriers().await]).await.1
    }

    async fn barriers(&self) -> String {
        self.redis.ask::<Vec<String>>(&["KEYS", "*:barriers:"]).await.pop().unwrap_or_default()
    }
}
