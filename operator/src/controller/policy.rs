//! Reconciles a policy: its ConfigMap, its token, the webhook's configuration, its pods, its status.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        batch::v1::{CronJob, Job},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Api, Resource, ResourceExt, api::ListParams, runtime::controller::Action};
use larder_api::admin::CacheState;
use larder_crds::{CachePolicy, CachePolicyStatus, ConditionType, RolloutStrategy};
use larder_policy::coverage::State;

use super::{
    Context, admission,
    covering::{Covered, Place},
    rolling::{Rollout, WebhookState},
    writes::WriteError,
};
use crate::{
    argo,
    capture::Mode,
    compile::{self, Owner},
    coverage::{Sight, Writer},
    error::{Error, Result},
    events,
    policies::{Guarded, PolicyError},
    policy_pods::{PolicyPods, Subject, policy_pods},
    rollout::{Decision, decide},
    sidecars::Sidecar,
    status::{self, Observation},
    stores::in_namespace,
    vacancy::{Awaited, Vacancy, is_selected, named, vacancy},
};

/// Requeue interval while a change is in progress.
const CHANGE_INTERVAL: Duration = Duration::from_millis(1500);
/// Requeue interval while a change does not end.
const STUCK_INTERVAL: Duration = Duration::from_secs(6);
/// Share of a change's age after which it is looked at again, as a divisor.
const PATIENCE: u32 = 20;
/// Share of the time that reconciling a policy may take, as a divisor: timeouts of its sidecars must not delay others.
const SHARE: u32 = 4;
/// Requeue interval otherwise: sidecars are polled, because nothing else reports the loss of a tier, and requests.
const IDLE_INTERVAL: Duration = Duration::from_secs(6);

/// Reconciles a policy and reports the progress in its status.
///
/// # Guarantees
/// - Sidecars receive a configuration before any pod is restarted for it.
/// - Writes happen only on a difference: a second run right after the first only reads.
/// - A rejected write stops none of the others; the status reports it.
pub(super) async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action> {
    let meta = guarded.meta();
    if meta.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    match &guarded.0 {
        Ok(policy) => {
            context.stores.ready(&policy.namespace().unwrap_or_default()).await?;
            context.reconcile_policy(policy).await
        }
        Err(invalid) => {
            let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            let status = status::unreadable(meta.generation, created, &invalid.error);
            context.put_status(&namespace, &name, &status).await?;
            Ok(Action::requeue(IDLE_INTERVAL))
        }
    }
}

