//! The API server's answer, by a dry run, for a pod that a workload would create.

use std::fmt::Debug;

use k8s_openapi::api::{core::v1::ResourceQuota, policy::v1::PodDisruptionBudget};
use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use larder_api::annotations;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    disruption,
    dry_run::{self, Answer, create, is_quota_of_pods, remedied, without_sidecar},
    error::Result,
    inject::has_sidecar,
    policy_pods::PodReport,
    quota,
    rollout::{Deviation, HoldReason},
    workload::Workload,
};

/// The reason against a restart, with a clause for users.
pub(super) type Refusal = (HoldReason, String);

/// Result of a trial.
pub(super) enum Trial {
    /// The restart may begin.
    Admitted {
        /// True if other restarts in the namespace would take from the same quota or budget.
        alone: bool,
    },
    /// The restart must not begin.
    Refused(Refusal),
}

/// Tries a restart of a workload for a deviation of its `pods`, without creating anything. A budget or a quota that the
/// restart would exceed is against it, or the refusal of a pod as the workload would create it.
pub(super) async fn try_restart(
    client: &Client,
    workload: &Workload,
    pods: &[&PodReport],
    deviation: Deviation,
) -> Result<Trial> {
    let refused = |reason, message: String| {
        Ok(Trial::Refused((reason, format!("{workload} is not restarted, because {message}"))))
    };
    let budgets: Vec<PodDisruptionBudget> = list(client, &workload.namespace).await?;
    let (own_labels, replacement) = (workload.labels(), workload.replacement);
    let bounded = budgets.iter().any(|budget| disruption::applies(budget, &own_labels, replacement));
    let broken = pods.iter().filter(|pod| pod.obstacle.is_some()).count();
    let broken = i32::try_from(broken).unwrap_or(i32::MAX);
    if let Some(exceeded) = disruption::exceeded(&budgets, &own_labels, replacement, broken) {
        let command = workload.restart_command();
        let message = format!("{exceeded}: restart it by hand at a suitable time, with `{command}`");
        return refused(HoldReason::DisruptionBudget, message);
    }
    let created = match try_pod(client, workload).await? {
        Answer::Created(created) => created,
        Answer::Unknown => return Ok(Trial::Admitted { alone: true }),
        Answer::Refused(message) => return refused(HoldReason::AdmissionRefused, message),
    };
    if deviation == Deviation::Stray {
        return Ok(Trial::Admitted { alone: bounded });
    }
    if !has_sidecar(&created) {
        let message = format!("its pods would be created without the sidecar: {}", why_plain(&created));
        return refused(HoldReason::NotInjected, message);
    }
    let quotas: Vec<ResourceQuota> = list(client, &workload.namespace).await?;
    if let Some(exceeded) = quota_exceeded(&quotas, workload, pods, &created) {
        let message = format!("{exceeded}: raise the quota, or lower sidecar.resources in the policy");
        return refused(HoldReason::AdmissionRefused, message);
    }
    Ok(Trial::Admitted { alone: bounded || quotas.iter().any(|quota| quota::applies(quota, &created)) })
}

/// Returns the objects of a kind in a namespace.
pub(super) async fn list<K>(client: &Client, namespace: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    Ok(Api::<K>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?.items)
}

/// Has the API server judge a pod of a workload; the reason of a refusal is a clause with the remedy.
async fn try_pod(client: &Client, workload: &Workload) -> Result<Answer> {
    let pod = pod_of(workload);
    Ok(match create(client, &workload.namespace, &pod).await? {
        // A pod is deleted before its successor is created, so that the number of pods stays.
        Answer::Refused(message) if is_quota_of_pods(&message) && workload.replacement.surge == 0 => {
            Answer::Created(workload.injected.clone().unwrap_or(pod))
        }
        Answer::Refused(message) => {
            let how = match create(client, &workload.namespace, &without_sidecar(pod)).await? {
                Answer::Refused(_) => "with the sidecar or without",
                Answer::Created(_) | Answer::Unknown => "with the sidecar",
            };
            Answer::Refused(format!("the API server refuses a pod of it {how}: {}", remedied(&message)))
        }
        other => other,
    })
}

/// Returns the reason that a pod would be created without the sidecar, and the remedy.
fn why_plain(created: &Value) -> &str {
    created["metadata"]["annotations"][annotations::SKIPPED].as_str().unwrap_or(
        "check that the API server reaches the webhook's port of the operator's pods (the chart's webhook.port; \
         firewalls, NetworkPolicies) and that no other webhook removes the sidecar",
    )
}

/// Returns the quota that the sidecars of all `pods` of a workload would exceed, as a sentence.
fn quota_exceeded(
    quotas: &[ResourceQuota],
    workload: &Workload,
    pods: &[&PodReport],
    created: &Value,
) -> Option<String> {
    let is_best_effort =
        |pod: &PodReport| pod.object.as_ref().is_some_and(|object| quota::is_best_effort(&json!(**object)));
    let replaced = pods.iter().filter(|pod| pod.deviation.is_some());
    let replaced: Vec<_> = replaced
        .map(|pod| quota::Replaced { sidecar: pod.usage.clone(), is_best_effort: is_best_effort(pod) })
        .collect();
    let surges = workload.replacement.surge > 0;
    quota::exceeded(quotas, &quota::Need { replaced: &replaced, surges, pod: created })
}

/// Returns the API server's words, by a dry run, if it refuses the pod of a template.
pub(super) async fn words_against(
    client: &Client,
    namespace: &str,
    template: &Value,
) -> Result<Option<String>> {
    let pod = named_pod(template, "larder-trial");
    Ok(match create(client, namespace, &pod).await? {
        Answer::Refused(message) => Some(message),
        Answer::Created(_) | Answer::Unknown => None,
    })
}

/// Returns the API server's words, by a dry run, if it refuses a pod of a workload with the sidecar and not without.
pub(super) async fn refusal(client: &Client, workload: &Workload) -> Result<Option<String>> {
    dry_run::refusal(client, &workload.namespace, &pod_of(workload)).await
}

/// Returns the pod of a template, with a name that begins with the owner's.
fn named_pod(template: &Value, owner: &str) -> Value {
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["generateName"] = json!(format!("{owner}-"));
    pod
}

/// Returns the pod that a workload would create, as it is sent to the API server.
fn pod_of(workload: &Workload) -> Value {
    let mut pod = named_pod(&workload.template, &workload.name);
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": workload.kind.api_version(),
        "kind": workload.kind.as_str(),
        "name": workload.name,
        "uid": workload.uid,
        "controller": true,
    }]);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rollout::Progress, workload::tests::workload_with};

    #[test]
    fn trial_pod_belongs_to_its_workload() {
        let pod = pod_of(&workload_with(Progress::default()));
        assert_eq!(pod["metadata"]["generateName"], "shop-");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Deployment");
        assert_eq!(pod["spec"], json!({"containers": []}));
    }
}
