//! Large responses that come from Redis and go there.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep, timeout};

use super::{LIMIT, RELEASE_TIMEOUT, limited, until_resident_is_below};
use crate::integration::harness::{Origin, Policy, RedisServer, Sidecar, Wire, reply};

/// Length of a large response, in bytes.
const LENGTH: usize = 10_000_000;
/// Number of the large responses: twice as many as L1 holds.
const RESPONSES: usize = 12;

/// Memory that is left to chance is less than a tenth of the limit.
const MOST: u64 = LIMIT / 10 * 9;
/// Growth of memory by buffers of the client of Redis, and by what the allocator has not returned.
const NOISE: u64 = 8 << 20;

const SPEC: &str = r#"
l1: {maxSize: 64Mi, maxObjectSize: 12Mi}
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 5s}}
routes:
- {name: large, match: {path: "/large/{number}"}, ttl: 1h}
- {name: small, match: {path: "/small/{number}"}, ttl: 1h}
"#;

async fn origin() -> Origin {
    let large = Bytes::from(vec![b'x'; LENGTH]);
    Origin::start(move |seen| {
        let body =
            if seen.path.starts_with("/large/") { large.clone() } else { Bytes::from_static(b"small") };
        async move { reply(&[], body) }
    })
    .await
}

/// Redis with large responses of a policy, and the policy.
async fn stored(origin: &Origin) -> (RedisServer, Policy) {
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let file = policy.path();
    let arguments = ["--memory-limit", "1Gi", "--policy", file.to_str().unwrap()];
    let writer = Sidecar::launch(origin.address, &arguments).await;
    writer.until_tiers_are("up").await;
    for number in 0..RESPONSES {
        assert_eq!(writer.get(&format!("/large/{number}")).await.body.len(), LENGTH);
        policy.until_stored(&mut redis.connection().await, number + 1).await;
    }
    (redis, policy)
}

/// Reads responses slowly, one after the other, until a time.
async fn read_slowly(address: SocketAddr, first: usize, until: Instant) {
    let mut number = first;
    while Instant::now() < until {
        let mut wire = Wire::narrow(address).await;
        wire.ask(&format!("/large/{}", number % RESPONSES)).await;
        number += 1;
        // A client may be cut off, or be told that there is no memory.
        for _ in 0..40 {
            if timeout(Duration::from_millis(20), wire.read_some()).await.is_ok_and(|read| read == 0) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn stays_within_the_limit(clients: usize, lasting: Duration) {
    let origin = origin().await;
    let (_redis, policy) = stored(&origin).await;
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    sidecar.until_tiers_are("up").await;
    // L1 is full.
    for number in 0..RESPONSES {
        let answer = sidecar.get(&format!("/large/{number}")).await;
        assert_eq!((answer.body.len(), answer.hit()), (LENGTH, Some("l2")));
    }
    let peak = sidecar.peak();
    let until = Instant::now() + lasting;
    let attack = stream::iter(0..clients)
        .for_each_concurrent(None, async |client| read_slowly(sidecar.address, client, until).await);
    let others = async {
        while Instant::now() < until {
            assert_eq!(sidecar.get(&format!("/small/{}", fastrand::u32(..))).await.body, "small");
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(attack, others);
    eprintln!("peak: {} MiB", peak.bytes() >> 20);
    assert!(peak.bytes() < MOST, "{} MiB", peak.bytes() >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_clients_of_large_responses_from_redis_stay_within_the_limit() {
    stays_within_the_limit(4, Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_of_large_responses_from_redis_stay_within_the_limit() {
    stays_within_the_limit(60, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_responses_from_redis_leave_nothing_but_themselves_behind() {
    let origin = origin().await;
    let (_redis, policy) = stored(&origin).await;
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    sidecar.until_tiers_are("up").await;
    let before = sidecar.resident();
    let answer = sidecar.get("/large/0").await;
    assert_eq!((answer.body.len(), answer.hit()), (LENGTH, Some("l2")));
    until_resident_is_below(&sidecar, before + LENGTH as u64 + NOISE, RELEASE_TIMEOUT).await;
}

/// The length is one of which the limit allows copies to Redis.
#[tokio::test(flavor = "multi_thread")]
async fn large_responses_that_are_written_to_redis_stay_within_the_limit() {
    let body = Bytes::from(vec![b'x'; 4_000_000]);
    let origin = Origin::start(move |_| {
        let body = body.clone();
        async move { reply(&[], body) }
    })
    .await;
    let redis = RedisServer::start().await;
    let policy = Policy::new(&redis.serve(SPEC));
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    sidecar.until_tiers_are("up").await;
    let peak = sidecar.peak();
    stream::iter(0..40)
        .for_each_concurrent(8, async |number| {
            let mut wire = Wire::asking(sidecar.address, &format!("/large/{number}")).await;
            assert!(wire.head().await.starts_with("http/1.1 200 "));
        })
        .await;
    for number in 100..140 {
        assert_eq!(sidecar.get(&format!("/large/{number}")).await.body.len(), 4_000_000);
    }
    assert!(!policy.records(&mut redis.connection().await).await.is_empty(), "nothing was written");
    eprintln!("peak: {} MiB", peak.bytes() >> 20);
    assert!(peak.bytes() < MOST, "{} MiB", peak.bytes() >> 20);
}
