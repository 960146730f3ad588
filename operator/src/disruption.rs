//! PodDisruptionBudgets of a workload's pods, against the disruption by a restart.

use std::collections::BTreeMap;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use larder_crds::selector;

use crate::workload::Replacement;

/// Returns the budget that a restart would exceed, as a clause. Rollouts do not observe budgets by themselves. `broken` is the
/// number of pods that do not start, whose replacement disrupts nothing.
pub fn exceeded(
    budgets: &[PodDisruptionBudget],
    labels: &BTreeMap<String, String>,
    replacement: Replacement,
    broken: i32,
) -> Option<String> {
    budgets.iter().filter(|budget| applies(budget, labels, replacement)).find_map(|budget| {
        let allowed = budget.status.as_ref().map_or(0, |status| status.disruptions_allowed);
        let name = budget.metadata.name.as_deref().unwrap_or_default();
        (allowed.saturating_add(broken) < replacement.unavailable).then(|| {
            format!(
                "its rollout makes {} of its pods unavailable at a time, and the PodDisruptionBudget {name} allows \
                 {allowed}",
                replacement.unavailable
            )
        })
    })
}

/// Returns true if a restart has to observe a budget.
pub fn applies(
    budget: &PodDisruptionBudget,
    labels: &BTreeMap<String, String>,
    replacement: Replacement,
) -> bool {
    let own = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    // As in the API of NetworkPolicies, and other than in a policy, an empty selector is every pod.
    let selects = own.is_some_and(|own| selector::is_empty(own) || selector::matches(own, labels));
    selects && replacement.unavailable > 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(selector: serde_json::Value, allowed: i32, unavailable: i32) -> Option<String> {
        let budget = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"selector": selector},
            "status": {"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": allowed, "expectedPods": 1},
        }))
        .unwrap();
        let labels = [("app".to_owned(), "shop".to_owned())].into();
        exceeded(&[budget], &labels, Replacement { surge: 0, unavailable }, 0)
    }

    #[test]
    fn restart_waits_for_the_budget_of_its_pods() {
        let shop = || json!({"matchLabels": {"app": "shop"}});
        let message = check(shop(), 0, 1).unwrap();
        assert!(message.contains("PodDisruptionBudget web allows 0"), "{message}");
        assert!(check(shop(), 1, 2).is_some());
        assert_eq!(check(shop(), 1, 1), None);
        assert_eq!(check(json!({"matchLabels": {"app": "other"}}), 0, 1), None);
        assert!(check(json!({}), 0, 1).is_some(), "an empty selector is every pod");
    }

    #[test]
    fn rollout_that_only_adds_pods_needs_no_budget() {
        assert_eq!(check(json!({}), 0, 0), None);
    }
}
