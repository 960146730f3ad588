//! Checks of an installation, from inside the cluster: what `helm test` runs, under the operator's own account.
//!
//! # Guarantees
//! - Nothing is created: pods are tried by dry runs.
//! - A check that fails says how to correct that.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
        coordination::v1::Lease,
        core::v1::{Pod, Secret},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DynamicObject, ListParams, PostParams},
    core::ApiResource,
};
use larder_api::{annotations, names};
use larder_crds::{CachePolicy, CaptureMode, ConditionType};
use serde_json::{Value, json};

use crate::{cli::CheckArguments, inject::has_sidecar, reach::reach, tls::Material};

/// Interval between two attempts of a check.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Success in words, or the failure with its remedy.
type Checked = Result<String, String>;

/// Runs every check and prints the results.
///
/// # Errors
/// If a check failed for as long as the arguments allow.
pub async fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let installation = Installation { client, arguments };
    let deadline = Instant::now() + Duration::from_secs(arguments.patience_seconds.into());
    let results = [
        ("definition", until(deadline, async || installation.definition().await).await),
        ("leader", until(deadline, async || installation.leader().await).await),
        ("webhook", until(deadline, async || installation.webhook().await).await),
        ("admission", until(deadline, async || installation.admission().await).await),
    ];
    let (report, failures) = report(&results);
    std::io::stdout().write_all(report.as_bytes())?;
    match failures {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        many => bail!("{many} checks failed"),
    }
}

/// Returns a line for each result, and the number of failures.
fn report(results: &[(&str, Checked)]) -> (String, usize) {
    let line = |(name, result): &(&str, Checked)| match result {
        Ok(message) => format!("ok      {name}: {message}\n"),
        Err(message) => format!("failed  {name}: {message}\n"),
    };
    (results.iter().map(line).collect(), results.iter().filter(|(_, result)| result.is_err()).count())
}

