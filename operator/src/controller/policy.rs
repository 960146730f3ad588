//! Reconciles a policy: its ConfigMap, its token, the webhook's configuration, its pods, its status.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::controller::Action};
use larder_api::admin::State as CacheState;
use larder_crds::{CachePolicy, CachePolicyStatus, ConditionType, RolloutStrategy};
use larder_policy::coverage::State;

use super::{
    Leader,
    covering::{Covered, Place},
    rolling::WebhookState,
    writes::Refused,
};
use crate::{
    capture::Mode,
    compile::{self, Owner},
    coverage::{Sight, Writer},
    error::Result,
    events,
    policies::{Guarded, Refusal},
    rollout::{Decision, decide},
    sidecars::Sidecar,
    status::{self, Observation},
    survey::{Subject, Survey, survey},
    world::in_namespace,
};

/// Requeue interval while a change is in progress.
const SOON: Duration = Duration::from_millis(1500);
/// Requeue interval otherwise: sidecars are polled, because nothing else reports the loss of a tier.
const LATER: Duration = Duration::from_secs(15);

/// Reconciles a policy and reports the progress in its status.
///
/// # Guarantees
/// - Sidecars receive a configuration before any pod is restarted for it.
/// - Writes happen only on a difference: a second run right after the first only reads.
/// - A rejected write stops none of the others; the status reports it.
pub(super) async fn reconcile(guarded: Arc<Guarded>, leader: Arc<Leader>) -> Result<Action> {
    leader.world.ready().await?;
    let meta = guarded.meta();
    if meta.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    match &guarded.0 {
        Ok(policy) => leader.keep_in_force(policy).await,
        Err(invalid) => {
            let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            let status = status::unreadable(meta.generation, created, &invalid.error);
            leader.put_status(&namespace, &name, &status).await?;
            Ok(Action::requeue(LATER))
        }
    }
}

impl Leader {
    async fn keep_in_force(&self, policy: &CachePolicy) -> Result<Action> {
        let started = Instant::now();
        let namespace = policy.namespace().unwrap_or_default();
        let name = policy.name_any();
        let about = policy.object_ref(&());
        let strategy = policy.spec.sidecar.rollout.strategy;
        let mut refused = Vec::new();
        if let Err(error) = self.shared.registration.ensure().await {
            refused.push(Refused { what: "could not write the webhook's configuration".into(), error });
        }
        let compiled = match self.shared.policies.compile(policy) {
            Ok(_) if Mode::of(policy.spec.capture.mode).is_none() => {
                let uid = policy.uid().unwrap_or_default();
                Ok(compile::suspended(Owner { namespace: &namespace, name: &name, uid: &uid }))
            }
            other => other,
        };
        let held = match &compiled {
            Ok(compiled) => match self.put_config_map(&namespace, &name, compiled, strategy).await {
                Ok(held) => Some(held),
                Err(error) => {
                    refused
                        .push(Refused { what: "could not write the sidecars' configuration".into(), error });
                    None
                }
            },
            Err(_) => None,
        };
        let surveyed = survey(
            &self.world,
            &Subject {
                namespace: &namespace,
                name: &name,
                policy: Some(policy),
                frozen: compiled.is_err(),
                others: &self.shared.policies.of(&namespace),
                settings: &self.shared.arguments.sidecar,
            },
        );
        let now = Timestamp::now();
        let place = Place { namespace: &namespace, policy };
        let mut coverage = match self.covered(place, held.as_ref(), compiled.is_err(), now).await {
            Ok(coverage) => coverage,
            Err(error) => {
                refused.push(Refused { what: "could not write the coverage".into(), error });
                None
            }
        };
        // A pod without the sidecar is told of before anybody is asked.
        if let Some(covered) = &mut coverage {
            refused.extend(self.tell_coverage(place, covered, &surveyed, &BTreeMap::new(), now).await.err());
        }
        let told = |coverage: &Option<Covered>| coverage.as_ref().and_then(|covered| covered.told.clone());
        if let Some(held) = &held {
            refused
                .extend(self.touch(&namespace, &surveyed.pods, &held.hash, told(&coverage).as_ref()).await);
        }
        let webhook = self.webhook_state(&namespace).await;
        if held.is_some() && strategy == RolloutStrategy::Restart {
            refused.extend(self.roll(&namespace, &about, &surveyed, &webhook).await);
        }
        let refusal = match (&compiled, &surveyed.conflict) {
            (Err(refusal), _) => Some(refusal.clone()),
            (Ok(_), Some(with)) => Some(Refusal::Conflict { with: with.clone() }),
            (Ok(_), None) => None,
        };
        let writers = coverage.as_ref().map_or(&[][..], |covered| &covered.writers);
        let mut answers = self.sidecars.ask(sidecars(&surveyed, writers)).await;
        if let Some(covered) = &mut coverage {
            let before = covered.told.clone();
            refused.extend(self.tell_coverage(place, covered, &surveyed, &answers, now).await.err());
            if covered.told != before {
                let told = covered.told.as_ref();
                refused.extend(self.touch(&namespace, &surveyed.pods, &covered.hash, told).await);
            }
        }
        answers.retain(|name, _| surveyed.pods.iter().any(|pod| pod.name == *name));
        let view = coverage.as_ref().and_then(|covered| covered.view(&policy.spec.cache));
        let write_refused = refused.first().map(ToString::to_string);
        let now = Timestamp::now();
        let seen = Observation {
            generation: policy.metadata.generation,
            spec: &policy.spec,
            refusal: refusal.as_ref(),
            hash: compiled.as_ref().ok().map(|compiled| compiled.hash.as_str()),
            survey: &surveyed,
            answers: &answers,
            coverage: view.as_ref(),
            services: &in_namespace(&self.world.services, &namespace),
            webhook: match &webhook {
                WebhookState::Unreachable(error) => Some(error),
                WebhookState::Answers | WebhookState::Settling => None,
            },
            write_refused: write_refused.as_deref(),
        };
        let status = status::assess(&seen, policy.status.as_ref(), now);
        if policy.status.as_ref() != Some(&status) {
            self.put_status(&namespace, &name, &status).await?;
            for event in events::transitions(policy.status.as_ref(), &status) {
                self.tell(&event, &about).await;
            }
        }
        tracing::debug!(namespace, name, elapsed = ?started.elapsed(), "reconciled a policy");
        if let Some(first) = refused.into_iter().next() {
            return Err(first.error);
        }
        let edited = held.is_some_and(|held| status.config_hash != Some(held.hash));
        let heard = answers.values().flatten().all(|answer| answer.state != CacheState::Waiting)
            || view.is_some_and(|view| view.state != State::Serving && view.assessment.awaited.is_empty());
        let rests = settled(&surveyed, &status, strategy, now) && heard && !edited;
        Ok(Action::requeue(if rests { LATER } else { SOON }))
    }
}

