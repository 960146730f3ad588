//! A policy in a namespace, and what its status says.

use anyhow::{Context, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, api::Patch};
use larder_api::{API_VERSION, KIND, names};
use larder_crds::{CachePolicy, CachePolicyStatus, ConditionType};
use serde_json::{Value, json};

use crate::{
    Sandbox, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    workload::pod_of,
};

/// A policy of a test's namespace.
pub struct Policy<'a> {
    sandbox: &'a Sandbox,
    /// Name of the policy.
    pub name: String,
    api: Api<CachePolicy>,
}

/// A policy as it would be applied, from the YAML of its spec.
pub fn manifest(name: &str, spec: &str) -> anyhow::Result<Value> {
    let spec: Value = serde_yaml::from_str(spec).context("the spec is not YAML")?;
    Ok(json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}))
}

impl<'a> Policy<'a> {
    /// The policy of that name, whether it is there or not.
    pub fn of(sandbox: &'a Sandbox, name: &str) -> Self {
        Self { sandbox, name: name.to_owned(), api: Api::namespaced(sandbox.client.clone(), &sandbox.name) }
    }

    /// Changes fields of its spec, as a merge patch.
    pub async fn change(&self, spec: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api.patch(&self.name, &Default::default(), &patch).await?;
        Ok(())
    }

    /// Returns the spec.
    pub async fn spec(&self) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self.api.get(&self.name).await?.spec)?)
    }

    /// Deletes it.
    pub async fn delete(&self) -> anyhow::Result<()> {
        self.api.delete(&self.name, &Default::default()).await?;
        Ok(())
    }

    /// Returns the status, if it refers to the current generation.
    pub async fn status(&self) -> anyhow::Result<CachePolicyStatus> {
        let policy = self.api.get(&self.name).await?;
        let status = policy.status.context("it has no status yet")?;
        ensure!(
            status.observed_generation == policy.metadata.generation,
            "its status is about generation {:?}, not {:?}",
            status.observed_generation,
            policy.metadata.generation
        );
        Ok(status)
    }

    /// Waits until its status passes a check.
    pub async fn eventually(
        &self,
        what: &str,
        deadline: std::time::Duration,
        check: impl Fn(&CachePolicyStatus) -> anyhow::Result<()>,
    ) -> anyhow::Result<CachePolicyStatus> {
        eventually(what, deadline, async || {
            let status = self.status().await?;
            check(&status).with_context(|| format!("{status:?}"))?;
            Ok(status)
        })
        .await
    }

    /// Waits until the policy is in force in so many pods and no others are selected.
    pub async fn serves(&self, pods: i32) -> anyhow::Result<CachePolicyStatus> {
        let what = format!("policy {} is in force in {pods} pods", self.name);
        self.eventually(&what, ROLLOUT_TIMEOUT, |status| {
            let counts = status.pods;
            ensure!(counts.matched == pods, "matched is not {pods}");
            ensure!(counts.missed == 0, "missed is not 0");
            for count in [counts.injected, counts.current, counts.ready] {
                ensure!(count == pods, "not in all of them");
            }
            has(status, ConditionType::Ready, "True").map(drop)
        })
        .await
    }

    /// Waits until a condition has that status, and gives it.
    pub async fn condition(&self, which: ConditionType, wanted: &str) -> anyhow::Result<Condition> {
        let what = format!("condition {} of policy {} is {wanted}", which.as_str(), self.name);
        let status =
            self.eventually(&what, SHORT_TIMEOUT, |status| has(status, which, wanted).map(drop)).await?;
        has(&status, which, wanted).cloned()
    }

    /// Waits until pods that are created from now on get the sidecar.
    pub async fn injects(&self, template: &Value) -> anyhow::Result<()> {
        let pod = pod_of(template.clone(), "larder-e2e-probe");
        eventually("the webhook injects", SHORT_TIMEOUT, async || {
            let pod = crate::apply::dry_run(&self.sandbox.client, &self.sandbox.name, &pod).await?;
            ensure!(has_sidecar(&pod.data), "a pod would be created without the sidecar: {:?}", pod.metadata);
            Ok(())
        })
        .await
    }
}

/// The condition, if it has that status.
pub fn has<'s>(
    status: &'s CachePolicyStatus,
    which: ConditionType,
    wanted: &str,
) -> anyhow::Result<&'s Condition> {
    let condition = status.conditions.iter().find(|condition| condition.type_ == which.as_str());
    let condition = condition.with_context(|| format!("no condition {}", which.as_str()))?;
    ensure!(condition.status == wanted, "{} is not {wanted} but {condition:?}", which.as_str());
    Ok(condition)
}

/// Returns true if a pod, as JSON, has the sidecar.
pub fn has_sidecar(pod: &Value) -> bool {
    sidecar_of(pod).is_some()
}

/// The sidecar's container of a pod, as JSON.
pub fn sidecar_of(pod: &Value) -> Option<&Value> {
    let containers = pod["spec"]["initContainers"].as_array()?;
    containers.iter().find(|container| container["name"] == names::SIDECAR)
}
