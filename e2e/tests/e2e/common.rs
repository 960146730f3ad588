//! Helpers of several tests.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Answer, Ask, Sandbox, eventually, eventually::SHORT_TIMEOUT, examples, policy::Policy,
    sandbox::RunningPod,
};

/// A policy for the application of the tests, without Redis and without Postgres.
pub(crate) const IN_MEMORY: &str = r#"
selector: {matchLabels: {app: app}}
targets: [{port: http}]
routes:
- name: item
  match: {path: "/items/{id}"}
  ttl: 300s
  bypass: {query: {nocache: "true"}}
  tags: ["item:{id}"]
- name: items
  match: {path: /items}
  ttl: 300s
"#;

/// A policy for the application of the tests, with Redis.
pub(crate) fn with_redis() -> String {
    format!(
        "{IN_MEMORY}l2:\n  redis: {{urlFrom: {{secretKeyRef: {{name: shop-redis, key: url}}}}, timeout: 250ms}}\n"
    )
}

/// Sends a GET to one pod's sidecar, as the Service's clients do.
pub(crate) async fn get_from(agent: &Agent, pod: &RunningPod, path: &str) -> anyhow::Result<Answer> {
    agent.send(&Ask::get(&pod.url(path)).header("host", "app")).await
}

/// Returns the number of calls of the pods' applications, by method and path.
pub(crate) async fn calls(agent: &Agent, pods: &[RunningPod]) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for pod in pods {
        let calls: BTreeMap<String, u64> =
            serde_json::from_value(agent.get(&pod.app("/calls")).await?.json()?)?;
        for (call, count) in calls {
            *sum.entry(call).or_default() += count;
        }
    }
    Ok(sum)
}

/// Asserts that an answer is a 200 out of the cache.
pub(crate) fn ensure_hit(answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.status == 200 && answer.is_hit(), "not a hit: {answer:?}");
    Ok(())
}

/// Asserts that an answer is a 200 that was not in the cache.
pub(crate) fn ensure_not_hit(answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.status == 200 && !answer.is_hit(), "a hit, or no answer: {answer:?}");
    ensure!(answer.cache_status().contains("larder; fwd="), "nothing about a cache: {answer:?}");
    Ok(())
}

/// Returns the remaining TTL of a hit in seconds, from its `Cache-Status`.
pub(crate) fn ttl(answer: &Answer) -> anyhow::Result<u64> {
    let status = answer.cache_status();
    let ttl = status.split("; ").find_map(|part| part.strip_prefix("ttl="));
    ttl.and_then(|ttl| ttl.parse().ok()).with_context(|| format!("no ttl in {answer:?}"))
}

/// Fills by the first pod until the second one answers from Redis, each time by another path, and gives that.
pub(crate) async fn shared_by_redis(
    agent: &Agent,
    pods: &[RunningPod],
    path: impl Fn(u32) -> String,
) -> anyhow::Result<String> {
    let mut number = 0;
    eventually("what one pod stored is in Redis for another", SHORT_TIMEOUT, async || {
        number += 1;
        let path = path(number);
        let first = get_from(agent, &pods[0], &path).await?;
        ensure!(first.is_stored(), "not a miss that was stored: {first:?}");
        let second = get_from(agent, &pods[1], &path).await?;
        ensure_hit(&second)?;
        ensure!(second.cache_status().contains("detail=l2"), "not from Redis: {second:?}");
        ensure!(second.body == first.body, "another body: {second:?}");
        Ok(path)
    })
    .await
}

/// The shop with its policy, in two pods.
pub(crate) async fn deploy_shop(sandbox: &Sandbox) -> anyhow::Result<(Agent, Vec<RunningPod>)> {
    for file in ["secrets.yaml", "redis.yaml", "postgres.yaml"] {
        sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
    }
    let shop = examples::shop("shop.yaml", &sandbox.name)?;
    sandbox.apply(&examples::shop("policy.yaml", &sandbox.name)?).await?;
    let policy = Policy::of(sandbox, "shop");
    policy.injects(&shop[0]["spec"]["template"]).await?;
    sandbox.apply(&shop).await?;
    let agent = sandbox.agent().await?;
    policy.serves(2).await?;
    sandbox.rolled_out("shop").await?;
    policy.condition(ConditionType::TiersHealthy, "True").await?;
    Ok((agent, sandbox.pods("shop").await?))
}
