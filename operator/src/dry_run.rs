//! Pods that are created by a dry run: the API server says whether it would refuse them.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::ApiResource,
};
use larder_api::{annotations, labels, names};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The API server's answer.
#[derive(Debug)]
pub enum Answer {
    /// The pod as it would be created.
    Created(Value),
    /// The reason that the pod would be refused.
    Refused(String),
    /// A webhook does not support dry runs.
    Unknown,
}

/// Asks for the creation of a pod, without creating it.
///
/// # Errors
/// If there is no answer.
pub async fn create(client: &Client, namespace: &str, pod: &Value) -> Result<Answer> {
    let resource = ApiResource::erase::<Pod>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let options = PostParams { dry_run: true, field_manager: Some(names::FIELD_MANAGER.into()) };
    let mut pod = pod.clone();
    pod["metadata"]["annotations"][annotations::TRIAL] = json!("true");
    let pod = serde_json::from_value(pod)?;
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

/// Returns the API server's words if it refuses a pod with the sidecar and not without.
///
/// # Errors
/// If there is no answer.
pub async fn refusal(client: &Client, namespace: &str, pod: &Value) -> Result<Option<String>> {
    let Answer::Refused(words) = create(client, namespace, pod).await? else { return Ok(None) };
    let plain = create(client, namespace, &without_sidecar(pod.clone())).await?;
    Ok(matches!(plain, Answer::Created(_)).then_some(words))
}

/// Returns a pod that the webhook leaves alone.
pub fn without_sidecar(mut pod: Value) -> Value {
    pod["metadata"]["labels"][labels::INJECT] = json!("false");
    pod
}

/// Returns the API server's words, with the remedy where it is known.
pub fn remedied(words: &str) -> String {
    remedy(words).map_or_else(|| words.to_owned(), |remedy| format!("{words}; {remedy}"))
}

/// Returns true if a quota on the number of pods alone is exceeded.
pub fn is_quota_of_pods(message: &str) -> bool {
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