/// Returns the sidecars that can be polled: those of the policy's pods, and of terminating pods that still take
/// requests.
fn sidecars(surveyed: &Survey, writers: &[Writer]) -> Vec<Sidecar> {
    let injected = surveyed.pods.iter().filter(|pod| pod.injected && pod.matched);
    let askable = injected.map(|pod| (&pod.name, pod.address, pod.admin_port));
    let leaving = writers.iter().filter(|writer| writer.leaving && writer.sight == Sight::Sidecar);
    let leaving = leaving.map(|writer| (&writer.name, writer.address, writer.admin_port));
    let sidecar = |(pod, address, port): (&String, Option<_>, Option<_>)| {
        Some(Sidecar { pod: pod.clone(), address: address?, port: port? })
    };
    askable.chain(leaving).filter_map(sidecar).collect()
}

/// Returns true if no change is in progress that the operator has to follow.
fn settled(surveyed: &Survey, status: &CachePolicyStatus, strategy: RolloutStrategy, now: Timestamp) -> bool {
    // What is wrong with other pods is not the operator's to repair.
    let on_its_way = strategy == RolloutStrategy::Restart
        && surveyed.workloads.iter().any(|(workload, pods)| match decide(pods, &workload.progress, now) {
            Decision::Restart(_) | Decision::Wait | Decision::Forget => true,
            Decision::Settled | Decision::Manual | Decision::GivenUp => false,
        });
    let pods = status.pods;
    let tiers = status::find(status, ConditionType::TiersHealthy).is_none_or(|tiers| tiers.status != "False");
    !on_its_way && tiers && pods.current == pods.injected && pods.ready == pods.injected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rollout::{Fault, PodState, Progress},
        status::tests::right,
        survey::PodReport,
        workload::tests::workload_with,
    };

    fn status(current: i32) -> CachePolicyStatus {
        let mut status = CachePolicyStatus::default();
        status.pods.injected = 1;
        status.pods.ready = 1;
        status.pods.current = current;
        status
    }

    fn surveyed(fault: Option<Fault>) -> Survey {
        let address = Some("10.0.0.1".parse().unwrap());
        let pod = PodReport { fault, address, admin_port: Some(24890), ..right("a") };
        let workload = workload_with(Progress { complete: true, rolls: true, ..Progress::default() });
        Survey {
            pods: vec![pod],
            workloads: vec![(workload, vec![PodState { fault, newest: true }])],
            ..Survey::default()
        }
    }

    #[test]
    fn requeues_soon_while_a_change_is_in_progress() {
        let settled = |surveyed, current| {
            settled(&surveyed, &status(current), RolloutStrategy::Restart, Timestamp::now())
        };
        assert!(settled(surveyed(None), 1));
        assert!(!settled(surveyed(None), 0));
        assert!(!settled(surveyed(Some(Fault::Missed)), 1));
    }

    #[test]
    fn does_not_wait_for_pods_that_it_does_not_repair() {
        let now = Timestamp::now();
        let missed = || surveyed(Some(Fault::Missed));
        assert!(settled(&missed(), &status(1), RolloutStrategy::OnCreate, now));
        let bare = Survey { workloads: vec![], ..missed() };
        assert!(settled(&bare, &status(1), RolloutStrategy::Restart, now));
        let mut paused = missed();
        paused.workloads[0].0.progress.rolls = false;
        assert!(settled(&paused, &status(1), RolloutStrategy::Restart, now));
    }

    #[test]
    fn a_pod_without_an_address_is_not_asked() {
        assert_eq!(sidecars(&surveyed(None), &[]).len(), 1);
        let mut waiting = surveyed(None);
        waiting.pods[0].address = None;
        assert!(sidecars(&waiting, &[]).is_empty());
    }
}
