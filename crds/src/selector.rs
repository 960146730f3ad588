//! Evaluation of label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Returns true if `labels` match, by the rules of
/// [Kubernetes](https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors), except that
/// an empty selector, or one with an unknown operator, matches nothing.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut wanted = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    if is_empty(selector) {
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
    fn an_empty_selector_matches_nothing() {
        assert!(!check(json!({}), json!({"app": "shop"})));
        assert!(!check(json!({"matchLabels": {}, "matchExpressions": []}), json!({})));
    }
}
