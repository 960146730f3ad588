//! Every way to ask for a purge, on three pods: with Redis, while it is away, and once it is back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use larder_api::admin::{PolicyReport, path};
use larder_crds::{CacheInvalidation, ConditionType};
use larder_e2e::{
    Agent, Ask, Sandbox, Workload, eventually, eventually::SHORT_TIMEOUT, examples, exec, in_a_namespace,
    larder::Larder, sandbox::RunningPod,
};
use serde_json::json;

use super::common::{ensure_hit, get_from, with_redis};

/// Time for which Redis is away.
const PARTITION: Duration = Duration::from_secs(30);
/// Time for which a purge waits for the other pods.
const ACKNOWLEDGEMENT_TIMEOUT_MS: u64 = 100;
/// Path of the response that is purged, which has the tag `item:1`.
const ITEM: &str = "/items/1";

/// Every way to purge, in one policy.
const INVALIDATION: &str = r#"
sources: [{name: db, postgres: {urlFrom: {secretKeyRef: {name: shop-db, key: url}}}}]
invalidation:
  onWrite:
  - match: {path: /carts}
    purge: {tags: ["item:{body:/item}"]}
  fromResponses: true
  requests: {}
  notifications: {source: db}
  changes:
    source: db
    publication: larder
    tables: [{table: items, purge: {tags: ["item:{key}"]}}]
"#;

/// A way to ask for a purge.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// A write of the path itself.
    Write,
    /// A write whose content names a tag.
    Content,
    /// A response of the application.
    Response,
    /// A PURGE request to the application's address.
    Request,
    /// The admin API.
    Api,
    /// The program for a terminal.
    Command,
    /// An object.
    Object,
    /// A notification of Postgres.
    Notification,
    /// A change of a row in Postgres.
    Change,
}

const WAYS: [Way; 9] = [
    Way::Write,
    Way::Content,
    Way::Response,
    Way::Request,
    Way::Api,
    Way::Command,
    Way::Object,
    Way::Notification,
    Way::Change,
];

/// Three pods of an application, and what purges need.
struct Stand<'s> {
    sandbox: &'s Sandbox,
    agent: Agent,
    pods: Vec<RunningPod>,
    token: String,
    /// Number of purges that were asked for.
    asked: u32,
}

