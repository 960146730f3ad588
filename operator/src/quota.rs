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

/// A pod that a rollout replaces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replaced {
    /// Requests and limits of its sidecar.
    pub sidecar: Usage,
    /// True if it has neither requests nor limits, so that quotas for pods with some do not count it.
    pub is_best_effort: bool,
}

/// Returns the sum of some pods' needs, and the largest of these.
fn growth(needs: impl Iterator<Item = Usage>) -> (Usage, Usage) {
    let (mut sum, mut largest) = (Usage::new(), Usage::new());
    for (resource, amount) in needs.flatten() {
        *sum.entry(resource.clone()).or_default() += amount;
        let largest = largest.entry(resource).or_default();
        *largest = amount.max(*largest);
    }
    (sum, largest)
}

/// Returns what a sidecar takes beyond an earlier one.
fn beyond(sidecar: &Usage, before: &Usage) -> Usage {
    let more = |(resource, amount): (&String, &i128)| {
        (resource.clone(), (amount - before.get(resource).copied().unwrap_or_default()).max(0))
    };
    sidecar.iter().map(more).collect()
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
    /// The pods that are replaced.
    pub replaced: &'a [Replaced],
    /// True if a pod exists beside the others while it replaces one of them; otherwise a pod is deleted first.
    pub surges: bool,
    /// A pod as it would be created.
    pub pod: &'a Value,
}

