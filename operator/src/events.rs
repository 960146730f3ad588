//! Events on a policy, at transitions only: `kubectl describe` shows them, and none is repeated.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    ResourceExt,
    runtime::events::{Event, EventType},
};
use larder_api::labels;
use larder_crds::{CachePolicyStatus, ConditionType};

use crate::{
    companions::{Step, is_companion},
    rollout::{Deviation, Undone},
    status::find,
    wording,
    workload::Workload,
};

/// Maximum length of an Event's note, in bytes.
const MAX_NOTE: usize = 1024;

/// Maximum number of pods that an event names.
const MAX_NAMED_PODS: usize = 5;

/// Returns the events for the transition from one status to the next.
pub fn transitions(before: Option<&CachePolicyStatus>, after: &CachePolicyStatus) -> Vec<Event> {
    let tell = [
        ConditionType::Accepted,
        ConditionType::Injected,
        ConditionType::TrafficCaptured,
        ConditionType::ConfigCurrent,
        ConditionType::WritesSeen,
        ConditionType::TiersHealthy,
    ];
    let all_injected = after.pods.injected == after.pods.matched;
    let changed = tell.into_iter().filter_map(|kind| {
        let now = find(after, kind)?;
        let was = before.and_then(|before| find(before, kind));
        let same = was.is_some_and(|was| was.status == now.status && was.reason == now.reason);
        // While pods are being replaced the configuration's state goes to and fro with them.
        let in_passing = kind == ConditionType::ConfigCurrent && now.status == "True" && !all_injected;
        (!same && !in_passing).then(|| of(kind, now)).flatten()
    });
    changed.collect()
}

/// Returns the event for a changed condition; intermediate states have none.
fn of(kind: ConditionType, now: &Condition) -> Option<Event> {
    let (type_, action) = match (kind, now.status.as_str(), now.reason.as_str()) {
        (
            _,
            _,
            "WriteRefused" | "RestartsDoNotHelp" | "AdmissionRefused" | "NotInjected" | "DisruptionBudget"
            | "RolloutUndone",
        ) if kind != ConditionType::Ready => {
            return Some(event(EventType::Warning, &now.reason, "Restart", now.message.clone()));
        }
        (ConditionType::Injected, "False", "Waiting") => {
            return Some(event(EventType::Normal, &now.reason, "Restart", now.message.clone()));
        }
        (ConditionType::Injected, "False", "Missed" | "OnCreate" | "CaptureNone") => return None,
        (ConditionType::ConfigCurrent, "False", reason) if reason != "ConfigRefused" => return None,
        (_, "Unknown", _) => return None,
        (ConditionType::Accepted, "True", _) => (EventType::Normal, "Accept"),
        (ConditionType::Accepted, _, _) => (EventType::Warning, "Accept"),
        (ConditionType::Injected, "True", _) => (EventType::Normal, "Inject"),
        (ConditionType::Injected, _, _) => (EventType::Warning, "Inject"),
        (ConditionType::TrafficCaptured, "True", _) => return None,
        (ConditionType::TrafficCaptured, _, _) => (EventType::Warning, "Capture"),
        (ConditionType::ConfigCurrent, "True", _) => (EventType::Normal, "Configure"),
        (ConditionType::ConfigCurrent, _, _) => (EventType::Warning, "Configure"),
        (ConditionType::WritesSeen, "True", "WritesSeen") => (EventType::Normal, "Cover"),
        (ConditionType::WritesSeen, "False", "UnseenWrites") => (EventType::Warning, "Cover"),
        (ConditionType::WritesSeen, _, _) => return None,
        (ConditionType::TiersHealthy, "True", "Healthy") => (EventType::Normal, "Watch"),
        (ConditionType::TiersHealthy, "True", _) => return None,
        (ConditionType::TiersHealthy, _, _) => (EventType::Warning, "Watch"),
        (ConditionType::Ready, _, _) => return None,
    };
    // A pod that can't be injected is skipped; which of the reasons it is, the note says.
    let skipped =
        kind == ConditionType::Injected && now.status == "False" && now.reason != "WebhookUnreachable";
    let reason = if skipped { "Skipped" } else { &now.reason };
    let note = if skipped { format!("{}: {}", now.reason, now.message) } else { now.message.clone() };
    Some(event(type_, reason, action, note))
}

/// Returns the event for the restart of a workload.
pub fn rolled(workload: &Workload, deviation: Deviation) -> Event {
    event(EventType::Normal, "Rolled", "Restart", format!("restarted {workload}: {}", deviation.clause()))
}

/// Returns the event for a restart that was undone.
pub fn undone(workload: &Workload, undone: &Undone) -> Event {
    let Undone { obstacle, message, .. } = undone;
    let note = format!("undid the restart of {workload}, because {}: {message}", obstacle.as_str());
    event(EventType::Warning, "RolloutUndone", "Undo", note)
}

/// Returns the event for a companion that was created or deleted; changes have none.
pub fn companion(step: &Step) -> Option<Event> {
    match step {
        Step::Create(service) => {
            let note = format!("created Service {}: its callers reach the sidecars", service.name_any());
            Some(event(EventType::Normal, "CompanionCreated", "Capture", note))
        }
        Step::Change(..) => None,
        Step::Delete(service, why) => {
            let note = format!("deleted Service {}, because {why}", service.name_any());
            Some(event(EventType::Normal, "CompanionDeleted", "Capture", note))
        }
    }
}

