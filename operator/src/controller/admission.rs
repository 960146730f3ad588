//! The API server's answer, by a dry run, for a pod that a workload would create.

use std::fmt::Debug;

use k8s_openapi::api::{
    core::v1::{Pod, ResourceQuota},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource,
    api::{DynamicObject, ListParams, PostParams},
    core::{ApiResource, NamespaceResourceScope},
};
use larder_api::{annotations, labels, names};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    disruption,
    error::{Error, Result},
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
            let remedy = remedy(&message).map(|remedy| format!("; {remedy}")).unwrap_or_default();
            Answer::Refused(format!("the API server refuses a pod of it {how}: {message}{remedy}"))
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
    let pod = pod_of(workload);
    let Answer::Refused(message) = create(client, &workload.namespace, &pod).await? else { return Ok(None) };
    let plain = create(client, &workload.namespace, &without_sidecar(pod)).await?;
    Ok(matches!(plain, Answer::Created(_)).then_some(message))
}

/// The API server's answer.
enum Answer {
    /// The pod as it would be created.
    Created(Value),
    /// The reason that the pod would be refused.
    Refused(String),
    /// A webhook does not support dry runs.
    Unknown,
}

async fn create(client: &Client, namespace: &str, pod: &Value) -> Result<Answer> {
    let resource = ApiResource::erase::<Pod>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let options = PostParams { dry_run: true, field_manager: Some(names::FIELD_MANAGER.into()) };
    let pod = serde_json::from_value(pod.clone())?;
    match api.create(&options, &pod).await {
        Ok(created) => Ok(Answer::Created(serde_json::to_value(created)?)),
        Err(kube::Error::Api(status)) if matches!(status.code, 429 | 503 | 504) => {
            Err(Error::Kubernetes(kube::Error::Api(status)))
        }
        Err(kube::Error::Api(status)) if status.message.contains("does not support dry run") => {
            Ok(Answer::Unknown)
        }
        Err(kube::Error::Api(status)) => Ok(Answer::Refused(status.message)),
        Err(error) => Err(error.into()),
    }
}

/// Returns the pod of a template, with a name that begins with the owner's.
fn named_pod(template: &Value, owner: &str) -> Value {
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["generateName"] = json!(format!("{owner}-"));
    pod
}

/// Returns a pod that the webhook leaves alone.
fn without_sidecar(mut pod: Value) -> Value {
    pod["metadata"]["labels"][labels::INJECT] = json!("false");
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

/// Returns true if a quota on the number of pods alone is exceeded.
fn is_quota_of_pods(message: &str) -> bool {
    let requested =
        message.split_once("requested: ").and_then(|(_, rest)| Some(rest.split_once(", used: ")?.0));
    let mut amounts = requested.iter().flat_map(|requested| requested.split(',')).peekable();
    let is_count = |amount: &str| matches!(amount.split_once('='), Some(("pods" | "count/pods", _)));
    is_quota(message) && amounts.peek().is_some() && amounts.all(is_count)
}

fn is_quota(message: &str) -> bool {
    message.contains("exceeded quota")
}

/// Returns the remedy for a refusal by one of Kubernetes' own admission plugins, from its words.
fn remedy(message: &str) -> Option<String> {
    if let Some(resource) = unspecified(message) {
        return Some(
            if ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"].contains(&resource) {
                format!("set sidecar.resources.{resource} in the policy")
            } else {
                format!(
                    "give the namespace a LimitRange with a default for {resource}, which a policy cannot set"
                )
            },
        );
    }
    if message.contains("o limit is specified") {
        let resource = if message.contains("memory ") { "memory" } else { "cpu" };
        return Some(format!("set sidecar.resources.limits.{resource} in the policy"));
    }
    [
        (is_quota(message), "raise the quota, or lower sidecar.resources in the policy"),
        (
            message.contains("violates PodSecurity") && message.contains(names::REDIRECT),
            "capture.mode Redirect needs a namespace with the label pod-security.kubernetes.io/enforce=privileged; set it, or choose \
             another capture.mode",
        ),
        (
            message.contains("violates PodSecurity"),
            "correct the pod template, because the sidecar meets the restricted standard",
        ),
        (
            message.contains("max limit to request ratio"),
            "bring sidecar.resources.limits and requests closer together in the policy",
        ),
        (
            message.contains("minimum ") && message.contains(" usage per "),
            "raise sidecar.resources in the policy",
        ),
        (
            message.contains("maximum ") && message.contains(" usage per "),
            "lower sidecar.resources in the policy",
        ),
    ]
    .into_iter()
    .find_map(|(is_so, remedy)| is_so.then(|| remedy.to_owned()))
}

