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
    // The pod's own resources count in place of those of its containers.
    usage.retain(|resource, _| !of_whole(pod).contains_key(resource));
    usage
}

/// Returns the requests and limits that a pod has as a whole.
fn of_whole(pod: &Value) -> Usage {
    let mut usage = Usage::new();
    add(&mut usage, &pod["spec"]);
    usage
}

/// Returns the sum of what a sidecar takes beyond the `current` sidecar of each of some pods, and the largest of these.
pub fn growth(sidecar: &Usage, current: &[Usage]) -> (Usage, Usage) {
    let (mut sum, mut largest) = (Usage::new(), Usage::new());
    for before in current {
        for (resource, amount) in sidecar {
            let more = (amount - before.get(resource).copied().unwrap_or_default()).max(0);
            *sum.entry(resource.clone()).or_default() += more;
            let largest = largest.entry(resource.clone()).or_default();
            *largest = more.max(*largest);
        }
    }
    (sum, largest)
}

/// Returns the requests and limits of a pod: the sum over its containers and native sidecars.
pub fn of_pod(pod: &Value) -> Usage {
    let spec = &pod["spec"];
    let list = |key: &str| spec[key].as_array().into_iter().flatten();
    let native = list("initContainers").filter(|container| container["restartPolicy"] == "Always");
    let mut usage = Usage::new();
    list("containers").chain(native).for_each(|container| add(&mut usage, container));
    usage.extend(of_whole(pod));
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
    /// Sum of what the sidecars take beyond those that there are.
    pub growth: &'a Usage,
    /// The largest part of one pod in it.
    pub largest: &'a Usage,
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
    let of = |usage: &Usage| usage.get(&key).copied().unwrap_or_default();
    let growth = of(need.growth);
    // The last pod to be replaced is there beside all sidecars but its own.
    Some(need.beside.map_or(growth, |pod| growth - of(need.largest) + of(pod)))
}

/// Returns true if a quota counts a pod. Scopes that depend on more than the pod's spec are left to the API server.
pub fn applies(quota: &ResourceQuota, pod: &Value) -> bool {
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
        let (growth, largest) = growth(&of_sidecar(&pod), &vec![Usage::new(); sidecars]);
        let beside = beside.then_some(&whole);
        let need = Need { growth: &growth, largest: &largest, beside, pod: &pod };
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
    fn growth_is_the_difference_to_the_current_sidecars() {
        let memory =
            |text: &str| Usage::from([("limits.memory".to_owned(), nanos(&Quantity(text.into())).unwrap())]);
        let (sum, largest) = growth(&memory("512Mi"), &[memory("128Mi"), memory("1Gi"), Usage::new()]);
        assert_eq!(sum, memory("896Mi"));
        assert_eq!(largest, memory("512Mi"));
    }

    #[test]
    fn pod_with_resources_of_its_own_counts_as_a_whole() {
        let mut pod = pod();
        pod["spec"]["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert!(!of_sidecar(&pod).contains_key("limits.memory"));
        assert!(of_sidecar(&pod).contains_key("requests.cpu"));
        assert_eq!(of_pod(&pod)["limits.memory"], nanos(&Quantity("1Gi".into())).unwrap());
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
