//! Resource quotas of a namespace, against the pods that a rollout would create.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceQuota, apimachinery::pkg::api::resource::Quantity};
use larder_api::names;
use serde_json::Value;

use crate::quantity::nanos;

/// Requests and limits, by their names in a quota, in billionths.
pub type Usage = BTreeMap<String, i128>;

/// Returns the requests and limits of a pod's sidecar.
pub fn of_sidecar(pod: &Value) -> Usage {
    let mut usage = Usage::new();
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers.filter(|container| container["name"] == names::SIDECAR).for_each(|one| add(&mut usage, one));
    usage
}

/// Returns the requests and limits of a pod: the sum over its containers and native sidecars.
pub fn of_pod(pod: &Value) -> Usage {
    let spec = &pod["spec"];
    let list = |key: &str| spec[key].as_array().into_iter().flatten();
    let native = list("initContainers").filter(|container| container["restartPolicy"] == "Always");
    let mut usage = Usage::new();
    list("containers").chain(native).for_each(|container| add(&mut usage, container));
    usage.insert("pods".into(), nanos(&Quantity("1".into())).unwrap_or_default());
    usage
}

fn add(usage: &mut Usage, container: &Value) {
    for kind in ["requests", "limits"] {
        for (resource, value) in container["resources"][kind].as_object().into_iter().flatten() {
            let quantity = value.as_str().and_then(|text| nanos(&Quantity(text.to_owned())));
            *usage.entry(format!("{kind}.{resource}")).or_default() += quantity.unwrap_or_default();
        }
    }
}

/// A rollout's need beyond the current use.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// Pods that get a sidecar which they do not have now.
    pub sidecars: usize,
    /// Requests and limits of each sidecar.
    pub sidecar: &'a Usage,
    /// The whole pod that exists beside the others while it replaces one of them; `None` if a pod is deleted first.
    pub beside: Option<&'a Usage>,
    /// The pod, for the scopes of quotas.
    pub pod: &'a Value,
}

/// Returns the first quota that a rollout would exceed, as a sentence.
pub fn exceeded(quotas: &[ResourceQuota], need: &Need<'_>) -> Option<String> {
    quotas.iter().filter(|quota| applies(quota, need.pod)).find_map(|quota| {
        let hard = quota.status.as_ref().and_then(|status| status.hard.as_ref());
        let hard = hard.or_else(|| quota.spec.as_ref()?.hard.as_ref())?;
        let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
        hard.iter().find_map(|(resource, limit)| {
            let wanted = wanted(resource, need)?;
            let in_use = used.and_then(|used| used.get(resource));
            let left = nanos(limit)? - in_use.and_then(nanos).unwrap_or_default();
            let name = quota.metadata.name.as_deref().unwrap_or_default();
            let used = in_use.map_or("0", |used| &used.0);
            (wanted > left && wanted > 0).then(|| {
                format!(
                    "the ResourceQuota {name} allows {resource} of {}, of which {used} is used, and the rollout needs {} \
                     more",
                    limit.0,
                    written(resource, wanted)
                )
            })
        })
    })
}

/// Returns the amount of a quota's resource that a rollout needs beyond the current use.
fn wanted(resource: &str, need: &Need<'_>) -> Option<i128> {
    let key = match resource {
        "cpu" | "memory" => format!("requests.{resource}"),
        "count/pods" => "pods".to_owned(),
        other => other.to_owned(),
    };
    let sidecar = need.sidecar.get(&key).copied().unwrap_or_default();
    let sidecars = i128::try_from(need.sidecars).ok()?;
    Some(match need.beside {
        // The last pod to be replaced is there beside all sidecars but its own.
        Some(pod) => (sidecars - 1).max(0).checked_mul(sidecar)? + pod.get(&key).copied().unwrap_or_default(),
        None => sidecars.checked_mul(sidecar)?,
    })
}

/// Returns true if a quota counts a pod. Scopes that depend on more than the pod's spec are left to the API server.
fn applies(quota: &ResourceQuota, pod: &Value) -> bool {
    let Some(spec) = &quota.spec else { return false };
    if spec.scope_selector.is_some() {
        return false;
    }
    let ends = !pod["spec"]["activeDeadlineSeconds"].is_null();
    spec.scopes.iter().flatten().all(|scope| match scope.as_str() {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        // The sidecar has requests.
        "NotBestEffort" => true,
        _ => false,
    })
}

/// Writes an amount in the unit that is usual for a resource.
fn written(resource: &str, nanos: i128) -> String {
    let rounded = |unit: i128| (nanos + unit - 1) / unit;
    if resource.ends_with("cpu") {
        format!("{}m", rounded(1_000_000))
    } else if resource.ends_with("memory") {
        format!("{}Mi", rounded((1 << 20) * 1_000_000_000))
    } else {
        rounded(1_000_000_000).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({"spec": {
            "initContainers": [
                {"name": "setup", "resources": {"requests": {"memory": "1Gi"}}},
                {"name": names::SIDECAR, "restartPolicy": "Always",
                    "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}}},
            ],
            "containers": [{"name": "app", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}],
        }})
    }

    fn quota(hard: Value, used: Value) -> ResourceQuota {
        let spec = json!({"hard": hard});
        serde_json::from_value(
            json!({"metadata": {"name": "team"}, "spec": spec, "status": {"hard": hard, "used": used}}),
        )
        .unwrap()
    }

    fn check(quota: &ResourceQuota, sidecars: usize, beside: bool) -> Option<String> {
        let pod = pod();
        let whole = of_pod(&pod);
        let need = Need { sidecars, sidecar: &of_sidecar(&pod), beside: beside.then_some(&whole), pod: &pod };
        exceeded(std::slice::from_ref(quota), &need)
    }

    #[test]
    fn sidecars_of_all_replicas_must_fit() {
        let quota = quota(json!({"limits.memory": "512Mi"}), json!({"limits.memory": "256Mi"}));
        assert_eq!(check(&quota, 2, false), None);
        let message = check(&quota, 3, false).unwrap();
        assert!(message.contains("ResourceQuota team"), "{message}");
        assert!(message.contains("limits.memory of 512Mi, of which 256Mi is used"), "{message}");
        assert!(message.ends_with("needs 384Mi more"), "{message}");
    }

    #[test]
    fn pod_beside_the_others_must_fit() {
        let quota =
            quota(json!({"cpu": "300m", "count/pods": "3"}), json!({"cpu": "150m", "count/pods": "2"}));
        assert_eq!(check(&quota, 2, true), None, "20m and 120m");
        assert!(check(&quota, 3, true).is_some(), "40m and 120m");
        let full = self::quota(json!({"pods": "2"}), json!({"pods": "2"}));
        assert!(check(&full, 2, true).unwrap().contains("needs 1 more"));
        assert_eq!(check(&full, 2, false), None, "a pod is deleted before its successor is created");
    }

    #[test]
    fn quota_of_another_scope_does_not_count() {
        let mut quota = quota(json!({"limits.memory": "1"}), json!({}));
        let mut scoped = |scopes: Value| {
            quota.spec.as_mut().unwrap().scopes = serde_json::from_value(scopes).unwrap();
            check(&quota, 1, false).is_some()
        };
        assert!(scoped(json!(null)) && scoped(json!(["NotTerminating", "NotBestEffort"])));
        assert!(!scoped(json!(["Terminating"])) && !scoped(json!(["BestEffort"])));
    }
}