impl Context {
    async fn reconcile_policy(&self, policy: &CachePolicy) -> Result<Action> {
        let started = Instant::now();
        let namespace = policy.namespace().unwrap_or_default();
        let name = policy.name_any();
        let about = policy.object_ref(&());
        let strategy = policy.spec.sidecar.rollout.strategy;
        let mode = Mode::of(&policy.spec.capture, &policy.spec.targets);
        let mut failed = Vec::new();
        if let Err(error) = self.dependencies.registration.ensure_covered(policy).await {
            failed.push(WriteError { what: "could not write the webhook's configuration".into(), error });
        }
        let compiled = match self.dependencies.policies.compile(policy) {
            Ok(_) if mode.is_none() => {
                let uid = policy.uid().unwrap_or_default();
                Ok(compile::suspended(Owner { namespace: &namespace, name: &name, uid: &uid }))
            }
            other => other,
        };
        let held = match &compiled {
            Ok(compiled) => match self.put_config_map(&namespace, &name, compiled, strategy).await {
                Ok(held) => Some(held),
                Err(error) => {
                    failed.push(WriteError {
                        what: "could not write the sidecars' configuration".into(),
                        error,
                    });
                    None
                }
            },
            Err(_) => None,
        };
        if argo::are_used(&self.stores, &namespace) {
            self.stores.rollouts.refresh(&self.dependencies.client, &namespace).await?;
        }
        let policy_pods = policy_pods(
            &self.stores,
            &Subject {
                namespace: &namespace,
                name: &name,
                policy: Some(policy),
                frozen: compiled.is_err(),
                others: &self.dependencies.policies.of(&namespace),
                settings: &self.dependencies.arguments.sidecar,
                patience: self.dependencies.arguments.patience(),
                now: Timestamp::now(),
            },
        );
        let now = Timestamp::now();
        let place = Place { namespace: &namespace, policy };
        let mut coverage = match self.covered(place, held.as_ref(), compiled.is_err(), now).await {
            Ok(coverage) => coverage,
            Err(error) => {
                failed.push(WriteError { what: "could not write the coverage".into(), error });
                None
            }
        };
        // Sidecars hear of a pod that has none before any is polled.
        if let Some(covered) = &mut coverage {
            failed.extend(
                self.publish_coverage(place, covered, &policy_pods, &BTreeMap::new(), now).await.err(),
            );
        }
        let published =
            |coverage: &Option<Covered>| coverage.as_ref().and_then(|covered| covered.published.clone());
        if let Some(held) = &held {
            failed.extend(
                self.touch(&namespace, &policy_pods.pods, &held.hash, published(&coverage).as_ref()).await,
            );
        }
        // Companions follow the pods of an invalid policy, too.
        let owner = match &held {
            Some(held) => Some(held.clone()),
            None => self.held(&namespace, &name).await?,
        };
        if let Some(held) = &owner {
            let wanted = mode == Some(Mode::CompanionService);
            failed.extend(self.put_companions((&namespace, &name), wanted, held, &about).await);
        }
        let webhook = self.webhook_state(&namespace).await;
        let mut holds = Vec::new();
        if held.is_some() {
            let rollout = Rollout {
                namespace: &namespace,
                about: &about,
                webhook: &webhook,
                max_concurrent: policy.spec.sidecar.rollout.max_concurrent,
                takes_back: mode.is_none(),
                restarts: strategy == RolloutStrategy::Restart,
            };
            let rolled = self.roll(&rollout, &policy_pods).await;
            failed.extend(rolled.failed);
            failed.extend(self.undo_refused(&rollout, policy).await);
            holds = rolled.holds;
        }
        if let Err(error) = self.forget_workloads(&namespace, false).await {
            failed
                .push(WriteError { what: "could not remove annotations of earlier restarts".into(), error });
        }
        let taken = failed.iter().find(|failure| matches!(failure.error, Error::NameTaken { .. }));
        let matched = policy_pods.pods.iter().any(|pod| pod.matched);
        let vacancy = if matched { Vacancy::NoWorkload } else { self.vacancy(&namespace, policy).await? };
        let policy_error = match (&compiled, &policy_pods.conflict, taken) {
            (Err(policy_error), ..) => Some(policy_error.clone()),
            (Ok(_), Some(with), _) => Some(PolicyError::Conflict { with: with.clone() }),
            (Ok(_), None, Some(taken)) => Some(PolicyError::NameTaken(taken.error.to_string())),
            (Ok(_), None, None) => None,
        };
        let writers = coverage.as_ref().map_or(&[][..], |covered| &covered.writers);
        let mut answers = self.sidecars.ask(sidecars(&policy_pods, writers)).await;
        if let Some(covered) = &mut coverage {
            let before = covered.published.clone();
            failed.extend(self.publish_coverage(place, covered, &policy_pods, &answers, now).await.err());
            if covered.published != before {
                let published = covered.published.as_ref();
                failed.extend(self.touch(&namespace, &policy_pods.pods, &covered.hash, published).await);
            }
        }
        if let Some(held) = &held
            && answers.values().flatten().any(|answer| !answer.admin_token)
        {
            self.doubt_token(&held.uid).await;
        }
        answers.retain(|name, _| policy_pods.pods.iter().any(|pod| pod.name == *name));
        let throughput = {
            let mut all = self.throughput.lock().await;
            all.entry((namespace.clone(), name.clone()))
                .or_default()
                .observe(&answers, tokio::time::Instant::now())
        };
        let view = coverage.as_ref().and_then(|covered| covered.view(&policy.spec.cache));
        for failure in &failed {
            tracing::warn!(namespace, name, "{failure}");
        }
        let write_error = failed.first().map(ToString::to_string);
        let pod_security = self.stores.pod_security.confined(&namespace);
        let now = Timestamp::now();
        let seen = Observation {
            namespace: &namespace,
            name: &name,
            generation: policy.metadata.generation,
            spec: &policy.spec,
            policy_error: policy_error.as_ref(),
            hash: compiled.as_ref().ok().map(|compiled| compiled.hash.as_str()),
            policy_pods: &policy_pods,
            answers: &answers,
            coverage: view.as_ref(),
            services: &in_namespace(&self.stores.services, &namespace),
            settings: &self.dependencies.arguments.sidecar,
            network_policies: &in_namespace(&self.stores.network_policies, &namespace),
            pod_security: pod_security.as_deref(),
            webhook: match &webhook {
                WebhookState::Unreachable(error) => Some(error),
                WebhookState::Answers | WebhookState::Settling => None,
            },
            write_error: write_error.as_deref(),
            vacancy: &vacancy,
            throughput: throughput.as_ref(),
            holds: &holds,
        };
        let status = status::assess(&seen, policy.status.as_ref(), now);
        if policy.status.as_ref() != Some(&status) {
            self.put_status(&namespace, &name, &status).await?;
            for event in events::transitions(policy.status.as_ref(), &status) {
                self.publish(&event, &about).await;
            }
        }
        tracing::debug!(namespace, name, elapsed = ?started.elapsed(), "reconciled a policy");
        if let Some(first) = failed.into_iter().next() {
            return Err(first.error);
        }
        let edited = held.is_some_and(|held| status.config_hash != Some(held.hash));
        let heard = answers.values().flatten().all(|answer| answer.state != CacheState::Waiting)
            || view.is_some_and(|view| view.state != State::Serving && view.assessment.awaited.is_empty());
        let rests = settled(&policy_pods, &status, strategy, now) && heard && !edited;
        let interval = if rests { IDLE_INTERVAL } else { change_interval(&status, now) };
        Ok(Action::requeue(interval.max(started.elapsed() * SHARE).min(IDLE_INTERVAL)))
    }
}

