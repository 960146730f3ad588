//! Redis behind Sentinels and as a Cluster, and servers that take over or lose what they had.

use std::time::{Duration, Instant};

use super::harness::{
    Cluster, Fault, Folder, Origin, Policy, RedisServer, Relay, Sentinels, Sidecar, tagged_pages, two, until,
    until_shared,
};

const TAGGED: &str = tagged_pages!(
    "l1: {busGrace: 2s}",
    "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 500ms}}"
);

/// Asserts that after each purge in one sidecar no sidecar has the old response.
async fn assert_purges_hold(sidecars: &[Sidecar; 2], origin: &Origin, rounds: usize) {
    for round in 0..rounds {
        let (writer, reader) = (&sidecars[round % 2], &sidecars[(round + 1) % 2]);
        writer.get("/purged").await;
        reader.get("/purged").await;
        let before = origin.calls();
        assert_eq!(writer.purge(r#"{"tags": ["page:purged"]}"#).await.status, 200);
        for sidecar in [reader, writer] {
            let answer = sidecar.get("/purged").await;
            let number: usize = answer.body.parse().unwrap();
            assert!(number > before, "{number}, after {before}: {}", answer.cache_status());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_share_and_purge_in_a_cluster() {
    let cluster = Cluster::start().await;
    let policy = Policy::new(&cluster.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    assert_purges_hold(&sidecars, &origin, 50).await;
    // Entries are spread over all servers; variants are where their entry is.
    let [a, b] = &sidecars;
    for page in 0..30 {
        a.get(&format!("/{page}")).await;
    }
    for server in &cluster.servers {
        until("each server holds entries", async || {
            (server.ask::<usize>(&["DBSIZE"]).await > 1).then_some(())
        })
        .await;
    }
    let mut from_redis = 0;
    for page in 0..30 {
        from_redis += usize::from(b.get(&format!("/{page}")).await.hit() == Some("l2"));
    }
    assert!(from_redis >= 25, "{from_redis} of 30 from Redis");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_a_server_loses_no_request() {
    let mut cluster = Cluster::start().await;
    let policy = Policy::new(&cluster.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    let home = cluster.server_of(&policy.barriers()).await;
    // One that holds nothing but entries, then the one that counts as well.
    for lost in [(home + 1) % 3, home] {
        let old = sidecars[0].get("/a").await.body;
        assert_eq!(sidecars[0].purge(r#"{"paths": ["/a"]}"#).await.status, 200);
        cluster.servers[lost].kill();
        for page in 0..40 {
            let sidecar = &sidecars[page % 2];
            assert_eq!(sidecar.get(&format!("/{lost}-{page}")).await.status, 200);
            assert_ne!(sidecar.get("/a").await.body, old);
        }
        if lost == home {
            sidecars[0].until_tiers_are("down").await;
        } else {
            until_shared(&sidecars).await;
            assert_purges_hold(&sidecars, &origin, 4).await;
        }
        cluster.servers[lost].restart().await;
        cluster.until_whole().await;
        until_shared(&sidecars).await;
        assert_purges_hold(&sidecars, &origin, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_follow_the_barriers_to_another_server_of_a_cluster() {
    let cluster = Cluster::start().await;
    let policy = Policy::new(&cluster.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    let key = policy.barriers();
    let (from, to) = (cluster.server_of(&key).await, (cluster.server_of(&key).await + 1) % 3);
    let (from, to) = (&cluster.servers[from], &cluster.servers[to]);
    let slot: u16 = from.ask(&["CLUSTER", "KEYSLOT", &key]).await;
    let (slot, port) = (slot.to_string(), to.port.to_string());
    let (from_id, to_id): (String, String) =
        (from.ask(&["CLUSTER", "MYID"]).await, to.ask(&["CLUSTER", "MYID"]).await);
    to.say(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
    from.say(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    loop {
        let keys: Vec<String> = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).await;
        let Some(first) = keys.first() else { break };
        from.say(&["MIGRATE", "127.0.0.1", &port, first, "0", "5000"]).await;
    }
    for server in [to, from] {
        server.say(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
    }
    until("the barriers are at the other server", async || {
        (to.ask::<u16>(&["EXISTS", &key]).await == 1).then_some(())
    })
    .await;
    for sidecar in &sidecars {
        assert_eq!(sidecar.get("/a").await.status, 200);
    }
    until("a purge reaches the other server", async || {
        (sidecars[0].purge(r#"{"paths": ["/a"]}"#).await.status == 200).then_some(())
    })
    .await;
    until_shared(&sidecars).await;
    assert_purges_hold(&sidecars, &origin, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_died_is_succeeded_and_nothing_purged_comes_back() {
    let mut sentinels = Sentinels::start().await;
    let policy = Policy::new(&sentinels.serve(TAGGED, ""));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    assert_purges_hold(&sidecars, &origin, 10).await;
    let old = sidecars[0].get("/a").await.body;
    assert_eq!(sidecars[1].get("/a").await.status, 200);
    assert_eq!(sidecars[0].purge(r#"{"paths": ["/a"]}"#).await.status, 200);
    sentinels.master.kill();
    until("redis is connected to the new master", async || {
        for sidecar in &sidecars {
            let answer = sidecar.get("/a").await;
            assert_eq!(answer.status, 200);
            assert_ne!(answer.body, old);
        }
        let info: String = sentinels.replica.ask(&["INFO", "replication"]).await;
        let masters = sidecars[0].policy().await["tiers"]["redis"] == "up"
            && sidecars[1].policy().await["tiers"]["redis"] == "up";
        (info.contains("role:master") && masters).then_some(())
    })
    .await;
    until_shared(&sidecars).await;
    assert_purges_hold(&sidecars, &origin, 10).await;
    let newcomer = Sidecar::start(&policy, origin.address).await;
    assert_ne!(newcomer.get("/a").await.body, old);
}

/// A policy's `spec` that has sidecars be users that Sentinels and replicas are not.
async fn with_users(sentinels: &Sentinels) -> String {
    for server in [&sentinels.master, &sentinels.replica] {
        server.say(&["ACL", "SETUSER", "larder", "on", ">secret", "~*", "&*", "+@all"]).await;
    }
    sentinels.serve(TAGGED, "larder:secret@")
}

/// Makes Sentinels take a master for dead, so that they can't tell it anything either; sidecars reach it as before.
async fn isolate(master: &RedisServer) {
    let mut master = master.connection().await;
    for words in [&["ACL", "SETUSER", "default", "off"][..], &["CLIENT", "KILL", "USER", "default"]] {
        redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut master).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_purged_at_a_replaced_master_is_stale_at_the_new_one() {
    let sentinels = Sentinels::start().await;
    let policy = Policy::new(&with_users(&sentinels).await);
    let slow = Policy::new("");
    let text = std::fs::read_to_string(policy.path()).unwrap();
    slow.write(&text.replace("busGrace: 2s", "busGrace: 10s"));
    policy.write(&text.replace("busGrace: 2s", "busGrace: 200ms"));
    let origin = Origin::numbered(&[]).await;
    // The first leaves the master sooner than the second.
    let sidecars =
        [Sidecar::start(&policy, origin.address).await, Sidecar::start(&slow, origin.address).await];
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    isolate(&sentinels.master).await;
    let mut pages = Vec::new();
    until("both are at the new master", async || {
        let path = format!("/{}", pages.len());
        let filled = a.get(&path).await.body;
        let written = b.put(&path).await;
        assert_eq!(written.status, 200);
        pages.push((path, filled));
        let listening: Vec<String> = sentinels.replica.ask(&["PUBSUB", "CHANNELS", "*:ack:*"]).await;
        (listening.len() == 2 && b.policy().await["tiers"]["redis"] == "up").then_some(())
    })
    .await;
    until_shared(&sidecars).await;
    for (path, filled) in pages {
        for sidecar in &sidecars {
            let answer = sidecar.get(&path).await;
            assert_ne!(answer.body, filled, "{path}: {}", answer.cache_status());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn master_that_was_replaced_while_alive_is_left() {
    let sentinels = Sentinels::start().await;
    let policy = Policy::new(&with_users(&sentinels).await);
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    isolate(&sentinels.master).await;
    until("both are at the new master", async || {
        for sidecar in &sidecars {
            assert_eq!(sidecar.get("/a").await.status, 200);
        }
        let listening: Vec<String> = sentinels.replica.ask(&["PUBSUB", "CHANNELS", "*:ack:*"]).await;
        (listening.len() == 2).then_some(())
    })
    .await;
    until_shared(&sidecars).await;
    assert_purges_hold(&sidecars, &origin, 10).await;
}

/// The `busGrace` of these policies, and what a busy machine may add to it.
const GRACE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread")]
async fn purge_is_acknowledged_while_a_minority_of_the_sentinels_is_silent() {
    let sentinels = Sentinels::start().await;
    let policy = Policy::new(&sentinels.serve(TAGGED, ""));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    sentinels.sentinels[0].freeze();
    for _ in 0..20 {
        let asked_at = Instant::now();
        assert_eq!(sidecars[0].purge(r#"{"paths": ["/a"]}"#).await.status, 200);
        assert!(asked_at.elapsed() < SLACK, "{:?}", asked_at.elapsed());
    }
    sentinels.sentinels[0].thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_no_majority_of_sentinels_names_is_trusted_for_the_grace() {
    let sentinels = Sentinels::start().await;
    let policy = Policy::new(&sentinels.serve(TAGGED, ""));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    for silent in [&sentinels.sentinels[..], &sentinels.sentinels[1..]] {
        let stored = a.get("/a").await.body;
        assert_eq!(a.get("/a").await.hit(), Some("l1"));
        silent.iter().for_each(RedisServer::freeze);
        // At once: they may have named another since the last query.
        let purged = a.purge(r#"{"paths": ["/none"]}"#).await;
        assert_eq!(purged.status, 202, "{}", purged.body);
        let last_error = a.last_error("redis").await;
        assert!(last_error.contains("Sentinels"), "{last_error}");
        assert_eq!(a.policy().await["tiers"]["redis"], "down");
        // Neither from memory nor from a Redis that another may have replaced.
        until("the response is requested again", async || (a.get("/a").await.body != stored).then_some(()))
            .await;
        assert_ne!(b.get("/a").await.body, stored);
        // The bus and what is young go on.
        let filled = b.get("/young").await.body;
        assert_eq!(b.get("/young").await.body, filled);
        // Pods at another master, if there is one, have not heard of it.
        let purged = a.purge(r#"{"paths": ["/young"]}"#).await;
        assert_eq!(purged.status, 202);
        assert!(purged.body.contains("Sentinels"), "{}", purged.body);
        assert_ne!(b.get("/young").await.body, filled);
        silent.iter().for_each(RedisServer::thaw);
        for sidecar in &sidecars {
            sidecar.until_no_error().await;
            sidecar.until_tiers_are("up").await;
        }
        assert_eq!(a.purge(r#"{"paths": ["/young"]}"#).await.status, 200);
        until_shared(&sidecars).await;
    }
}

/// Two pods that share a Redis behind Sentinels, of which the second reaches the Sentinels by ways of its own.
struct Parting {
    sentinels: Sentinels,
    relays: Vec<Relay>,
    sidecars: [Sidecar; 2],
    origin: Origin,
    left: Policy,
    _policy: Policy,
    _folder: Folder,
}

impl Parting {
    async fn new() -> Self {
        let sentinels = Sentinels::start().await;
        let policy = Policy::new(&with_users(&sentinels).await);
        let origin = Origin::numbered(&[]).await;
        let (folder, mut relays) = (Folder::new(), Vec::new());
        for sentinel in &sentinels.sentinels {
            relays.push(Relay::to(([127, 0, 0, 1], sentinel.port).into()).await);
        }
        let hosts: Vec<_> = relays.iter().map(|relay| relay.address().to_string()).collect();
        let url = folder.join("url");
        std::fs::write(&url, format!("redis://larder:secret@{}/0", hosts.join(","))).unwrap();
        let text = std::fs::read_to_string(policy.path()).unwrap();
        let left = Policy::new("");
        let url_file = sentinels.sentinels[0].url_file();
        left.write(&text.replace(url_file.to_str().unwrap(), url.to_str().unwrap()));
        let sidecars =
            [Sidecar::start(&policy, origin.address).await, Sidecar::start(&left, origin.address).await];
        until_shared(&sidecars).await;
        Self { sentinels, relays, sidecars, origin, left, _policy: policy, _folder: folder }
    }

    /// Leaves the second pod with a master that is replaced for the first, and returns when that is at the new one.
    async fn part(&self) {
        self.relays.iter().for_each(|relay| relay.suffer(Fault::Parted));
        isolate(&self.sentinels.master).await;
        until("the other pod is at the new master", async || {
            let listening: Vec<String> = self.sentinels.replica.ask(&["PUBSUB", "CHANNELS", "*:ack:*"]).await;
            (listening.len() == 1 && self.sidecars[0].policy().await["tiers"]["redis"] == "up").then_some(())
        })
        .await;
    }

    fn heal(&self) {
        self.relays.iter().for_each(|relay| relay.suffer(Fault::Nothing));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_at_a_replaced_master_reaches_the_new_one_although_the_policy_changed_meanwhile() {
    for (from, to) in [("timeout: 500ms", "timeout: 400ms"), ("page:{page}", "p:{page}")] {
        let parting = Parting::new().await;
        let Parting { sidecars: [a, b], left, .. } = &parting;
        parting.part().await;
        let old = a.get("/a").await.body;
        assert_eq!(a.get("/a").await.hit(), Some("l1"));
        assert_eq!(b.put("/a").await.status, 200);
        left.write(&std::fs::read_to_string(left.path()).unwrap().replace(from, to));
        let hash = larder_policy::document::hash(&std::fs::read_to_string(left.path()).unwrap());
        until("the new policy", async || (b.policy().await["hash"] == hash).then_some(())).await;
        parting.heal();
        b.until_tiers_are("up").await;
        until("the purge", async || (a.get("/a").await.body != old).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_left_with_the_old_master_serves_nothing_stale_after_the_grace() {
    let parting = Parting::new().await;
    let Parting { sidecars, origin, .. } = &parting;
    let [a, b] = sidecars;
    let old = b.get("/a").await.body;
    parting.part().await;
    a.get("/b").await;
    assert_eq!(a.put("/a").await.status, 200);
    let written_at = Instant::now();
    while written_at.elapsed() < GRACE + SLACK * 3 {
        let asked_at = Instant::now();
        let seen = b.get("/a").await;
        let late = asked_at.duration_since(written_at);
        assert!(seen.body != old || late <= GRACE + SLACK, "{late:?} after: {}", seen.cache_status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    parting.heal();
    until_shared(sidecars).await;
    assert_purges_hold(sidecars, origin, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_went_back_and_counted_on_revives_nothing() {
    let mut redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    let old = a.get("/a").await.body;
    policy.until_stored(&mut redis.connection().await, 1).await;
    assert_eq!(b.get("/a").await.body, old);
    redis.say(&["SAVE"]).await;
    assert_eq!(a.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
    // The master comes back without that purge, and gives its number to others before a sidecar looks.
    a.freeze();
    b.freeze();
    redis.kill();
    redis.restart().await;
    redis.say(&["HINCRBY", &policy.barriers(), "s", "5"]).await;
    a.thaw();
    b.thaw();
    until_shared(&sidecars).await;
    let newcomer = Sidecar::start(&policy, origin.address).await;
    for sidecar in [&newcomer, a, b] {
        assert_ne!(sidecar.get("/a").await.body, old);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_broke_costs_nothing_that_is_stored() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(&TAGGED.replace("500ms", "5s")));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    let stored = a.get("/a").await.body;
    policy.until_stored(&mut redis.connection().await, 1).await;
    redis.say(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    redis.say(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    until_shared(&sidecars).await;
    for sidecar in [b, a] {
        let kept = sidecar.get("/a").await;
        assert_eq!(kept.body, stored, "{}", kept.cache_status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_evicts_or_is_flushed_revives_nothing() {
    let redis = RedisServer::start_with(&["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    let junk = "x".repeat(50_000);
    for is_flushed in [false, true, false] {
        let old = a.get("/a").await.body;
        b.get("/a").await;
        assert_eq!(a.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
        let barriers = policy.barriers();
        let generation = async || redis.ask::<Option<u64>>(&["HGET", &barriers, "g"]).await;
        let before = generation().await;
        if is_flushed {
            redis.say(&["FLUSHALL"]).await;
        } else {
            let mut number = 0;
            until("the barriers are evicted", async || {
                for _ in 0..200 {
                    number += 1;
                    redis.say(&["SET", &format!("junk-{number}"), &junk]).await;
                }
                (generation().await != before).then_some(())
            })
            .await;
        }
        let newcomer = Sidecar::start(&policy, origin.address).await;
        for sidecar in [&newcomer, b, a] {
            let answer = sidecar.get("/a").await;
            assert_eq!(answer.status, 200);
            assert_ne!(answer.body, old);
        }
        redis.say(&["FLUSHALL"]).await;
        until_shared(&sidecars).await;
        assert_purges_hold(&sidecars, &origin, 10).await;
    }
}
