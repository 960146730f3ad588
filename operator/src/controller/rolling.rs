//! Restarts workloads whose pods differ from the desired state.

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use larder_api::{labels, names};
use larder_crds::selector;
use tokio::time::Instant;

use super::{
    Context,
    admission::{self, Refusal, Trial},
    writes::WriteError,
};
use crate::{
    error::Result,
    events,
    in_force::InForce,
    pace::Pace,
    pod::is_ready_with,
    policy_pods::{PodReport, PolicyPods},
    reach::reach,
    rollout::{Decision, Deviation, Hold, HoldReason, Obstacle, PodState, Undone, decide},
    wording,
    workload::{self, Workload, WorkloadKind, is_rolling},
};

/// Minimum time that the webhook configuration must have named a namespace, because API servers observe it with a
/// delay.
const SETTLING_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a response of the webhook is trusted.
const REACHED_TRUST: Duration = Duration::from_secs(5);
/// Time after a restart during which the lists of pods and workloads may be inconsistent.
const AFTER_RESTART: SignedDuration = SignedDuration::from_secs(5);
/// Time for which a refusal is believed, after which the API server is asked again.
const REFUSAL_TRUST: Duration = Duration::from_secs(10);
/// Time after which a restart that has not ended no longer keeps others waiting.
const ROLLOUT_LIMIT: SignedDuration = SignedDuration::from_mins(30);

/// Maximum length of the words in the annotation of a restart that was undone, because all annotations of an object
/// together are bounded.
const MAX_UNDONE: usize = 4 << 10;

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

/// A rollout of a policy's workloads.
#[derive(Clone, Copy)]
pub(super) struct Rollout<'a> {
    /// The policy's namespace.
    pub(super) namespace: &'a str,
    /// The object of its events.
    pub(super) about: &'a ObjectReference,
    /// Readiness of the webhook.
    pub(super) webhook: &'a WebhookState,
    /// Maximum number of workloads that are restarted at a time.
    pub(super) max_concurrent: u16,
    /// True if sidecars are only removed.
    pub(super) takes_back: bool,
    /// True if workloads are restarted. Otherwise only restarts of before are brought to an end.
    pub(super) restarts: bool,
}

/// Result of a rollout's step.
#[derive(Debug, Default)]
pub(super) struct Rolled {
    /// Restarts that are needed and did not begin.
    pub(super) holds: Vec<Hold>,
    /// Failed writes.
    pub(super) failed: Vec<WriteError>,
}

/// A restart that the watched lists may not show yet.
pub(super) struct Recent {
    of: Restart,
    at: Timestamp,
}

/// Namespace and policy of a workload that was restarted.
#[derive(Clone)]
struct Restart {
    namespace: String,
    policy: Option<String>,
}

impl Recent {
    fn is_recent(&self, now: Timestamp) -> bool {
        now < self.at + AFTER_RESTART
    }
}

/// A refusal of a workload's restart.
pub(super) struct Refused {
    aim: String,
    at: Instant,
    refusal: Refusal,
}

impl Context {
    /// Restarts the workloads that need it, and undoes restarts whose pods do not start. While the webhook might miss new pods, only to remove sidecars. A workload
    /// that cannot be written does not affect the others.
    pub(super) async fn roll(&self, rollout: &Rollout<'_>, policy_pods: &PolicyPods) -> Rolled {
        let failed = self.evict_stuck_pods(rollout.namespace, policy_pods).await;
        let mut rolled = Rolled { failed, ..Rolled::default() };
        for (workload, pods) in &policy_pods.workloads {
            match self.reconcile_workload(rollout, policy_pods, workload, pods).await {
                Ok(hold) => rolled.holds.extend(hold),
                Err(error) => {
                    rolled.failed.push(WriteError { what: format!("could not restart {workload}"), error });
                }
            }
        }
        rolled
    }