/// Repeats a check until it passes or the deadline is reached.
async fn until(deadline: Instant, check: impl AsyncFn() -> Checked) -> Checked {
    loop {
        let result = check().await;
        if result.is_ok() || Instant::now() + RETRY_INTERVAL > deadline {
            return result;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The installation to check.
struct Installation<'a> {
    client: Client,
    arguments: &'a CheckArguments,
}

impl Installation<'_> {
    /// Checks that the cluster defines policies.
    async fn definition(&self) -> Checked {
        let api_version = CachePolicy::api_version(&());
        let plural = CachePolicy::plural(&());
        let served = self.client.list_api_group_resources(&api_version).await;
        match served {
            Ok(list) if list.resources.iter().any(|resource| resource.name == plural) => {
                Ok(format!("the cluster serves {plural} of {api_version}"))
            }
            Ok(_) | Err(kube::Error::Api(_)) => Err(format!(
                "the cluster does not serve {plural} of {api_version}; the chart has the definition: run `helm upgrade`"
            )),
            Err(error) => Err(format!("the API server does not respond: {error}; look at its logs")),
        }
    }

    /// Checks that a replica runs the controller.
    async fn leader(&self) -> Checked {
        let namespace = &self.arguments.namespace;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let lease =
            leases.get_opt(names::LEASE).await.map_err(|error| refused("get", "the Lease", &error))?;
        let now = Timestamp::now().as_second();
        holder(lease.as_ref(), now).map(|name| format!("{name} runs the controller")).ok_or_else(|| {
            format!(
                "no replica runs the controller; `kubectl -n {namespace} logs deployment/{}` says why",
                names::OPERATOR
            )
        })
    }

    /// Checks that the webhook responds through its Service, with a certificate that the API server trusts.
    async fn webhook(&self) -> Checked {
        let CheckArguments { namespace, webhook_service, .. } = self.arguments;
        let (bundle, origin) = match self.registered().await? {
            Some(webhook) => {
                let bundle = webhook.client_config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default();
                (String::from_utf8_lossy(&bundle).into_owned(), "its configuration")
            }
            // Without policies no webhook is registered.
            None => {
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                let secret = secrets.get_opt(names::TLS_SECRET).await;
                let secret = secret.map_err(|error| refused("get", "the Secret of the webhook", &error))?;
                let material = secret.as_ref().and_then(|secret| Material::read(secret).ok());
                (material.map(|material| material.bundle()).unwrap_or_default(), "its Secret")
            }
        };
        match reach(webhook_service, namespace, &bundle).await {
            Ok(()) => Ok(format!("it responds, with a certificate of the CA in {origin}")),
            Err(error) => Err(format!(
                "{error}; check that its pods are ready (`kubectl -n {namespace} get pods`), and that no NetworkPolicy \
                 keeps others from the webhook's port"
            )),
        }
    }

    /// Checks by a dry run that the API server calls the webhook for a pod of a policy.
    async fn admission(&self) -> Checked {
        let none = "no policy is in force whose selector is of matchLabels alone; not tried".to_owned();
        let Some(webhook) = self.registered().await? else { return Ok(none) };
        let expressions = webhook.namespace_selector.and_then(|selector| selector.match_expressions);
        let named = expressions.into_iter().flatten().flat_map(|named| named.values.unwrap_or_default());
        for namespace in named {
            let policies: Api<CachePolicy> = Api::namespaced(self.client.clone(), &namespace);
            let policies = policies.list(&ListParams::default()).await;
            let policies = policies.map_err(|error| refused("list", "the policies", &error))?;
            if let Some((policy, pod)) =
                policies.items.iter().find_map(|policy| Some((policy, pod_of(policy)?)))
            {
                return self.admit(&format!("{namespace}/{}", policy.name_any()), &namespace, &pod).await;
            }
        }
        Ok(none)
    }

    async fn admit(&self, policy: &str, namespace: &str, pod: &Value) -> Checked {
        let resource = ApiResource::erase::<Pod>(&());
        let pods: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let options = PostParams { dry_run: true, field_manager: Some(names::FIELD_MANAGER.into()) };
        let pod = serde_json::from_value(pod.clone()).map_err(|error| error.to_string())?;
        match pods.create(&options, &pod).await {
            Ok(created) => injected(policy, &serde_json::to_value(created).unwrap_or_default()),
            Err(kube::Error::Api(status)) => Ok(format!(
                "the API server refuses a pod for the policy {policy}, so that the injection could not be tried: {}",
                status.message
            )),
            Err(error) => Err(refused("create", "a pod, by a dry run,", &error)),
        }
    }

    /// Returns the webhook, if it is registered.
    async fn registered(&self) -> Result<Option<MutatingWebhook>, String> {
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let configuration = configurations.get_opt(names::WEBHOOK_CONFIGURATION).await;
        let configuration =
            configuration.map_err(|error| refused("get", "the webhook's configuration", &error))?;
        Ok(configuration.and_then(|configuration| configuration.webhooks?.into_iter().next()))
    }
}

fn refused(verb: &str, what: &str, error: &kube::Error) -> String {
    format!("could not {verb} {what}: {error}; `helm upgrade` restores the chart's roles and bindings")
}

/// Returns the holder of a Lease that has not expired.
fn holder(lease: Option<&Lease>, now: i64) -> Option<String> {
    let spec = lease?.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?.0.as_second();
    let is_held = now <= renewed + i64::from(spec.lease_duration_seconds?);
    spec.holder_identity.clone().filter(|holder| is_held && !holder.is_empty())
}

/// Returns a pod for which a policy in force decides; `None` if that cannot be told.
fn pod_of(policy: &CachePolicy) -> Option<Value> {
    let conditions = &policy.status.as_ref()?.conditions;
    let accepted = ConditionType::Accepted.as_str();
    let in_force = conditions.iter().any(|one| one.type_ == accepted && one.status == "True");
    let selector = &policy.spec.selector;
    let labels: &BTreeMap<_, _> = selector.match_labels.as_ref().filter(|labels| !labels.is_empty())?;
    let is_simple = selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if !in_force || !is_simple || policy.spec.capture.mode == CaptureMode::None {
        return None;
    }
    let ports = policy.spec.targets.iter().zip(0_u16..).map(|(target, index)| match &target.port {
        IntOrString::Int(number) => json!({ "name": format!("port-{index}"), "containerPort": number }),
        IntOrString::String(name) => json!({ "name": name, "containerPort": 8080 + index }),
    });
    let resources = json!({ "cpu": "10m", "memory": "16Mi" });
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "generateName": "larder-check-", "labels": labels },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "app",
                "image": "larder.dev/check",
                "ports": ports.collect::<Vec<_>>(),
                "resources": { "requests": resources, "limits": resources },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
            }],
        },
    }))
}