impl Context {
    /// Returns the reason that a policy has no pods. Where some are awaited, the API server is asked for one by a dry run.
    async fn vacancy(&self, namespace: &str, policy: &CachePolicy) -> Result<Vacancy> {
        let own = &policy.spec.selector;
        let vacancy = match vacancy(&self.stores, namespace, own) {
            Vacancy::NoWorkload => self.unwatched_without_pods(namespace, own).await?,
            other => other,
        };
        let Vacancy::Awaited(awaited) = vacancy else { return Ok(vacancy) };
        let words = admission::words_against(&self.dependencies.client, namespace, &awaited.pod).await?;
        Ok(match words {
            Some(words) => awaited.refused(&words),
            None => Vacancy::Awaited(awaited),
        })
    }

    /// Returns the reason that workloads of a selector have no pods whose kinds are not watched.
    async fn unwatched_without_pods(&self, namespace: &str, own: &LabelSelector) -> Result<Vacancy> {
        let client = &self.dependencies.client;
        self.stores.rollouts.refresh(client, namespace).await?;
        let rollouts = self.stores.rollouts.of(namespace);
        let rollouts = rollouts.iter().filter_map(|rollout| {
            let template = argo::template_of(&self.stores, namespace, &rollout.data["spec"])?;
            let wanted = rollout.data["spec"]["replicas"].as_i64().unwrap_or(1);
            Some((named("Rollout", &rollout.metadata), template, wanted))
        });
        let sets =
            Api::<ReplicaSet>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?;
        let is_bare =
            |set: &&ReplicaSet| set.owner_references().iter().all(|owner| owner.controller != Some(true));
        let sets = sets.items.iter().filter(is_bare).filter_map(|set| {
            let spec = set.spec.as_ref()?;
            Some((
                named("ReplicaSet", &set.metadata),
                spec.template.clone()?,
                i64::from(spec.replicas.unwrap_or(1)),
            ))
        });
        let mut idle = None;
        for (owner, template, wanted) in
            rollouts.chain(sets).filter(|(_, template, _)| is_selected(own, template))
        {
            if wanted > 0 {
                return Ok(Vacancy::Awaited(Awaited::new(owner, &template)));
            }
            idle.get_or_insert(owner);
        }
        match idle {
            Some(owner) => Ok(Vacancy::Idle(format!("{owner} wants no pods"))),
            None => self.jobs_without_pods(namespace, own).await,
        }
    }