    /// Restarts a workload if it needs that, or returns the reason that it is not restarted now.
    async fn reconcile_workload(
        &self,
        rollout: &Rollout<'_>,
        policy_pods: &PolicyPods,
        workload: &Workload,
        pods: &[PodState],
    ) -> Result<Option<Hold>> {
        let Rollout { namespace, about, webhook, .. } = *rollout;
        let now = Timestamp::now();
        let deviation = match decide(pods, &workload.progress, now) {
            Decision::Settled | Decision::Wait | Decision::Manual | Decision::GivenUp => return Ok(None),
            Decision::Forget => return self.forget_attempts(workload).await.map(|()| None),
            Decision::Undo(_) => return self.undo(rollout, policy_pods, workload).await,
            Decision::Undone => return Ok(undone(workload)),
            Decision::Restart(_) if !rollout.restarts => return Ok(None),
            Decision::Restart(deviation) => deviation,
        };
        if deviation != Deviation::Stray && *webhook != WebhookState::Answers {
            return Ok(None);
        }
        let hold = |reason, message| Some(Hold { uid: workload.uid.clone(), reason, message });
        if deviation != Deviation::Stray
            && let Some(message) = unselected(&self.dependencies.policies.of(namespace), workload)
        {
            return Ok(hold(HoldReason::NotInjected, message));
        }
        let queued = |pace: Pace| {
            pace.queue().and_then(|queued| hold(HoldReason::Queued, format!("{workload} waits: {queued}")))
        };
        // Removing a sidecar needs no proof of it.
        let rollout =
            &Rollout { takes_back: rollout.takes_back || deviation == Deviation::Stray, ..*rollout };
        let pace = self.pace(rollout, policy_pods, workload, &*self.restarts.lock().await, now);
        if let Some(hold) = queued(pace) {
            return Ok(Some(hold));
        }
        let own: Vec<_> =
            policy_pods.pods.iter().filter(|pod| pod.workload.as_ref() == Some(&workload.uid)).collect();
        let alone = match self.try_restart(workload, &own, deviation).await? {
            Trial::Refused((reason, message)) => return Ok(hold(reason, message)),
            Trial::Admitted { alone } => alone,
        };
        let mut restarts = self.restarts.lock().await;
        if restarts.get(&workload.uid).is_some_and(|recent| recent.is_recent(now)) {
            return Ok(None);
        }
        // Another policy's workload may have been restarted since.
        let pace = self.pace(rollout, policy_pods, workload, &restarts, now);
        if let Some(hold) = queued(Pace { alone, ..pace }) {
            return Ok(Some(hold));
        }
        self.restart(workload, deviation, now).await?;
        restarts.retain(|_, recent| recent.is_recent(now));
        let of = Restart { namespace: namespace.to_owned(), policy: about.name.clone() };
        restarts.insert(workload.uid.clone(), Recent { of, at: now });
        drop(restarts);
        self.dependencies.metrics.rolls.with_label_values(&[deviation.as_str()]).inc();
        tracing::info!(namespace, %workload, deviation = deviation.as_str(), "restarted a workload");
        self.publish(&events::rolled(workload, deviation), about).await;
        Ok(None)
    }

    /// Undoes the restart of a workload whose pods do not start.
    async fn undo(
        &self,
        rollout: &Rollout<'_>,
        policy_pods: &PolicyPods,
        workload: &Workload,
    ) -> Result<Option<Hold>> {
        let mut pods =
            policy_pods.pods.iter().filter(|pod| pod.newest && pod.workload.as_ref() == Some(&workload.uid));
        let Some((pod, (obstacle, message))) = pods.find_map(|pod| Some((pod, pod.obstacle.clone()?))) else {
            return Ok(None);
        };
        let message = format!("pod {}: {message}", pod.name);
        self.undo_because(rollout, workload, obstacle, message).await.map(|()| None)
    }

    /// Undoes a restart for an obstacle, which `message` describes, and reports that.
    pub(super) async fn undo_because(
        &self,
        rollout: &Rollout<'_>,
        workload: &Workload,
        obstacle: Obstacle,
        message: String,
    ) -> Result<()> {
        let image = self.dependencies.arguments.sidecar.image.clone();
        let message = wording::cut(message, MAX_UNDONE);
        let undone = Undone { aim: workload.aim.clone(), image, obstacle, message };
        self.undo_restart(workload, &undone).await?;
        tracing::warn!(namespace = rollout.namespace, %workload, message = undone.message, "undid a restart");
        self.publish(&events::undone(workload, &undone), rollout.about).await;
        Ok(())
    }

