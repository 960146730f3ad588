//! Keeps a policy in force: its ConfigMap, its token, the webhook's configuration, its pods, its status.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::controller::Action};
use larder_crds::{CachePolicy, CachePolicyStatus, CaptureMode, ConditionType, RolloutStrategy};

use super::{Leader, rolling::WebhookState};
use crate::{
    compile::{self, Owner},
    error::Result,
    events,
    policies::{Guarded, Refusal},
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
        self.shared.registration.ensure().await?;

        let compiled = match self.shared.policies.compile(policy) {
            Ok(_) if policy.spec.capture.mode == CaptureMode::None => {
                let uid = policy.uid().unwrap_or_default();
                Ok(compile::suspended(Owner { namespace: &namespace, name: &name, uid: &uid }))
            }
            other => other,
        };
        let held = match &compiled {
            Ok(compiled) => Some(self.put_config_map(&namespace, &name, compiled, strategy).await?),
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
            self.touch(&namespace, &surveyed.pods, &held.hash).await?;
        }
        let webhook = self.webhook_state(&namespace).await;
        if compiled.is_ok() && strategy == RolloutStrategy::Restart {
            self.roll(&namespace, &about, &surveyed, &webhook).await?;
        }
        let refusal = match (&compiled, &surveyed.conflict) {
            (Err(refusal), _) => Some(refusal.clone()),
            (Ok(_), Some(with)) => Some(Refusal::Conflict { with: with.clone() }),
            (Ok(_), None) => None,
        };
        let answers = self.sidecars.ask(sidecars(&surveyed)).await;
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
        };
        let status = status::assess(&seen, policy.status.as_ref(), Timestamp::now());
        if policy.status.as_ref() != Some(&status) {
            self.put_status(&namespace, &name, &status).await?;
            for event in events::transitions(policy.status.as_ref(), &status) {
                self.tell(&event, &about).await;
            }
        }
        tracing::debug!(namespace, name, elapsed = ?started.elapsed(), "looked at a policy");
        let edited = held.is_some_and(|held| status.config_hash != Some(held.hash));
        Ok(Action::requeue(if settled(&surveyed, &status) && !edited { LATER } else { SOON }))
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
fn settled(surveyed: &Survey, status: &CachePolicyStatus) -> bool {
    let on_its_way = surveyed.pods.iter().any(|pod| pod.fault.is_some());
    let attempts = surveyed.workloads.iter().any(|(workload, _)| workload.progress.attempts > 0);
    let pods = status.pods;
    let tiers = status::find(status, ConditionType::TiersHealthy).is_none_or(|tiers| tiers.status != "False");
    !on_its_way && !attempts && tiers && pods.current == pods.injected && pods.ready == pods.injected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rollout::Fault, status::tests::right, survey::PodReport};

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
        Survey { pods: vec![pod], ..Survey::default() }
    }

    #[test]
    fn it_looks_again_soon_while_something_is_on_its_way() {
        assert!(settled(&surveyed(None), &status(1)));
        assert!(!settled(&surveyed(None), &status(0)));
        assert!(!settled(&surveyed(Some(Fault::Missed)), &status(1)));
    }

    #[test]
    fn a_pod_without_an_address_is_not_asked() {
        assert_eq!(sidecars(&surveyed(None)).len(), 1);
        let mut waiting = surveyed(None);
        waiting.pods[0].address = None;
        assert!(sidecars(&waiting).is_empty());
    }
}