/// Returns the event for the companions of a deleted policy, if it has any among `services`.
pub fn companions_end(policy: &str, services: &[Arc<Service>]) -> Option<Event> {
    let own = services.iter().filter(|service| {
        let of = service.labels().get(labels::COMPANION_OF);
        of.is_some_and(|of| is_companion(service, policy, of))
    });
    let names: Vec<_> = own.map(|service| service.name_any()).collect();
    let note = format!(
        "the policy was deleted; Service {} leads to the application by now or soon, and is deleted with the last pod that has \
         the sidecar: point its callers to the Service without -cached",
        names.join(", ")
    );
    (!names.is_empty()).then(|| event(EventType::Warning, "CompanionEnds", "TakeBack", note))
}

/// Returns the event for pods that keep the sidecar of a deleted policy.
pub fn leftovers(pods: &[&str], reason: Option<&str>) -> Event {
    let named = wording::list(pods, MAX_NAMED_PODS);
    let reason = reason.map(|reason| format!("; {reason}")).unwrap_or_default();
    let note = format!(
        "the policy was deleted; its sidecars pass everything through. Pods that are not restarted keep theirs until \
         they are deleted, and this ConfigMap stays until then: {named}{reason}"
    );
    event(EventType::Warning, "Leftover", "TakeBack", note)
}

fn event(type_: EventType, reason: &str, action: &str, note: String) -> Event {
    let note = Some(wording::cut(note, MAX_NOTE));
    Event { type_, reason: reason.to_owned(), note, action: action.to_owned(), secondary: None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use larder_policy::{coverage::State, spec::UnseenWrites};

    use super::*;
    use crate::{
        coverage::{Assessment, Sight, View},
        policies::PolicyError,
        policy_pods::PodReport,
        rollout::{MAX_ATTEMPTS, Progress},
        status::tests::{Scene, right},
    };

    fn reasons(before: Option<&CachePolicyStatus>, after: &CachePolicyStatus) -> Vec<String> {
        transitions(before, after).into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn change_emits_one_event() {
        let after = Scene::default().assess(None);
        assert_eq!(reasons(None, &after), ["Accepted", "Injected", "Current"]);
        assert!(reasons(Some(&after), &after).is_empty());
    }

    #[test]
    fn failure_emits_a_warning() {
        let well = Scene::default().assess(None);
        let conflict =
            Scene { policy_error: Some(PolicyError::Conflict { with: "a".into() }), ..Scene::default() }
                .assess(None);
        let events = transitions(Some(&well), &conflict);
        assert_eq!(events[0].reason, "Conflict");
        assert_eq!(events[0].type_, EventType::Warning);
        let past = Scene {
            services: json!([{"metadata": {"name": "s"}, "spec": {"selector": {"app": "shop"}, "ports": [{"port": 8080}]}}]),
            ..Scene::default()
        };
        assert_eq!(reasons(Some(&well), &past.assess(None)), ["NumericTargetPort"]);
    }

    #[test]
    fn unseen_writes_emit_an_event_at_once() {
        let view =
            |state| View { assessment: Assessment::default(), choice: UnseenWrites::PassThrough, state };
        let covered = Scene { coverage: Some(view(State::Serving)), ..Scene::default() }.assess(None);
        assert_eq!(reasons(None, &covered), ["Accepted", "Injected", "Current", "WritesSeen"]);
        let mut lost = view(State::Interrupted);
        lost.assessment.unseen = vec![("plain".into(), Sight::Plain)];
        let lost = Scene { coverage: Some(lost), ..Scene::default() }.assess(Some(&covered));
        let events = transitions(Some(&covered), &lost);
        assert_eq!((events[0].reason.as_str(), events[0].type_), ("UnseenWrites", EventType::Warning));
        assert!(events[0].note.as_ref().unwrap().contains("pod plain"), "{:?}", events[0].note);
        assert!(reasons(Some(&lost), &lost).is_empty());
    }

    #[test]
    fn event_is_emitted_when_the_user_must_act() {
        let well = Scene::default().assess(None);
        let pods = vec![PodReport { injected: false, deviation: Some(Deviation::Missed), ..right("a") }];
        let progress =
            Progress { complete: true, rolls: true, attempts: MAX_ATTEMPTS, ..Progress::default() };
        let scene = || Scene { pods: pods.clone(), answers: vec![], ..Scene::default() };
        let futile = Scene { workload: Some(progress), ..scene() }.assess(None);
        let events = transitions(Some(&well), &futile);
        assert_eq!((events[0].reason.as_str(), events[0].type_), ("RestartsDoNotHelp", EventType::Warning));
        assert!(reasons(Some(&futile), &futile).is_empty());
        let rolling = Progress { complete: false, rolls: true, ..Progress::default() };
        let waiting = Scene { workload: Some(rolling), ..scene() }.assess(None);
        let events = transitions(Some(&well), &waiting);
        assert_eq!((events[0].reason.as_str(), events[0].type_), ("Waiting", EventType::Normal));
        let refused = Scene { write_error: Some("denied"), ..scene() }.assess(None);
        assert_eq!(reasons(Some(&well), &refused)[0], "WriteRefused");
    }

    #[test]
    fn deleted_policy_names_the_companions_that_end() {
        let service = |name: &str, of: &str| {
            let labels = json!({"app.kubernetes.io/managed-by": "larder", "larder.dev/policy": "shop", "larder.dev/companion-of": of});
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
        };
        let services = [service("web-cached", "web"), service("web", "")];
        let note = companions_end("shop", &services).unwrap().note.unwrap();
        assert!(note.contains("Service web-cached leads to"), "{note}");
        assert!(companions_end("another", &services).is_none());
    }
}
