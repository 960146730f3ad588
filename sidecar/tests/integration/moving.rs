//! Redis is exchanged for another, or taken out, and pods get the change one after another: purges cross between those that have it
//! and those that do not.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::harness::{Cluster, Origin, Policy, RedisServer, Sentinels, Sidecar, until, until_shared};

mod faults;
mod meanwhile;

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 500ms}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 300s, tags: ["page:{page}"]}
invalidation:
  onWrite:
  - {match: {path: "/{page}/edit"}, purge: {tags: ["page:{page}"]}}
"#;

/// The same with other tags and without a rule for the write.
fn renamed() -> String {
    SPEC.replace("page:{page}", "p:{page}").replace("/{page}/edit", "/{page}/other")
}

/// The same without Redis.
fn without_redis() -> String {
    SPEC.lines().filter(|line| !line.starts_with("l2:")).collect::<Vec<_>>().join("\n")
}

/// Two pods at one Redis, another Redis, and the policy as each pod has it.
struct Pods {
    one: RedisServer,
    other: RedisServer,
    spec: String,
    policies: [Policy; 2],
    sidecars: [Sidecar; 2],
    origin: Origin,
}

impl Pods {
    async fn start() -> Self {
        Self::start_with(SPEC).await
    }

    async fn start_with(spec: &str) -> Self {
        let (one, other) = (RedisServer::start().await, RedisServer::start().await);
        let policy = Policy::new(&one.serve(spec));
        let policies = [policy.twin(&Self::spec_of(&one, spec)), policy];
        let origin = Origin::numbered(&[]).await;
        let sidecars = [
            Sidecar::start(&policies[0], origin.address).await,
            Sidecar::start(&policies[1], origin.address).await,
        ];
        let pods = Self { one, other, spec: spec.to_owned(), policies, sidecars, origin };
        until_shared(&pods.sidecars).await;
        pods
    }

    /// A policy whose URL is in a file of this pod's own.
    fn spec_of(redis: &RedisServer, spec: &str) -> String {
        let own = redis.file("own-url");
        std::fs::write(&own, format!("redis://127.0.0.1:{}/", redis.port)).unwrap();
        spec.replace("{env: LARDER_TEST_REDIS_URL}", &format!("{{file: {}}}", own.display()))
    }

    /// The first pod moves by the URL in the file that its policy names.
    fn change_file(&self) {
        self.change_file_to(&format!("redis://127.0.0.1:{}/", self.other.port));
    }

    /// The file that the first pod's policy names has this URL from now on.
    fn change_file_to(&self, url: &str) {
        let (own, written) = (self.one.file("own-url"), self.one.file("written-own-url"));
        std::fs::write(&written, url).unwrap();
        std::fs::rename(written, own).unwrap();
    }

    /// Another pod, with this spec.
    async fn another(&self, spec: &str) -> (Policy, Sidecar) {
        let policy = self.policies[0].twin(spec);
        let sidecar = Sidecar::start(&policy, self.origin.address).await;
        sidecar.until_tiers_are("up").await;
        (policy, sidecar)
    }

    /// A pod moves by another policy.
    async fn change(&self, pod: usize, spec: &str) {
        self.policies[pod].change(&self.other.serve(spec));
        self.sidecars[pod].until_it_serves(&self.policies[pod]).await;
    }

    /// Waits until so many pods hear purges at a Redis as their own.
    async fn until_it_has(&self, redis: &RedisServer, pods: usize) {
        until("pods at a Redis", async || {
            let (all, left) = listening(redis).await;
            (all - left == pods).then_some(())
        })
        .await;
    }
}

/// The numbers of pods that hear purges at a Redis, and of those that have left it.
async fn listening(redis: &RedisServer) -> (usize, usize) {
    let channels: Vec<String> = redis.ask(&["PUBSUB", "CHANNELS", "larder:*"]).await;
    let own = channels.iter().filter(|channel| channel.contains(":ack:")).count();
    let Some(left) = channels.iter().find(|channel| channel.ends_with(":left")) else { return (own, 0) };
    let (_, left): (String, usize) = redis.ask(&["PUBSUB", "NUMSUB", left]).await;
    (own, left)
}

async fn number(sidecar: &Sidecar, path: &str) -> usize {
    let answer = sidecar.get(path).await;
    answer.body.parse().unwrap_or_else(|_| panic!("{}: {}", answer.status, answer.body))
}