impl<'s> Stand<'s> {
    async fn deploy(sandbox: &'s Sandbox) -> anyhow::Result<Self> {
        for file in ["secrets.yaml", "redis.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        let mut database = examples::shop("postgres.yaml", &sandbox.name)?;
        for object in database.iter_mut().filter(|object| object["kind"] == "Deployment") {
            object["spec"]["template"]["spec"]["containers"][0]["args"] =
                json!(["postgres", "-c", "listen_addresses=*", "-c", "wal_level=logical"]);
        }
        sandbox.apply(&database).await?;
        for server in ["redis", "postgres"] {
            sandbox.rolled_out(server).await?;
        }
        query(sandbox, "create publication larder for table items").await?;
        let spec = format!("{}{INVALIDATION}", with_redis());
        let (policy, agent) = sandbox.with_policy("cache", &spec, &Workload::deployment("app", 3), 3).await?;
        for condition in [ConditionType::TiersHealthy, ConditionType::WritesSeen] {
            policy.condition(condition, "True").await?;
        }
        let (pods, token) = (sandbox.pods("app").await?, sandbox.admin_token("cache").await?);
        let stand = Self { sandbox, agent, pods, token, asked: 0 };
        stand.knows_itself(2).await?;
        Ok(stand)
    }

    /// Waits until each pod knows so many others.
    async fn knows_itself(&self, others: u64) -> anyhow::Result<()> {
        eventually("each pod knows the others", SHORT_TIMEOUT, async || {
            for pod in &self.pods {
                let report = self.agent.get(&pod.admin(path::POLICY)).await?.read::<PolicyReport>()?;
                let reachable = report.peers.as_ref().map(|peers| peers.reachable as u64);
                ensure!(reachable == Some(others), "{}: {report:?}", pod.name);
            }
            Ok(())
        })
        .await
    }

    /// Waits until every pod serves from memory.
    async fn stores(&self) -> anyhow::Result<()> {
        eventually("every pod serves from memory", SHORT_TIMEOUT, async || {
            for pod in &self.pods {
                get_from(&self.agent, pod, ITEM).await?;
                let answer = get_from(&self.agent, pod, ITEM).await?;
                ensure_hit(&answer)?;
                ensure!(answer.cache_status().contains("detail=l1"), "{answer:?}");
            }
            Ok(())
        })
        .await
    }

    /// Reads from every pod; returns the bodies, each of which the application has made once.
    async fn bodies(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut bodies = BTreeSet::new();
        for pod in &self.pods {
            let answer = get_from(&self.agent, pod, ITEM).await?;
            ensure!(answer.status == 200, "{}: {answer:?}", pod.name);
            bodies.insert(answer.body);
        }
        Ok(bodies)
    }

    /// Asserts that no pod serves one of these bodies.
    async fn is_free_of(&self, old: &BTreeSet<String>) -> anyhow::Result<()> {
        for pod in &self.pods {
            let answer = get_from(&self.agent, pod, ITEM).await?;
            ensure!(answer.status == 200 && !old.contains(&answer.body), "stale in {}: {answer:?}", pod.name);
        }
        Ok(())
    }

    /// Purges, and reads from every pod.
    async fn purge(&mut self, way: Way) -> anyhow::Result<()> {
        let old = self.bodies().await?;
        let is_acknowledged = self.ask(way).await.with_context(|| format!("{way:?}"))?;
        let told = if is_acknowledged {
            self.is_free_of(&old).await
        } else {
            eventually("no pod serves it", SHORT_TIMEOUT, async || self.is_free_of(&old).await).await
        };
        told.with_context(|| format!("{way:?}"))
    }

    /// Asks for a purge, through one pod after another; returns true if it was acknowledged.
    async fn ask(&mut self, way: Way) -> anyhow::Result<bool> {
        self.asked += 1;
        let pod = &self.pods[self.asked as usize % self.pods.len()];
        let through_application =
            |method: &str, path: &str| Ask::new(method, &pod.url(path)).header("host", "app");
        let tag = json!({"tags": ["item:1"]});
        let ask = match way {
            Way::Write => through_application("PUT", ITEM),
            Way::Content => through_application("POST", "/carts").json(&json!({"item": 1})),
            Way::Response => {
                let header = "/jobs?header=Larder-Purge:%7B%22tags%22:%5B%22item:1%22%5D%7D";
                through_application("GET", header)
            }
            Way::Request => through_application("PURGE", ITEM).token(&self.token),
            Way::Api => Ask::new("POST", &pod.admin(path::PURGE)).json(&tag).token(&self.token),
            Way::Command => {
                let run = Larder::of(self.sandbox).run(&["purge", "cache", "--tag", "item:1"]).await?;
                // 1: it waits for Redis.
                ensure!([0, 1].contains(&run.code), "{run:?}");
                return Ok(true);
            }
            Way::Object => return self.create_object().await,
            Way::Notification => {
                query(self.sandbox, r#"select pg_notify('larder', '{"tags": ["item:1"]}')"#).await?;
                return Ok(false);
            }
            Way::Change => {
                let price = self.asked;
                query(
                    self.sandbox,
                    &format!("update items set value = '{{\"price\": {price}}}' where key = 1"),
                )
                .await?;
                return Ok(false);
            }
        };
        let answer = self.agent.send(&ask).await?;
        // 202: Redis does not have it yet.
        ensure!([200, 202].contains(&answer.status), "{answer:?}");
        // A pod that gets no CPU for so long is not waited for. It is told all the same.
        Ok(answer.time_ms < ACKNOWLEDGEMENT_TIMEOUT_MS)
    }

    async fn create_object(&self) -> anyhow::Result<bool> {
        let name = format!("purge-{}", self.asked);
        let spec = json!({"policy": "cache", "tags": ["item:1"], "timeoutSeconds": 3});
        let object = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "CacheInvalidation", "metadata": {"name": name}, "spec": spec,
        });
        self.sandbox.apply(&[object]).await?;
        eventually("the purge has ended", SHORT_TIMEOUT, async || {
            let status = self.sandbox.api::<CacheInvalidation>().get(&name).await?.status.unwrap_or_default();
            // It ends as `Partial` while Redis is away, and holds in every pod all the same.
            ensure!(status.conditions.iter().any(|condition| condition.status == "True"), "{status:?}");
            Ok(())
        })
        .await?;
        Ok(true)
    }
}

/// Runs SQL in the database of the shop.
async fn query(sandbox: &Sandbox, sql: &str) -> anyhow::Result<()> {
    let pods = sandbox.pods("postgres").await?;
    let pod = pods.first().context("no postgres")?;
    let command = ["psql", "-U", "shop", "-d", "shop", "-v", "ON_ERROR_STOP=1", "-c", sql];
    exec::run(&sandbox.api::<Pod>(), &pod.name, "postgres", &command).await.map(drop)
}

#[tokio::test]
async fn purge_of_any_kind_holds_in_every_pod_before_during_and_after_a_partition() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let mut stand = Stand::deploy(sandbox).await?;
        for way in WAYS {
            stand.stores().await?;
            stand.purge(way).await?;
        }

        sandbox.scale("redis", 0).await?;
        let (began, mut rounds) = (Instant::now(), 0);
        while rounds == 0 || began.elapsed() < PARTITION {
            for way in WAYS {
                stand.purge(way).await?;
            }
            rounds += 1;
        }
        eprintln!("{rounds} rounds while Redis was away");

        // The pod that knows of a write is killed right after its response.
        let old = stand.bodies().await?;
        let writer = stand.pods.remove(0);
        let put = Ask::new("PUT", &writer.url(ITEM)).header("host", "app");
        ensure!(stand.agent.send(&put).await?.status == 200, "not written");
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        sandbox.api::<Pod>().delete(&writer.name, &at_once).await?;
        stand.is_free_of(&old).await?;

        sandbox.scale("redis", 1).await?;
        sandbox.rolled_out("app").await?;
        stand.pods = sandbox.pods("app").await?;
        stand.knows_itself(2).await?;
        for way in WAYS {
            stand.stores().await?;
            stand.purge(way).await?;
        }
        Ok(())
    })
    .await
}
