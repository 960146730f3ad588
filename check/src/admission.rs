//! Pods that are tried by dry runs.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::util::intstr::IntOrString};
use kube::{Api, Client, ResourceExt, api::PostParams};
use larder_api::{annotations, names};
use larder_crds::{CachePolicy, CaptureMode, ConditionType};
use serde_json::{Value, json};

use crate::{Checked, Fault};

/// Field manager of dry runs.
const FIELD_MANAGER: &str = "larder-check";

/// Remedy where the API server doesn't reach the webhook: the causes in the order in which they are found soonest.
const REACH: &str = "check in this order that the operator's pods are ready and endpoints of its Service, that the certificate in the caBundle of the \
                     webhook's configuration has not expired (the operator's log says why it is not renewed), and that the API server reaches \
                     the webhook's port of these pods (firewalls, NetworkPolicies; the chart's webhook.port and hostNetwork)";

/// Checks by a dry run that the API server calls the webhook for a pod of a policy.
///
/// # Errors
/// The fault.
pub async fn admit(client: &Client, policy: &CachePolicy, pod: &Pod) -> Checked {
    let namespace = policy.namespace().unwrap_or_default();
    let policy = format!("{namespace}/{}", policy.name_any());
    match try_pod(client, &namespace, pod).await {
        Ok(Ok(created)) => injected(&policy, &created),
        Ok(Err(words)) => Err(Fault::Untried {
            reason: format!(
                "the API server refuses a pod for the policy {policy}, so that the injection could not be tried: {words}"
            ),
            remedy: "create a pod of the application itself, and look for the sidecar in it".to_owned(),
        }),
        Err(fault) => Err(fault),
    }
}

/// Has a pod created by a dry run. Returns it as it would be created, or the API server's words if it would be refused for its contents.
///
/// # Errors
/// The fault of a request that failed, or that the user may not make.
pub async fn try_pod(client: &Client, namespace: &str, pod: &Pod) -> Result<Result<Pod, String>, Fault> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let options = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.into()) };
    match pods.create(&options, pod).await {
        Ok(created) => Ok(Ok(created)),
        Err(error) => refusal(error).map(Err),
    }
}

/// Returns the words of a refusal for the pod's contents.
///
/// # Errors
/// The fault, of any other error.
fn refusal(error: kube::Error) -> Result<String, Fault> {
    match error {
        kube::Error::Api(status) if lacks_webhook(&status.message) => {
            Err(Fault::wrong(format!("no pod can be created: {}", status.message), REACH))
        }
        kube::Error::Api(status)
            if matches!(status.code, 400 | 403 | 422) && !lacks_right(&status.message) =>
        {
            Ok(status.message)
        }
        error => Err(Fault::unknown("create a pod, by a dry run,", error)),
    }
}

/// Returns true if words say that the API server calls the webhook without success.
fn lacks_webhook(words: &str) -> bool {
    words.contains(&format!("failed calling webhook {:?}", names::WEBHOOK))
}

/// Returns true if words are RBAC's refusal, not that of an admission plugin.
fn lacks_right(words: &str) -> bool {
    words.contains(" is forbidden: User ") && words.contains(" cannot create resource ")
}

/// Returns true if a policy gives pods a sidecar.
pub fn injects(policy: &CachePolicy) -> bool {
    let mut conditions = policy.status.iter().flat_map(|status| &status.conditions);
    let accepted = ConditionType::Accepted.as_str();
    let in_force = conditions.any(|one| one.type_ == accepted && one.status == "True");
    in_force && policy.spec.capture.mode != CaptureMode::None
}

/// Returns a pod for which a policy in force decides; `None` if that cannot be told.
pub fn pod_of(policy: &CachePolicy) -> Option<Pod> {
    let selector = &policy.spec.selector;
    let labels = selector.match_labels.as_ref().filter(|labels| !labels.is_empty())?;
    let is_simple = selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if !injects(policy) || !is_simple {
        return None;
    }
    let ports = policy.spec.targets.iter().zip(0_u16..).map(|(target, index)| match &target.port {
        IntOrString::Int(number) => json!({ "name": format!("port-{index}"), "containerPort": number }),
        IntOrString::String(name) => json!({ "name": name, "containerPort": 8080 + index }),
    });
    let resources = json!({ "cpu": "10m", "memory": "16Mi" });
    let resources = json!({ "requests": resources, "limits": resources });
    Some(restricted_pod(labels, ports.collect(), &resources))
}

/// Returns a pod that the `restricted` Pod Security Standard admits.
pub fn restricted_pod(labels: &BTreeMap<String, String>, ports: Vec<Value>, resources: &Value) -> Pod {
    let pod = json!({
        "metadata": { "generateName": "larder-check-", "labels": labels },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "app",
                "image": "larder.dev/check",
                "ports": ports,
                "resources": resources,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
            }],
        },
    });
    serde_json::from_value(pod).expect("it is a pod")
}

