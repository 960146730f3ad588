//! Reconciles a policy: its ConfigMap, its token, the webhook's configuration, its pods, its status.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, ResourceExt, runtime::controller::Action};
use larder_api::admin::{CacheState, PolicyReport};
use larder_crds::{CachePolicy, CachePolicyStatus, RolloutStrategy};
use larder_policy::coverage::State;

use super::{
    Context,
    covering::{Covered, Place},
    requeue,
    rolling::{Rollout, WebhookState},
    writes::{Held, WriteError},
};
use crate::{
    argo,
    capture::Mode,
    compile::{self, Compiled, Owner},
    coverage::{Sight, View, Writer},
    error::{Error, Result},
    events,
    policies::{Guarded, PolicyError},
    policy_pods::{PolicyPods, Subject, policy_pods},
    rollout::Hold,
    sidecars::Sidecar,
    status::{self, Observation},
    stores::in_namespace,
    vacancy::Vacancy,
    workload,
};

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
        Ok(policy) => match context.stores.ready(&policy.namespace().unwrap_or_default()).await {
            Ok(()) => context.reconcile_policy(policy).await,
            Err(error @ Error::Forbidden { .. }) => context.tell_that_it_is_unseen(policy, &error).await,
            Err(error) => Err(error),
        },
        Err(invalid) => {
            let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            let status = status::unreadable(meta.generation, created, &invalid.error);
            context.put_status(&namespace, &name, &status).await?;
            Ok(Action::requeue(requeue::IDLE_INTERVAL))
        }
    }
}

/// One reconciliation of a policy.
struct Pass<'a> {
    policy: &'a CachePolicy,
    namespace: String,
    name: String,
    /// The policy as the object of events.
    about: ObjectReference,
    mode: Option<Mode>,
    strategy: RolloutStrategy,
    started: Instant,
    /// The writes that failed, after which the others continued.
    failed: Vec<WriteError>,
}

impl<'a> Pass<'a> {
    fn new(policy: &'a CachePolicy) -> Self {
        Self {
            policy,
            namespace: policy.namespace().unwrap_or_default(),
            name: policy.name_any(),
            about: policy.object_ref(&()),
            mode: Mode::of(&policy.spec.capture, &policy.spec.targets),
            strategy: policy.spec.sidecar.rollout.strategy,
            started: Instant::now(),
            failed: Vec::new(),
        }
    }

    fn place(&self) -> Place<'_> {
        Place { namespace: &self.namespace, policy: self.policy }
    }

    /// Returns the value of a write that succeeded, and records one that failed.
    fn record<T>(&mut self, what: &str, written: Result<T>) -> Option<T> {
        written.map_err(|error| self.failed.push(WriteError { what: what.to_owned(), error })).ok()
    }
}

/// Findings of a reconciliation, from which the status is derived.
struct Findings {
    compiled: Result<Compiled, PolicyError>,
    held: Option<Held>,
    policy_pods: PolicyPods,
    webhook: WebhookState,
    holds: Vec<Hold>,
    vacancy: Vacancy,
    answers: BTreeMap<String, Result<PolicyReport, String>>,
    coverage: Option<View>,
}

impl Context {
    /// Reports that the pods of a policy are unknown. The status may be what the operator may not write, in which case the log alone has
    /// said so.
    async fn tell_that_it_is_unseen(&self, policy: &CachePolicy, error: &Error) -> Result<Action> {
        let (generation, now) = (policy.metadata.generation, Timestamp::now());
        let status = status::unseen(policy.status.as_ref(), generation, &error.to_string(), now);
        if policy.status.as_ref() != Some(&status) {
            let (namespace, name) = (policy.namespace().unwrap_or_default(), policy.name_any());
            if let Err(error) = self.put_status(&namespace, &name, &status).await {
                tracing::debug!(%error, namespace, name, "could not write the status of a policy");
            }
        }
        Ok(Action::requeue(requeue::IDLE_INTERVAL))
    }

