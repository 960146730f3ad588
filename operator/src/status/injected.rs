//! The condition `Injected`: the progress of giving every pod the sidecar.

use jiff::Timestamp;
use larder_crds::{PodCounts, RolloutStrategy};

use super::{Observation, Verdict, other_modes, wants_sidecars};
use crate::{
    argo,
    capture::SkipReason,
    policy_pods::PodReport,
    rollout::{Decision, Deviation, HoldReason, MAX_ATTEMPTS, decide},
    vacancy::Vacancy,
    wording,
    workload::Workload,
};

/// Maximum number of workloads that are named.
const MAX_LISTED: usize = 5;

/// Derives the condition `Injected`.
pub(super) fn injected(seen: &Observation<'_>, pods: &PodCounts, now: Timestamp) -> Verdict {
    let policy_pods = &seen.policy_pods.pods;
    if !wants_sidecars(seen) {
        let left = policy_pods.iter().filter(|pod| pod.injected).count();
        return Verdict::new(
            false,
            "CaptureNone",
            format!("capture.mode is None; {left} pods still have a sidecar"),
        );
    }
    if pods.matched == 0 {
        return match seen.vacancy {
            Vacancy::NoWorkload => {
                Verdict::new(None, "NoPods", "the selector matches no pod, and the pods of no workload")
            }
            Vacancy::Idle(message) => Verdict::new(None, "NoPods", message.clone()),
            Vacancy::Awaited(awaited) => {
                Verdict::new(None, "NoPods", format!("{} has no pods yet", awaited.owner))
            }
            Vacancy::NotCreated(message) => Verdict::new(false, "PodsNotCreated", message.clone()),
        };
    }
    let of = format!("{} of {} pods have the sidecar", pods.injected, pods.matched);
    if let Some(verdict) = held(seen, pods.missed == 0, &of) {
        return verdict;
    }
    if let Some((pod, skip)) = policy_pods.iter().find_map(|pod| Some((pod, pod.skip.as_ref()?))) {
        // Another mode has the same sidecar.
        let is_refused = skip.reason == SkipReason::AdmissionRefused;
        let modes = if is_refused { String::new() } else { other_modes(seen, pod) };
        let message = format!("{of}; pod {}: {}{modes}", pod.name, skip.message);
        return Verdict::new(false, skip.reason.as_str(), message);
    }
    let outdated = policy_pods.iter().filter(|pod| pod.deviation.is_some()).count();
    let complete = pods.missed == 0;
    if complete && outdated == 0 {
        return Verdict::new(true, "Injected", of);
    }
    if let Some(refused) = seen.write_error {
        return Verdict::new(complete, "WriteRefused", format!("{of}; {refused}"));
    }
    if let Some(error) = seen.webhook.filter(|_| !complete) {
        return Verdict::new(
            false,
            "WebhookUnreachable",
            format!("{of}; no workload is restarted while {error}"),
        );
    }
    let strategy = seen.spec.sidecar.rollout.strategy;
    if let Some(workload) = given_up(seen, now).filter(|_| strategy == RolloutStrategy::Restart) {
        let message = format!(
            "{of}; {MAX_ATTEMPTS} restarts of {workload} have not helped; no further restarts until its \
             template or the policy's sidecar changes: check that the API server reaches the webhook's port of the \
             operator's pods (the chart's webhook.port; firewalls, NetworkPolicies) and that nothing else removes the \
             sidecar"
        );
        return Verdict::new(complete, "RestartsDoNotHelp", message);
    }
    match (strategy, complete) {
        (RolloutStrategy::OnCreate, false) => {
            Verdict::new(false, "OnCreate", format!("{of}; the others get it when they are recreated"))
        }
        (RolloutStrategy::OnCreate, true) => {
            let message =
                format!("{of}; {outdated} of them with outdated settings, until they are recreated");
            Verdict::new(true, "Outdated", message)
        }
        (RolloutStrategy::Restart, false) => {
            let Remedy { message, waits } = remedy(seen, now);
            Verdict::new(false, if waits { "Waiting" } else { "Missed" }, format!("{of}; {message}"))
        }
        (RolloutStrategy::Restart, true) => {
            let message = format!(
                "{of}; {outdated} have outdated settings and are being replaced: {}",
                remedy(seen, now).message
            );
            Verdict::new(true, "Outdated", message)
        }
    }
}

/// Returns a remark on Argo Rollouts that may not be listed, if pods are of one, or might be.
pub(super) fn unlisted_rollouts(seen: &Observation<'_>, pods: &PodCounts) -> Option<String> {
    let words = seen.rollouts_refused?;
    let is_of_one = |pod: &PodReport| pod.owner.as_deref() == Some(argo::KIND);
    let might_be = pods.matched == 0 && *seen.vacancy == Vacancy::NoWorkload;
    (might_be || seen.policy_pods.pods.iter().any(is_of_one)).then(|| {
        format!(
            "no Argo Rollout is restarted, because the operator may not list them: {words}; grant its account `list` and \
             `patch` of rollouts.argoproj.io, as the chart's roles do"
        )
    })
}

