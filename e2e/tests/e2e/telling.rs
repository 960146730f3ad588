//! Purges that pods tell one another, without Redis.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Service;
use larder_api::{
    admin::{PolicyReport, path},
    names,
};
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Ask, Sandbox, Workload, eventually, eventually::SHORT_TIMEOUT, in_a_namespace, sandbox::RunningPod,
};

use super::common::{IN_MEMORY, get_from};

/// Time for which a write waits for the other pods.
const ACKNOWLEDGEMENT_TIMEOUT_MS: u64 = 100;

const RULE: &str = r#"
invalidation:
  onWrite:
  - match: {path: "/items/{id}"}
    purge: {tags: ["item:{id}"]}
"#;

/// Deploys three pods that know one another.
async fn deploy(sandbox: &Sandbox) -> anyhow::Result<(Agent, Vec<RunningPod>)> {
    let (policy, agent) = sandbox
        .with_policy("cache", &format!("{IN_MEMORY}{RULE}"), &Workload::deployment("app", 3), 3)
        .await?;
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
        let (agent, pods) = deploy(sandbox).await?;
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
