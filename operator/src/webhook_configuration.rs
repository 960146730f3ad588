//! The webhooks of the `MutatingWebhookConfiguration`, written here and not by the chart, because they name namespaces and
//! a CA.
//!
//! The chart creates the object without webhooks and deletes it. The operator owns one field of it, `webhooks`, as a field
//! manager of its own, so neither Helm nor a GitOps tool sees a difference.
//!
//! # Guarantees
//! - Only namespaces that have policies are named; without any there is no webhook at all.
//! - Changes by others are reverted within [`REPAIR`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use larder_api::names;
use larder_crds::{CachePolicy, selector};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    choice::has_not_opted_out,
    cli::RunArguments,
    error::{Error, Result},
    policies::Policies,
    tls::Loaded,
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
    replaced_former: AtomicBool,
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
            replaced_former: AtomicBool::new(false),
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
        let body = configuration(&self.arguments, &wanted);
        let options = PatchParams::apply(names::FIELD_MANAGER).force();
        let written =
            configurations.patch(names::WEBHOOK_CONFIGURATION, &options, &Patch::Apply(&body)).await;
        let written = match written {
            Err(kube::Error::Api(status)) if is_missing(&status) => {
                return Err(Error::NoWebhookConfiguration);
            }
            other => other?,
        };

        {
            let mut named = self.named_since.lock();
            named.retain(|namespace, _| wanted.namespaces.contains(namespace));
            for namespace in &wanted.namespaces {
                named.entry(namespace.clone()).or_insert_with(Instant::now);
            }
        }
        let version = written.resource_version();
        *applied = Some(Applied { wanted, version, seen: Instant::now() });
        self.replace_former(&configurations).await
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

    /// Deletes the configuration of an earlier version, once this one's stands: pods are injected throughout.
    async fn replace_former(&self, configurations: &Api<MutatingWebhookConfiguration>) -> Result<()> {
        if self.replaced_former.load(Ordering::Relaxed) {
            return Ok(());
        }
        match configurations.delete(names::FORMER_WEBHOOK_CONFIGURATION, &DeleteParams::default()).await {
            Ok(_) => tracing::info!("deleted the webhook configuration of an earlier version"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
        self.replaced_former.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Returns true if an apply failed because the object does not exist: an apply would have to create it, and the operator
/// may not.
fn is_missing(status: &kube::core::Status) -> bool {
    status.code == 404 || (status.code == 403 && status.message.contains("cannot create resource"))
}

fn configuration(arguments: &RunArguments, wanted: &Wanted) -> Value {
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
        "name": names::WEBHOOK,
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
        "metadata": { "name": names::WEBHOOK_CONFIGURATION },
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
        let wanted = Wanted { namespaces, bundle: "PEM".into(), unlabelled: false };
        configuration(&arguments, &wanted)
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
        assert_eq!(made["metadata"], json!({"name": "larder-webhook"}), "the chart owns the metadata");
        serde_json::from_value::<MutatingWebhookConfiguration>(made).unwrap();
    }

    #[test]
    fn apply_that_would_create_the_object_says_that_it_is_missing() {
        let status =
            |code, message: &str| serde_json::from_value(json!({"code": code, "message": message})).unwrap();
        let resource =
            "resource \"mutatingwebhookconfigurations\" in API group \"admissionregistration.k8s.io\"";
        assert!(is_missing(&status(403, &format!("User \"larder\" cannot create {resource}"))));
        assert!(!is_missing(&status(403, &format!("User \"larder\" cannot patch {resource}"))));
        assert!(is_missing(&status(404, "not found")));
    }

    #[test]
    fn without_policies_there_is_no_webhook() {
        assert_eq!(made(&[])["webhooks"], json!([]));
    }
}
