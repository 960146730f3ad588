//! Lookups in Redis: the commands that they send, and what they do not trust.

use std::{collections::BTreeSet, time::Duration};

use super::harness::{
    Origin, Policy, RedisServer, SeenCommand, Sidecar, reply, tagged_pages, two, until, until_shared,
};

const SPEC: &str = tagged_pages!(
    "l1: {maxSize: 32Mi, maxObjectSize: 1Mi}",
    "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}"
);

/// Commands of the heartbeat and of the list of versions, which pods send once a second whether there are requests or not.
const BACKGROUND: [&str; 4] = ["HSETNX", "HGET", "PUBLISH", "EVALSHA"];

/// Counts the commands of this name.
fn count(seen: &[SeenCommand], name: &str) -> usize {
    seen.iter().filter(|command| command.is(name)).count()
}

/// Asserts that nothing but heartbeats, which ask for one field each, ensured a generation.
fn assert_only_heartbeats_write(seen: &[SeenCommand]) {
    let (writes, heartbeats) = (count(seen, "HSETNX"), count(seen, "HGET"));
    // One may be at work when the commands are counted.
    assert!(writes.abs_diff(heartbeats) <= 1, "{writes} writes in {heartbeats} heartbeats: {seen:?}");
}

/// Asserts that a number of lookups sent two commands each, and none that writes.
fn assert_only_read(seen: &[SeenCommand], lookups: usize) {
    assert_eq!((count(seen, "HMGET"), count(seen, "GETRANGE")), (lookups, lookups), "{seen:?}");
    assert_only_heartbeats_write(seen);
    let is_known = |command: &&SeenCommand| {
        BACKGROUND.into_iter().chain(["HMGET", "GETRANGE"]).any(|name| command.is(name))
    };
    let others: Vec<_> = seen.iter().filter(|command| command.is_larders() && !is_known(command)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// Stores pages through a sidecar.
async fn store(sidecar: &Sidecar, policy: &Policy, redis: &RedisServer, pages: &[String]) {
    let mut redis = redis.connection().await;
    let before = policy.records(&mut redis).await.len();
    for page in pages {
        assert_eq!(sidecar.get(page).await.status, 200);
    }
    policy.until_stored(&mut redis, before + pages.len()).await;
}

fn pages(kind: &str, count: usize) -> Vec<String> {
    (0..count).map(|page| format!("/{kind}-{page}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_is_two_commands_that_only_read() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    let pages = pages("page", 40);
    store(a, &policy, &redis, &pages).await;
    let mut monitor = redis.monitor().await;
    monitor.seen().await;
    for page in &pages {
        assert_eq!(b.get(page).await.hit(), Some("l2"));
    }
    assert_only_read(&monitor.seen().await, pages.len());
    // Nor does one that finds nothing of use.
    let purged = &pages[..10];
    for page in purged {
        assert_eq!(a.put(page).await.status, 200);
    }
    monitor.seen().await;
    for page in purged {
        assert_eq!(b.get(page).await.hit(), None, "{page}");
    }
    let seen = monitor.seen().await;
    // Whoever gets the lease looks again, because there is a record.
    let lookups = count(&seen, "HMGET");
    assert!((10..=20).contains(&lookups), "{seen:?}");
    assert_eq!((count(&seen, "GETRANGE"), count(&seen, "STRLEN")), (lookups, 0), "{seen:?}");
    assert_only_heartbeats_write(&seen);
}

/// Returns the addresses of the clients that sent commands of this name.
fn clients<'a>(seen: &'a [SeenCommand], name: &str) -> BTreeSet<&'a str> {
    seen.iter().filter(|command| command.is(name)).map(|command| &*command.client).collect()
}

/// Asserts that lookups use other connections than heartbeats, once these are open, and that they are opened again.
async fn assert_lookups_have_their_own_connections(redis: &RedisServer, spec: &str) {
    let policy = Policy::new(&redis.serve(spec));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    let mut monitor = redis.monitor().await;
    let mut page = 0;
    for round in ["first", "after the end of the connections"] {
        until("lookups over connections of their own", async || {
            page += 1;
            let path = format!("/own-{page}");
            assert_eq!([a.get(&path).await.status, b.get(&path).await.status], [200, 200], "{round}");
            // Long enough for a heartbeat of each.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let seen = monitor.seen().await;
            let (lookups, others) = (clients(&seen, "HMGET"), clients(&seen, "HSETNX"));
            (!lookups.is_empty() && !others.is_empty() && lookups.is_disjoint(&others)).then_some(())
        })
        .await;
        assert_eq!(b.get(&format!("/own-{page}")).await.status, 200);
        let seen = monitor.seen().await;
        for client in clients(&seen, "HMGET") {
            redis.say(&["CLIENT", "KILL", "ADDR", client]).await;
        }
    }
    until_shared(&sidecars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_have_connections_of_their_own_for_lookups() {
    assert_lookups_have_their_own_connections(&RedisServer::start().await, SPEC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_have_connections_of_their_own_with_a_login_and_a_database() {
    let user = ["--user", "larder", "on", ">p/w", "~larder:*", "&larder:*", "+@all"];
    let redis = RedisServer::start_with(&user).await;
    redis.set_url(&format!("redis://larder:p%2Fw@127.0.0.1:{}/3", redis.port));
    assert_lookups_have_their_own_connections(&redis, SPEC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_have_connections_of_their_own_over_tls() {
    let redis = RedisServer::start_with_tls("secret").await;
    let spec = "redis: {";
    assert!(SPEC.contains(spec));
    let ca = format!("redis: {{caFrom: {{file: {}}}, ", redis.file("ca.pem").display());
    assert_lookups_have_their_own_connections(&redis, &SPEC.replace(spec, &ca)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_that_redis_refuses_look_up_over_the_connection_of_the_pod() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    for sidecar in &sidecars {
        sidecar.until_tiers_are("up").await;
    }
    let mut own = redis.connection().await;
    let mut limit = redis::cmd("CONFIG");
    limit.arg(&["SET", "maxclients", "1"]).exec_async(&mut own).await.unwrap();
    let list = redis::cmd("CLIENT").arg("LIST").clone();
    let before: String = list.query_async(&mut own).await.unwrap();
    until_shared(&sidecars).await;
    let after: String = list.query_async(&mut own).await.unwrap();
    assert!(after.lines().count() <= before.lines().count(), "{before}\n{after}");
    let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query_async(&mut own).await.unwrap();
    assert!(info.get::<u64>("rejected_connections").unwrap() > 0, "a thread has tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn barriers_without_a_generation_are_not_trusted() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    let pages = pages("page", 20);
    store(a, &policy, &redis, &pages).await;
    let barriers = policy.barriers();
    redis.say(&["HDEL", &barriers, "g"]).await;
    for page in &pages {
        assert_eq!(b.get(page).await.hit(), None, "{page} was stored in a generation that is lost");
    }
    until("another generation", async || redis.ask::<bool>(&["HEXISTS", &barriers, "g"]).await.then_some(()))
        .await;
    until_shared(&sidecars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_any_length_is_read_whole() {
    const BEGINNING: usize = 64 << 10;
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let origin = Origin::start(async |seen| {
        let size = seen.path.rsplit('-').next().unwrap().parse().unwrap();
        reply(&[], "x".repeat(size))
    })
    .await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    a.until_tiers_are("up").await;
    b.until_tiers_are("up").await;
    let mut own = redis.connection().await;
    store(a, &policy, &redis, &["/probe-60000".to_owned()]).await;
    let record = policy.records(&mut own).await.pop().unwrap();
    let overhead = redis.ask::<usize>(&["STRLEN", &record]).await - 60_000;
    let longer = [1, BEGINNING, 10 * BEGINNING, 1 << 20].map(|size| size.min((1 << 20) - overhead));
    for size in (BEGINNING - 2..=BEGINNING + 2).map(|length| length - overhead).chain(longer) {
        let page = format!("/page-{size}");
        store(a, &policy, &redis, std::slice::from_ref(&page)).await;
        let response = b.get(&page).await;
        assert_eq!((response.hit(), response.body.len()), (Some("l2"), size));
    }
}
