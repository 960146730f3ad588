//! Every tier at fault, one at a time: what the others can answer is answered, and all comes back without a restart. These are
//! the rows of `docs/failure-modes.md`.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;

use super::harness::{
    Answer, Database, Fault, Folder, Origin, Policy, RedisServer, Relay, Sidecar, newcomers, p99_of_hits,
    reply, until,
};

mod application;
mod http_source;
mod postgres;
mod redis;
mod speed;

/// Every tier is reached through a relay, except the Postgres of the last good responses.
const SPEC: &str = r#"
l1: {busGrace: GRACE}
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 200ms, hardTimeout: 10s}}
sources:
- {name: catalog, postgres: {urlFrom: DATABASE, statementTimeout: 1s, maxConnectionsPerPod: 2}}
- {name: keeper, postgres: {urlFrom: KEEPER, statementTimeout: 10s}}
- {name: store, http: {url: "http://STORE", timeout: 300ms, hardTimeout: 3s}}
routes:
- {name: page, match: {path: "/page/{x}"}, ttl: 10m}
- {name: brief-page, match: {path: "/brief-page/{x}"}, ttl: 1s, staleIfError: 10m}
- {name: renewed-page, match: {path: "/renewed-page/{x}"}, ttl: 1s, staleWhileRevalidate: 10m}
- {name: kept-page, match: {path: "/kept-page/{x}"}, ttl: 10m, lastKnownGood: {source: keeper}}
- {name: row, match: {path: "/row/{x}"}, ttl: 10m, from: [{postgres: {source: catalog, query: "select {x} as x"}}]}
- {name: brief-row, match: {path: "/brief-row/{x}"}, ttl: 1s, staleIfError: 10m, from: [{postgres: {source: catalog, query: "select {x} as x"}}]}
- {name: item, match: {path: "/item/{x}"}, ttl: 10m, from: [{postgres: {source: catalog, query: "select {x} as x"}}, {http: {source: store, path: "/{x}"}}]}
- {name: broken, match: {path: "/broken/{x}"}, ttl: 10m, from: [{postgres: {source: catalog, query: "select x from nowhere"}}, {http: {source: store, path: "/{x}"}}]}
- {name: number, match: {path: "/number/{x}"}, ttl: 10m, from: [{postgres: {source: catalog, query: "select {x}::int as x"}}, {http: {source: store, path: "/{x}"}}]}
- {name: product, match: {path: "/product/{x}"}, ttl: 10m, from: [{http: {source: store, path: "/{x}"}}]}
- {name: brief-product, match: {path: "/brief-product/{x}"}, ttl: 1s, staleIfError: 10m, from: [{http: {source: store, path: "/{x}"}}]}
- {name: kept-product, match: {path: "/kept-product/{x}"}, ttl: 10m, lastKnownGood: {source: keeper}, from: [{http: {source: store, path: "/{x}"}}]}
"#;

/// An HTTP server whose status can be set.
struct Server {
    origin: Origin,
    status: Arc<AtomicU16>,
    relay: Relay,
}