/// Returns the resource that a quota requires and the sidecar does not have: the words are `must specify limits.cpu for:
/// app,larder-sidecar; requests.cpu for: app`.
fn unspecified(message: &str) -> Option<&str> {
    let (_, list) = message.split_once("must specify ")?;
    list.split("; ").find_map(|item| {
        let (resource, containers) = item.split_once(" for: ")?;
        containers.split([',', ' ']).any(|name| name == names::SIDECAR).then_some(resource)
    })
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

    #[test]
    fn quota_on_the_number_of_pods_is_told_from_others() {
        let message = |requested: &str| {
            format!(
                "pods \"a\" is forbidden: exceeded quota: q, requested: {requested}, used: pods=2, limited: pods=2"
            )
        };
        assert!(is_quota_of_pods(&message("pods=1")));
        assert!(is_quota_of_pods(&message("count/pods=1,pods=1")));
        assert!(!is_quota_of_pods(&message("limits.cpu=1,pods=1")));
        assert!(!is_quota_of_pods("exceeded quota: q"));
        assert!(!is_quota_of_pods("violates PodSecurity, requested: pods=1, used: pods=1"));
    }

    #[test]
    fn refusals_by_kubernetes_have_a_remedy() {
        let cases = [
            (
                "pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: larder-sidecar",
                Some("set sidecar.resources.limits.cpu"),
            ),
            ("failed quota: q: must specify limits.cpu for: app", None),
            (
                "failed quota: q: must specify limits.ephemeral-storage for: app,larder-sidecar",
                Some("a LimitRange with a default for limits.ephemeral-storage"),
            ),
            (
                "failed quota: q: must specify limits.cpu for: app; requests.ephemeral-storage for: larder-sidecar",
                Some("a default for requests.ephemeral-storage"),
            ),
            (
                "maximum cpu usage per Container is 1.  No limit is specified",
                Some("set sidecar.resources.limits.cpu"),
            ),
            (
                "cpu max limit to request ratio per Pod is 2, but no limit is specified or limit is 0",
                Some("set sidecar.resources.limits.cpu"),
            ),
            (
                "exceeded quota: q, requested: limits.memory=192Mi, used: limits.memory=0, limited: limits.memory=128Mi",
                Some("raise the quota"),
            ),
            (
                "[minimum cpu usage per Container is 100m, but request is 20m]",
                Some("raise sidecar.resources"),
            ),
            ("maximum memory usage per Pod is 128Mi, but limit is 192Mi", Some("lower sidecar.resources")),
            (
                "cpu max limit to request ratio per Container is 2, but provided ratio is 5.000000",
                Some("closer together"),
            ),
            (
                "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
                Some("correct the pod template"),
            ),
            (
                "violates PodSecurity \"baseline:latest\": container \"larder-redirect\" must not include \"NET_ADMIN\"",
                Some("needs a namespace with the label"),
            ),
            ("admission webhook \"x\" denied the request: no", None),
        ];
        for (message, expected) in cases {
            let found = remedy(message);
            assert_eq!(found.is_some(), expected.is_some(), "{message}: {found:?}");
            assert!(
                expected.is_none_or(|words| found.as_ref().unwrap().contains(words)),
                "{message}: {found:?}"
            );
        }
    }
}