    /// Reconciles a valid object in stages, each of which builds on the findings of those before it.
    async fn reconcile_policy(&self, policy: &CachePolicy) -> Result<Action> {
        let mut pass = Pass::new(policy);
        let named = self.dependencies.registration.ensure_covered(policy).await;
        pass.record("could not write the webhook's configuration", named);
        let compiled = self.compile(&pass);
        let held = self.configure(&mut pass, &compiled).await;
        self.refresh_rollouts(&pass.namespace).await?;
        let policy_pods = self.examine(&pass.namespace, &pass.name, Some(policy), compiled.is_err());
        let now = Timestamp::now();
        let coverage = self.covered(pass.place(), held.as_ref(), compiled.is_err(), now).await;
        let mut coverage = pass.record("could not write the coverage", coverage).flatten();
        self.inform(&mut pass, held.as_ref(), coverage.as_mut(), &policy_pods, now).await;
        self.lead_companions(&mut pass, held.as_ref()).await?;
        let webhook = self.webhook_state(&pass.namespace).await;
        let holds = self.restart_workloads(&mut pass, held.is_some(), &webhook, &policy_pods).await;
        let vacancy = if policy_pods.pods.iter().any(|pod| pod.matched) {
            Vacancy::NoWorkload
        } else {
            self.vacancy(&pass.namespace, policy).await?
        };
        let answers = self.poll(&mut pass, held.as_ref(), coverage.as_mut(), &policy_pods, now).await;
        let coverage = coverage.and_then(|covered| covered.view(&policy.spec.cache));
        let found = Findings { compiled, held, policy_pods, webhook, holds, vacancy, answers, coverage };
        let status = self.report(&pass, &found).await?;
        tracing::debug!(pass.namespace, pass.name, elapsed = ?pass.started.elapsed(), "reconciled a policy");
        let interval = interval(&found, &status, &pass);
        match pass.failed.into_iter().next() {
            Some(first) => Err(first.error),
            None => Ok(Action::requeue(interval)),
        }
    }

    /// Compiles the configuration of the sidecars, or returns the reason that the policy is not in force.
    fn compile(&self, pass: &Pass<'_>) -> Result<Compiled, PolicyError> {
        let compiled = self.dependencies.policies.compile(pass.policy)?;
        if pass.mode.is_some() {
            return Ok(compiled);
        }
        let uid = pass.policy.uid().unwrap_or_default();
        Ok(compile::suspended(Owner { namespace: &pass.namespace, name: &pass.name, uid: &uid }))
    }

    /// Writes the configuration of the sidecars. That of an invalid policy stays as it is.
    async fn configure(&self, pass: &mut Pass<'_>, compiled: &Result<Compiled, PolicyError>) -> Option<Held> {
        let compiled = compiled.as_ref().ok()?;
        let held = self.put_config_map(&pass.namespace, &pass.name, compiled, pass.strategy).await;
        let held = pass.record("could not write the sidecars' configuration", held)?;
        let written = self.put_peers(&pass.namespace, &pass.name, &held).await;
        pass.record("could not write the Service of the sidecars", written);
        Some(held)
    }

    /// Lists the Argo Rollouts of a namespace that has some.
    pub(super) async fn refresh_rollouts(&self, namespace: &str) -> Result<()> {
        if argo::are_used(&self.stores, namespace) {
            self.stores.rollouts.refresh(&self.dependencies.client, namespace).await?;
        }
        Ok(())
    }

    /// Examines the pods of a policy, or of a deleted one.
    pub(super) fn examine(
        &self,
        namespace: &str,
        name: &str,
        policy: Option<&CachePolicy>,
        frozen: bool,
    ) -> PolicyPods {
        let subject = Subject {
            namespace,
            name,
            policy,
            frozen,
            others: &self.dependencies.policies.of(namespace),
            settings: &self.dependencies.arguments.sidecar,
            patience: self.dependencies.arguments.patience(),
            now: Timestamp::now(),
        };
        policy_pods(&self.stores, &subject)
    }

