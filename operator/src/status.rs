//! The status of a policy, derived from observations. Nothing is assumed: a pod counts as current when its sidecar has
//! confirmed it.

mod injected;
mod peers;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;
mod writes_seen;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::NetworkPolicy},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use larder_api::{
    admin::{PolicyReport, TierState},
    names,
};
use larder_crds::{CachePolicySpec, CachePolicyStatus, ConditionType, PodCounts, Traffic};
use larder_policy::coverage::State;
use serde_json::json;

use crate::{
    capture::{self, Inputs, Mode},
    cli::SidecarSettings,
    coverage::View,
    inject,
    policies::PolicyError,
    policy_pods::{PodReport, PolicyPods},
    rollout::Hold,
    vacancy::Vacancy,
    wording,
};

/// Maximum number of missed pods that are named.
const MAX_NAMED: usize = 10;

/// Maximum number of pods that are named for a tier.
const MAX_PODS_OF_TIER: usize = 5;

/// Maximum length of a condition's message, as the definition has it.
const MAX_MESSAGE: usize = 32 << 10;

/// Inputs of a status.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// The policy's name.
    pub name: &'a str,
    /// The policy's `metadata.generation`.
    pub generation: Option<i64>,
    /// The policy.
    pub spec: &'a CachePolicySpec,
    /// The reason that the policy is not in force.
    pub policy_error: Option<&'a PolicyError>,
    /// The hash of the configuration that sidecars should run.
    pub hash: Option<&'a str>,
    /// The policy's pods.
    pub policy_pods: &'a PolicyPods,
    /// Responses of the sidecars, by pod.
    pub answers: &'a BTreeMap<String, Result<PolicyReport, String>>,
    /// The policy's coverage; `None` if nothing relies on it.
    pub coverage: Option<&'a View>,
    /// The Services of the namespace.
    pub services: &'a [Arc<Service>],
    /// Settings of injected sidecars.
    pub settings: &'a SidecarSettings,
    /// The namespace's network policies.
    pub network_policies: &'a [Arc<NetworkPolicy>],
    /// The namespace's Pod Security level, if it forbids capabilities.
    pub pod_security: Option<&'a str>,
    /// The reason that the webhook is not ready.
    pub webhook: Option<&'a str>,
    /// The first rejected write, with the API server's message.
    pub write_error: Option<&'a str>,
    /// The reason that no pod matches the selector.
    pub vacancy: &'a Vacancy,
    /// The API server's words if it refused to list the Argo Rollouts of the namespace.
    pub rollouts_refused: Option<&'a str>,
    /// Requests of the sidecars, if that is known.
    pub throughput: Option<&'a Traffic>,
    /// Restarts that are needed and do not begin.
    pub holds: &'a [Hold],
}

/// The status of a condition, with reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    holds: Option<bool>,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(holds: impl Into<Option<bool>>, reason: &str, message: impl Into<String>) -> Self {
        Self { holds: holds.into(), reason: reason.to_owned(), message: message.into() }
    }

    /// Adds the first of some remarks to the message, and the number of the others.
    fn and(self, remarks: &[String]) -> Self {
        let Some((first, others)) = remarks.split_first() else { return self };
        let others =
            if others.is_empty() { String::new() } else { format!(" (and {} more pods)", others.len()) };
        Self { message: format!("{}; {first}{others}", self.message), ..self }
    }

    fn is_true(&self) -> bool {
        self.holds == Some(true)
    }

    const fn as_str(&self) -> &'static str {
        match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// Derives the status of a policy. Conditions with an unchanged status retain their `lastTransitionTime`.
