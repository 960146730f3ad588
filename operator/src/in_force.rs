//! The policies of a namespace that may be in force, and the one among them that serves a pod.
//!
//! # Guarantees
//! - A lookup compiles no policy, and compares a pod's labels with few selectors, however many policies there are.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
    sync::Arc,
};

use kube::{ResourceExt, core::DeserializeGuard};
use larder_crds::{CachePolicy, selector};

use crate::policies::Guarded;

/// A policy that could be parsed.
#[derive(Clone, Debug)]
pub struct Parsed(Arc<Guarded>);

impl Parsed {
    /// Wraps a policy; returns `None` if it could not be parsed.
    pub fn new(policy: &Arc<Guarded>) -> Option<Self> {
        policy.0.is_ok().then(|| Self(policy.clone()))
    }

    /// Returns a changed copy.
    pub fn changed(&self, change: impl FnOnce(&mut CachePolicy)) -> Self {
        let mut policy = CachePolicy::clone(self);
        change(&mut policy);
        Self(Arc::new(DeserializeGuard(Ok(policy))))
    }
}

impl Deref for Parsed {
    type Target = CachePolicy;

    fn deref(&self) -> &CachePolicy {
        self.0.0.as_ref().expect("only policies that could be parsed are wrapped")
    }
}

/// Policies of a namespace, the oldest first.
#[derive(Debug, Default)]
pub struct InForce {
    policies: Vec<Parsed>,
    /// Positions of the policies, each by one label that its pods have.
    by_label: HashMap<(String, String), Vec<usize>>,
    /// Positions of the policies whose selectors have expressions only.
    by_expressions: Vec<usize>,
}

impl InForce {
    /// Orders policies by age.
    pub fn new(mut policies: Vec<Parsed>) -> Self {
        policies.sort_by_key(|policy| age(policy));
        let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
        for policy in &policies {
            for label in wanted(policy) {
                *counts.entry(label).or_default() += 1;
            }
        }
        let mut by_label: HashMap<(String, String), Vec<usize>> = HashMap::new();
        let mut by_expressions = Vec::new();
        for (position, policy) in policies.iter().enumerate() {
            match wanted(policy).min_by_key(|label| counts[label]) {
                Some((key, value)) => {
                    by_label.entry((key.to_owned(), value.to_owned())).or_default().push(position);
                }
                None => by_expressions.push(position),
            }
        }
        Self { policies, by_label, by_expressions }
    }

    /// Returns the policy that serves a pod with these labels: the oldest that selects it. The pod's own choice
    /// is not considered.
    pub fn serving(&self, labels: &BTreeMap<String, String>) -> Option<&Parsed> {
        let labelled =
            labels.iter().filter_map(|(key, value)| self.by_label.get(&(key.clone(), value.clone())));
        let positions = labelled.flatten().chain(&self.by_expressions).copied();
        let selects = |position: &usize| selector::matches(&self.policies[*position].spec.selector, labels);
        positions.filter(selects).min().map(|position| &self.policies[position])
    }

    /// Returns all of them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Parsed> {
        self.policies.iter()
    }
}

/// Returns the labels that the pods of a policy have.
fn wanted(policy: &CachePolicy) -> impl Iterator<Item = (&str, &str)> {
    let labels = policy.spec.selector.match_labels.iter().flatten();
    labels.map(|(key, value)| (key.as_str(), value.as_str()))
}

/// Returns the age key of a policy. Of two policies that select a pod, the one with the smaller key serves it.
fn age(policy: &CachePolicy) -> (i64, String) {
    let created = policy.creation_timestamp().map_or(i64::MAX, |time| time.0.as_second());
    (created, policy.name_any())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::policies::tests;

    fn selector() -> impl Strategy<Value = Value> {
        let label = || (0..3_u8, 0..3_u8).prop_map(|(key, value)| (format!("k{key}"), format!("v{value}")));
        let labels = prop::collection::btree_map(0..3_u8, 0..3_u8, 0..3).prop_map(|labels| {
            labels
                .into_iter()
                .map(|(key, value)| (format!("k{key}"), json!(format!("v{value}"))))
                .collect::<serde_json::Map<_, _>>()
        });
        let expression = prop::option::of(label()).prop_map(|label| {
            label.map(|(key, value)| json!({"key": key, "operator": "NotIn", "values": [value]}))
        });
        (labels, expression).prop_map(|(labels, expression)| {
            json!({"matchLabels": labels, "matchExpressions": expression.into_iter().collect::<Vec<_>>()})
        })
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_trying_every_policy(
            selectors in prop::collection::vec((selector(), 0..3_u8), 0..12),
            labels in prop::collection::btree_map("k[0-2]", "v[0-2]", 0..3),
        ) {
            let policies = selectors.into_iter().enumerate().map(|(number, (selector, day))| {
                let created = format!("2026-01-0{}T00:00:00Z", day + 1);
                let mut policy = tests::policy(&format!("p{number}"), &created, json!({}));
                policy["spec"]["selector"] = selector;
                Arc::new(serde_json::from_value::<Guarded>(policy).unwrap())
            });
            let in_force = InForce::new(policies.filter_map(|policy| Parsed::new(&policy)).collect());
            let tried = in_force.iter().find(|policy| selector::matches(&policy.spec.selector, &labels));
            let name = |policy: Option<&Parsed>| policy.map(|policy| policy.name_any());
            prop_assert_eq!(name(in_force.serving(&labels)), name(tried));
        }
    }
}
