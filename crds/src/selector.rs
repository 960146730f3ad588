//! Evaluation of label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Returns true if `labels` match, by the rules of
/// [Kubernetes](https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors), except that
/// an empty selector, and one that the API server would refuse, matches nothing.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut wanted = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    let is_valid = |expression: &LabelSelectorRequirement| {
        let has_values = expression.values.as_ref().is_some_and(|values| !values.is_empty());
        match expression.operator.as_str() {
            "In" | "NotIn" => has_values,
            "Exists" | "DoesNotExist" => !has_values,
            _ => false,
        }
    };
    if is_empty(selector) || !selector.match_expressions.iter().flatten().all(is_valid) {
        return false;
    }
    wanted.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let listed =
                || value.is_some_and(|value| expression.values.iter().flatten().any(|other| other == value));
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Returns true if a selector requires nothing.
pub fn is_empty(selector: &LabelSelector) -> bool {
    let labels = selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty());
    labels && selector.match_expressions.as_ref().is_none_or(|expressions| expressions.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(selector: Value, labels: Value) -> bool {
        matches(&serde_json::from_value(selector).unwrap(), &serde_json::from_value(labels).unwrap())
    }

    #[test]
    fn labels_and_expressions_all_hold() {
        let selector = json!({
            "matchLabels": {"app": "shop"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["web", "api"]},
                {"key": "track", "operator": "NotIn", "values": ["canary"]},
                {"key": "team", "operator": "Exists"},
                {"key": "batch", "operator": "DoesNotExist"},
            ],
        });
        assert!(check(selector.clone(), json!({"app": "shop", "tier": "api", "team": "a"})));
        assert!(!check(selector.clone(), json!({"app": "other", "tier": "api", "team": "a"})));
        assert!(!check(selector.clone(), json!({"app": "shop", "team": "a"})));
        assert!(!check(
            selector.clone(),
            json!({"app": "shop", "tier": "api", "team": "a", "track": "canary"})
        ));
        assert!(!check(selector.clone(), json!({"app": "shop", "tier": "api"})));
        assert!(!check(selector, json!({"app": "shop", "tier": "api", "team": "a", "batch": ""})));
    }

    #[test]
    fn absent_label_is_not_in_any_list() {
        let absent = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]});
        for labels in [json!({}), json!({"app": "shop"})] {
            assert!(check(absent("NotIn", json!(["web"])), labels.clone()));
            assert!(check(absent("DoesNotExist", json!([])), labels.clone()));
            assert!(!check(absent("In", json!(["web", ""])), labels.clone()), "absent is not empty");
            assert!(!check(absent("Exists", json!([])), labels.clone()));
        }
        assert!(check(absent("In", json!([""])), json!({"tier": ""})));
        assert!(check(absent("Exists", json!([])), json!({"tier": ""})));
    }

    #[test]
    fn selector_that_the_api_server_refuses_matches_nothing() {
        for (operator, values) in [
            ("In", json!([])),
            ("NotIn", json!([])),
            ("Exists", json!(["a"])),
            ("DoesNotExist", json!(["a"])),
            ("notin", json!(["a"])),
        ] {
            let one = json!({"key": "tier", "operator": operator, "values": values});
            assert!(!check(json!({"matchExpressions": [one]}), json!({})), "{one}");
            assert!(!check(json!({"matchExpressions": [one]}), json!({"tier": "a"})), "{one}");
        }
    }

    #[test]
    fn an_empty_selector_matches_nothing() {
        assert!(!check(json!({}), json!({"app": "shop"})));
        assert!(!check(json!({"matchLabels": {}, "matchExpressions": []}), json!({})));
    }
}
