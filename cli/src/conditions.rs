//! Conditions of policies, where the operator has seen the policy as it is now.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use larder_crds::{CachePolicy, ConditionType};

/// Returns a condition, unless it is of the policy before its last change.
pub(crate) fn find(policy: &CachePolicy, kind: ConditionType) -> Option<&Condition> {
    let status = policy.status.as_ref()?;
    let generation = policy.metadata.generation;
    // A condition may be older than the status: the operator leaves it as it is while it can't see pods.
    let is_recent =
        |one: &&Condition| status.observed_generation == generation && one.observed_generation == generation;
    status.conditions.iter().find(|one| one.type_ == kind.as_str()).filter(is_recent)
}

/// Returns true if a condition holds of the policy as it is now.
pub(crate) fn holds(policy: &CachePolicy, kind: ConditionType) -> bool {
    find(policy, kind).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn condition_of_an_earlier_policy_is_none() {
        let policy = |observed: i64, observed_by_condition: i64, status: &str| -> CachePolicy {
            serde_json::from_value(json!({
                "apiVersion": "larder.dev/v1alpha1",
                "kind": "CachePolicy",
                "metadata": {"name": "shop", "namespace": "shop", "generation": 2},
                "spec": {"selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}]},
                "status": {"observedGeneration": observed, "conditions": [{
                    "type": "ConfigCurrent", "status": status, "reason": "R", "message": "m",
                    "observedGeneration": observed_by_condition, "lastTransitionTime": "2026-01-01T00:00:00Z",
                }]},
            }))
            .unwrap()
        };
        let current = ConditionType::ConfigCurrent;
        assert!(holds(&policy(2, 2, "True"), current));
        assert!(!holds(&policy(2, 2, "False"), current) && find(&policy(2, 2, "False"), current).is_some());
        assert_eq!(find(&policy(1, 1, "True"), current), None);
        assert_eq!(find(&policy(2, 1, "True"), current), None);
        assert!(!holds(&policy(2, 2, "True"), ConditionType::Ready));
    }
}
