//! TLS, users and passwords of Redis, and URLs that change while they are used.

use super::harness::{Origin, Policy, RedisServer, Sidecar, tagged_pages, two, until, until_shared};

const TAGGED: &str = tagged_pages!("l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 500ms}}");
const PASSWORD: &str = "hunter2";

async fn assert_a_purge_holds([a, b]: &[Sidecar; 2]) {
    let old = a.get("/purged").await.body;
    b.get("/purged").await;
    assert_eq!(a.purge(r#"{"tags": ["page:purged"]}"#).await.status, 200);
    for sidecar in [b, a] {
        assert_ne!(sidecar.get("/purged").await.body, old);
    }
}

/// A policy that trusts a CA of the server's.
fn trusting(redis: &RedisServer, ca: &str) -> String {
    let ca = redis.file(ca);
    redis.serve(TAGGED).replace("redis: {", &format!("redis: {{caFrom: {{file: {}}}, ", ca.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_share_and_purge_over_tls_as_a_user_of_few_rights() {
    let redis = RedisServer::start_with_tls(PASSWORD).await;
    let policy = Policy::new(&trusting(&redis, "ca.pem"));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    assert_a_purge_holds(&sidecars).await;
    let users: Vec<String> = redis.ask(&["CLIENT", "LIST"]).await;
    assert!(users.concat().contains("user=larder"), "{users:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_with_an_untrusted_certificate_is_not_used() {
    let redis = RedisServer::start_with_tls(PASSWORD).await;
    let policy = Policy::new(&trusting(&redis, "trusted.pem"));
    let trust = |ca: &str| {
        std::fs::copy(redis.file(ca), redis.file("written.pem")).unwrap();
        std::fs::rename(redis.file("written.pem"), redis.file("trusted.pem")).unwrap();
    };
    trust("other.pem");
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start_at_once(&policy, origin.address).await;
    let last_error = sidecar.last_error("redis").await;
    assert!(last_error.contains("certificate") && !last_error.contains(PASSWORD), "{last_error}");
    assert_eq!(sidecar.get("/a").await.status, 200);
    trust("ca.pem");
    sidecar.until_tiers_are("up").await;
    sidecar.until_no_error().await;
    // And a CA that is exchanged for a wrong one takes nothing away.
    trust("other.pem");
    let last_error = sidecar.last_error("redis").await;
    assert!(last_error.contains("certificate"), "{last_error}");
    let sidecars = [sidecar, Sidecar::start_at_once(&policy, origin.address).await];
    assert_eq!(sidecars[0].policy().await["tiers"]["redis"], "up");
    assert_eq!(sidecars[1].get("/a").await.status, 200);
    trust("ca.pem");
    sidecars[0].until_no_error().await;
    until_shared(&sidecars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_is_reported_without_the_password() {
    let redis = RedisServer::start().await;
    redis.say(&["ACL", "SETUSER", "larder", "on", ">right", "~*", "&*", "+@all"]).await;
    redis.set_url(&format!("redis://larder:{PASSWORD}@127.0.0.1:{}/", redis.port));
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = [
        Sidecar::start_at_once(&policy, origin.address).await,
        Sidecar::start_at_once(&policy, origin.address).await,
    ];
    for sidecar in &sidecars {
        let last_error = sidecar.last_error("redis").await;
        assert!(last_error.contains("authentication") || last_error.contains("WRONGPASS"), "{last_error}");
        assert!(!sidecar.policy().await.to_string().contains(PASSWORD));
        for _ in 0..5 {
            assert_eq!(sidecar.get("/a").await.status, 200);
        }
        assert_eq!(sidecar.policy().await["tiers"]["redis"], "down");
    }
    redis.set_url(&format!("redis://larder:right@127.0.0.1:{}/", redis.port));
    until_shared(&sidecars).await;
    for sidecar in &sidecars {
        sidecar.until_no_error().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_is_taken_over_and_nothing_is_forgotten() {
    let redis = RedisServer::start().await;
    let user = ["ACL", "SETUSER", "larder", "on", ">first", "~*", "&*", "+@all"];
    redis.say(&user).await;
    let url = |password: &str| format!("redis://larder:{password}@127.0.0.1:{}/", redis.port);
    redis.set_url(&url("first"));
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    let stored = sidecars[0].get("/a").await.body;
    let ids = async || -> Vec<u64> {
        let clients: String = redis.ask(&["CLIENT", "LIST"]).await;
        let ours = clients.lines().filter(|line| line.contains("user=larder"));
        ours.map(|line| line.strip_prefix("id=").unwrap().split(' ').next().unwrap().parse().unwrap())
            .collect()
    };
    let before = ids().await;
    redis.say(&["ACL", "SETUSER", "larder", ">second"]).await;
    redis.set_url(&url("second"));
    until("all connections are new", async || {
        for sidecar in &sidecars {
            assert_eq!(sidecar.get("/a").await.body, stored);
            assert_eq!(sidecar.policy().await["tiers"]["redis"], "up");
        }
        let now = ids().await;
        // Two of each sidecar; serving threads open more with their first lookup.
        (now.len() >= 2 * sidecars.len() && now.iter().all(|id| !before.contains(id))).then_some(())
    })
    .await;
    redis.say(&["ACL", "SETUSER", "larder", "<first"]).await;
    until_shared(&sidecars).await;
    assert_a_purge_holds(&sidecars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_names_another_redis_is_taken_over_without_a_failed_request() {
    let (one, other) = (RedisServer::start().await, RedisServer::start().await);
    let policy = Policy::new(&one.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    one.set_url(&format!("redis://127.0.0.1:{}/", other.port));
    let mut page = 0;
    until("the other Redis is used", async || {
        page += 1;
        for sidecar in &sidecars {
            assert_eq!(sidecar.get(&format!("/{page}")).await.status, 200);
            assert_eq!(sidecar.policy().await["tiers"]["redis"], "up");
        }
        let listening: Vec<redis::Value> = other.ask(&["PUBSUB", "CHANNELS", "*:ack:*"]).await;
        (listening.len() == 2).then_some(())
    })
    .await;
    until_shared(&sidecars).await;
    assert_a_purge_holds(&sidecars).await;
    assert!(!policy.nothing_is_stored(&mut other.connection().await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn response_purged_in_one_redis_is_not_found_in_the_next() {
    // One sidecar is already there while the other still purges in the first.
    let (one, other) = (RedisServer::start().await, RedisServer::start().await);
    let policy = Policy::new(&one.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let ahead = Policy::new("");
    let text = std::fs::read_to_string(policy.path()).unwrap();
    ahead
        .write(&text.replace(&one.url_file().display().to_string(), &other.url_file().display().to_string()));
    let early = Sidecar::start(&ahead, origin.address).await;
    let old = early.get("/a").await.body;
    policy.until_stored(&mut other.connection().await, 1).await;
    assert_eq!(sidecar.purge(r#"{"paths": ["/a"]}"#).await.status, 200);
    one.set_url(&format!("redis://127.0.0.1:{}/", other.port));
    until("the other Redis is used", async || {
        let listening: Vec<redis::Value> = other.ask(&["PUBSUB", "CHANNELS", "*:ack:*"]).await;
        (listening.len() == 2).then_some(())
    })
    .await;
    until("the purged response is stale there", async || (sidecar.get("/a").await.body != old).then_some(()))
        .await;
    until("and in the other sidecar", async || (early.get("/a").await.body != old).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_url_is_kept_out_and_the_connection_goes_on() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    let good = format!("redis://127.0.0.1:{}/", redis.port);
    let nobody = super::harness::free_port();
    for bad in [
        format!("redis://larder:{PASSWORD}@127.0.0.1:{}/", redis.port),
        format!("redis://:{PASSWORD}@127.0.0.1:{nobody}/"),
        format!("redis://:{PASSWORD}/@127.0.0.1"),
        format!("rediss://:{PASSWORD}@127.0.0.1:{}/", redis.port),
        PASSWORD.to_owned(),
        String::new(),
    ] {
        redis.set_url(&bad);
        for sidecar in &sidecars {
            let last_error = sidecar.last_error("redis").await;
            assert!(
                last_error.contains("can't be used") && !last_error.contains(PASSWORD),
                "{bad}: {last_error}"
            );
            assert_eq!(sidecar.policy().await["tiers"]["redis"], "up");
        }
        until_shared(&sidecars).await;
        assert_a_purge_holds(&sidecars).await;
        redis.set_url(&good);
        for sidecar in &sidecars {
            sidecar.until_no_error().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_breaks_while_the_url_is_bad_is_reopened_with_the_former_url() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    redis.set_url("nonsense");
    for sidecar in &sidecars {
        sidecar.last_error("redis").await;
    }
    redis.say(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    redis.say(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    until_shared(&sidecars).await;
    for sidecar in &sidecars {
        assert!(sidecar.last_error("redis").await.contains("can't be used"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_was_only_starting_is_used_once_it_is_up() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut late = RedisServer::start().await;
    late.kill();
    redis.set_url(&format!("redis://127.0.0.1:{}/", late.port));
    sidecar.last_error("redis").await;
    late.restart().await;
    sidecar.until_no_error().await;
    assert_eq!(sidecar.policy().await["tiers"]["redis"], "up");
    sidecar.get("/a").await;
    policy.until_stored(&mut late.connection().await, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bus_messages_break_nothing() {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(TAGGED));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let stored = sidecars[0].get("/a").await.body;
    redis.say(&["CONFIG", "RESETSTAT"]).await;
    let channels: Vec<String> = redis.ask(&["PUBSUB", "CHANNELS"]).await;
    assert_eq!(channels.len(), 3, "{channels:?}");
    for _ in 0..200 {
        for channel in &channels {
            redis.say(&["PUBLISH", channel, "what"]).await;
        }
    }
    assert_a_purge_holds(&sidecars).await;
    let commands: String = redis.ask(&["INFO", "commandstats"]).await;
    let read = commands.lines().find(|line| line.starts_with("cmdstat_hgetall:calls="));
    let times = read.map_or(0, |line| line.split(['=', ',']).nth(1).unwrap().parse().unwrap());
    assert!(times <= 60, "all barriers were read {times} times");
    assert_eq!(sidecars[0].get("/a").await.body, stored);
}