    /// Informs the sidecars of a changed configuration, and of pods without a sidecar before any sidecar is polled.
    async fn inform(
        &self,
        pass: &mut Pass<'_>,
        held: Option<&Held>,
        mut coverage: Option<&mut Covered>,
        policy_pods: &PolicyPods,
        now: Timestamp,
    ) {
        if let Some(covered) = coverage.as_deref_mut() {
            let written =
                self.publish_coverage(pass.place(), covered, policy_pods, &BTreeMap::new(), now).await;
            pass.failed.extend(written.err());
        }
        if let Some(held) = held {
            let published = coverage.and_then(|covered| covered.published.as_ref());
            let touched = self.touch(&pass.namespace, &policy_pods.pods, &held.hash, published).await;
            pass.failed.extend(touched);
        }
    }

    /// Writes the companions of Services. They follow the pods of an invalid policy, too.
    async fn lead_companions(&self, pass: &mut Pass<'_>, held: Option<&Held>) -> Result<()> {
        let found = match held {
            Some(_) => None,
            None => self.held(&pass.namespace, &pass.name).await?,
        };
        if let Some(held) = held.or(found.as_ref()) {
            let wanted = pass.mode == Some(Mode::CompanionService);
            let policy = (pass.namespace.as_str(), pass.name.as_str());
            pass.failed.extend(self.put_companions(policy, wanted, held, &pass.about).await);
        }
        Ok(())
    }

    /// Restarts workloads that need it, ends restarts that cannot end, and returns the restarts that do not begin.
    async fn restart_workloads(
        &self,
        pass: &mut Pass<'_>,
        is_configured: bool,
        webhook: &WebhookState,
        policy_pods: &PolicyPods,
    ) -> Vec<Hold> {
        let rollout = Rollout {
            namespace: &pass.namespace,
            about: &pass.about,
            webhook,
            max_concurrent: pass.policy.spec.sidecar.rollout.max_concurrent,
            takes_back: pass.mode.is_none(),
            restarts: pass.strategy == RolloutStrategy::Restart,
        };
        let mut holds = Vec::new();
        if is_configured {
            let rolled = self.roll(&rollout, policy_pods).await;
            pass.failed.extend(rolled.failed);
            holds = rolled.holds;
        }
        let restarted: Vec<_> = workload::restarted(&self.stores, Some(&pass.namespace)).collect();
        if is_configured {
            pass.failed.extend(self.undo_refused(&rollout, pass.policy, &restarted).await);
        }
        let forgotten = self.forget_workloads(&pass.namespace, &restarted, false).await;
        pass.record("could not remove annotations of earlier restarts", forgotten);
        holds
    }

    /// Polls the sidecars, informs them of a coverage that their responses change, and returns the responses by pod.
    async fn poll(
        &self,
        pass: &mut Pass<'_>,
        held: Option<&Held>,
        coverage: Option<&mut Covered>,
        policy_pods: &PolicyPods,
        now: Timestamp,
    ) -> BTreeMap<String, Result<PolicyReport, String>> {
        let writers = coverage.as_ref().map_or(&[][..], |covered| &covered.writers);
        let mut answers = self.sidecars.ask(sidecars(policy_pods, writers)).await;
        if let Some(covered) = coverage {
            let before = covered.published.clone();
            let written = self.publish_coverage(pass.place(), covered, policy_pods, &answers, now).await;
            pass.failed.extend(written.err());
            if covered.published != before {
                let published = covered.published.as_ref();
                let touched = self.touch(&pass.namespace, &policy_pods.pods, &covered.hash, published).await;
                pass.failed.extend(touched);
            }
        }
        if let Some(held) = held
            && answers.values().flatten().any(|answer| !answer.admin_token)
        {
            self.doubt_token(&held.uid).await;
        }
        answers.retain(|name, _| policy_pods.pods.iter().any(|pod| pod.name == *name));
        answers
    }

