//! Redis as a trust boundary: foreign records are never served, and cost no more than Larder's own.

use redis::{AsyncCommands, aio::MultiplexedConnection};

use super::harness::{Origin, Policy, RedisServer, Sidecar, reply, tagged_pages, two, until, until_shared};

const SPEC: &str = tagged_pages!(
    "l1: {maxSize: 32Mi, maxObjectSize: 1Mi}",
    "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 500ms}}"
);

async fn refused(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar.metric("larder_l2_refused_records_total", &[&format!("reason=\"{reason}\"")]).await
}

/// Waits until a sidecar has replaced a foreign record.
async fn until_replaced(redis: &mut MultiplexedConnection, key: &str, forged: &[u8]) {
    until("another record", async || {
        (redis.clone().get::<_, Vec<u8>>(key).await.unwrap() != forged).then_some(())
    })
    .await;
}

/// Stores a page through `a` and returns the key of its record.
async fn stored(a: &Sidecar, policy: &Policy, redis: &mut MultiplexedConnection, page: &str) -> String {
    let before = policy.records(redis).await;
    a.get(page).await;
    until("a record", async || policy.records(redis).await.into_iter().find(|key| !before.contains(key)))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_forged_or_moved_record_is_a_miss() {
    let mut redis = RedisServer::shared().await;
    let policy = Policy::new(SPEC);
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    let (one, other) =
        (stored(a, &policy, &mut redis, "/one").await, stored(a, &policy, &mut redis, "/other").await);
    let own: Vec<u8> = redis.get(&one).await.unwrap();
    let foreign: Vec<u8> = redis.get(&other).await.unwrap();
    let mut changed = own.clone();
    let at = changed.len() - 40;
    changed[at] ^= 1;
    let unsealed = own[..own.len() - 32].to_vec();
    let attempts = [changed, foreign.clone(), unsealed, own[..own.len() / 2].to_vec(), b"anything".to_vec()];
    for (attempt, forged) in attempts.into_iter().enumerate() {
        let _: () = redis.set(&one, &forged).await.unwrap();
        let before = refused(b, "unauthentic").await;
        let calls = origin.calls();
        let answer = b.get("/one").await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (200, None), "attempt {attempt}");
        assert_eq!(origin.calls(), calls + 1, "the application has a request");
        assert!(refused(b, "unauthentic").await > before);
        until_replaced(&mut redis, &one, &forged).await;
        assert_eq!(b.purge(r#"{"tags": ["page:one"]}"#).await.status, 200);
    }
    assert!(b.logged("a record in redis is refused").is_some());
    // The original record is usable in its original place.
    let _: () = redis.set(&other, &foreign).await.unwrap();
    assert_eq!(b.get("/other").await.hit(), Some("l2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_variant_is_a_miss() {
    let mut redis = RedisServer::shared().await;
    let policy = Policy::new(SPEC);
    let origin = Origin::numbered(&[("vary", "accept-language")]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    let ask =
        async |sidecar: &Sidecar, language| sidecar.get_with("/page", &[("accept-language", language)]).await;
    ask(a, "de").await;
    ask(a, "fr").await;
    policy.until_stored(&mut redis, 3).await;
    let keys = policy.records(&mut redis).await;
    let variants: Vec<_> = keys.iter().filter(|key| key.contains(":variant:")).collect();
    let [one, other] = variants[..] else { panic!("{keys:?}") };
    let (of_one, of_other): (Vec<u8>, Vec<u8>) = redis.mget(&[one, other]).await.unwrap();
    let _: () = redis.mset(&[(one, of_other), (other, of_one)]).await.unwrap();
    for language in ["de", "fr"] {
        assert_eq!(ask(b, language).await.hit(), None, "{language}");
    }
    assert!(refused(b, "unauthentic").await >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_record_is_refused_for_its_content() {
    let mut redis = RedisServer::shared().await;
    let policy = Policy::new(SPEC);
    let origin = Origin::start(async |_| reply(&[("x-fine", "and-long-enough")], "body")).await;
    let a = Sidecar::without_token(&policy, origin.address).await;
    let b = Sidecar::without_token(&policy, origin.address).await;
    let key = stored(&a, &policy, &mut redis, "/page").await;
    assert_eq!(b.get("/page").await.hit(), Some("l2"));
    let record: Vec<u8> = redis.get(&key).await.unwrap();
    // The lines of the fields are preceded by their length, and followed by that of the body and the body.
    let end = record.len() - 4 - 4;
    let length = |from: usize| u32::from_be_bytes(record[from - 4..from].try_into().unwrap()) as usize;
    let from = (4..end).find(|from| length(*from) == end - from).unwrap();
    let lines = str::from_utf8(&record[from..end]).unwrap();
    let put = |name: &str, value: &str| {
        let lines = lines.replace("x-fine: and-long-enough\r\n", &format!("{name}: {value}\r\n"));
        let length = u32::try_from(lines.len()).unwrap().to_be_bytes();
        [&record[..from - 4], &length, lines.as_bytes(), &record[end..]].concat()
    };
    assert_eq!(put("x-fine", "and-long-enough"), record);
    let forgeries = [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("keep-alive", "timeout=1"),
        ("upgrade", "h2c"),
        ("trailer", "x"),
        ("te", "trailers"),
        ("proxy-authenticate", "Basic"),
        ("content-length", "0"),
        ("content-length", "3"),
        ("content-length", "4"),
        ("set-cookie", "session=stolen"),
        ("x-a", "b\r\nset-cookie: session=stolen"),
        ("x-a", "b\r\n\r\nx"),
        ("x-a", "b\nx-injected: 1"),
        ("x-a", "b\rx-injected: 1"),
        ("x-a\r\nx-injected", "1"),
        ("x-a ", "1"),
        ("X-A", "1"),
        ("x-a", "b\0"),
    ];
    for (name, value) in forgeries {
        b.put("/page").await;
        let (before, forged) = (refused(&b, "malformed").await, put(name, value));
        let _: () = redis.set(&key, &forged).await.unwrap();
        let answer = b.get("/page").await;
        assert_eq!((answer.hit(), answer.body.as_str()), (None, "body"), "{name:?}: {value:?}");
        assert!(answer.headers.get("x-injected").is_none());
        assert!(refused(&b, "malformed").await > before, "{name:?}: {value:?}");
        until_replaced(&mut redis, &key, &forged).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_value_costs_no_memory_and_is_a_miss() {
    const HUGE: usize = 64 << 20;
    let mut redis = RedisServer::shared().await;
    let policy = Policy::new(SPEC);
    let origin = Origin::numbered(&[("vary", "accept")]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    a.get("/page").await;
    policy.until_stored(&mut redis, 2).await;
    let keys = policy.records(&mut redis).await;
    b.get("/another").await;
    let before = b.resident();
    // The variant first: its entry leads to it.
    for kind in [":variant:", ":entry"] {
        let key = keys.iter().find(|key| key.contains(kind)).unwrap();
        let _: () = redis.setrange(key, isize::try_from(HUGE).unwrap() - 1, "x").await.unwrap();
        let refusals = refused(b, "too-large").await;
        let answer = b.get("/page").await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (200, None), "{kind}");
        assert!(refused(b, "too-large").await > refusals, "{kind}");
        assert!(b.resident() < before + (16 << 20), "{} MiB", (b.resident() - before) >> 20);
        assert_eq!(b.purge(r#"{"tags": ["page:page"]}"#).await.status, 200);
        until("the response is stored again", async || {
            (redis.clone().strlen::<_, usize>(key).await.unwrap() < HUGE).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_of_the_maximum_size_is_shared() {
    let policy = Policy::new(SPEC);
    let origin = Origin::start(async |_| reply(&[], "x".repeat(1 << 20))).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_replaced_leads_to_misses_and_never_to_errors() {
    let policy = Policy::new(SPEC);
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    a.set_token("another-token");
    // Pods see a changed Secret at different times.
    let mut page = 0;
    until("pods with different tokens share nothing", async || {
        page += 1;
        let path = format!("/page-{page}");
        a.get(&path).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        (b.get(&path).await.hit() != Some("l2")).then_some(())
    })
    .await;
    // Purges cross all the same.
    let old = b.get("/purged").await.body;
    a.put("/purged").await;
    assert_ne!(b.get("/purged").await.body, old);
    b.set_token("another-token");
    until_shared(&sidecars).await;
    for sidecar in &sidecars {
        assert_eq!(refused(sidecar, "unauthentic").await, 0.0, "records of another token are not read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_never_expires_blocks_no_request() {
    let server = RedisServer::start().await;
    let policy = Policy::new(&server.serve(SPEC));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut redis = server.connection().await;
    // Every lease that it takes exists already, without an expiry.
    let key = stored(&sidecar, &policy, &mut redis, "/page").await;
    let purged = sidecar.purge(r#"{"tags": ["page:page"]}"#).await;
    let purged: serde_json::Value = serde_json::from_str(&purged.body).unwrap();
    let lease = format!("{}:lease:{}", key.strip_suffix(":entry").unwrap(), purged["order"]);
    let _: () = redis.set(&lease, "held").await.unwrap();
    let began = std::time::Instant::now();
    assert_eq!(sidecar.get("/page").await.hit(), None);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "as long as a lease lasts");
    until("the lease is given back", async || {
        (!redis.exists::<_, bool>(&lease).await.unwrap()).then_some(())
    })
    .await;
}

/// The commands that docs/security.md and the decision on records name.
const COMMANDS: &str = "+@read +@write +@pubsub +@scripting +@connection -@dangerous +info +time";

#[tokio::test(flavor = "multi_thread")]
async fn the_access_of_one_policy_suffices_for_it_and_for_no_other() {
    let server = RedisServer::start().await;
    let (policy, other) = (Policy::new(&server.serve(SPEC)), Policy::new(&server.serve(SPEC)));
    let [keys, channels] = policy.access();
    let mut user = vec!["ACL", "SETUSER", "shop", "on", ">secret", "resetkeys", "resetchannels"];
    user.extend([&*keys, &*channels, "-@all"]);
    user.extend(COMMANDS.split(' '));
    server.say(&user).await;
    server.set_url(&format!("redis://shop:secret@127.0.0.1:{}/", server.port));
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    until_shared(&sidecars).await;
    let old = b.get("/page").await.body;
    assert_eq!(a.put("/page").await.status, 200);
    assert_ne!(b.get("/page").await.body, old);
    assert_eq!(a.purge(r#"{"paths": ["/page"]}"#).await.status, 200);
    // Leases: concurrent misses wait for one another.
    let granted = a.metric("larder_leases_total", &["granted"]).await;
    a.get("/leased").await;
    assert!(a.metric("larder_leases_total", &["granted"]).await > granted);
    for sidecar in &sidecars {
        assert_eq!(sidecar.metric("larder_tier_errors_total", &[]).await, 0.0);
    }
    let refused: Vec<redis::Value> = server.ask(&["ACL", "LOG"]).await;
    assert!(refused.is_empty(), "{refused:?}");
    // The same user has no rights on another policy.
    let stranger = Sidecar::start_at_once(&other, origin.address).await;
    let why = stranger.last_error("redis").await;
    assert!(why.contains("NOPERM") || why.contains("permission"), "{why}");
}