/// Returns a workload that is no longer restarted, because restarts have no effect.
fn given_up<'a>(seen: &Observation<'a>, now: Timestamp) -> Option<&'a Workload> {
    let workloads = seen.policy_pods.workloads.iter();
    let mut workloads = workloads.map(|(workload, pods)| (workload, decide(pods, &workload.progress, now)));
    workloads.find(|(_, decision)| *decision == Decision::GivenUp).map(|(workload, _)| workload)
}

/// Returns the verdict for restarts that do not begin until a user acts.
fn held(seen: &Observation<'_>, complete: bool, of: &str) -> Option<Verdict> {
    let mut holds = seen.holds.iter().filter(|hold| hold.reason != HoldReason::Queued);
    let first = holds.next()?;
    let others = match holds.count() {
        0 => String::new(),
        1 => "; 1 other workload is not restarted either".to_owned(),
        more => format!("; {more} other workloads are not restarted either"),
    };
    Some(Verdict::new(complete, first.reason.as_str(), format!("{of}; {}{others}", first.message)))
}

/// The remedy for pods that deviate.
struct Remedy {
    /// A sentence for users.
    message: String,
    /// True if there is nothing to do but to wait for the rollouts of others.
    waits: bool,
}

/// Returns the remedy for pods that deviate, where workloads are restarted.
fn remedy(seen: &Observation<'_>, now: Timestamp) -> Remedy {
    let [mut restarted, mut waiting, mut stalled, mut manual] = [const { Vec::new() }; 4];
    let wrong = || seen.policy_pods.pods.iter().filter(|pod| pod.deviation.is_some());
    for (workload, pods) in &seen.policy_pods.workloads {
        let is_held = seen.holds.iter().any(|hold| hold.uid == workload.uid);
        if is_held || pods.iter().all(|pod| pod.deviation.is_none()) {
            continue;
        }
        let progress = &workload.progress;
        match decide(pods, progress, now) {
            Decision::Manual => {
                let pods = wrong().filter(|pod| pod.workload.as_ref() == Some(&workload.uid));
                let names: Vec<_> = pods.map(|pod| pod.name.as_str()).take(MAX_LISTED).collect();
                manual.extend(workload.manual(&names));
            }
            Decision::Wait if !progress.complete && progress.tries() == 0 => match &workload.stalled {
                Some(words) => stalled.push(format!("{workload} ({words})")),
                None => waiting.push(workload.to_string()),
            },
            _ => restarted.push(workload.to_string()),
        }
    }
    let mut parts = Vec::new();
    if !restarted.is_empty() {
        parts.push(format!(
            "{} {} being restarted",
            wording::list(&restarted, MAX_LISTED),
            is_or_are(&restarted)
        ));
    }
    if !waiting.is_empty() {
        let is = is_or_are(&waiting);
        parts.push(format!(
            "{} {is} restarted after a rollout that is in progress",
            wording::list(&waiting, MAX_LISTED)
        ));
    }
    if !stalled.is_empty() {
        let is = is_or_are(&stalled);
        parts.push(format!(
            "{} {is} restarted after a rollout of its own, which does not progress: correct its pods, or undo it",
            wording::list(&stalled, MAX_LISTED)
        ));
    }
    let mut queued = seen.holds.iter().filter(|hold| hold.reason == HoldReason::Queued);
    if let Some(first) = queued.next() {
        let others = queued.count();
        let others = if others > 0 { format!(" ({others} more wait)") } else { String::new() };
        parts.push(format!("{}{others}", first.message));
    }
    if let Some((first, others)) = manual.split_first() {
        let others =
            if others.is_empty() { String::new() } else { format!(" (and {} more workloads)", others.len()) };
        parts.push(format!("{first}{others}"));
    }
    let unowned = unowned(seen.namespace, wrong().filter(|pod| pod.workload.is_none()));
    let waits = restarted.is_empty() && manual.is_empty() && unowned.is_none() && !parts.is_empty();
    parts.extend(unowned);
    Remedy { message: parts.join("; "), waits }
}

/// Returns the command by which pods of no workload are replaced.
fn unowned<'a>(namespace: &str, pods: impl Iterator<Item = &'a PodReport>) -> Option<String> {
    let pods: Vec<_> = pods.collect();
    let first = pods.first()?;
    let Some(owner) = &first.owner else {
        let name = &first.name;
        let others = if pods.len() > 1 {
            format!(", and {} more pods likewise", pods.len() - 1)
        } else {
            String::new()
        };
        if first.deviation != Some(Deviation::Missed) {
            return Some(format!(
                "pod {name} has no owner that would create it again: delete it, and create it from its manifest{others}"
            ));
        }
        return Some(format!(
            "pod {name} has no owner that would create it again: replace it with `kubectl get pod {name} --namespace \
             {namespace} --output yaml | kubectl replace --force --filename -`{others}"
        ));
    };
    let names = pods.iter().filter(|pod| pod.owner.is_some()).map(|pod| pod.name.as_str()).take(MAX_LISTED);
    let remark = if owner == "Job" { "; the next Job gets the sidecar by itself" } else { "" };
    Some(format!(
        "pods of a {owner} are not restarted: delete them at a suitable time, as with `kubectl delete pod {} --namespace \
         {namespace}`{remark}",
        names.collect::<Vec<_>>().join(" ")
    ))
}

const fn is_or_are(names: &[String]) -> &'static str {
    if names.len() == 1 { "is" } else { "are" }
}
