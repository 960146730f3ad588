//! The admission webhook: receives a pod that is being created, responds with a JSON patch that injects the sidecar.
//!
//! The pod remains the JSON that was received, because types would drop unknown fields. No failure here prevents the
//! creation of a pod: the response is then `allowed` with a warning.

pub mod server;
pub mod trial;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{StatusCode, header::RETRY_AFTER};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::{ByteString, api::networking::v1::NetworkPolicy};
use kube::{ResourceExt, runtime::reflector::Store};
use larder_api::{ListenAddress, annotations};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use self::trial::Trials;
use crate::{
    capture::{Skip, SkipReason},
    choice::Choice,
    cli::SidecarSettings,
    dry_run,
    error::{Error, Result},
    forbidden::Forbidden,
    health::Readiness,
    inject::{Injection, Outcome, inject, skipped},
    metrics::Metrics,
    pod_security::PodSecurity,
    policies::Policies,
    stores::in_namespace,
    webhook_configuration::INJECT_PATH,
    wording,
};

/// Time that the webhook has, after the stop signal, to respond to calls in progress. The delay until endpoints drop
/// the pod is covered before, by the pod's `preStop`.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of the API server's words in the annotation of a pod.
const MAX_REFUSAL: usize = 1 << 10;

/// Dependencies of the webhook.
#[derive(Clone)]
pub struct Webhook {
    /// The policies.
    pub policies: Policies,
    /// The network policies of all namespaces.
    pub network_policies: Store<NetworkPolicy>,
    /// Kinds that may not be listed.
    pub forbidden: Forbidden,
    /// Pod Security levels of the namespaces.
    pub pod_security: PodSecurity,
    /// Settings of injected sidecars.
    pub settings: SidecarSettings,
    /// Trials of pods with the sidecar.
    pub trials: Option<Trials>,
    /// Metrics of the operator.
    pub metrics: Metrics,
}

/// Outcome of an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Injected,
    Skipped,
    Unmatched,
    Error,
}

impl Admission {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Skipped => "skipped",
            Self::Unmatched => "unmatched",
            Self::Error => "error",
        }
    }
}

/// Serves the webhook until `stop`. API servers are then told to send their next calls elsewhere, and have
/// [`SHUTDOWN_TIMEOUT`] to receive the responses to calls in progress. With `authenticates`, calls need a certificate of
/// the client CA.
///
/// # Errors
/// If it cannot listen on the address.
pub async fn serve(
    address: ListenAddress,
    tls: watch::Receiver<Arc<ServerConfig>>,
    authenticates: bool,
    readiness: Readiness,
    webhook: Webhook,
    stop: &CancellationToken,
) -> Result<()> {
    let listener = address.bind().and_then(TcpListener::from_std);
    let listener = listener.map_err(|source| Error::Serve { address, source })?;
    server::serve(listener, tls, app(authenticates, readiness, webhook), stop).await;
    Ok(())
}

/// Returns the service. Its refusals have no text.
fn app(authenticates: bool, readiness: Readiness, webhook: Webhook) -> TowerToHyperService<Router> {
    let desk = Desk { webhook: Arc::new(webhook), reader: server::Reader::default(), authenticates };
    let ready =
        || async move { if readiness.get() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } };
    let router = Router::new().route(INJECT_PATH, post(review).with_state(desk)).route("/readyz", get(ready));
    TowerToHyperService::new(router)
}

/// Receiver of reviews.
#[derive(Clone)]
struct Desk {
    webhook: Arc<Webhook>,
    reader: server::Reader,
    authenticates: bool,
}