impl Server {
    async fn start() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let says = Arc::clone(&status);
        let origin = Origin::start(move |seen| {
            let status = says.load(Ordering::SeqCst);
            async move {
                let control = if seen.path.contains("unstored") { "no-store" } else { "public" };
                let mut answer = reply(&[("cache-control", control)], seen.number.to_string());
                *answer.status_mut() = StatusCode::from_u16(status).unwrap();
                answer
            }
        })
        .await;
        let relay = Relay::to(origin.address).await;
        Self { origin, status, relay }
    }

    fn says(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

/// Two pods, and every tier behind a relay of its own.
struct Stand {
    redis: RedisServer,
    to_redis: Relay,
    database: Database,
    to_postgres: Relay,
    store: Server,
    application: Server,
    policy: Policy,
    _folder: Folder,
}

impl Stand {
    async fn new() -> Self {
        Self::trusting_for("30s").await
    }

    /// Starts a stand whose pods trust their stored responses for `grace` without the bus.
    async fn trusting_for(grace: &str) -> Self {
        let (redis, database, folder) = (RedisServer::start().await, Database::new("").await, Folder::new());
        let keeper = folder.join("keeper");
        fs::copy(database.url_file(), &keeper).unwrap();
        let to_postgres = database.through_a_relay().await;
        let to_redis = Relay::to(([127, 0, 0, 1], redis.port).into()).await;
        redis.set_url(&format!("redis://{}/", to_redis.address()));
        let (store, application) = (Server::start().await, Server::start().await);
        let spec = database.serve(&redis.serve(SPEC));
        let spec = spec.replace("STORE", &store.relay.address().to_string()).replace("GRACE", grace);
        let policy = Policy::new(&spec.replace("KEEPER", &format!("{{file: {}}}", keeper.display())));
        Self { redis, to_redis, database, to_postgres, store, application, policy, _folder: folder }
    }

    async fn pod(&self) -> Sidecar {
        Sidecar::start(&self.policy, self.application.relay.address()).await
    }

    /// Starts two pods. `paths` are stored in Redis, and in the memory of the first pod alone.
    async fn pods_with(&self, paths: &[&str]) -> [Sidecar; 2] {
        let pods = [self.pod().await, self.pod().await];
        for path in paths {
            assert_eq!(pods[0].get(path).await.status, 200, "{path}");
        }
        self.policy.until_stored(&mut self.redis.connection().await, paths.len()).await;
        pods
    }

    /// Waits until so many last good responses are persisted.
    async fn until_kept(&self, count: i64) {
        let tables = "select count(*) from pg_tables where schemaname = current_schema() \
                      and tablename = 'larder_last_known_good'";
        let kept = "select count(*) from larder_last_known_good";
        until("the responses are persisted", async || {
            let is_so = self.database.number(tables).await == 1 && self.database.number(kept).await == count;
            is_so.then_some(())
        })
        .await;
    }

    /// Waits until one pod finds in Redis a response that the other stored.
    async fn until_shared(&self, [a, b]: &[Sidecar; 2]) {
        let mut page = 0;
        until("a hit from L2", async || {
            page += 1;
            let path = format!("/page/shared-{page}");
            assert_eq!(a.get(&path).await.status, 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
            (b.get(&path).await.hit() == Some("l2")).then_some(())
        })
        .await;
    }
}

/// Requests a path. Panics unless the response is a 200.
async fn good(pod: &Sidecar, path: &str) -> Answer {
    let answer = pod.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {} {}", answer.cache_status(), answer.body);
    answer
}

/// Returns the server that a forwarded request got its response from.
fn who(answer: &Answer) -> &str {
    answer.cache_status().rsplit("detail=").next().unwrap()
}

/// Returns true if a stored response was the fallback.
fn stood_in(answer: &Answer) -> bool {
    answer.status == 200 && answer.cache_status().ends_with("detail=stale-if-error")
}

/// Waits until a pod reports a tier as up or down, at `/policy` and in the metric.
async fn until_tier(pod: &Sidecar, tier: &str, state: &str) {
    let (label, up) = (format!("tier=\"{tier}\""), f64::from(u8::from(state == "up")));
    until(&format!("{tier} {state}"), async || {
        let is_shown = pod.policy().await["tiers"][tier] == state;
        (is_shown && pod.metric("larder_tier_up", &[&label]).await == up).then_some(())
    })
    .await;
}

/// Returns the number of requests that a tier failed.
async fn failures(pod: &Sidecar, tier: &str) -> f64 {
    pod.metric("larder_tier_errors_total", &[&format!("tier=\"{tier}\"")]).await
}

/// Waits until a stored response is stale and served as a fallback. Returns the duration of that request.
async fn until_it_stands_in(pod: &Sidecar, path: &str) -> Duration {
    until(&format!("the stored response of {path} is a fallback"), async || {
        let asked_at = Instant::now();
        stood_in(&good(pod, path).await).then(|| asked_at.elapsed())
    })
    .await
}
