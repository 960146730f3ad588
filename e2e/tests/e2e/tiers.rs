//! Redis and Postgres, there and gone.

use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Sandbox, Workload, eventually,
    eventually::{SHORT_TIMEOUT, seconds},
    examples, exec, in_a_namespace,
    policy::Policy,
    sandbox::RunningPod,
};
use serde_json::json;

use super::common::{calls, ensure_hit, get_from, shared_by_redis, with_redis};

/// Starts two pods that share a Redis, and waits until it responds to both.
async fn two_pods_over_redis(sandbox: &Sandbox) -> anyhow::Result<(Policy<'_>, Agent, Vec<RunningPod>)> {
    for file in ["secrets.yaml", "redis.yaml"] {
        sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
    }
    let (policy, agent) =
        sandbox.with_policy("cache", &with_redis(), &Workload::deployment("app", 2), 2).await?;
    sandbox.rolled_out("redis").await?;
    policy.condition(ConditionType::TiersHealthy, "True").await?;
    let pods = sandbox.pods("app").await?;
    Ok((policy, agent, pods))
}

#[tokio::test]
async fn a_hit_comes_from_redis_in_another_pod() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent, pods) = two_pods_over_redis(sandbox).await?;

        let path = shared_by_redis(&agent, &pods, |number| format!("/items/a-{number}")).await?;
        let third = get_from(&agent, &pods[1], &path).await?;
        ensure_hit(&third)?;
        ensure!(
            third.cache_status().contains("detail=l1"),
            "what came from Redis is in memory now: {third:?}"
        );
        let calls = calls(&agent, &pods).await?;
        ensure!(calls[&format!("GET {path}")] == 1, "the pods together called once: {calls:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn responses_continue_while_redis_is_stopped() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (policy, agent, pods) = two_pods_over_redis(sandbox).await?;
        let path = shared_by_redis(&agent, &pods, |number| format!("/items/before-{number}")).await?;

        sandbox.scale("redis", 0).await?;
        // Longer than l1.busGrace, after which the pods trust less of what they have.
        let stopped = Instant::now();
        let (mut number, mut times) = (0, vec![]);
        while stopped.elapsed() < Duration::from_secs(7) {
            number += 1;
            for pod in &pods {
                for path in [&path, &format!("/items/during-{number}")] {
                    let answer = get_from(&agent, pod, path).await?;
                    ensure!(answer.status == 200, "no answer without Redis: {answer:?}");
                    times.push(answer.time_ms);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        times.sort_unstable();
        // The slowest tenth may be the machine's, but nothing hangs.
        let (usual, slowest) = (times[times.len() * 9 / 10], times[times.len() - 1]);
        ensure!(usual < 1_000 && slowest < 5_000, "slow without Redis, ms: {times:?}");
        let unhealthy = policy.condition(ConditionType::TiersHealthy, "False").await?;
        ensure!(unhealthy.message.contains("redis"), "it does not name the tier: {unhealthy:?}");
        for pod in sandbox.pods("app").await? {
            ensure!(pods.iter().any(|before| before.uid == pod.uid), "a pod was replaced: {}", pod.name);
        }

        sandbox.scale("redis", 1).await?;
        policy.condition(ConditionType::TiersHealthy, "True").await?;
        shared_by_redis(&agent, &pods, |number| format!("/items/after-{number}")).await?;
        Ok(())
    })
    .await
}

const FROM_POSTGRES: &str = r#"
selector: {matchLabels: {app: app}}
targets: [{port: http}]
sources:
- name: catalog
  postgres: {urlFrom: {secretKeyRef: {name: shop-db, key: url}}}
routes:
- name: data
  match: {path: "/data/{key}"}
  ttl: 300s
  from:
  - postgres: {source: catalog, query: "select key, value from items where key = {key}::int"}
"#;

#[tokio::test]
async fn data_comes_from_postgres_then_from_the_cache_while_the_application_is_stopped() -> anyhow::Result<()>
{
    in_a_namespace(async |sandbox| {
        for file in ["secrets.yaml", "postgres.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        // The application's process can be stopped from beside it, and is not asked whether it is ready.
        let workload = Workload::deployment("app", 1)
            .pod(json!({"shareProcessNamespace": true}))
            .container(json!({"readinessProbe": null}));
        let (policy, agent) = sandbox.with_policy("data", FROM_POSTGRES, &workload, 1).await?;
        sandbox.rolled_out("postgres").await?;
        policy.condition(ConditionType::TiersHealthy, "True").await?;
        let pods = sandbox.pods("app").await?;
        // Endpoints lag behind the pods.
        eventually("the sidecar reaches Postgres", SHORT_TIMEOUT, async || {
            let answer = agent.get("http://app/data/2").await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
        .await?;

        let first = agent.get("http://app/data/1").await?;
        ensure!(first.is_stored() && first.cache_status().contains("detail=postgres"), "{first:?}");
        ensure!(first.json()?["value"]["name"] == "teapot", "not the row: {first:?}");
        ensure_hit(&agent.get("http://app/data/1").await?)?;

        let (api, pod) = (sandbox.api::<Pod>(), &pods[0].name);
        exec::run(&api, pod, "app", &["/larder-e2e-app", "signal", "stop", "/larder-e2e-app serve"]).await?;
        let stopped = agent.send(&larder_e2e::Ask::get(&pods[0].app("/calls")).within(seconds(1))).await;
        ensure!(stopped.is_err(), "the application is not stopped: {stopped:?}");

        let hit = agent.get("http://app/data/1").await?;
        ensure_hit(&hit)?;
        ensure!(hit.json()?["value"]["name"] == "teapot", "not the row: {hit:?}");
        let fresh = agent.get("http://app/data/42").await?;
        ensure!(fresh.is_stored() && fresh.json()?["value"]["name"] == "towel", "{fresh:?}");
        ensure_hit(&agent.get("http://app/data/42").await?)?;
        for nothing in ["http://app/data/7", "http://app/data/not-a-number"] {
            let answer = agent.get(nothing).await?;
            ensure!(answer.status == 404, "there is no such row: {answer:?}");
        }

        exec::run(&api, pod, "app", &["/larder-e2e-app", "signal", "continue", "/larder-e2e-app serve"])
            .await?;
        let calls = calls(&agent, &pods).await?;
        ensure!(calls.is_empty(), "the application was asked: {calls:?}");
        Ok(())
    })
    .await
}
