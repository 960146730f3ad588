//! NetworkPolicies that let requests reach the application and would block them at the sidecar.
//!
//! # Assumptions
//! Policies of other namespaces do not name the ports of these pods by number.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use larder_crds::selector;
use serde_json::Value;

/// A port as a NetworkPolicy may refer to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port<'a, S> {
    pub(super) number: u16,
    /// Names that refer to it in the injected pod or, of the application's port, did so before.
    pub(super) names: &'a [S],
}

impl<S: AsRef<str>> Port<'_, S> {
    /// Returns true if one of a rule's ports is this one. A rule without ports is for all.
    fn is_among(&self, ports: Option<&Vec<NetworkPolicyPort>>) -> bool {
        let is_this = |entry: &NetworkPolicyPort| {
            entry.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
                && match &entry.port {
                    None => true,
                    Some(IntOrString::String(name)) => self.names.iter().any(|own| own.as_ref() == name),
                    Some(IntOrString::Int(first)) => {
                        (*first..=entry.end_port.unwrap_or(*first)).contains(&i32::from(self.number))
                    }
                }
        };
        ports.is_none_or(|ports| ports.is_empty() || ports.iter().any(is_this))
    }
}

/// A rule of either direction.
struct Rule<'a> {
    ports: Option<&'a Vec<NetworkPolicyPort>>,
    peers: Option<&'a Vec<NetworkPolicyPeer>>,
}

impl Rule<'_> {
    fn is_for_everybody(&self) -> bool {
        self.peers.is_none_or(Vec::is_empty)
    }
}

/// Returns the NetworkPolicy that lets requests reach the application's port and would block them at the sidecar's: one of the
/// pod, or one of callers that names the pod by its labels.
///
/// Policies add up, so a rule for everybody opens a port that others leave closed.
pub(super) fn closed_by<S: AsRef<str>>(
    pod: &Value,
    application: Port<'_, S>,
    sidecar: Port<'_, S>,
    network_policies: &[Arc<NetworkPolicy>],
) -> Option<String> {
    let labels = serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap_or_default();
    let opens = |rule: &Rule<'_>| rule.is_for_everybody() && sidecar.is_among(rule.ports);
    let closes = |rule: &Rule<'_>| application.is_among(rule.ports) && !sidecar.is_among(rule.ports);
    let specs = || network_policies.iter().filter_map(|policy| Some((policy, policy.spec.as_ref()?)));
    let of_pod = || specs().filter(|(_, spec)| selects(spec.pod_selector.as_ref(), &labels));
    let is_open = of_pod().any(|(_, spec)| ingress(spec).any(|rule| opens(&rule)));
    let closing = of_pod().find(|(_, spec)| !is_open && ingress(spec).any(|rule| closes(&rule)));
    let of_callers = || {
        specs().find(|(_, spec)| {
            let is_same = |other: &NetworkPolicySpec| {
                other.pod_selector == spec.pod_selector || is_everything(other.pod_selector.as_ref())
            };
            let mut others = specs().filter(|(_, other)| is_same(other));
            let leads_here =
                |rule: &Rule<'_>| rule.peers.into_iter().flatten().any(|peer| is_pod(peer, &labels));
            let opens = |rule: &Rule<'_>| {
                sidecar.is_among(rule.ports) && (rule.is_for_everybody() || leads_here(rule))
            };
            egress(spec).any(|rule| leads_here(&rule) && closes(&rule))
                && !others.any(|(_, other)| egress(other).any(|rule| opens(&rule)))
        })
    };
    let (policy, _) = closing.or_else(of_callers)?;
    Some(policy.metadata.name.clone().unwrap_or_default())
}

fn ingress(spec: &NetworkPolicySpec) -> impl Iterator<Item = Rule<'_>> {
    let rules = spec.ingress.iter().flatten().filter(|_| is_of(spec, "Ingress"));
    rules.map(|rule| Rule { ports: rule.ports.as_ref(), peers: rule.from.as_ref() })
}

fn egress(spec: &NetworkPolicySpec) -> impl Iterator<Item = Rule<'_>> {
    let rules = spec.egress.iter().flatten().filter(|_| is_of(spec, "Egress"));
    rules.map(|rule| Rule { ports: rule.ports.as_ref(), peers: rule.to.as_ref() })
}

