//! The operator, there and gone.

use anyhow::ensure;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, Patch},
};
use larder_api::names;
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, cluster, eventually, eventually::ROLLOUT_TIMEOUT,
    policy::sidecar_of,
};
use serde_json::json;

use super::common::{IN_MEMORY, ensure_hit};

#[tokio::test]
async fn while_the_webhook_is_down_pods_start_and_are_counted_as_missed_and_named() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        // Nothing is repaired that should be seen.
        let spec = format!("{IN_MEMORY}sidecar: {{rollout: {{strategy: OnCreate}}}}\n");
        let policy = sandbox.policy("cache", &spec).await?;
        let workload = Workload::deployment("app", 2);
        policy.injects(&workload.template()?).await?;
        let agent = sandbox.agent().await?;

        let replicas = scale_operator(sandbox, 0).await?;
        let started = async {
            sandbox.apply(&workload.objects()?).await?;
            sandbox.rolled_out("app").await?;
            agent.reaches("app").await?;
            let answer = agent.get("http://app/items/1").await?;
            ensure!(answer.status == 200 && answer.cache_status().is_empty(), "{answer:?}");
            Ok(())
        }
        .await;
        scale_operator(sandbox, replicas).await?;
        started?;

        let status = policy
            .eventually("the missed pods are counted", ROLLOUT_TIMEOUT, |status| {
                ensure!(status.pods.missed == 2 && status.pods.injected == 0, "missed is not 2");
                Ok(())
            })
            .await?;
        for pod in sandbox.pods("app").await? {
            ensure!(sidecar_of(&pod.object).is_none(), "{} has a sidecar", pod.name);
            ensure!(status.missed_pods.contains(&pod.name), "{} is not named: {status:?}", pod.name);
        }
        let injected = policy.condition(ConditionType::Injected, "False").await?;
        ensure!(!injected.message.is_empty(), "{injected:?}");

        policy.change(json!({"sidecar": {"rollout": {"strategy": "Restart"}}})).await?;
        policy.serves(2).await?;
        sandbox.rolled_out("app").await?;
        for pod in sandbox.pods("app").await? {
            super::common::get_from(&agent, &pod, "/items/1").await?;
            ensure_hit(&super::common::get_from(&agent, &pod, "/items/1").await?)?;
        }
        Ok(())
    })
    .await
}

/// Scales the operator, waits until it is so, and gives how many replicas it had.
pub(crate) async fn scale_operator(sandbox: &Sandbox, replicas: i32) -> anyhow::Result<i32> {
    let deployments = Api::<Deployment>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let before = deployments.get(names::OPERATOR).await?.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch(names::OPERATOR, &Default::default(), &patch).await?;
    if replicas > 0 {
        cluster::operator_is_ready(&sandbox.client).await?;
        return Ok(before);
    }
    let pods = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    eventually("the operator is gone", ROLLOUT_TIMEOUT, async || {
        let left = pods.list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} pods are left");
        Ok(())
    })
    .await?;
    Ok(before)
}