/// Returns the result for a pod as the API server would create it.
fn injected(policy: &str, created: &Value) -> Checked {
    if has_sidecar(created) {
        return Ok(format!("a pod of the policy {policy} would get the sidecar"));
    }
    match created["metadata"]["annotations"][annotations::SKIPPED].as_str() {
        Some(reason) => {
            Ok(format!("the webhook is called for the policy {policy}, and skips the pod tried: {reason}"))
        }
        None => Err(format!(
            "a pod of the policy {policy} would be created without the sidecar; let the API server reach the webhook's \
             port of the operator's pods (firewalls, NetworkPolicies; the chart's webhook.port and hostNetwork)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_a_line_for_each_check_and_counts_failures() {
        let results =
            [("definition", Ok("is served".to_owned())), ("webhook", Err("is away; wait".to_owned()))];
        let (text, failures) = report(&results);
        assert_eq!(text, "ok      definition: is served\nfailed  webhook: is away; wait\n");
        assert_eq!(failures, 1);
    }

    #[test]
    fn lease_without_a_holder_or_past_its_time_has_no_holder() {
        let lease = |spec: Value| serde_json::from_value::<Lease>(json!({ "spec": spec })).unwrap();
        let held = |name: &str| {
            lease(json!({
                "holderIdentity": name,
                "leaseDurationSeconds": 15,
                "renewTime": "1970-01-01T00:01:40.000000Z",
            }))
        };
        assert_eq!(holder(Some(&held("a")), 110), Some("a".to_owned()));
        assert_eq!(holder(Some(&held("a")), 116), None, "it has expired");
        assert_eq!(holder(Some(&held("")), 110), None, "it was released");
        assert_eq!(holder(Some(&lease(json!({}))), 110), None);
        assert_eq!(holder(None, 110), None);
    }

    fn policy(spec: Value, accepted: &str) -> CachePolicy {
        let condition = json!({
            "type": "Accepted", "status": accepted, "reason": "a", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let policy = json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "CachePolicy",
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": spec,
            "status": {"conditions": [condition], "pods": {"matched": 0, "injected": 0, "ready": 0, "current": 0, "missed": 0}},
        });
        serde_json::from_value(policy).unwrap()
    }

    #[test]
    fn pod_has_the_labels_and_the_ports_of_its_policy() {
        let spec = json!({
            "selector": {"matchLabels": {"app": "shop"}},
            "targets": [{"port": "http"}, {"port": 9000}],
        });
        let pod = pod_of(&policy(spec.clone(), "True")).unwrap();
        assert_eq!(pod["metadata"]["labels"], json!({"app": "shop"}));
        assert_eq!(
            pod["spec"]["containers"][0]["ports"],
            json!([{"name": "http", "containerPort": 8080}, {"name": "port-1", "containerPort": 9000}])
        );
        assert_eq!(pod_of(&policy(spec.clone(), "False")), None, "it is not in force");
        let mut other = spec.clone();
        other["capture"] = json!({"mode": "None"});
        assert_eq!(pod_of(&policy(other, "True")), None, "it gives no pod a sidecar");
        let mut other = spec;
        other["selector"]["matchExpressions"] = json!([{"key": "tier", "operator": "Exists"}]);
        assert_eq!(pod_of(&policy(other, "True")), None, "its labels are not known");
    }

    #[test]
    fn pod_that_the_webhook_did_not_see_fails_with_a_remedy() {
        let sidecar = json!({"spec": {"initContainers": [{"name": names::SIDECAR}]}});
        assert!(injected("shop/shop", &sidecar).unwrap().contains("would get the sidecar"));
        let skipped = json!({"metadata": {"annotations": {"larder.dev/skipped": "HostPort: a"}}});
        assert!(injected("shop/shop", &skipped).unwrap().contains("HostPort: a"));
        assert!(injected("shop/shop", &json!({})).unwrap_err().contains("webhook.port"));
    }
}