    /// Writes the status of a policy, with an event for each condition that has changed, and returns it.
    async fn report(&self, pass: &Pass<'_>, found: &Findings) -> Result<CachePolicyStatus> {
        let Pass { policy, namespace, name, about, failed, .. } = pass;
        for failure in failed {
            tracing::warn!(namespace, name, "{failure}");
        }
        let policy_error = policy_error(found, failed);
        let write_error = failed.first().map(ToString::to_string);
        let pod_security = self.stores.pod_security.confined(namespace);
        let rollouts_refused = self.stores.rollouts.refusal(namespace);
        let throughput = self
            .throughput
            .lock()
            .await
            .entry((namespace.clone(), name.clone()))
            .or_default()
            .observe(&found.answers, tokio::time::Instant::now());
        let seen = Observation {
            namespace,
            name,
            generation: policy.metadata.generation,
            spec: &policy.spec,
            policy_error: policy_error.as_ref(),
            hash: found.compiled.as_ref().ok().map(|compiled| compiled.hash.as_str()),
            policy_pods: &found.policy_pods,
            answers: &found.answers,
            coverage: found.coverage.as_ref(),
            services: &in_namespace(&self.stores.services, namespace),
            settings: &self.dependencies.arguments.sidecar,
            network_policies: &in_namespace(&self.stores.network_policies, namespace),
            pod_security: pod_security.as_deref(),
            webhook: match &found.webhook {
                WebhookState::Unreachable(error) => Some(error),
                WebhookState::Answers | WebhookState::Settling => None,
            },
            write_error: write_error.as_deref(),
            vacancy: &found.vacancy,
            rollouts_refused: rollouts_refused.as_deref(),
            throughput: throughput.as_ref(),
            holds: &found.holds,
        };
        let status = status::assess(&seen, policy.status.as_ref(), Timestamp::now());
        if policy.status.as_ref() != Some(&status) {
            self.put_status(namespace, name, &status).await?;
            for event in events::transitions(policy.status.as_ref(), &status) {
                self.publish(&event, about).await;
            }
        }
        Ok(status)
    }
}

/// Returns the reason that a policy is not in force.
fn policy_error(found: &Findings, failed: &[WriteError]) -> Option<PolicyError> {
    let conflict = || found.policy_pods.conflict.clone().map(|with| PolicyError::Conflict { with });
    let taken = || failed.iter().find(|failure| matches!(failure.error, Error::NameTaken { .. }));
    let invalid = found.compiled.as_ref().err().cloned();
    invalid.or_else(conflict).or_else(|| Some(PolicyError::NameTaken(taken()?.error.to_string())))
}

/// Returns the interval after which a policy is reconciled again, although nothing that is watched has changed.
fn interval(found: &Findings, status: &CachePolicyStatus, pass: &Pass<'_>) -> Duration {
    let now = Timestamp::now();
    let is_edited = found.held.as_ref().is_some_and(|held| status.config_hash.as_ref() != Some(&held.hash));
    let waits = |view: &View| view.state != State::Serving && view.assessment.awaited.is_empty();
    let have_heard = found.answers.values().flatten().all(|answer| answer.state != CacheState::Waiting)
        || found.coverage.as_ref().is_some_and(waits);
    let rests = have_heard && !is_edited && requeue::settled(&found.policy_pods, status, pass.strategy, now);
    requeue::interval(rests, status, pass.started.elapsed(), now)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy_pods::PodReport, status::tests::right};

    #[test]
    fn pod_without_an_address_is_not_polled() {
        let address = Some("10.0.0.1".parse().unwrap());
        let sidecars = |address| {
            let pods = vec![PodReport { address, admin_port: Some(24890), ..right("a") }];
            sidecars(&PolicyPods { pods, ..PolicyPods::default() }, &[]).len()
        };
        assert_eq!(sidecars(address), 1);
        assert_eq!(sidecars(None), 0);
    }
}
