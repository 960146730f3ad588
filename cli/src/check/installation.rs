//! The operator and its webhook.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::ResourceExt;
use larder_api::names;
use larder_check::{Checked, Fault};
use larder_crds::{CachePolicy, ConditionType};

use super::finding::Finding;
use crate::{cluster::Cluster, conditions, error::Result, wording::listed};

/// Namespace of the operator in the documentation, where nothing tells another.
const USUAL_NAMESPACE: &str = "larder-system";
/// Annotation by which Helm knows the namespace of an object's release.
pub(super) const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";

/// The operator's namespace, and the configuration of its webhook.
pub(super) struct Installation {
    namespace: String,
    configuration: std::result::Result<Option<MutatingWebhookConfiguration>, Fault>,
}

impl Installation {
    /// Finds the operator by its webhook's configuration, unless its namespace is given.
    pub(super) async fn find(cluster: &Cluster, namespace: Option<&str>) -> Self {
        let configuration = larder_check::registered(&cluster.client).await;
        let found = configuration.as_ref().ok().and_then(|found| namespace_of(found.as_ref()?));
        let namespace = namespace.map(str::to_owned).or(found);
        Self { namespace: namespace.unwrap_or_else(|| USUAL_NAMESPACE.to_owned()), configuration }
    }

    /// Checks what the policies need.
    pub(super) async fn findings(self, cluster: &Cluster, policies: &[CachePolicy]) -> Result<Vec<Finding>> {
        let Self { namespace, configuration } = self;
        let leader = larder_check::leader(&cluster.client, &namespace).await;
        let webhook = match configuration {
            Ok(configuration) => webhook(configuration.as_ref(), policies, &namespace),
            Err(fault) => Err(fault),
        };
        Ok(vec![Finding::of("leader", leader)?, Finding::of("webhook", webhook)?])
    }
}

/// Returns the namespace of the operator, as its webhook's Service or Helm has it.
fn namespace_of(configuration: &MutatingWebhookConfiguration) -> Option<String> {
    let mut webhooks = configuration.webhooks.iter().flatten();
    let service = webhooks.find_map(|webhook| webhook.client_config.service.as_ref());
    let of_release = || configuration.annotations().get(RELEASE_NAMESPACE).cloned();
    service.map(|service| service.namespace.clone()).or_else(of_release)
}

/// Checks that the webhook is called in the namespaces of policies that are in force.
fn webhook(
    configuration: Option<&MutatingWebhookConfiguration>,
    policies: &[CachePolicy],
    operator: &str,
) -> Checked {
    let configuration = configuration.ok_or_else(|| {
        Fault::wrong(
            format!("there is no MutatingWebhookConfiguration {}", names::WEBHOOK_CONFIGURATION),
            "the chart has it: run `helm upgrade`",
        )
    })?;
    let webhooks = configuration.webhooks.iter().flatten();
    let selectors =
        webhooks.filter_map(|webhook| webhook.namespace_selector.as_ref()?.match_expressions.as_ref());
    let mut served: Vec<_> = selectors.flatten().flat_map(|one| one.values.iter().flatten()).collect();
    served.sort_unstable();
    served.dedup();
    let in_force = policies.iter().filter(|policy| conditions::holds(policy, ConditionType::Accepted));
    let needed = in_force.filter_map(|policy| policy.namespace());
    match needed.into_iter().find(|namespace| !served.contains(&namespace)) {
        Some(namespace) => Err(Fault::wrong(
            format!("it is not called in namespace {namespace}, whose new pods get no sidecar"),
            format!("`kubectl -n {operator} logs deployment/{}` says why", names::OPERATOR),
        )),
        None if served.is_empty() => Ok("no policy is in force, so that it is not called".to_owned()),
        None => Ok(format!("the API server calls it in the namespaces of policies: {}", listed(&served))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configuration() -> MutatingWebhookConfiguration {
        serde_json::from_value(json!({
            "metadata": {"annotations": {RELEASE_NAMESPACE: "of-release"}},
            "webhooks": [{
                "name": names::WEBHOOK, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": "larder-webhook", "namespace": "larder-system"}},
                "namespaceSelector": {"matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["shop", "blog"]},
                ]},
            }],
        }))
        .unwrap()
    }

    fn policy(namespace: &str, accepted: &str) -> CachePolicy {
        serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "CachePolicy",
            "metadata": {"name": "cache", "namespace": namespace, "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}]},
            "status": {"observedGeneration": 1, "conditions": [{
                "type": "Accepted", "status": accepted, "reason": "R", "message": "m", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn operator_is_where_the_webhooks_service_is() {
        let mut configuration = configuration();
        assert_eq!(namespace_of(&configuration).as_deref(), Some("larder-system"));
        configuration.webhooks = None;
        assert_eq!(namespace_of(&configuration).as_deref(), Some("of-release"));
    }

    #[test]
    fn webhook_must_be_called_where_policies_are_in_force() {
        let found = configuration();
        let said = |configuration, policies: &[CachePolicy]| {
            webhook(configuration, policies, "larder-system").map_err(|fault| fault.to_string())
        };
        assert_eq!(
            said(Some(&found), &[policy("shop", "True")]).unwrap(),
            "the API server calls it in the namespaces of policies: blog, shop"
        );
        assert!(said(Some(&found), &[policy("wiki", "False")]).is_ok(), "it is not in force");
        assert!(said(Some(&found), &[policy("wiki", "True")]).unwrap_err().contains("in namespace wiki"));
        assert!(said(None, &[]).unwrap_err().contains("helm upgrade"));
    }
}
