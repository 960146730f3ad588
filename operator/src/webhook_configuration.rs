//! The `MutatingWebhookConfiguration`, written here and not by the chart, because it names namespaces and a CA.
//!
//! # Guarantees
//! - Only namespaces that have policies are named; without any there is no webhook at all.
//! - Changes by others are reverted within [`REPAIR`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration,
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use larder_api::{labels, names};
use larder_crds::{CachePolicy, selector};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    choice::has_not_opted_out, cli::RunArguments, error::Result, owner, policies::Policies, tls::Loaded,
};

/// Interval at which the configuration is looked at even without changes here.
const REPAIR: Duration = Duration::from_secs(10);
/// The path that admissions are posted to.
pub const INJECT_PATH: &str = "/inject";

/// Maintains the configuration.
pub struct Registration {
    client: Client,
    arguments: RunArguments,
    policies: Policies,
    certificate: watch::Receiver<Option<Arc<Loaded>>>,
    applied: tokio::sync::Mutex<Option<Applied>>,
    named_since: Mutex<HashMap<String, Instant>>,
}

/// The configuration as it was last seen in the API server.
struct Applied {
    wanted: Wanted,
    /// The version after it was written here; any change by others gives another one.
    version: Option<String>,
    seen: Instant,
}

/// Inputs of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    namespaces: Vec<String>,
    bundle: String,
    /// True if a policy may select pods without labels.
    unlabelled: bool,
}

impl Registration {
    /// Creates a registration that writes nothing until [`Self::ensure`].
    pub fn new(
        client: Client,
        arguments: RunArguments,
        policies: Policies,
        certificate: watch::Receiver<Option<Arc<Loaded>>>,
    ) -> Self {
        Self {
            client,
            arguments,
            policies,
            certificate,
            applied: tokio::sync::Mutex::new(None),
            named_since: Mutex::default(),
        }
    }

    /// Writes the configuration if it does not cover a policy, or is not known to be current.
    ///
    /// # Errors
    /// If the API server rejects it.
    pub async fn ensure_covered(&self, policy: &CachePolicy) -> Result<()> {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let is_unlabelled = selector::matches(&policy.spec.selector, &BTreeMap::new());
        let bundle = self.certificate.borrow().clone();
        let applied = self.applied.lock().await;
        let is_current = applied.as_ref().is_some_and(|applied| {
            bundle.is_some_and(|loaded| loaded.bundle == applied.wanted.bundle)
                && applied.wanted.namespaces.binary_search_by(|named| named.as_str().cmp(namespace)).is_ok()
                && (applied.wanted.unlabelled || !is_unlabelled)
        });
        drop(applied);
        if is_current { Ok(()) } else { self.ensure().await }
    }

    /// Writes the configuration if it is not known to be current.
    ///
    /// # Errors
    /// If the API server rejects it.
    pub async fn ensure(&self) -> Result<()> {
        let Some(loaded) = self.certificate.borrow().clone() else { return Ok(()) };
        let wanted = Wanted {
            namespaces: self.policies.namespaces(),
            bundle: loaded.bundle.clone(),
            unlabelled: self.policies.select_unlabelled(),
        };
        let mut applied = self.applied.lock().await;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        if let Some(last) = applied.as_mut().filter(|last| last.wanted == wanted) {
            if last.seen.elapsed() < REPAIR {
                return Ok(());
            }
            let found = configurations.get_metadata_opt(names::WEBHOOK_CONFIGURATION).await?;
            if last.version.is_some() && found.and_then(|found| found.resource_version()) == last.version {
                last.seen = Instant::now();
                return Ok(());
            }
        }
        let body = configuration(
            &self.arguments,
            &wanted,
            owner::find(&self.client, &self.arguments.cluster_role).await?.as_ref(),
        );
        let options = PatchParams::apply(names::FIELD_MANAGER).force();
        let written =
            configurations.patch(names::WEBHOOK_CONFIGURATION, &options, &Patch::Apply(&body)).await?;

        let mut named = self.named_since.lock();
        named.retain(|namespace, _| wanted.namespaces.contains(namespace));
        for namespace in &wanted.namespaces {
            named.entry(namespace.clone()).or_insert_with(Instant::now);
        }
        let version = written.resource_version();
        *applied = Some(Applied { wanted, version, seen: Instant::now() });
        Ok(())
    }