/// Returns the first quota that a rollout would exceed, as a sentence.
pub fn exceeded(quotas: &[ResourceQuota], need: &Need<'_>) -> Option<String> {
    let (sidecar, whole) = (of_sidecar(need.pod), of_pod(need.pod));
    quotas.iter().filter(|quota| applies(quota, need.pod)).find_map(|quota| {
        let begins_to_count = scopes(quota).any(|scope| scope.name == NOT_BEST_EFFORT);
        let (growth, largest) = growth(need.replaced.iter().map(|pod| match begins_to_count {
            true if pod.is_best_effort => whole.clone(),
            _ => beyond(&sidecar, &pod.sidecar),
        }));
        let hard = quota.status.as_ref().and_then(|status| status.hard.as_ref());
        let hard = hard.or_else(|| quota.spec.as_ref()?.hard.as_ref())?;
        let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
        hard.iter().find_map(|(resource, limit)| {
            let key = key(resource);
            let of = |usage: &Usage| usage.get(&key).copied().unwrap_or_default();
            // The last pod to be replaced is there beside all sidecars but its own.
            let wanted = of(&growth) + if need.surges { of(&whole) - of(&largest) } else { 0 };
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

/// Returns the name in [`Usage`] of a quota's resource.
fn key(resource: &str) -> String {
    match resource {
        "cpu" | "memory" => format!("requests.{resource}"),
        "count/pods" => "pods".to_owned(),
        other => other.to_owned(),
    }
}

/// The scope of pods with requests or limits.
const NOT_BEST_EFFORT: &str = "NotBestEffort";

/// A scope that pods of a quota are in.
struct InScope<'a> {
    name: &'a str,
    operator: &'a str,
    values: &'a [String],
}

/// Returns the scopes that a pod must be in for a quota to count it.
fn scopes(quota: &ResourceQuota) -> impl Iterator<Item = InScope<'_>> {
    let spec = || quota.spec.iter();
    let plain = spec().flat_map(|spec| spec.scopes.iter().flatten());
    let plain = plain.map(|name| InScope { name, operator: "Exists", values: &[] });
    let selected = spec().flat_map(|spec| spec.scope_selector.iter());
    let selected = selected.flat_map(|selector| selector.match_expressions.iter().flatten());
    plain.chain(selected.map(|one| InScope {
        name: &one.scope_name,
        operator: &one.operator,
        values: one.values.as_deref().unwrap_or_default(),
    }))
}

/// Returns true if a quota counts a pod. One of a scope that is not known counts none.
pub fn applies(quota: &ResourceQuota, pod: &Value) -> bool {
    quota.spec.is_some() && scopes(quota).all(|scope| is_in(pod, &scope))
}

fn is_in(pod: &Value, scope: &InScope<'_>) -> bool {
    let spec = &pod["spec"];
    let ends = !spec["activeDeadlineSeconds"].is_null();
    match scope.name {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => is_best_effort(pod),
        NOT_BEST_EFFORT => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => refers_to_other_namespaces(spec),
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().filter(|class| !class.is_empty());
            let is_listed = class.is_some_and(|class| scope.values.iter().any(|value| value == class));
            match scope.operator {
                "In" => is_listed,
                "NotIn" => !is_listed,
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                _ => false,
            }
        }
        _ => false,
    }
}

/// Returns true if neither a pod nor a container of it has requests or limits.
pub fn is_best_effort(pod: &Value) -> bool {
    let spec = &pod["spec"];
    let lists = ["containers", "initContainers"].into_iter().flat_map(|list| spec[list].as_array());
    lists.flatten().chain([spec]).all(|one| {
        let mut usage = Usage::new();
        add(&mut usage, one);
        !usage.iter().any(|(resource, amount)| {
            *amount > 0 && ["cpu", "memory"].iter().any(|kind| resource.ends_with(kind))
        })
    })
}

/// Returns true if the affinity of a pod names other namespaces.
fn refers_to_other_namespaces(spec: &Value) -> bool {
    let kinds = ["podAffinity", "podAntiAffinity"].into_iter().map(|kind| &spec["affinity"][kind]);
    let mut terms = kinds.flat_map(|affinity| {
        let list = |name: &str| affinity[name].as_array().into_iter().flatten();
        let preferred =
            list("preferredDuringSchedulingIgnoredDuringExecution").map(|one| &one["podAffinityTerm"]);
        list("requiredDuringSchedulingIgnoredDuringExecution").chain(preferred)
    });
    terms.any(|term| {
        !term["namespaceSelector"].is_null()
            || term["namespaces"].as_array().is_some_and(|names| !names.is_empty())
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
        check_replaced(quota, &vec![Replaced::default(); sidecars], beside)
    }

    fn check_replaced(quota: &ResourceQuota, replaced: &[Replaced], surges: bool) -> Option<String> {
        exceeded(std::slice::from_ref(quota), &Need { replaced, surges, pod: &pod() })
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
        let before = [memory("128Mi"), memory("1Gi"), Usage::new()];
        let (sum, largest) = growth(before.iter().map(|before| beyond(&memory("512Mi"), before)));
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

    #[test]
    fn pod_that_had_no_requests_is_counted_by_another_quota() {
        let mut quota = quota(json!({"pods": "2"}), json!({"pods": "0"}));
        let replaced = vec![Replaced { is_best_effort: true, ..Replaced::default() }; 3];
        assert_eq!(check_replaced(&quota, &replaced, false), None, "it counts them already");
        quota.spec.as_mut().unwrap().scopes = Some(vec![NOT_BEST_EFFORT.into()]);
        assert!(check_replaced(&quota, &replaced, false).unwrap().ends_with("needs 3 more"));
        assert_eq!(check_replaced(&quota, &replaced[..2], false), None);
        assert_eq!(check(&quota, 3, false), None, "they have requests");
    }

    #[test]
    fn scope_selector_decides_by_the_class_of_the_pod() {
        let counts = |scope: &str, operator: &str, values: Value, class: Option<&str>| {
            let expression = json!({"scopeName": scope, "operator": operator, "values": values});
            let quota: ResourceQuota = serde_json::from_value(
                json!({"metadata": {"name": "q"}, "spec": {"scopeSelector": {"matchExpressions": [expression]}}}),
            )
            .unwrap();
            let mut pod = pod();
            pod["spec"]["priorityClassName"] = json!(class);
            applies(&quota, &pod)
        };
        let class = "PriorityClass";
        for (operator, values, high, none) in [
            ("In", json!(["high"]), true, false),
            ("In", json!(["low"]), false, false),
            ("NotIn", json!(["high"]), false, true),
            ("Exists", json!(null), true, false),
            ("DoesNotExist", json!(null), false, true),
        ] {
            assert_eq!(counts(class, operator, values.clone(), Some("high")), high, "{operator} {values}");
            assert_eq!(counts(class, operator, values.clone(), None), none, "{operator} {values}");
        }
        assert!(counts("NotBestEffort", "Exists", json!(null), None));
        assert!(!counts("BestEffort", "Exists", json!(null), None));
        assert!(!counts("CrossNamespacePodAffinity", "Exists", json!(null), None));
        assert!(!counts("OfTheFuture", "Exists", json!(null), None));
        let term = json!({"topologyKey": "a", "namespaces": ["other"]});
        let preferred = json!([{"weight": 1, "podAffinityTerm": term}]);
        for (affinity, expected) in [
            (json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}), true),
            (
                json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}),
                true,
            ),
            (
                json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]}}),
                false,
            ),
        ] {
            assert_eq!(refers_to_other_namespaces(&json!({"affinity": affinity})), expected, "{affinity}");
        }
    }
}