pub fn assess(
    seen: &Observation<'_>,
    previous: Option<&CachePolicyStatus>,
    now: Timestamp,
) -> CachePolicyStatus {
    let pods = count(seen);
    let missed_pods: Vec<_> = missed(seen).take(MAX_NAMED).map(str::to_owned).collect();
    let accepted = accepted(seen);
    let injected = injected::injected(seen, &pods, now).and(&seen.policy_pods.remarks);
    let injected = injected.and(injected::unlisted_rollouts(seen, &pods).as_slice());
    let traffic = traffic::captured(seen);
    let current = config_current(seen, &pods);
    let tiers = tiers_healthy(seen);
    let writes = writes_seen::writes_seen(seen);
    let ready = ready(seen, &pods, [&accepted, &injected, &current, &traffic, &writes]);
    let verdicts = [accepted, injected, traffic, current, writes, tiers, ready];
    let conditions = ConditionType::ALL.into_iter().zip(verdicts);
    let conditions =
        conditions.map(|(kind, verdict)| condition(kind, verdict, seen.generation, previous, now));
    CachePolicyStatus {
        observed_generation: seen.generation,
        config_hash: seen.hash.map(str::to_owned).or_else(|| last_hash(seen, previous)),
        capture: Some(mode(seen).map_or("None", Mode::as_str).to_owned()),
        traffic: seen.throughput.cloned().or_else(|| previous?.traffic.clone()),
        pods,
        missed_pods,
        conditions: conditions.collect(),
    }
}

/// Returns the hash of a policy's last good document, which sidecars continue to run while the policy is invalid.
fn last_hash(seen: &Observation<'_>, previous: Option<&CachePolicyStatus>) -> Option<String> {
    let goes_on = matches!(seen.policy_error, Some(PolicyError::Invalid(_) | PolicyError::NotAllowed(_)));
    previous.filter(|_| goes_on)?.config_hash.clone()
}

/// Returns the status of a policy that cannot be parsed. The result is stable, so that writing it again changes
/// nothing.
pub fn unreadable(generation: Option<i64>, created: Option<Timestamp>, error: &str) -> CachePolicyStatus {
    let verdict = || Verdict::new(false, "Invalid", format!("the policy can't be read: {error}"));
    let at = created.unwrap_or(Timestamp::UNIX_EPOCH);
    let conditions = [ConditionType::Accepted, ConditionType::Ready];
    let conditions = conditions.map(|kind| condition(kind, verdict(), generation, None, at));
    CachePolicyStatus {
        observed_generation: generation,
        conditions: conditions.into(),
        ..CachePolicyStatus::default()
    }
}

/// Returns the status of a policy in a namespace that may not be listed: nothing is known of its pods but what was known before.
pub fn unseen(
    previous: Option<&CachePolicyStatus>,
    generation: Option<i64>,
    error: &str,
    now: Timestamp,
) -> CachePolicyStatus {
    let verdict = Verdict::new(None, "NotListed", error);
    let ready = condition(ConditionType::Ready, verdict, generation, previous, now);
    let mut status =
        CachePolicyStatus { observed_generation: generation, ..previous.cloned().unwrap_or_default() };
    status.conditions.retain(|condition| condition.type_ != ready.type_);
    status.conditions.push(ready);
    status
}

/// Returns the condition of a type.
pub fn find(status: &CachePolicyStatus, kind: ConditionType) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

fn condition(
    kind: ConditionType,
    verdict: Verdict,
    generation: Option<i64>,
    previous: Option<&CachePolicyStatus>,
    now: Timestamp,
) -> Condition {
    let status = verdict.as_str();
    let before = previous.and_then(|previous| find(previous, kind)).filter(|before| before.status == status);
    Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: verdict.reason,
        message: wording::cut(verdict.message, MAX_MESSAGE),
        observed_generation: generation,
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
    }
}

fn count(seen: &Observation<'_>) -> PodCounts {
    let mut counts = PodCounts::default();
    for pod in seen.policy_pods.pods.iter().filter(|pod| pod.matched) {
        counts.matched += 1;
        if !pod.injected {
            counts.missed += i32::from(wants_sidecars(seen));
            continue;
        }
        counts.injected += 1;
        counts.ready += i32::from(pod.ready);
        let answer = seen.answers.get(&pod.name).and_then(|answer| answer.as_ref().ok());
        let hash = answer.and_then(|answer| answer.hash.as_deref());
        counts.current += i32::from(hash.is_some() && hash == seen.hash);
    }
    counts
}