    /// Returns the reason that the Jobs and CronJobs of a selector have no pods. Jobs are not watched.
    async fn jobs_without_pods(&self, namespace: &str, own: &LabelSelector) -> Result<Vacancy> {
        let client = &self.dependencies.client;
        let everything = ListParams::default();
        let jobs = Api::<Job>::namespaced(client.clone(), namespace).list(&everything).await?;
        let mut ended = None;
        for job in &jobs.items {
            let Some(spec) = job.spec.as_ref().filter(|spec| is_selected(own, &spec.template)) else {
                continue;
            };
            let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let has_ended = conditions.into_iter().any(|condition| {
                matches!(condition.type_.as_str(), "Complete" | "Failed" | "Suspended")
                    && condition.status == "True"
            });
            let owner = named("Job", &job.metadata);
            if !has_ended && spec.suspend != Some(true) {
                return Ok(Vacancy::Awaited(Awaited::new(owner, &spec.template)));
            }
            ended.get_or_insert(owner);
        }
        let timed = Api::<CronJob>::namespaced(client.clone(), namespace).list(&everything).await?;
        let timed = timed.items.into_iter().find(|job| {
            let template = job.spec.as_ref().and_then(|spec| spec.job_template.spec.as_ref());
            template.is_some_and(|spec| is_selected(own, &spec.template))
        });
        Ok(match (timed, ended) {
            (Some(job), _) => {
                Vacancy::Idle(format!("{} has no pods between its runs", named("CronJob", &job.metadata)))
            }
            (None, Some(owner)) => Vacancy::Idle(format!("{owner} has no running pods")),
            (None, None) => Vacancy::NoWorkload,
        })
    }
}

/// Returns the sidecars that can be polled: those of the policy's pods, and of terminating pods that still take
/// requests.
fn sidecars(policy_pods: &PolicyPods, writers: &[Writer]) -> Vec<Sidecar> {
    let injected = policy_pods.pods.iter().filter(|pod| pod.injected && pod.matched);
    let askable = injected.map(|pod| (&pod.name, pod.address, pod.admin_port));
    let leaving = writers.iter().filter(|writer| writer.leaving && writer.sight == Sight::Sidecar);
    let leaving = leaving.map(|writer| (&writer.name, writer.address, writer.admin_port));
    let sidecar = |(pod, address, port): (&String, Option<_>, Option<_>)| {
        Some(Sidecar { pod: pod.clone(), address: address?, port: port? })
    };
    askable.chain(leaving).filter_map(sidecar).collect()
}

/// Returns the interval at which a change in progress is looked at: it grows with the time since a condition changed.
fn change_interval(status: &CachePolicyStatus, now: Timestamp) -> Duration {
    let last = status.conditions.iter().map(|condition| condition.last_transition_time.0).max();
    let age = last.and_then(|last| Duration::try_from(now.duration_since(last)).ok()).unwrap_or_default();
    (age / PATIENCE).clamp(CHANGE_INTERVAL, STUCK_INTERVAL)
}

