//! Whether the pods have the sidecar, and what becomes of those that do not.

use jiff::Timestamp;
use larder_crds::{PodCounts, RolloutStrategy};

use super::{Observation, Verdict, wants_sidecars};
use crate::{
    rollout::{Decision, MOST_ATTEMPTS, decide},
    workload::Workload,
};

/// The verdict behind the condition `Injected`.
pub(super) fn injected(seen: &Observation<'_>, pods: &PodCounts, now: Timestamp) -> Verdict {
    let surveyed = &seen.survey.pods;
    if !wants_sidecars(seen) {
        let left = surveyed.iter().filter(|pod| pod.injected).count();
        return Verdict::new(
            false,
            "CaptureNone",
            format!("capture.mode is None; {left} pods still have a sidecar"),
        );
    }
    if pods.matched == 0 {
        return Verdict::new(None, "NoPods", "no pod has the labels that the selector names");
    }
    let of = format!("{} of {} pods have the sidecar", pods.injected, pods.matched);
    if let Some((pod, skip)) = surveyed.iter().find_map(|pod| Some((pod, pod.skip.as_ref()?))) {
        return Verdict::new(
            false,
            skip.reason.as_str(),
            format!("{of}; pod {}: {}", pod.name, skip.message),
        );
    }
    let outdated = surveyed.iter().filter(|pod| pod.fault.is_some()).count();
    let complete = pods.missed == 0;
    if complete && outdated == 0 {
        return Verdict::new(true, "Injected", of);
    }
    if let Some(refused) = seen.write_refused {
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
            "{of}; {MOST_ATTEMPTS} restarts of {workload} have not helped, so it is restarted no more until its \
             template or the policy's sidecar changes: check that the API server reaches port 9443 of the operator's \
             pods (firewalls, NetworkPolicies) and that nothing else takes the sidecar out"
        );
        return Verdict::new(complete, "RestartsDoNotHelp", message);
    }
    match (strategy, complete) {
        (RolloutStrategy::OnCreate, false) => {
            Verdict::new(false, "OnCreate", format!("{of}; the others get it when they are made again"))
        }
        (RolloutStrategy::OnCreate, true) => {
            let message = format!("{of}; {outdated} of them of other settings, until they are made again");
            Verdict::new(true, "Outdated", message)
        }
        (RolloutStrategy::Restart, false) => {
            Verdict::new(false, "Missed", format!("{of}; {}", remedy(seen, now)))
        }
        (RolloutStrategy::Restart, true) => {
            let message = format!("{of}; {outdated} are to be replaced by newer ones: {}", remedy(seen, now));
            Verdict::new(true, "Outdated", message)
        }
    }
}

/// A workload that is restarted no more, since that does not help.
fn given_up<'a>(seen: &Observation<'a>, now: Timestamp) -> Option<&'a Workload> {
    let workloads = seen.survey.workloads.iter();
    let mut workloads = workloads.map(|(workload, pods)| (workload, decide(pods, &workload.progress, now)));
    workloads.find(|(_, decision)| *decision == Decision::GivenUp).map(|(workload, _)| workload)
}

/// How the pods that are not right become so, where workloads are restarted.
fn remedy(seen: &Observation<'_>, now: Timestamp) -> String {
    let (mut restarted, mut manual, mut owned) = (false, Vec::new(), 0);
    for (workload, pods) in &seen.survey.workloads {
        let wrong = pods.iter().filter(|pod| pod.fault.is_some()).count();
        owned += wrong;
        match decide(pods, &workload.progress, now) {
            Decision::Manual => manual.push(workload.to_string()),
            _ => restarted |= wrong > 0,
        }
    }
    let mut parts = Vec::new();
    if restarted {
        parts.push("Deployments and StatefulSets are restarted".to_owned());
    }
    if !manual.is_empty() {
        parts.push(format!(
            "the pods of {} must be made again by hand, since it is paused, has a partition or the strategy OnDelete",
            manual.join(", ")
        ));
    }
    if seen.survey.pods.iter().filter(|pod| pod.fault.is_some()).count() > owned {
        parts.push("pods of no Deployment or StatefulSet must be made again by hand".to_owned());
    }
    parts.join("; ")
}
