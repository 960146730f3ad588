//! Restarts workloads whose pods differ from the desired state.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use larder_api::names;
use larder_crds::selector;
use tokio::time::Instant;

use super::{Leader, writes::Refused};
use crate::{
    error::Result,
    events,
    reach::reach,
    rollout::{Decision, Fault, PodState, decide},
    survey::Survey,
    workload::{Workload, is_rolling},
    world::in_namespace,
};

/// Minimum time that the webhook configuration must have named a namespace, because API servers observe it with a
/// delay.
const SETTLING: Duration = Duration::from_secs(1);
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

impl Leader {
    /// Restarts the workloads that need it. While the webhook might miss new pods, only to remove sidecars. A workload
    /// that cannot be written does not affect the others.
    pub(super) async fn roll(
        &self,
        namespace: &str,
        about: &ObjectReference,
        survey: &Survey,
        webhook: &WebhookState,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (workload, pods) in &survey.workloads {
            if let Err(error) = self.see_to(namespace, about, workload, pods, webhook).await {
                refused.push(Refused { what: format!("could not restart {workload}"), error });
            }
        }
        refused
    }

    async fn see_to(
        &self,
        namespace: &str,
        about: &ObjectReference,
        workload: &Workload,
        pods: &[PodState],
        webhook: &WebhookState,
    ) -> Result<()> {
        let now = Timestamp::now();
        let fault = match decide(pods, &workload.progress, now) {
            Decision::Settled | Decision::Wait | Decision::Manual | Decision::GivenUp => return Ok(()),
            Decision::Forget => return self.forget_attempts(namespace, workload).await,
            Decision::Restart(fault) => fault,
        };
        if fault != Fault::Stray && *webhook != WebhookState::Answers {
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
        self.shared.metrics.rolls.with_label_values(&[fault.as_str()]).inc();
        tracing::info!(namespace, %workload, fault = fault.as_str(), "restarted a workload");
        self.tell(&events::rolled(workload, fault), about).await;
        Ok(())
    }

    /// Returns the readiness of the webhook for a pod that is created now in `namespace`.
    pub(super) async fn webhook_state(&self, namespace: &str) -> WebhookState {
        let registration = &self.shared.registration;
        let Some(bundle) = registration.bundle() else { return WebhookState::Settling };
        if registration.named_for(namespace).is_none_or(|since| since < SETTLING) {
            return WebhookState::Settling;
        }
        if self.is_being_upgraded(Timestamp::now()) {
            return WebhookState::Settling;
        }
        let mut reached = self.reached.lock().await;
        if reached.is_some_and(|at| at.elapsed() < REACHED_TRUST) {
            return WebhookState::Answers;
        }
        let arguments = &self.shared.arguments;
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
        let namespace = &self.shared.arguments.namespace;
        let own = ObjectRef::new(names::OPERATOR).within(namespace);
        let Some(own) = self.world.deployments.get(&own) else { return false };
        // A pod on its way out has until then; it may hold connections of API servers for as long.
        let leaving = |pod: &Pod| pod.metadata.deletion_timestamp.as_ref().is_some_and(|until| now < until.0);
        let replica =
            |pod: &Pod| own.spec.as_ref().is_some_and(|spec| selector::matches(&spec.selector, pod.labels()));
        is_rolling(&own)
            || in_namespace(&self.world.pods, namespace).iter().any(|pod| leaving(pod) && replica(pod))
    }

    /// Reports an event. A failure to report it is only logged.
    pub(super) async fn tell(&self, event: &kube::runtime::events::Event, about: &ObjectReference) {
        if let Err(error) = self.shared.recorder.publish(event, about).await {
            tracing::warn!(%error, reason = event.reason, "could not report an event");
        }
    }
}