/// Returns the mode by which the policy's requests are captured.
fn mode(seen: &Observation<'_>) -> Option<Mode> {
    Mode::of(&seen.spec.capture, &seen.spec.targets)
}

/// Returns what follows in a message about a pod whose requests are not captured: the modes that could, with the lines to
/// write.
fn other_modes(seen: &Observation<'_>, pod: &PodReport) -> String {
    let Some(object) = &pod.object else { return String::new() };
    let pod = inject::without_sidecar(&json!(**object));
    let inputs = Inputs {
        capture: &seen.spec.capture,
        targets: &seen.spec.targets,
        settings: seen.settings,
        network_policies: seen.network_policies,
        pod_security: seen.pod_security,
    };
    let offers = capture::offers(mode(seen), &pod, &inputs);
    offers.iter().map(|offer| format!("; or {offer}")).collect()
}

fn wants_sidecars(seen: &Observation<'_>) -> bool {
    mode(seen).is_some()
}

fn missed<'a>(seen: &Observation<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let pods = seen.policy_pods.pods.iter();
    let wanted = wants_sidecars(seen);
    pods.filter(move |pod| wanted && pod.matched && !pod.injected).map(|pod| pod.name.as_str())
}

fn accepted(seen: &Observation<'_>) -> Verdict {
    match seen.policy_error {
        None => Verdict::new(true, "Accepted", "the policy is valid"),
        Some(policy_error) => {
            let message = match policy_error {
                PolicyError::Invalid(deviations) | PolicyError::NotAllowed(deviations) => deviations.clone(),
                PolicyError::NameTaken(message) => message.clone(),
                PolicyError::NamespaceExcluded => {
                    "policies have no effect in the operator's own namespace and in kube-system; apply the policy elsewhere".into()
                }
                PolicyError::Conflict { with } => format!(
                    "the older policy {with} selects the same pods and serves them; separate the selectors, or \
                     delete one of the two"
                ),
            };
            Verdict::new(false, policy_error.as_str(), message)
        }
    }
}

fn config_current(seen: &Observation<'_>, pods: &PodCounts) -> Verdict {
    if pods.injected == 0 {
        return Verdict::new(None, "NoPods", "no pod has the sidecar");
    }
    let injected = || seen.policy_pods.pods.iter().filter(|pod| pod.matched && pod.injected);
    let answers = || injected().filter_map(|pod| Some((pod, seen.answers.get(&pod.name)?.as_ref().ok()?)));
    let refused = answers().find_map(|(pod, answer)| Some((pod, answer.error.as_ref()?)));
    if let Some((pod, error)) = refused {
        return Verdict::new(false, "ConfigRefused", format!("pod {}: {error}", pod.name));
    }
    let of = format!(
        "{} of {} sidecars run configuration {}",
        pods.current,
        pods.injected,
        seen.hash.unwrap_or("none")
    );
    if pods.current == pods.injected {
        let mut answers = answers().peekable();
        if answers.peek().is_some() && answers.all(|(_, answer)| !answer.admin_token) {
            let secret = names::admin_secret(seen.name);
            let message = format!(
                "{of}; no sidecar can read a token for its admin API: the Secret {secret} has no key token, so it is \
                 somebody else's; delete or rename it, and the operator creates it"
            );
            return Verdict::new(false, "NoAdminToken", message);
        }
        return Verdict::new(true, "Current", of);
    }
    if let Some((pod, (obstacle, message))) =
        injected().find_map(|pod| Some((pod, pod.not_started.as_ref()?)))
    {
        let message = format!("{of}; pod {}: {}: {message}", pod.name, obstacle.as_str());
        return Verdict::new(false, obstacle.reason(), message);
    }
    let mut others = answers().filter(|(_, answer)| answer.hash.as_deref() != seen.hash);
    if let Some((pod, answer)) = others.next() {
        let state = match &answer.hash {
            Some(hash) => format!("runs configuration {hash}"),
            None => "has no configuration loaded".to_owned(),
        };
        return Verdict::new(false, "Pending", format!("{of}; pod {} {state}", pod.name));
    }
    let silent = injected().find_map(|pod| Some((pod, seen.answers.get(&pod.name)?.as_ref().err()?)));
    match silent {
        Some((pod, error)) => Verdict::new(false, "Unreachable", format!("{of}; pod {}: {error}", pod.name)),
        None => Verdict::new(false, "Pending", format!("{of}; the others have not started")),
    }
}