    /// Evicts pods of a StatefulSet that do not start because of the sidecar and that the StatefulSet does not replace
    /// by itself, because it waits for them to be ready.
    async fn evict_stuck_pods(&self, namespace: &str, policy_pods: &PolicyPods) -> Vec<WriteError> {
        let is_set = |uid: &String| {
            let mut workloads = policy_pods.workloads.iter();
            workloads.any(|(workload, _)| {
                let rolls = workload.progress.rolls && workload.kind == WorkloadKind::StatefulSet;
                rolls && workload.uid == *uid
            })
        };
        let is_stuck = |pod: &&PodReport| {
            pod.injected && !pod.newest && pod.obstacle.is_some() && pod.workload.as_ref().is_some_and(is_set)
        };
        let mut failed = Vec::new();
        for pod in policy_pods.pods.iter().filter(is_stuck) {
            match self.evict(namespace, &pod.name, &pod.uid).await {
                Ok(true) => {
                    tracing::info!(namespace, pod = pod.name, "evicted a pod that its StatefulSet waits for")
                }
                Ok(false) => {}
                Err(error) => {
                    failed.push(WriteError { what: format!("could not evict pod {}", pod.name), error });
                }
            }
        }
        failed
    }

    /// Tries a restart; a refusal is believed for [`REFUSAL_TRUST`].
    async fn try_restart(
        &self,
        workload: &Workload,
        pods: &[&PodReport],
        deviation: Deviation,
    ) -> Result<Trial> {
        let mut refusals = self.refusals.lock().await;
        refusals.retain(|_, refused| refused.at.elapsed() < REFUSAL_TRUST);
        if let Some(refused) = refusals.get(&workload.uid).filter(|refused| refused.aim == workload.aim) {
            return Ok(Trial::Refused(refused.refusal.clone()));
        }
        drop(refusals);
        let client = &self.dependencies.client;
        let trial = admission::try_restart(client, workload, pods, deviation).await?;
        if let Trial::Refused(refusal) = &trial {
            let refused = Refused { aim: workload.aim.clone(), at: Instant::now(), refusal: refusal.clone() };
            self.refusals.lock().await.insert(workload.uid.clone(), refused);
            tracing::debug!(namespace = workload.namespace, %workload, reason = refusal.0.as_str(), message = refusal.1, "a restart is not possible");
        }
        Ok(trial)
    }

    /// Returns the restarts in progress, those of `recent` included, which the watched lists may not show yet.
    fn pace(
        &self,
        rollout: &Rollout<'_>,
        policy_pods: &PolicyPods,
        workload: &Workload,
        recent: &HashMap<String, Recent>,
        now: Timestamp,
    ) -> Pace {
        let restarted = workload::restarted(&self.stores, None);
        let restart = |workload: Workload| {
            let policies = self.dependencies.policies.of(&workload.namespace);
            let policy = policies.serving(&workload.labels()).map(|policy| policy.name_any());
            (workload.uid, Restart { namespace: workload.namespace, policy })
        };
        let mut in_progress: HashMap<_, _> = restarted
            .filter(|workload| workload.is_being_restarted(now - ROLLOUT_LIMIT))
            .map(restart)
            .collect();
        let recent = recent.iter().filter(|(_, recent)| recent.is_recent(now));
        in_progress.extend(recent.map(|(uid, recent)| (uid.clone(), recent.of.clone())));
        let settings = &self.dependencies.arguments;
        let image = &settings.sidecar.image;
        let image_is_proven = rollout.takes_back || self.image_is_proven(image);
        let policy_is_proven = rollout.takes_back
            || policy_pods.workloads.iter().any(|(workload, pods)| {
                workload.progress.complete
                    && pods.iter().all(|pod| pod.injected && pod.deviation.is_none())
                    && !in_progress.contains_key(&workload.uid)
                    && policy_pods
                        .pods
                        .iter()
                        .all(|pod| pod.ready || pod.workload.as_ref() != Some(&workload.uid))
            });
        let is_undone = |(other, _): &(Workload, _)| {
            other.uid != workload.uid && other.undone().is_some_and(|undone| undone.obstacle.is_common())
        };
        Pace {
            image_is_proven,
            policy_is_proven,
            alone: false,
            in_namespace: in_progress.values().filter(|of| of.namespace == rollout.namespace).count(),
            has_failed: (!image_is_proven && workload::image_has_failed(&self.stores, image, &workload.uid))
                || (!policy_is_proven && policy_pods.workloads.iter().any(is_undone)),
            in_cluster: in_progress.len(),
            in_policy: in_policy(&in_progress, rollout, policy_pods),
            max_in_cluster: settings.max_concurrent_rollouts.into(),
            max_in_policy: rollout.max_concurrent.into(),
        }
    }