async fn review(
    State(desk): State<Desk>,
    Extension(caller): Extension<server::Caller>,
    request: Request,
) -> Response {
    if desk.authenticates && !caller.is_verified {
        return StatusCode::FORBIDDEN.into_response();
    }
    let (head, body) = request.into_parts();
    let received = match desk.reader.read(&head.headers, body).await {
        Ok(received) => received,
        // API servers try again after that time, while their own timeout lasts.
        Err(StatusCode::SERVICE_UNAVAILABLE) => {
            return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response();
        }
        Err(status) => return status.into_response(),
    };
    let review = serde_json::from_slice(&received.bytes);
    // A trial is a review, too, and must not wait for the room of this one.
    drop(received);
    match review {
        Ok(review) => Json(desk.webhook.review(&review).await).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

impl Webhook {
    /// Returns the response to an `AdmissionReview`.
    pub async fn review(&self, review: &Value) -> Value {
        let started = Instant::now();
        let request = &review["request"];
        let (namespace, pod) = (request["namespace"].as_str().unwrap_or_default(), &request["object"]);
        let mut decision = self.decide(namespace, pod);
        let mut tried = Duration::ZERO;
        if let Ok(Decision {
            policy: Some(policy),
            changed: Some(injected),
            admission: Admission::Injected,
            ..
        }) = &decision
            && !(request["dryRun"] == true && trial::is_trial(pod))
        {
            let before = Instant::now();
            let refusal = self.refusal(namespace, pod, injected).await;
            tried = before.elapsed();
            if let Some(skip) = refusal {
                let warnings =
                    decision.as_ref().map(|decision| decision.warnings.clone()).unwrap_or_default();
                decision = Ok(left_alone(pod, policy.clone(), &skip, warnings));
            }
        }
        let mut response = json!({ "uid": request["uid"], "allowed": true });
        let admission = decision.and_then(|decision| answer(&mut response, pod, decision));
        let admission = admission.unwrap_or_else(|error| failed(&mut response, &error));
        // The operator itself asks for dry runs, before it restarts a workload.
        if request["dryRun"] != true {
            self.metrics.admissions.with_label_values(&[admission.as_str()]).inc();
        }
        self.metrics.admission_duration.observe((started.elapsed() - tried).as_secs_f64());
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
    }

    /// Returns the reason that a pod would not be created with the sidecar, if it would be without.
    async fn refusal(&self, namespace: &str, pod: &Value, injected: &Value) -> Option<Skip> {
        let hash =
            injected["metadata"]["annotations"][annotations::INJECTION_HASH].as_str().unwrap_or_default();
        let words = self.trials.as_ref()?.refusal(namespace, pod, hash).await?;
        let message =
            format!("the API server refuses the pod with the sidecar: {}", dry_run::remedied(&words));
        Some(Skip { reason: SkipReason::AdmissionRefused, message: wording::cut(message, MAX_REFUSAL) })
    }

    /// Decides the admission of a pod.
    fn decide(&self, namespace: &str, pod: &Value) -> Result<Decision> {
        let texts = |name: &str| match &pod["metadata"][name] {
            Value::Null => Ok(BTreeMap::new()),
            texts => serde_json::from_value(texts.clone()),
        };
        let labels = texts("labels")?;
        let choice = Choice::of(&labels, &texts("annotations")?);
        let policy = self.policies.deciding(namespace, &labels).filter(|_| choice != Choice::Out);
        let warnings: Vec<_> =
            choice.remark(policy.is_some()).map(|remark| format!("larder: {remark}")).into_iter().collect();
        let Some(policy) = policy else {
            return Ok(Decision { admission: Admission::Unmatched, changed: None, warnings, policy: None });
        };
        self.forbidden.check_admission(namespace)?;
        let network_policies = in_namespace(&self.network_policies, namespace);
        let pod_security = self.pod_security.confined(namespace);
        let name = policy.name_any();
        let injection = Injection {
            namespace,
            policy: &name,
            spec: &policy.spec,
            settings: &self.settings,
            network_policies: &network_policies,
            pod_security: pod_security.as_deref(),
        };
        Ok(match inject(pod, &injection) {
            Outcome::Injected(injected) => Decision {
                admission: Admission::Injected,
                changed: Some(injected.pod),
                warnings,
                policy: Some(name),
            },
            Outcome::Skipped(skip) => left_alone(pod, name, &skip, warnings),
        })
    }
}

/// The decision over a pod.
struct Decision {
    admission: Admission,
    /// The changed pod.
    changed: Option<Value>,
    /// Warnings for the client.
    warnings: Vec<String>,
    /// The policy that selects the pod.
    policy: Option<String>,
}

/// Returns the decision over a pod that a policy selects and that gets no sidecar.
fn left_alone(pod: &Value, policy: String, skip: &Skip, mut warnings: Vec<String>) -> Decision {
    warnings.push(format!("larder: no cache for this pod, although the policy {policy} selects it: {skip}"));
    Decision {
        admission: Admission::Skipped,
        changed: Some(skipped(pod, skip)),
        warnings,
        policy: Some(policy),
    }
}

/// Writes a decision into the response.
fn answer(response: &mut Value, pod: &Value, decision: Decision) -> Result<Admission> {
    if let Some(changed) = decision.changed {
        response["patch"] = json!(patch(pod, &changed)?);
        response["patchType"] = json!("JSONPatch");
    }
    if !decision.warnings.is_empty() {
        response["warnings"] = json!(decision.warnings);
    }
    Ok(decision.admission)
}

fn patch(before: &Value, after: &Value) -> Result<ByteString> {
    Ok(ByteString(serde_json::to_vec(&json_patch::diff(before, after))?))
}

fn failed(response: &mut Value, error: &Error) -> Admission {
    tracing::error!(%error, uid = %response["uid"], "admission failed; admitting the pod without a sidecar");
    response["warnings"] = json!([format!("larder: no cache for this pod: {error}")]);
    Admission::Error
}

#[cfg(test)]
pub(crate) mod tests {
    use kube::runtime::reflector;
    use larder_api::labels;

    use super::*;
    use crate::{inject::tests, policies::tests as policy_tests};

    pub(crate) fn webhook() -> Webhook {
        let policies = policy_tests::policies(&[policy_tests::policy(
            "shop",
            "2026-01-01T00:00:00Z",
            json!({"app": "shop"}),
        )]);
        let (network_policies, _) = reflector::store();
        Webhook {
            policies,
            network_policies,
            forbidden: Forbidden::default(),
            pod_security: PodSecurity::default(),
            settings: tests::settings(),
            trials: None,
            metrics: Metrics::new(),
        }
    }

    fn ask(webhook: &Webhook, namespace: &str, pod: &Value) -> Value {
        let request = json!({"uid": "1", "namespace": namespace, "object": pod});
        let review = json!({"request": request});
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(webhook.review(&review))["response"].clone()
    }

    fn apply(pod: &Value, response: &Value) -> Value {
        let bytes: ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&bytes.0).unwrap();
        let mut pod = pod.clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        pod
    }

    #[test]
    fn the_patch_makes_the_injected_pod() {
        let webhook = webhook();
        let response = ask(&webhook, "shop", &tests::pod());
        assert_eq!(response["allowed"], true);
        assert_eq!(response["uid"], "1");
        let pod = apply(&tests::pod(), &response);
        assert_eq!(pod["metadata"]["labels"][labels::POLICY], "shop");
        assert_eq!(pod["spec"]["aFieldFromTheFuture"], tests::pod()["spec"]["aFieldFromTheFuture"]);

        let again = ask(&webhook, "shop", &pod);
        assert_eq!(apply(&pod, &again), pod, "a second call changes nothing");
    }

    #[test]
    fn a_pod_that_no_policy_selects_is_left_alone() {
        let response = ask(&webhook(), "other", &tests::pod());
        assert_eq!(response, json!({"uid": "1", "allowed": true}));
    }

    #[test]
    fn pod_is_left_alone_where_network_policies_may_not_be_listed() {
        let webhook = webhook();
        webhook.forbidden.insert("shop", "NetworkPolicy", "no Role".into());
        let response = ask(&webhook, "shop", &tests::pod());
        assert!(response["allowed"] == true && response["patch"].is_null(), "{response}");
        assert!(response["warnings"][0].as_str().unwrap().contains("no Role"), "{response}");
    }

    #[test]
    fn uncapturable_pod_is_admitted_with_warning_and_annotation() {
        let mut pod = tests::pod();
        pod["spec"]["hostNetwork"] = json!(true);
        let response = ask(&webhook(), "shop", &pod);
        assert_eq!(response["allowed"], true);
        assert!(response["warnings"][0].as_str().unwrap().contains("HostNetwork"));
        let note = apply(&pod, &response)["metadata"]["annotations"][annotations::SKIPPED].clone();
        assert!(note.as_str().unwrap().starts_with("HostNetwork: "), "{note}");
    }

    #[test]
    fn choice_of_a_pod_is_read_in_any_spelling_and_remarked_on_where_it_does_nothing() {
        let webhook = webhook();
        let ask = |namespace: &str, place: &str, value: &str| {
            let mut pod = tests::pod();
            pod["metadata"][place][labels::INJECT] = json!(value);
            ask(&webhook, namespace, &pod)
        };
        for place in ["labels", "annotations"] {
            let out = ask("shop", place, "Disabled");
            assert_eq!(out, json!({"uid": "1", "allowed": true}), "{place}");
            let wanted = ask("shop", place, "true");
            assert!(wanted["patch"].is_string() && wanted["warnings"].is_null(), "{wanted}");
            let unknown = ask("shop", place, "perhaps");
            assert!(unknown["patch"].is_string(), "{unknown}");
            assert!(unknown["warnings"][0].as_str().unwrap().contains("\"perhaps\" has no effect"));
            let unselected = ask("other", place, "yes");
            assert!(unselected["patch"].is_null(), "{unselected}");
            assert!(unselected["warnings"][0].as_str().unwrap().contains("no policy of the namespace"));
        }
    }

    #[test]
    fn unreadable_review_is_allowed() {
        let response = ask(&webhook(), "shop", &json!({"metadata": {"labels": 7}}));
        assert_eq!(response["allowed"], true);
        assert!(response["warnings"][0].as_str().unwrap().starts_with("larder: "));
    }
}
