//! Restarts workloads whose pods differ from the desired state.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use larder_api::names;
use larder_crds::selector;
use tokio::time::Instant;

use super::{Context, writes::WriteError};
use crate::{
    error::Result,
    events,
    policy_pods::PolicyPods,
    reach::reach,
    rollout::{Decision, Deviation, PodState, decide},
    stores::in_namespace,
    workload::{Workload, is_rolling},
};

/// Minimum time that the webhook configuration must have named a namespace, because API servers observe it with a
/// delay.
const SETTLING_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a response of the webhook is trusted.
const REACHED_TRUST: Duration = Duration::from_secs(5);
/// Time after a restart during which the lists of pods and workloads may be inconsistent.
const AFTER_RESTART: SignedDuration = SignedDuration::from_secs(5);

/// Readiness of the webhook for new pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WebhookState {
    /// New pods get the sidecar.
    Answers,
    /// Not ready yet: the API server is only learning of the namespace, or replicas of another version may still
    /// respond.
    Settling,
    /// The webhook is unreachable, with the reason.
    Unreachable(String),
}

impl Context {
    /// Restarts the workloads that need it. While the webhook might miss new pods, only to remove sidecars. A workload
    /// that cannot be written does not affect the others.
    pub(super) async fn roll(
        &self,
        namespace: &str,
        about: &ObjectReference,
        policy_pods: &PolicyPods,
        webhook: &WebhookState,
    ) -> Vec<WriteError> {
        let mut failed = Vec::new();
        for (workload, pods) in &policy_pods.workloads {
            if let Err(error) = self.reconcile_workload(namespace, about, workload, pods, webhook).await {
                failed.push(WriteError { what: format!("could not restart {workload}"), error });
            }
        }
        failed
    }

    async fn reconcile_workload(
        &self,
        namespace: &str,
        about: &ObjectReference,
        workload: &Workload,
        pods: &[PodState],
        webhook: &WebhookState,
    ) -> Result<()> {
        let now = Timestamp::now();
        let deviation = match decide(pods, &workload.progress, now) {
            Decision::Settled | Decision::Wait | Decision::Manual | Decision::GivenUp => return Ok(()),
            Decision::Forget => return self.forget_attempts(namespace, workload).await,
            Decision::Restart(deviation) => deviation,
        };
        if deviation != Deviation::Stray && *webhook != WebhookState::Answers {
            return Ok(());
        }
        let mut restarts = self.restarts.lock().await;
        if restarts.get(&workload.uid).is_some_and(|at| now < *at + AFTER_RESTART) {
            return Ok(());
        }
        self.restart(namespace, workload, now).await?;
        restarts.retain(|_, at| now < *at + AFTER_RESTART);
        restarts.insert(workload.uid.clone(), now);
        drop(restarts);
        self.dependencies.metrics.rolls.with_label_values(&[deviation.as_str()]).inc();
        tracing::info!(namespace, %workload, deviation = deviation.as_str(), "restarted a workload");
        self.publish(&events::rolled(workload, deviation), about).await;
        Ok(())
    }

    /// Returns the readiness of the webhook for a pod that is created now in `namespace`.
    pub(super) async fn webhook_state(&self, namespace: &str) -> WebhookState {
        let registration = &self.dependencies.registration;
        let Some(bundle) = registration.bundle() else { return WebhookState::Settling };
        if registration.named_for(namespace).is_none_or(|since| since < SETTLING_INTERVAL) {
            return WebhookState::Settling;
        }
        if self.is_being_upgraded(Timestamp::now()) {
            return WebhookState::Settling;
        }
        let mut reached = self.reached.lock().await;
        if reached.is_some_and(|at| at.elapsed() < REACHED_TRUST) {
            return WebhookState::Answers;
        }
        let arguments = &self.dependencies.arguments;
        match reach(&arguments.webhook_service, &arguments.namespace, &bundle).await {
            Ok(()) => {
                *reached = Some(Instant::now());
                WebhookState::Answers
            }
            Err(error) => WebhookState::Unreachable(error.to_string()),
        }
    }

    /// Returns true if replicas of another version may still serve admissions, in which case workloads would be
    /// restarted twice.
    fn is_being_upgraded(&self, now: Timestamp) -> bool {
        let namespace = &self.dependencies.arguments.namespace;
        let own = ObjectRef::new(names::OPERATOR).within(namespace);
        let Some(own) = self.stores.deployments.get(&own) else { return false };
        // A pod on its way out has until then; it may hold connections of API servers for as long.
        let leaving = |pod: &Pod| pod.metadata.deletion_timestamp.as_ref().is_some_and(|until| now < until.0);
        let replica =
            |pod: &Pod| own.spec.as_ref().is_some_and(|spec| selector::matches(&spec.selector, pod.labels()));
        is_rolling(&own)
            || in_namespace(&self.stores.pods, namespace).iter().any(|pod| leaving(pod) && replica(pod))
    }

    /// Reports an event. A failure to report it is only logged.
    pub(super) async fn publish(&self, event: &kube::runtime::events::Event, about: &ObjectReference) {
        if let Err(error) = self.dependencies.recorder.publish(event, about).await {
            tracing::warn!(%error, reason = event.reason, "could not report an event");
        }
    }
}