    /// Returns true if a pod is ready with the sidecar image.
    fn image_is_proven(&self, image: &str) -> bool {
        self.stores.pods.find_labelled(labels::POLICY, |pod| is_ready_with(pod, image)).is_some()
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
        let Some(spec) = &own.spec else { return false };
        let replicas =
            || self.stores.pods.selected(namespace, |labels| selector::matches(&spec.selector, labels));
        is_rolling(&own) || replicas().iter().any(|pod| leaving(pod))
    }

    /// Reports an event. A failure to report it is only logged.
    pub(super) async fn publish(&self, event: &kube::runtime::events::Event, about: &ObjectReference) {
        if let Err(error) = self.dependencies.recorder.publish(event, about).await {
            tracing::warn!(%error, reason = event.reason, "could not report an event");
        }
    }
}

/// Returns the hold of a workload whose restart was undone.
fn undone(workload: &Workload) -> Option<Hold> {
    let Undone { obstacle, message, .. } = workload.undone()?;
    if workload.kind == WorkloadKind::Rollout {
        let message = format!(
            "the restart of {workload} was ended, because {}: {message}; pods that were replaced keep the sidecar, since Argo \
             Rollouts has no way back from a restart: correct that, and the restart is tried again when the pod template or the \
             policy's sidecar changes",
            obstacle.as_str()
        );
        return Some(Hold { uid: workload.uid.clone(), reason: HoldReason::RolloutUndone, message });
    }
    let message = format!(
        "the restart of {workload} was undone, because {}: {message}; it is tried again when the pod template or the \
         policy's sidecar changes",
        obstacle.as_str()
    );
    Some(Hold { uid: workload.uid.clone(), reason: HoldReason::RolloutUndone, message })
}

/// Returns the number of restarts of a policy's workloads. A workload has no pods for a while when its only pod terminates.
fn in_policy(
    in_progress: &HashMap<String, Restart>,
    rollout: &Rollout<'_>,
    policy_pods: &PolicyPods,
) -> usize {
    let has_pods = |uid: &String| policy_pods.workloads.iter().any(|(workload, _)| workload.uid == *uid);
    let is_selected = |of: &Restart| {
        of.namespace == rollout.namespace && of.policy.is_some() && of.policy == rollout.about.name
    };
    in_progress.iter().filter(|(uid, of)| has_pods(uid) || is_selected(of)).count()
}

/// Returns the reason that a restart would give a workload's pods no sidecar, if their own labels are those that a policy
/// selects, and not those of the template.
fn unselected(policies: &InForce, workload: &Workload) -> Option<String> {
    policies.serving(&workload.labels()).is_none().then(|| {
        format!(
            "{workload} is not restarted, because its new pods would not have the labels that the policy selects: the pods \
             have them, and the pod template does not; add them to the template, or correct spec.selector"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{policies::tests as policies, rollout::Progress, workload::tests::workload_with};

    #[test]
    fn restart_of_a_workload_whose_only_pod_terminates_counts_for_its_policy() {
        let about = ObjectReference { name: Some("cache".into()), ..ObjectReference::default() };
        let rollout = Rollout {
            namespace: "shop",
            about: &about,
            webhook: &WebhookState::Answers,
            max_concurrent: 1,
            takes_back: false,
            restarts: true,
        };
        let counted = |namespace: &str, policy: Option<&str>, policy_pods: &PolicyPods| {
            let of = Restart { namespace: namespace.to_owned(), policy: policy.map(str::to_owned) };
            in_policy(&HashMap::from([("uid".to_owned(), of)]), &rollout, policy_pods)
        };
        let without = PolicyPods::default();
        assert_eq!(counted("shop", Some("cache"), &without), 1);
        assert_eq!(counted("shop", Some("other"), &without), 0);
        assert_eq!(counted("other", Some("cache"), &without), 0);
        assert_eq!(counted("shop", None, &without), 0);
        let mut workload = workload_with(Progress::default());
        workload.uid = "uid".into();
        let with = PolicyPods { workloads: vec![(workload, Vec::new())], ..PolicyPods::default() };
        assert_eq!(counted("shop", None, &with), 1);
    }

    #[test]
    fn workload_whose_template_lacks_the_labels_of_its_pods_is_not_restarted() {
        let policy = policies::policy("shop", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
        let in_force = policies::policies(&[policy]).of("shop");
        let mut workload = workload_with(Progress::default());
        let message = unselected(&in_force, &workload).unwrap();
        assert!(message.starts_with("Deployment shop is not restarted"), "{message}");
        workload.template["metadata"]["labels"] = json!({"app": "shop"});
        assert_eq!(unselected(&in_force, &workload), None);
    }
}