    /// Returns the time for which the configuration has named a namespace.
    pub fn named_for(&self, namespace: &str) -> Option<Duration> {
        self.named_since.lock().get(namespace).map(Instant::elapsed)
    }

    /// Returns the bundle with which the API server verifies the webhook's certificate.
    pub fn bundle(&self) -> Option<String> {
        self.certificate.borrow().as_ref().map(|loaded| loaded.bundle.clone())
    }

    /// Reapplies the configuration until the process ends or this replica stops leading.
    pub async fn keep(&self) {
        let mut clock = tokio::time::interval(REPAIR / 2);
        let mut certificate = self.certificate.clone();
        loop {
            tokio::select! {
                _ = clock.tick() => {}
                changed = certificate.changed() => if changed.is_err() { return },
            }
            if let Err(error) = self.ensure().await {
                tracing::error!(%error, "could not write the webhook configuration; retrying");
            }
        }
    }
}

fn configuration(arguments: &RunArguments, wanted: &Wanted, owner: Option<&OwnerReference>) -> Value {
    let mut conditions = vec![
        json!({ "name": "has-not-opted-out", "expression": has_not_opted_out() }),
        json!({
            "name": "is-not-a-node-s-own-pod",
            "expression": "!has(object.metadata.annotations) || \
                !('kubernetes.io/config.mirror' in object.metadata.annotations)",
        }),
    ];
    if !wanted.unlabelled {
        conditions.push(json!({
            "name": "has-labels-that-a-policy-could-select",
            "expression": "has(object.metadata.labels) && object.metadata.labels.size() > 0",
        }));
    }
    let webhook = json!({
        "name": "inject.larder.dev",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {
                "name": arguments.webhook_service,
                "namespace": arguments.namespace,
                "path": INJECT_PATH,
                "port": 443,
            },
            "caBundle": ByteString(wanted.bundle.clone().into_bytes()),
        },
        "rules": [{
            "operations": ["CREATE"],
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }],
        "namespaceSelector": { "matchExpressions": [
            { "key": "kubernetes.io/metadata.name", "operator": "In", "values": wanted.namespaces },
        ] },
        "matchConditions": conditions,
        "failurePolicy": arguments.failure_policy.as_str(),
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "timeoutSeconds": arguments.webhook_timeout_seconds,
    });
    let webhooks = if wanted.namespaces.is_empty() { vec![] } else { vec![webhook] };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {
            "name": names::WEBHOOK_CONFIGURATION,
            "labels": { labels::MANAGED_BY: labels::MANAGER },
            "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
        },
        "webhooks": webhooks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::run_arguments;

    fn made(namespaces: &[&str]) -> Value {
        let arguments = run_arguments(["--sidecar-image=s", "--namespace=larder-system", "--pod-name=p"]);
        let namespaces = namespaces.iter().map(|&namespace| namespace.to_owned()).collect();
        let owner = OwnerReference { kind: "ClusterRole".into(), ..OwnerReference::default() };
        let wanted = Wanted { namespaces, bundle: "PEM".into(), unlabelled: false };
        configuration(&arguments, &wanted, Some(&owner))
    }

    #[test]
    fn webhook_selects_only_namespaces_with_policies() {
        let made = made(&["shop"]);
        let webhook = &made["webhooks"][0];
        assert_eq!(
            webhook["namespaceSelector"]["matchExpressions"],
            json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["shop"]}])
        );
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["timeoutSeconds"], 2);
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(webhook["clientConfig"]["caBundle"], "UEVN");
        assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "ClusterRole");
        serde_json::from_value::<MutatingWebhookConfiguration>(made).unwrap();
    }

    #[test]
    fn without_policies_there_is_no_webhook() {
        assert_eq!(made(&[])["webhooks"], json!([]));
    }
}
