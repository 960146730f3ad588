//! Purges that pods tell one another, without Redis and while it is away.

use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::DeleteParams;
use larder_api::{
    admin::{PolicyReport, path},
    names,
};
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Ask, Sandbox, Workload, eventually, eventually::SHORT_TIMEOUT, examples, in_a_namespace,
    sandbox::RunningPod,
};

use super::common::{IN_MEMORY, ensure_hit, get_from, with_redis};

/// Time for which Redis is away.
const PARTITION: Duration = Duration::from_secs(30);

/// Time for which a write waits for the other pods.
const ACKNOWLEDGEMENT_TIMEOUT_MS: u64 = 100;

const RULE: &str = r#"
invalidation:
  onWrite:
  - match: {path: "/items/{id}"}
    purge: {tags: ["item:{id}"]}
"#;

/// Deploys three pods that know one another.
async fn deploy(sandbox: &Sandbox, spec: &str) -> anyhow::Result<(Agent, Vec<RunningPod>)> {
    let (policy, agent) =
        sandbox.with_policy("cache", &format!("{spec}{RULE}"), &Workload::deployment("app", 3), 3).await?;
    policy.condition(ConditionType::TiersHealthy, "True").await?;
    policy.condition(ConditionType::WritesSeen, "True").await?;
    let pods = sandbox.pods("app").await?;
    eventually("each pod knows the others", SHORT_TIMEOUT, async || {
        for pod in &pods {
            let report = agent.get(&pod.admin(path::POLICY)).await?.read::<PolicyReport>()?;
            ensure!(
                report.peers.as_ref().is_some_and(|peers| peers.reachable == 2),
                "{}: {report:?}",
                pod.name
            );
        }
        Ok(())
    })
    .await?;
    Ok((agent, pods))
}

/// Writes through one pod after every pod has stored a response, and reads from all of them; returns the number of pods that had stored
/// one.
async fn write_through(agent: &Agent, pods: &[RunningPod], writer: &RunningPod) -> anyhow::Result<usize> {
    let mut stored = 0;
    for pod in pods {
        get_from(agent, pod, "/items/1").await?;
        stored += usize::from(get_from(agent, pod, "/items/1").await?.is_hit());
    }
    let put = Ask::new("PUT", &writer.url("/items/1")).header("host", "app");
    let written = agent.send(&put).await?;
    ensure!(written.status == 200, "not written: {written:?}");
    if written.time_ms >= ACKNOWLEDGEMENT_TIMEOUT_MS {
        // A pod that gets no CPU for so long is not waited for. It is told all the same.
        return Ok(stored);
    }
    for pod in pods {
        let read = get_from(agent, pod, "/items/1").await?;
        ensure!(
            !read.cache_status().contains("detail=l1"),
            "{} serves what was stored before a write through {}: {read:?}",
            pod.name,
            writer.name
        );
    }
    Ok(stored)
}

#[tokio::test]
async fn write_through_one_pod_holds_in_all_without_redis() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (agent, pods) = deploy(sandbox, IN_MEMORY).await?;
        for round in 0..30 {
            let stored = write_through(&agent, &pods, &pods[round % pods.len()]).await?;
            ensure!(stored == pods.len(), "round {round}: stored in {stored} pods");
        }
        let service = sandbox.api::<Service>().get(&names::peers("cache")).await?;
        let spec = service.spec.unwrap_or_default();
        ensure!(spec.cluster_ip.as_deref() == Some("None"), "{spec:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn write_holds_in_all_pods_while_redis_is_away_and_when_its_pod_is_killed() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        for file in ["secrets.yaml", "redis.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        sandbox.rolled_out("redis").await?;
        let (agent, pods) = deploy(sandbox, &with_redis()).await?;
        let mut stored = write_through(&agent, &pods, &pods[0]).await?;
        ensure!(stored > 0, "nothing was stored with Redis");

        sandbox.scale("redis", 0).await?;
        let (began, mut round) = (Instant::now(), 0);
        while began.elapsed() < PARTITION {
            stored += write_through(&agent, &pods, &pods[round % pods.len()]).await?;
            round += 1;
        }
        eprintln!("{round} writes while Redis was away; {stored} responses had been stored");

        // The pod that knows of a write is killed right after its response.
        let [writer, others @ ..] = &pods[..] else { anyhow::bail!("no pods") };
        for pod in others {
            get_from(&agent, pod, "/items/1").await?;
        }
        let put = Ask::new("PUT", &writer.url("/items/1")).header("host", "app");
        ensure!(agent.send(&put).await?.status == 200, "not written");
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        sandbox.api::<Pod>().delete(&writer.name, &at_once).await?;
        for pod in others {
            let read = get_from(&agent, pod, "/items/1").await?;
            ensure!(!read.cache_status().contains("detail=l1"), "{} forgot: {read:?}", pod.name);
        }

        sandbox.scale("redis", 1).await?;
        eventually("pods serve from memory again", SHORT_TIMEOUT, async || {
            get_from(&agent, &others[0], "/items/1").await?;
            ensure_hit(&get_from(&agent, &others[0], "/items/1").await?)
        })
        .await?;
        write_through(&agent, others, &others[1]).await.map(drop)
    })
    .await
}