/// Returns the result for a pod as the API server would create it.
fn injected(policy: &str, created: &Pod) -> Checked {
    let mut containers =
        created.spec.iter().flat_map(|spec| &spec.init_containers).flatten().map(|one| one.name.as_str());
    if containers.any(|name| name == names::SIDECAR) {
        return Ok(format!("a pod of the policy {policy} would get the sidecar"));
    }
    match created.annotations().get(annotations::SKIPPED) {
        Some(reason) => {
            Ok(format!("the webhook is called for the policy {policy}, and skips the pod tried: {reason}"))
        }
        None => Err(Fault::wrong(
            format!("a pod of the policy {policy} would be created without the sidecar"),
            REACH,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value, accepted: &str) -> CachePolicy {
        let condition = json!({
            "type": "Accepted", "status": accepted, "reason": "a", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let policy = json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "CachePolicy",
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": spec,
            "status": {"conditions": [condition], "pods": {"matched": 0, "injected": 0, "ready": 0, "current": 0, "missed": 0}},
        });
        serde_json::from_value(policy).unwrap()
    }

    #[test]
    fn pod_has_the_labels_and_the_ports_of_its_policy() {
        let spec = json!({
            "selector": {"matchLabels": {"app": "shop"}},
            "targets": [{"port": "http"}, {"port": 9000}],
        });
        let pod = serde_json::to_value(pod_of(&policy(spec.clone(), "True")).unwrap()).unwrap();
        assert_eq!(pod["metadata"]["labels"], json!({"app": "shop"}));
        assert_eq!(
            pod["spec"]["containers"][0]["ports"],
            json!([{"name": "http", "containerPort": 8080}, {"name": "port-1", "containerPort": 9000}])
        );
        assert_eq!(pod_of(&policy(spec.clone(), "False")), None, "it is not in force");
        let mut other = spec.clone();
        other["capture"] = json!({"mode": "None"});
        assert_eq!(pod_of(&policy(other, "True")), None, "it gives no pod a sidecar");
        let mut other = spec;
        other["selector"]["matchExpressions"] = json!([{"key": "tier", "operator": "Exists"}]);
        assert_eq!(pod_of(&policy(other, "True")), None, "its labels are not known");
    }

    #[test]
    fn pod_that_the_webhook_did_not_see_fails_with_a_remedy() {
        let said = |pod: Value| {
            let pod = serde_json::from_value(pod).unwrap();
            injected("shop/shop", &pod).map_err(|fault| fault.to_string())
        };
        let sidecar = json!({"spec": {"containers": [], "initContainers": [{"name": names::SIDECAR}]}});
        assert!(said(sidecar).unwrap().contains("would get the sidecar"));
        let skipped = json!({"metadata": {"annotations": {"larder.dev/skipped": "HostPort: a"}}});
        assert!(said(skipped).unwrap().contains("HostPort: a"));
        let without = said(json!({})).unwrap_err();
        let places: Vec<_> =
            ["pods are ready", "caBundle", "webhook.port"].iter().map(|cause| without.find(cause)).collect();
        assert!(places.is_sorted() && places[0].is_some(), "{without}");
    }

    #[test]
    fn only_words_on_the_pods_contents_are_a_refusal() {
        let answer = |code: u16, message: &str| {
            let status = kube::core::Status { code, message: message.to_owned(), ..Default::default() };
            refusal(kube::Error::Api(Box::new(status)))
        };
        for code in [400, 403, 422] {
            assert_eq!(answer(code, "exceeded quota").unwrap(), "exceeded quota");
        }
        for code in [401, 429, 500, 503] {
            assert!(matches!(answer(code, "no"), Err(Fault::Unknown { .. })), "{code}");
        }
        let webhook =
            |name: &str| format!("Internal error occurred: failed calling webhook \"{name}\": timeout");
        let unreachable = answer(500, &webhook(names::WEBHOOK)).unwrap_err();
        assert!(matches!(unreachable, Fault::Wrong { .. }), "{unreachable}");
        assert!(unreachable.to_string().contains("pods are ready"), "{unreachable}");
        assert!(matches!(answer(500, &webhook("other.test")), Err(Fault::Unknown { .. })));
    }

    #[test]
    fn lack_of_a_right_is_told_from_a_refused_pod() {
        let rbac = r#"pods is forbidden: User "jane" cannot create resource "pods" in API group "" in the namespace "shop""#;
        assert!(lacks_right(rbac));
        let plugin = r#"pods "a" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false"#;
        assert!(!lacks_right(plugin));
    }
}