fn tiers_healthy(seen: &Observation<'_>) -> Verdict {
    let mut down: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut errors: BTreeMap<&str, &str> = BTreeMap::new();
    let mut tiers = 0;
    let mut answered = false;
    for (pod, answer) in seen.answers.iter().filter_map(|(pod, answer)| Some((pod, answer.as_ref().ok()?))) {
        answered = true;
        for (tier, state) in &answer.tiers {
            tiers += 1;
            if *state != TierState::Up {
                down.entry(tier).or_default().push(pod);
            }
        }
        for (tier, error) in &answer.last_errors {
            errors.entry(tier).or_insert(error);
            // The collector of metrics is no tier, and reports an error only when it is not allowed.
            if !answer.tiers.contains_key(tier) {
                down.entry(tier).or_default().push(pod);
            }
        }
    }
    if !down.is_empty() {
        let list = down.iter().map(|(tier, pods)| {
            let error = errors.get(tier).map(|error| format!(": {error}")).unwrap_or_default();
            format!("{tier} does not respond to pod {}{error}", wording::list(pods, MAX_PODS_OF_TIER))
        });
        return Verdict::new(false, "TierDown", list.collect::<Vec<_>>().join("; "));
    }
    if let Some(apart) = peers::apart(seen) {
        return apart;
    }
    match (answered, tiers) {
        (false, _) => Verdict::new(None, "NoAnswer", "no sidecar has responded yet"),
        (true, 0) => Verdict::new(true, "NoTiers", "the policy uses neither Redis nor Postgres"),
        (true, _) => Verdict::new(true, "Healthy", "every tier responds to every sidecar"),
    }
}

/// Derives the condition `Ready`. Tiers do not affect it, because a cache without Redis still serves.
fn ready(seen: &Observation<'_>, pods: &PodCounts, others: [&Verdict; 5]) -> Verdict {
    let [accepted, injected, current, traffic, writes] = others;
    let because = |verdict: &Verdict| Verdict::new(false, &verdict.reason, verdict.message.clone());
    if !accepted.is_true() || !wants_sidecars(seen) {
        return because(if accepted.is_true() { injected } else { accepted });
    }
    if seen.spec.cache.suspend {
        let message = "the policy is suspended: every sidecar passes everything through";
        return Verdict::new(false, "Suspended", message);
    }
    if pods.matched == 0 && matches!(seen.vacancy, Vacancy::Idle(_)) {
        return Verdict::new(true, &injected.reason, injected.message.clone());
    }
    if injected.reason != "Injected" {
        let waits = seen.coverage.is_some_and(|view| view.state != State::Serving);
        let effect = if waits { "; until then every sidecar passes everything through" } else { "" };
        return Verdict::new(false, &injected.reason, format!("{}{effect}", injected.message));
    }
    if !current.is_true() {
        return match seen.write_error {
            Some(refused) => Verdict::new(false, "WriteRefused", refused),
            None => because(current),
        };
    }
    if pods.ready < pods.injected {
        let message = format!("{} of {} sidecars are ready", pods.ready, pods.injected);
        return Verdict::new(false, "NotReady", message);
    }
    if traffic.holds == Some(false) {
        return because(traffic);
    }
    if let Some(waiting) = writes_seen::waiting(seen, writes) {
        return waiting;
    }
    Verdict::new(true, "Serving", format!("{} pods serve with the policy in force", pods.current))
}
