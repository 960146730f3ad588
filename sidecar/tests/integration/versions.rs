//! Policies that change, and change back, and pods that run different versions of one: no purge is lost between them.

use std::time::{Duration, Instant};

use futures::future::join_all;
use http::Method;
use redis::{AsyncCommands, aio::MultiplexedConnection};

use super::harness::{Database, Origin, Policy, RedisServer, Sidecar, reply, two, until, until_shared};

const FIRST: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 500ms}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"]}
invalidation:
  onWrite:
  - {match: {path: "/{page}/edit"}, purge: {tags: ["page:{page}"]}}
"#;

/// The same policy with other tags.
fn renamed() -> String {
    FIRST.replace("page:{page}", "p:{page}")
}

/// The same policy without a rule for the write.
fn without_rule() -> String {
    FIRST.replace("/{page}/edit", "/{page}/other")
}

/// The same policy with another key.
fn keyed() -> String {
    FIRST.replace("ttl: 60s", "ttl: 60s, key: {headers: [x-tenant]}")
}

/// The same policy with one more route.
fn routed() -> String {
    FIRST.replace("routes:\n", "routes:\n- {name: more, match: {path: \"/more/{page}\"}, ttl: 60s}\n")
}

async fn number(sidecar: &Sidecar, path: &str) -> usize {
    let answer = sidecar.get(path).await;
    answer.body.parse().unwrap_or_else(|_| panic!("{}: {}", answer.status, answer.body))
}

/// Writes to `/page`. Returns the number of the write: every older response is stale.
async fn edit(sidecar: &Sidecar) -> usize {
    sidecar.put("/page/edit").await.body.parse().unwrap()
}