async fn purge(sidecar: &Sidecar) -> bool {
    sidecar.purge(r#"{"tags": ["page:page", "p:page"]}"#).await.status == 200
}

async fn purge_path(sidecar: &Sidecar) -> bool {
    sidecar.purge(r#"{"paths": ["/page"]}"#).await.status == 200
}

async fn write(sidecar: &Sidecar) -> bool {
    sidecar.put("/page/edit").await.status == 200
}

/// Purges through each of two pods in turn: both have the page in memory, and neither has it afterwards.
async fn assert_purges_cross(sidecars: [&Sidecar; 2], purge: impl AsyncFn(&Sidecar) -> bool) {
    assert_purges_reach(sidecars, true, purge).await;
}

/// Purges through each of two pods in turn: both have the page in memory, and the other does not have it afterwards, nor that one if
/// it names what is purged.
async fn assert_purges_reach(
    sidecars: [&Sidecar; 2],
    first_names_it: bool,
    purge: impl AsyncFn(&Sidecar) -> bool,
) {
    let mut failed = vec![];
    for round in 0..6 {
        for sidecar in sidecars {
            until("the page in memory", async || {
                (sidecar.get("/page").await.hit() == Some("l1")).then_some(())
            })
            .await;
        }
        let latest = number(sidecars[0], "/page").await.max(number(sidecars[1], "/page").await);
        assert!(purge(sidecars[round % 2]).await);
        for (place, sidecar) in sidecars.iter().enumerate() {
            if !first_names_it && (round % 2, place) == (0, 0) {
                continue;
            }
            if number(sidecar, "/page").await <= latest {
                failed.push((round, place));
            }
        }
    }
    assert!(failed.is_empty(), "stale by round and pod: {failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_a_policy_names_another_redis_in_one_pod() {
    let pods = Pods::start().await;
    pods.change(0, SPEC).await;
    pods.until_it_has(&pods.other, 1).await;
    let [a, b] = &pods.sidecars;
    assert_purges_cross([a, b], purge).await;
    assert_purges_cross([a, b], purge_path).await;
    assert_purges_cross([a, b], write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_a_file_names_another_redis_in_one_pod() {
    let pods = Pods::start().await;
    pods.change_file();
    pods.until_it_has(&pods.other, 1).await;
    let [a, b] = &pods.sidecars;
    assert_purges_cross([a, b], purge).await;
    assert_purges_cross([a, b], write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_a_policy_names_no_redis_in_one_pod() {
    let pods = Pods::start().await;
    pods.policies[0].change(&without_redis());
    pods.sidecars[0].until_it_serves(&pods.policies[0]).await;
    let [a, b] = &pods.sidecars;
    assert_purges_cross([a, b], purge).await;
    assert_purges_cross([a, b], write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_another_version_names_another_redis_in_one_pod() {
    let pods = Pods::start().await;
    pods.change(0, &renamed()).await;
    pods.until_it_has(&pods.other, 1).await;
    // The version is in the lists of both.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let [a, b] = &pods.sidecars;
    assert_purges_cross([a, b], purge).await;
    assert_purges_reach([a, b], false, write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_while_another_version_names_no_redis_in_one_pod() {
    let pods = Pods::start().await;
    pods.policies[0].change(&without_redis().replace("page:{page}", "p:{page}").replace("/edit", "/other"));
    pods.sidecars[0].until_it_serves(&pods.policies[0]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let [a, b] = &pods.sidecars;
    assert_purges_reach([a, b], false, write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_to_pods_that_began_at_the_new_redis_soon() {
    let pods = Pods::start().await;
    pods.change(0, SPEC).await;
    pods.until_it_has(&pods.other, 1).await;
    let late = pods.policies[0].twin(&pods.other.serve(SPEC));
    let late = Sidecar::start(&late, pods.origin.address).await;
    let old = &pods.sidecars[1];
    for [writer, reader] in [[old, &late], [&late, old]] {
        number(reader, "/page").await;
        let written: usize = writer.put("/page/edit").await.body.parse().unwrap();
        until("it is stale there", async || (number(reader, "/page").await > written).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_purge_is_told_to_the_new_redis_once_though_many_pods_heard_of_it() {
    let pods = Pods::start().await;
    let policies: Vec<_> = (0..4).map(|_| pods.policies[0].twin(&pods.one.serve(SPEC))).collect();
    let mut movers = vec![];
    for policy in &policies {
        movers.push(Sidecar::start(policy, pods.origin.address).await);
    }
    pods.change(0, SPEC).await;
    for (policy, sidecar) in policies.iter().zip(&movers) {
        policy.change(&pods.other.serve(SPEC));
        sidecar.until_it_serves(policy).await;
    }
    pods.until_it_has(&pods.other, 5).await;
    let order = async |redis: &RedisServer| -> u64 {
        redis.ask::<Option<u64>>(&["HGET", &pods.policies[0].barriers(), "s"]).await.unwrap_or(0)
    };
    // What each told when it came is told.
    let mut settled = (0, 0);
    until("the new Redis is at rest", async || {
        let before = settled;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        settled = (order(&pods.one).await, order(&pods.other).await);
        (settled == before).then_some(())
    })
    .await;
    for (count, sidecar) in [&pods.sidecars[1], &pods.sidecars[0]].into_iter().enumerate() {
        assert!(write(sidecar).await);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let told = (order(&pods.one).await - settled.0, order(&pods.other).await - settled.1);
        assert_eq!(told, (count as u64 + 1, count as u64 + 1), "once in each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_that_was_left_is_let_go_of_when_the_last_pod_has_left_it() {
    let mut pods = Pods::start().await;
    pods.change(0, SPEC).await;
    pods.until_it_has(&pods.other, 1).await;
    until("it is still there", async || (listening(&pods.one).await == (2, 1)).then_some(())).await;
    pods.change(1, SPEC).await;
    until("both have left", async || (listening(&pods.one).await == (2, 2)).then_some(())).await;
    until("nobody is there", async || (listening(&pods.one).await == (0, 0)).then_some(())).await;
    for sidecar in &pods.sidecars {
        assert!(sidecar.logged("every pod has left it").is_some());
    }
    pods.one.kill();
    until_shared(&pods.sidecars).await;
    let [a, b] = &pods.sidecars;
    assert_purges_cross([a, b], write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_dies_after_it_was_left_costs_nothing() {
    assert_harmless("it can't be reached", RedisServer::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_after_it_was_left_costs_nothing() {
    assert_harmless("it can't be reached", |redis| redis.freeze()).await;
}

/// Purges and requests through a pod go on as ever, until it lets go of the Redis that it left for this reason.
async fn assert_harmless(reason: &str, end: impl FnOnce(&mut RedisServer)) {
    let mut pods = Pods::start_with(&format!("l1: {{busGrace: 2s}}{SPEC}")).await;
    pods.change(0, &pods.spec).await;
    pods.until_it_has(&pods.other, 1).await;
    end(&mut pods.one);
    let sidecar = &pods.sidecars[0];
    let ended_at = Instant::now();
    until("it is let go of", async || {
        let asked_at = Instant::now();
        assert!(purge(sidecar).await);
        assert!(asked_at.elapsed() < Duration::from_millis(1500), "{:?}", asked_at.elapsed());
        assert!(
            ended_at.elapsed() < Duration::from_secs(4) || asked_at.elapsed() < Duration::from_millis(500),
            "{:?}",
            asked_at.elapsed()
        );
        assert_eq!(sidecar.get("/page").await.status, 200);
        assert_eq!(sidecar.policy().await["tiers"]["redis"], "up");
        sidecar.logged(reason).map(drop)
    })
    .await;
    assert!(ended_at.elapsed() > Duration::from_secs(2), "pods there trust what they have for the grace");
    sidecar.until_no_error().await;
    pods.one.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_was_missed_at_the_redis_that_was_left_is_made_up_for() {
    let mut pods = Pods::start().await;
    pods.change(0, SPEC).await;
    pods.until_it_has(&pods.other, 1).await;
    let [a, b] = &pods.sidecars;
    pods.one.say(&["CONFIG", "SET", "save", ""]).await;
    pods.one.kill();
    let old = number(a, "/page").await;
    // It is told when that Redis is back.
    b.purge(r#"{"tags": ["page:page"]}"#).await;
    pods.one.restart().await;
    until("it is stale in the pod that has left", async || (number(a, "/page").await > old).then_some(()))
        .await;
    b.until_tiers_are("up").await;
    until("purges cross again", async || {
        let old = number(a, "/page").await;
        assert!(purge(b).await);
        (number(a, "/page").await > old).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_moves_on_or_back_hears_of_every_purge() {
    let pods = Pods::start().await;
    let third = RedisServer::start().await;
    let [a, b] = &pods.sidecars;
    for (redis, pods_there) in [(&pods.other, 1), (&third, 1), (&pods.one, 2), (&pods.other, 1)] {
        pods.policies[0].change(&redis.serve(SPEC));
        a.until_it_serves(&pods.policies[0]).await;
        pods.until_it_has(redis, pods_there).await;
        assert_purges_cross([a, b], purge).await;
        assert_purges_cross([a, b], write).await;
    }
    // The one that it came back to is its own, not one that it left; those between may be let go of already.
    until("the third is let go of", async || (listening(&third).await.0 == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_moves_twice_at_once_hears_of_every_purge() {
    let pods = Pods::start().await;
    let third = RedisServer::start().await;
    let [a, b] = &pods.sidecars;
    for (redis, pods_there) in [(&third, 1), (&pods.one, 2)] {
        for next in [&pods.other, redis] {
            pods.policies[0].change(&next.serve(SPEC));
            a.until_it_serves(&pods.policies[0]).await;
        }
        pods.until_it_has(redis, pods_there).await;
        assert_purges_cross([a, b], purge).await;
        assert_purges_cross([a, b], write).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_is_not_let_go_of_before_the_next_one_is_there() {
    let mut pods = Pods::start_with(&format!("l1: {{busGrace: 1s}}{SPEC}")).await;
    pods.other.kill();
    for (policy, sidecar) in pods.policies.iter().zip(&pods.sidecars) {
        policy.change(&pods.other.serve(&pods.spec));
        until("it has left", async || sidecar.logged("another redis was left")).await;
    }
    let [a, b] = &pods.sidecars;
    // Longer than it takes to let go of one that every pod has left.
    let since = Instant::now();
    let purge_here = async |sidecar: &Sidecar| sidecar.purge(r#"{"paths": ["/page"]}"#).await.status == 202;
    while since.elapsed() < Duration::from_secs(6) {
        assert_purges_cross([a, b], purge_here).await;
    }
    pods.other.restart().await;
    for sidecar in [a, b] {
        sidecar.until_tiers_are("up").await;
        until("it is let go of", async || sidecar.logged("every pod has left it")).await;
    }
    assert_purges_cross([a, b], write).await;
}

/// Two pods move from one Redis to another, one after the other.
async fn assert_all_move(policies: [Policy; 2], to: &str) {
    let origin = Origin::numbered(&[]).await;
    let sidecars = [
        Sidecar::start(&policies[0], origin.address).await,
        Sidecar::start(&policies[1], origin.address).await,
    ];
    until_shared(&sidecars).await;
    for (policy, sidecar) in policies.iter().zip(&sidecars) {
        policy.change(to);
        sidecar.until_it_serves(policy).await;
        sidecar.until_tiers_are("up").await;
        let [a, b] = &sidecars;
        assert_purges_cross([a, b], write).await;
    }
    for sidecar in &sidecars {
        until("it is let go of", async || sidecar.logged("every pod has left it")).await;
    }
    until_shared(&sidecars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cross_between_a_server_a_cluster_and_a_master_of_sentinels() {
    let (one, cluster, sentinels) =
        (RedisServer::start().await, Cluster::start().await, Sentinels::start().await);
    let specs = [one.serve(SPEC), cluster.serve(SPEC), sentinels.serve(SPEC, "")];
    let moves = [(0, 1), (1, 2), (2, 0)].map(|(from, to)| {
        let policy = Policy::new(&specs[from]);
        assert_all_move([policy.elsewhere(), policy], &specs[to])
    });
    join_all(moves).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_of_one_policy_suffices_to_leave_a_redis() {
    let (one, other) = (RedisServer::start().await, RedisServer::start().await);
    let policy = Policy::new("");
    let user = ["ACL", "SETUSER", "shop", "on", ">secret", "resetkeys", "resetchannels"];
    let [keys, channels] = policy.access();
    let rights = [&*keys, &channels, "-@all", "+@read", "+@write", "+@pubsub", "+@scripting"];
    let rights = [&rights[..], &["+@connection", "-@dangerous", "+info", "+time"]].concat();
    one.say(&[&user[..], &rights].concat()).await;
    one.set_url(&format!("redis://shop:secret@127.0.0.1:{}/", one.port));
    policy.change(&one.serve(SPEC));
    assert_all_move([policy.elsewhere(), policy], &other.serve(SPEC)).await;
}
