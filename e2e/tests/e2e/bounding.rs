//! Bounds of the chart on what policies may ask for.

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, api::Patch};
use larder_api::names;
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, apply, cluster, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::{has, sidecar_of},
    workload::pod_of,
};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit};

/// The name of a flag that has the bounds.
const FLAG: &str = "--policy-bounds=";

#[tokio::test]
async fn servers_at_addresses_of_the_pod_itself_are_refused_after_resolution() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own"},
            "stringData": {"redis": "redis://localhost:6379", "postgres": "postgres://me:secret@2130706433/db"}});
        sandbox.apply(&[secret]).await?;
        let spec = format!(
            "{IN_MEMORY}
- name: data
  match: {{path: /data}}
  ttl: 300s
  from: [{{http: {{source: own, path: /items}}}}]
- name: rows
  match: {{path: /rows}}
  ttl: 300s
  from: [{{postgres: {{source: rows, query: select 1}}}}]
l2: {{redis: {{urlFrom: {{secretKeyRef: {{name: own, key: redis}}}}}}}}
sources:
- name: own
  http: {{url: 'http://localhost:8080'}}
- name: rows
  postgres: {{urlFrom: {{secretKeyRef: {{name: own, key: postgres}}}}}}
"
        );
        let (policy, agent) = sandbox.with_policy("cache", &spec, &Workload::deployment("app", 1), 1).await?;
        let answer = agent.get("http://app/data").await?;
        ensure!(answer.status >= 500, "the application was asked as a source: {answer:?}");
        let tiers = policy
            .eventually("the status says which addresses are refused", ROLLOUT_TIMEOUT, |status| {
                let tiers = has(status, ConditionType::TiersHealthy, "False")?;
                for tier in ["redis", "http/own", "postgres/rows"] {
                    ensure!(tiers.message.contains(tier), "it does not name {tier}");
                }
                let count = tiers.message.matches("in the denied network").count();
                ensure!(count == 3, "{count} reasons");
                Ok(())
            })
            .await?;
        ensure!(!format!("{tiers:?}").contains("secret@"), "it has the password");

        // An address that is written in the policy is not accepted; its sidecars keep the last accepted configuration.
        let source = |url: &str| json!({"sources": [{"name": "own", "http": {"url": url}},
            {"name": "rows", "postgres": {"urlFrom": {"secretKeyRef": {"name": "own", "key": "postgres"}}}}]});
        policy.change(source("http://169.254.169.254")).await?;
        let refused = policy.condition(ConditionType::Accepted, "False").await?;
        ensure!(refused.reason == "NotAllowed", "{refused:?}");
        for words in ["spec.sources[0].http.url", "169.254.169.254", "169.254.0.0/16"] {
            ensure!(refused.message.contains(words), "it does not say {words}: {refused:?}");
        }
        agent.get("http://app/items/1").await?;
        ensure_hit(&agent.get("http://app/items/1").await?)
    })
    .await
}

pub(crate) async fn policy_above_a_bound_of_the_chart_is_refused_with_the_bound() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let workload = Workload::deployment("app", 1);
        let (policy, agent) = sandbox.with_policy("cache", IN_MEMORY, &workload, 1).await?;
        let before = bounds(sandbox).await?;
        let mut bounded = before.clone();
        for (name, bound) in [
            ("maxMemory", json!("256Mi")),
            ("maxTTL", json!("24h")),
            ("captureModes", json!(["Auto", "NamedPort"])),
        ] {
            bounded[name] = bound;
        }
        set_bounds(sandbox, &bounded).await?;
        let outcome = async {
            policy.serves(1).await?;
            let large = json!({"sidecar": {"resources": {"limits": {"memory": "1Gi"}}}});
            policy.change(large).await?;
            let refused = policy.condition(ConditionType::Accepted, "False").await?;
            ensure!(refused.reason == "NotAllowed", "{refused:?}");
            let words =
                "spec.sidecar.resources.limits.memory (1Gi) is above policies.maxMemory (256Mi) of the chart";
            ensure!(refused.message.contains(words), "{refused:?}");
            ensure!(sandbox.event("NotAllowed").await?.contains(words), "no event");
            agent.get("http://app/items/1").await?;
            ensure_hit(&agent.get("http://app/items/1").await?)?;
            // A pod that is created meanwhile gets a sidecar within the bound.
            let pod = pod_of(workload.template()?, "later");
            // API servers may still hold connections to replicas with the former bounds.
            eventually("the sidecar is within the bound", SHORT_TIMEOUT, async || {
                let pod = apply::dry_run(&sandbox.client, &sandbox.name, &pod).await?;
                let sidecar = sidecar_of(&pod.data).context("no sidecar")?;
                ensure!(sidecar["resources"]["limits"]["memory"] == "256Mi", "{sidecar}");
                Ok(())
            })
            .await?;

            policy.change(json!({"sidecar": {"resources": {"limits": {"memory": "256Mi"}}}})).await?;
            policy.serves(1).await?;
            let other = sandbox
                .policy("other", &IN_MEMORY.replace("300s", "48h").replace("app: app", "app: other"))
                .await?;
            let refused = other.condition(ConditionType::Accepted, "False").await?;
            ensure!(refused.message.contains("spec.routes[0].ttl (48h"), "{refused:?}");
            Ok(())
        }
        .await;
        set_bounds(sandbox, &before).await?;
        outcome
    })
    .await
}

async fn operator(sandbox: &Sandbox) -> anyhow::Result<(Api<Deployment>, Vec<String>)> {
    let deployments = Api::<Deployment>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let operator = deployments.get(names::OPERATOR).await?;
    let pod = operator.spec.context("no spec")?.template.spec.context("no pod")?;
    Ok((deployments, pod.containers[0].args.clone().unwrap_or_default()))
}

/// Returns the bounds that the operator has.
async fn bounds(sandbox: &Sandbox) -> anyhow::Result<Value> {
    let (_, arguments) = operator(sandbox).await?;
    let bounds = arguments.iter().find_map(|argument| argument.strip_prefix(FLAG)).context("no bounds")?;
    Ok(serde_json::from_str(bounds)?)
}

/// Gives the operator other bounds, as an upgrade of the chart does.
async fn set_bounds(sandbox: &Sandbox, bounds: &Value) -> anyhow::Result<()> {
    let (deployments, mut arguments) = operator(sandbox).await?;
    for argument in arguments.iter_mut().filter(|argument| argument.starts_with(FLAG)) {
        *argument = format!("{FLAG}{bounds}");
    }
    let container = json!({"name": "operator", "args": arguments});
    let patch = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    deployments.patch(names::OPERATOR, &Default::default(), &Patch::Strategic(patch)).await?;
    cluster::operator_is_ready(&sandbox.client).await
}