/// Returns true if no change is in progress that the operator has to follow.
fn settled(
    policy_pods: &PolicyPods,
    status: &CachePolicyStatus,
    strategy: RolloutStrategy,
    now: Timestamp,
) -> bool {
    // What is wrong with other pods is not the operator's to repair.
    let on_its_way = strategy == RolloutStrategy::Restart
        && policy_pods.workloads.iter().any(|(workload, pods)| match decide(pods, &workload.progress, now) {
            Decision::Restart(_) | Decision::Wait | Decision::Forget | Decision::Undo(_) => true,
            Decision::Settled | Decision::Manual | Decision::GivenUp | Decision::Undone => false,
        });
    let pods = status.pods;
    let tiers = status::find(status, ConditionType::TiersHealthy).is_none_or(|tiers| tiers.status != "False");
    !on_its_way && tiers && pods.current == pods.injected && pods.ready == pods.injected
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;
    use crate::{
        policy_pods::PodReport,
        rollout::{Deviation, PodState, Progress},
        status::tests::right,
        workload::tests::workload_with,
    };

    fn status(current: i32) -> CachePolicyStatus {
        let mut status = CachePolicyStatus::default();
        status.pods.injected = 1;
        status.pods.ready = 1;
        status.pods.current = current;
        status
    }

    fn policy_pods(deviation: Option<Deviation>) -> PolicyPods {
        let address = Some("10.0.0.1".parse().unwrap());
        let pod = PodReport { deviation, address, admin_port: Some(24890), ..right("a") };
        let workload = workload_with(Progress { complete: true, rolls: true, ..Progress::default() });
        PolicyPods {
            pods: vec![pod],
            workloads: vec![(
                workload,
                vec![PodState { deviation, newest: true, injected: true, obstacle: None }],
            )],
            ..PolicyPods::default()
        }
    }

    #[test]
    fn change_that_does_not_end_is_looked_at_less_often() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let mut changed = status(1);
        changed.conditions = right_conditions(at(0));
        assert_eq!(change_interval(&changed, at(1)), CHANGE_INTERVAL);
        assert_eq!(change_interval(&changed, at(60)), Duration::from_secs(3));
        assert_eq!(change_interval(&changed, at(86_400)), STUCK_INTERVAL);
        assert_eq!(change_interval(&changed, at(-5)), CHANGE_INTERVAL, "clocks differ");
    }

    fn right_conditions(at: Timestamp) -> Vec<Condition> {
        vec![Condition {
            type_: "Ready".into(),
            status: "False".into(),
            reason: "Pending".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(at),
        }]
    }

    #[test]
    fn policy_is_requeued_soon_while_a_change_is_in_progress() {
        let settled = |policy_pods, current| {
            settled(&policy_pods, &status(current), RolloutStrategy::Restart, Timestamp::now())
        };
        assert!(settled(policy_pods(None), 1));
        assert!(!settled(policy_pods(None), 0));
        assert!(!settled(policy_pods(Some(Deviation::Missed)), 1));
    }

    #[test]
    fn controller_does_not_wait_for_pods_that_it_does_not_repair() {
        let now = Timestamp::now();
        let missed = || policy_pods(Some(Deviation::Missed));
        assert!(settled(&missed(), &status(1), RolloutStrategy::OnCreate, now));
        let bare = PolicyPods { workloads: vec![], ..missed() };
        assert!(settled(&bare, &status(1), RolloutStrategy::Restart, now));
        let mut paused = missed();
        paused.workloads[0].0.progress.rolls = false;
        assert!(settled(&paused, &status(1), RolloutStrategy::Restart, now));
    }

    #[test]
    fn pod_without_an_address_is_not_polled() {
        assert_eq!(sidecars(&policy_pods(None), &[]).len(), 1);
        let mut waiting = policy_pods(None);
        waiting.pods[0].address = None;
        assert!(sidecars(&waiting, &[]).is_empty());
    }
}