/// Stores `/page` in memory and in Redis, and reads it through `b` from there.
async fn fill([a, b]: &[Sidecar; 2]) {
    until("a shared page", async || {
        a.purge(r#"{"paths": ["/page"]}"#).await;
        let stored = number(a, "/page").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        (number(b, "/page").await == stored).then_some(())
    })
    .await;
}

async fn switch(sidecars: &[Sidecar; 2], policy: &Policy, spec: &str) {
    policy.change(spec);
    for sidecar in sidecars {
        sidecar.until_it_serves(policy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_was_changed_and_changed_back_revives_nothing() {
    let others = [renamed(), without_rule(), keyed(), routed()];
    let changes = others.iter().flat_map(|other| [(other, 0), (other, 1)]);
    let change = async |(other, writer): (&String, usize)| {
        let policy = Policy::new(FIRST);
        let origin = Origin::numbered(&[]).await;
        let sidecars = two(&policy, &origin).await;
        fill(&sidecars).await;
        switch(&sidecars, &policy, other).await;
        let written = edit(&sidecars[writer]).await;
        switch(&sidecars, &policy, FIRST).await;
        for sidecar in &sidecars {
            let read = number(sidecar, "/page").await;
            assert!(read > written, "{read} from before {written}, with {other} meanwhile");
        }
    };
    join_all(changes.map(change)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_lifetimes_alone_drops_no_stored_response() {
    let policy = Policy::new(FIRST);
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    fill(&sidecars).await;
    sidecars[0].get("/in-redis").await;
    switch(&sidecars, &policy, &FIRST.replace("ttl: 60s", "ttl: 50s")).await;
    assert_eq!(sidecars[0].get("/page").await.hit(), Some("l1"));
    assert_eq!(sidecars[1].get("/in-redis").await.hit(), Some("l2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_and_back_without_a_write_costs_nothing_in_redis() {
    let policy = Policy::new(FIRST);
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    fill(&sidecars).await;
    switch(&sidecars, &policy, &renamed()).await;
    switch(&sidecars, &policy, FIRST).await;
    assert_eq!(sidecars[0].get("/page").await.hit(), Some("l2"));
}

/// Pods of two versions of a policy, each pair with its own Redis connection and memory, and a page stored under each.
async fn mixed(other: &str) -> ([Policy; 2], Origin, [Sidecar; 2]) {
    let first = Policy::new(FIRST);
    let second = first.twin(other);
    let origin = Origin::numbered(&[]).await;
    let sidecars =
        [Sidecar::start(&first, origin.address).await, Sidecar::start(&second, origin.address).await];
    // By now pods of the first know of those of the second.
    until("both versions", async || {
        let stored = [number(&sidecars[0], "/page").await, number(&sidecars[1], "/page").await];
        tokio::time::sleep(Duration::from_millis(500)).await;
        let again = [number(&sidecars[0], "/page").await, number(&sidecars[1], "/page").await];
        (stored == again).then_some(())
    })
    .await;
    ([first, second], origin, sidecars)
}

/// Waits until a pod has published its version a second time, and knows that there is no other.
async fn until_it_is_alone(policy: &Policy) {
    let mut redis = RedisServer::shared().await;
    let mut first = None;
    until("the version is listed again", async || {
        let listed: String = redis.hget(policy.barriers(), "v").await.unwrap();
        let first = first.get_or_insert_with(|| listed.clone());
        (*first != listed).then_some(())
    })
    .await;
}

/// Stores the page in the memory of both pods, then purges it in one. Asserts that neither has it.
async fn assert_purges_cross(other: &str, purge: impl AsyncFn(&Sidecar) -> usize) {
    let (_policies, _origin, sidecars) = mixed(other).await;
    for round in 0..4 {
        let (one, another) = (&sidecars[round % 2], &sidecars[(round + 1) % 2]);
        for sidecar in &sidecars {
            number(sidecar, "/page").await;
        }
        let purged = purge(one).await;
        for sidecar in [another, one] {
            let read = number(sidecar, "/page").await;
            assert!(read > purged, "round {round}: {read} from before {purged}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_a_pod_of_one_version_purges_in_pods_of_another() {
    let others = [renamed(), keyed(), routed()];
    join_all(others.iter().map(|other| assert_purges_cross(other, async |sidecar| edit(sidecar).await)))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_one_version_has_no_rule_for_purges_in_pods_of_another() {
    let (_policies, _origin, [with_rule, without_rule]) = mixed(&without_rule()).await;
    // The first pods hear of it within a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..3 {
        number(&with_rule, "/page").await;
        let written = edit(&without_rule).await;
        let read = number(&with_rule, "/page").await;
        assert!(read > written, "{read} from before {written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_without_a_rule_purges_in_pods_of_a_version_that_has_just_begun() {
    let first = Policy::new(&without_rule());
    let origin = Origin::numbered(&[]).await;
    let without_rule = Sidecar::start(&first, origin.address).await;
    until_it_is_alone(&first).await;
    let second = first.twin(FIRST);
    let with_rule = Sidecar::start(&second, origin.address).await;
    for round in 0..4 {
        number(&with_rule, "/page").await;
        assert_eq!(with_rule.get("/page").await.hit(), Some("l1"), "round {round}");
        let written = edit(&without_rule).await;
        let read = number(&with_rule, "/page").await;
        assert!(read > written, "round {round}: {read} from before {written}");
        second.change(&FIRST.replace("page:{page}", &format!("page-{round}:{{page}}")));
        with_rule.until_it_serves(&second).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_stored_right_after_a_version_began_beside_others_stay() {
    let first = Policy::new(FIRST);
    let origin = Origin::numbered(&[]).await;
    let _other = Sidecar::start(&first, origin.address).await;
    let second = first.twin(&renamed());
    let began_at = Instant::now();
    let sidecar = Sidecar::start(&second, origin.address).await;
    let stored = number(&sidecar, "/page").await;
    while began_at.elapsed() < Duration::from_secs(5) {
        assert_eq!(number(&sidecar, "/page").await, stored, "{:?} after it began", began_at.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_by_the_admin_api_crosses_versions() {
    let bodies = [
        r#"{"tags": ["page:page", "p:page"]}"#,
        r#"{"tags": ["p:page"]}"#,
        r#"{"paths": ["/page"]}"#,
        r#"{"keys": ["GET:/page"]}"#,
    ];
    let purge = async |body| {
        let (_policies, origin, [one, another]) = mixed(&renamed()).await;
        for sidecar in [&one, &another] {
            number(sidecar, "/page").await;
        }
        for (purger, other) in [(&one, &another), (&another, &one)] {
            let before = origin.calls();
            assert_eq!(purger.purge(body).await.status, 200);
            assert!(number(other, "/page").await > before, "{body}");
            // The purge reaches the purger's own version by its own names, but not by a tag that it does not have.
            let names_its_own =
                !body.contains("p:") || body.contains("page:p") || purger.address == another.address;
            assert!(!names_its_own || number(purger, "/page").await > before, "{body}");
            number(purger, "/page").await;
        }
    };
    join_all(bodies.map(purge)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_starts_under_an_old_version_revives_nothing() {
    let policy = Policy::new(FIRST);
    let origin = Origin::numbered(&[]).await;
    let [a, b] = two(&policy, &origin).await;
    fill(&[a, b]).await;
    // All pods of the first version are gone; one of another takes a write that it has no rule for.
    let second = policy.twin(&without_rule());
    let other = Sidecar::start(&second, origin.address).await;
    let written = edit(&other).await;
    let late = Sidecar::start(&policy, origin.address).await;
    let read = number(&late, "/page").await;
    assert!(read > written, "{read} from before {written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_while_redis_is_away_reaches_other_versions_when_redis_is_back() {
    let mut server = RedisServer::start().await;
    let first = Policy::new(&server.serve(FIRST));
    let second = first.twin(&server.serve(&without_rule()));
    let origin = Origin::numbered(&[]).await;
    let with_rule = Sidecar::start(&first, origin.address).await;
    let without_rule = Sidecar::start(&second, origin.address).await;
    number(&with_rule, "/page").await;
    server.freeze();
    until("redis is down", async || (without_rule.policy().await["tiers"]["redis"] == "down").then_some(()))
        .await;
    let written = edit(&without_rule).await;
    server.thaw();
    until("the write is published", async || (number(&with_rule, "/page").await > written).then_some(()))
        .await;
    // Lost, with everything in it.
    server.kill();
    for sidecar in [&with_rule, &without_rule] {
        sidecar.until_tiers_are("down").await;
    }
    let written = edit(&without_rule).await;
    server.restart().await;
    for sidecar in [&with_rule, &without_rule] {
        sidecar.until_tiers_are("up").await;
        let read = number(sidecar, "/page").await;
        assert!(read > written, "{read} from before {written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_without_a_rule_while_redis_is_away_is_published_after_a_policy_change() {
    let server = RedisServer::start().await;
    let spec = server.serve(&without_rule());
    let first = Policy::new(&spec);
    let second = first.twin(&server.serve(FIRST));
    let origin = Origin::numbered(&[]).await;
    let without_rule = Sidecar::start(&first, origin.address).await;
    let with_rule = Sidecar::start(&second, origin.address).await;
    number(&with_rule, "/page").await;
    server.freeze();
    let written = edit(&without_rule).await;
    // The same version of the policy, with another connection.
    first.change(&spec.replace("timeout: 500ms", "timeout: 400ms"));
    let hash = larder_policy::document::hash(&std::fs::read_to_string(first.path()).unwrap());
    until("the new policy", async || (without_rule.policy().await["hash"] == hash).then_some(())).await;
    server.thaw();
    until("the write is published", async || (number(&with_rule, "/page").await > written).then_some(()))
        .await;
    // A response that was stored since stays: it was told once.
    without_rule.until_tiers_are("up").await;
    let stored = number(&with_rule, "/page").await;
    assert_eq!(number(&with_rule, "/page").await, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn version_that_no_pod_runs_leaves_the_list() {
    let mut redis = RedisServer::shared().await;
    let policy = Policy::new(FIRST);
    let origin = Origin::numbered(&[]).await;
    let sidecars = two(&policy, &origin).await;
    until_shared(&sidecars).await;
    let listed = async |redis: &mut MultiplexedConnection| {
        redis.hget::<_, _, String>(policy.barriers(), "v").await.unwrap()
    };
    // A version last seen long ago, and a malformed member.
    let own = listed(&mut redis).await;
    assert_eq!(own.split(' ').count(), 1, "{own}");
    let dead = format!("{own} {}=1 nonsense", "0f".repeat(16));
    let _: () = redis.hset(policy.barriers(), "v", dead).await.unwrap();
    until("the dead one is gone", async || {
        (!listed(&mut redis.clone()).await.contains("0f0f")).then_some(())
    })
    .await;
    // A pod that lost the list lists itself again, and does not use its earlier stored responses.
    let old = number(&sidecars[0], "/page").await;
    let _: () = redis.hdel(policy.barriers(), "v").await.unwrap();
    until("the version is listed again", async || (number(&sidecars[0], "/page").await > old).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_without_pods_for_long_begins_with_nothing() {
    let mut redis = RedisServer::shared().await;
    let policy = Policy::new(FIRST);
    let origin = Origin::numbered(&[]).await;
    let last = Sidecar::start(&policy, origin.address).await;
    let old = number(&last, "/page").await;
    until("redis has it", async || {
        let other = Sidecar::start(&policy, origin.address).await;
        (number(&other, "/page").await == old).then_some(())
    })
    .await;
    drop(last);
    // As after a long time without a pod, in which nobody would have told this Redis of a write.
    let listed: String = redis.hget(policy.barriers(), "v").await.unwrap();
    let (name, _) = listed.split_once('=').unwrap();
    let _: () = redis.hset(policy.barriers(), "v", format!("{name}=1")).await.unwrap();
    let next = Sidecar::start(&policy, origin.address).await;
    assert!(number(&next, "/page").await > old);
}

const PERSISTED: &str = r#"
sources:
- {name: db, postgres: {urlFrom: DATABASE}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1ms, tags: ["page:{page}"], lastKnownGood: {source: db}}
invalidation:
  onWrite:
  - {match: {path: "/{page}/edit"}, purge: {tags: ["page:{page}"]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_response_is_not_revived_by_a_policy_that_changed_back() {
    let changes = [("page:{page}", "p:{page}"), ("/{page}/edit", "/{page}/other")];
    let change = async |(from, to)| {
        let database = Database::new("").await;
        let first = database.serve(PERSISTED);
        let policy = Policy::new(&first);
        let origin = Origin::start(async |seen| {
            let mut response = reply(&[], seen.number.to_string());
            if seen.method == Method::GET && seen.header("x-fail") == "yes" {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        })
        .await;
        let sidecars = two(&policy, &origin).await;
        let [a, b] = &sidecars;
        let fails = async |sidecar: &Sidecar| {
            sidecar.get_with("/page", &[("x-fail", "yes")]).await.status.is_server_error()
        };
        a.get("/page").await;
        until("the response is persisted", async || (!fails(b).await).then_some(())).await;
        switch(&sidecars, &policy, &first.replace(from, to)).await;
        a.put("/page/edit").await;
        switch(&sidecars, &policy, &first).await;
        // Others hear of it soon.
        until("the response is gone", async || fails(b).await.then_some(())).await;
        assert!(fails(a).await);
        database.drop_schema().await;
    };
    join_all(changes.map(change)).await;
}
