//! Keeps a policy in force: its ConfigMap, its token, the webhook's configuration, its pods, its status.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::controller::Action};
use larder_crds::{CachePolicy, CachePolicyStatus, CaptureMode, ConditionType, RolloutStrategy};

use super::{Leader, rolling::WebhookState, writes::Refused};
use crate::{
    compile::{self, Owner},
    error::Result,
    events,
    policies::{Guarded, Refusal},
    rollout::{Decision, decide},
    sidecars::Sidecar,
    status::{self, Observation},
    survey::{Subject, Survey, survey},
    world::in_namespace,
};

/// When to look again while something is on its way.
const SOON: Duration = Duration::from_millis(1500);
/// When to look again otherwise: sidecars are asked, since nothing else tells when a tier goes.
const LATER: Duration = Duration::from_secs(15);

/// Brings what runs in line with a policy, and says in its status how far that is.
///
/// # Guarantees
/// - Sidecars are told of a configuration before any pod is restarted for it.
/// - Nothing is written that is already so: a second run right after the first only reads.
/// - A write that is refused stops none of the others; the status says what was refused.
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
            Ok(_) if policy.spec.capture.mode == CaptureMode::None => {
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
        if let Some(held) = &held {
            refused.extend(self.touch(&namespace, &surveyed.pods, &held.hash).await);
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
        let answers = self.sidecars.ask(sidecars(&surveyed)).await;
        let write_refused = refused.first().map(ToString::to_string);
        let now = Timestamp::now();
        let seen = Observation {
            generation: policy.metadata.generation,
            spec: &policy.spec,
            refusal: refusal.as_ref(),
            hash: compiled.as_ref().ok().map(|compiled| compiled.hash.as_str()),
            survey: &surveyed,
            answers: &answers,
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
        tracing::debug!(namespace, name, elapsed = ?started.elapsed(), "looked at a policy");
        if let Some(first) = refused.into_iter().next() {
            return Err(first.error);
        }
        let edited = held.is_some_and(|held| status.config_hash != Some(held.hash));
        Ok(Action::requeue(if settled(&surveyed, &status, strategy, now) && !edited { LATER } else { SOON }))
    }
}

/// The sidecars that can be asked.
fn sidecars(surveyed: &Survey) -> Vec<Sidecar> {
    let injected = surveyed.pods.iter().filter(|pod| pod.injected && pod.matched);
    let askable = injected.filter_map(|pod| {
        Some(Sidecar { pod: pod.name.clone(), address: pod.address?, port: pod.admin_port? })
    });
    askable.collect()
}

/// Whether nothing is on its way that the operator will have to see through.
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
    fn it_looks_again_soon_while_something_is_on_its_way() {
        let settled = |surveyed, current| {
            settled(&surveyed, &status(current), RolloutStrategy::Restart, Timestamp::now())
        };
        assert!(settled(surveyed(None), 1));
        assert!(!settled(surveyed(None), 0));
        assert!(!settled(surveyed(Some(Fault::Missed)), 1));
    }

    #[test]
    fn it_does_not_wait_for_what_it_does_not_repair() {
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
        assert_eq!(sidecars(&surveyed(None)).len(), 1);
        let mut waiting = surveyed(None);
        waiting.pods[0].address = None;
        assert!(sidecars(&waiting).is_empty());
    }
}