fn is_of(spec: &NetworkPolicySpec, direction: &str) -> bool {
    spec.policy_types.as_ref().is_none_or(|types| types.iter().any(|kind| kind == direction))
}

/// Returns true if a peer is a pod with these labels in the policy's namespace.
fn is_pod(peer: &NetworkPolicyPeer, labels: &BTreeMap<String, String>) -> bool {
    peer.namespace_selector.is_none()
        && peer.pod_selector.as_ref().is_some_and(|own| selects(Some(own), labels))
}

/// Returns true if a selector of this API matches labels; an empty one matches every pod.
fn selects(own: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    is_everything(own) || own.is_some_and(|own| selector::matches(own, labels))
}

fn is_everything(own: Option<&LabelSelector>) -> bool {
    own.is_none_or(selector::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        capture::{SkipReason, named_port::tests::check},
        inject::tests::pod,
    };

    #[test]
    fn a_network_policy_must_let_the_sidecar_be_reached() {
        let policy = |selector: Value, ports: Value| json!([{"metadata": {"name": "web"}, "spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]}}]);
        let check = |selector, ports| check(&pod(), json!("http"), policy(selector, ports));
        let shop = || json!({"matchLabels": {"app": "shop"}});
        assert_eq!(check(shop(), json!([{"port": 8080}])), Err(SkipReason::NetworkPolicy));
        assert_eq!(
            check(json!({}), json!([{"port": 8000, "endPort": 9000}])),
            Err(SkipReason::NetworkPolicy)
        );
        assert!(check(json!({"matchLabels": {"app": "other"}}), json!([{"port": 8080}])).is_ok());
        assert!(check(shop(), json!([{"port": "http"}])).is_ok());
        assert!(check(shop(), json!([{"port": 8080}, {"port": 24800}])).is_ok());
        assert!(check(shop(), json!([{"port": 1024, "endPort": 65535}])).is_ok());
        assert!(
            check(shop(), json!([{"port": 9090}])).is_ok(),
            "the application could not be reached before either"
        );
    }

    #[test]
    fn rule_for_everybody_lets_the_sidecar_be_reached_beside_others() {
        let behind = |rules: Value, others: Value| {
            let policy = |rules: &Value| {
                json!({"metadata": {"name": "web"},
                    "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules}})
            };
            check(&pod(), json!("http"), json!([policy(&rules), policy(&others)]))
        };
        let numbered =
            || json!({"ports": [{"port": 8080}], "from": [{"podSelector": {"matchLabels": {"app": "web"}}}]});
        let closed = Err(SkipReason::NetworkPolicy);
        assert_eq!(behind(json!([numbered()]), json!([])), closed);
        assert!(behind(json!([numbered(), {}]), json!([])).is_ok(), "everything is allowed");
        assert!(behind(json!([numbered()]), json!([{"from": [], "ports": [{"port": 24800}]}])).is_ok());
        let from_some = json!([{"from": [{"podSelector": {}}], "ports": [{"port": 24800}]}]);
        assert_eq!(behind(json!([numbered()]), from_some), closed, "others may be meant");
    }

    #[test]
    fn callers_must_be_allowed_to_reach_the_sidecar() {
        let behind = |to: Value, ports: Value| {
            let policy = json!([{"metadata": {"name": "callers"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}},
                "policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]}}]);
            check(&pod(), json!("http"), policy)
        };
        let shop = || json!([{"podSelector": {"matchLabels": {"app": "shop"}}}]);
        let closed = Err(SkipReason::NetworkPolicy);
        assert_eq!(behind(shop(), json!([{"port": 8080}])), closed);
        assert!(behind(shop(), json!([{"port": "http"}])).is_ok(), "the name is resolved in the pod");
        assert!(behind(shop(), json!([{"port": 8080}, {"port": 24800}])).is_ok());
        assert!(behind(shop(), Value::Null).is_ok());
        let other =
            json!([{"podSelector": {"matchLabels": {"app": "other"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]);
        assert!(behind(other, json!([{"port": 8080}])).is_ok());
        assert!(
            behind(Value::Null, json!([{"port": 8080}])).is_ok(),
            "a rule for any server is not about this one"
        );
    }
}
