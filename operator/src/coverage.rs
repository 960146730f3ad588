//! Coverage of writes: the state of the pods through which writes to a policy's application pass, and the state that
//! its sidecars receive.
//!
//! # Guarantees
//! - Sidecars of a new policy serve only when every pod that takes requests has its sidecar, and every such sidecar has
//!   confirmed that it runs the policy: until then a write may purge nothing.
//! - Each serving period has an identifier of its own, so that a response stored before an interruption is not served
//!   after it.
//!
//! # Assumptions
//! A pod outside the selector changes nothing that is cached, and no Service leads past the sidecar
//! (`TrafficCaptured`).

use std::{collections::BTreeMap, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use larder_api::{admin::PolicyReport, labels};
use larder_crds::{RolloutStrategy, selector};
use larder_policy::{
    Coverage,
    coverage::State,
    spec::{CacheSpec, UnseenWrites},
};

use crate::{
    choice::opted_out,
    pod::{admin_port_of, has_sidecar, is_finished, is_ready},
    policy_pods::PolicyPods,
    rollout::{Decision, Deviation, decide},
    stores::Stores,
};

/// Time after its grace period for which a terminating pod is assumed to run, while its end has not been observed.
const OVERDUE_LIMIT: SignedDuration = SignedDuration::from_secs(30);
/// Waiting reasons that a container only passes through.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// A selected pod that takes requests, or will in a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The pod's name.
    pub name: String,
    /// Visibility of writes through the pod.
    pub sight: Sight,
    /// The pod's address, once it has one.
    pub address: Option<IpAddr>,
    /// The port of the sidecar's admin API.
    pub admin_port: Option<u16>,
    /// True if the pod is terminating.
    pub leaving: bool,
}

/// Visibility of writes through a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Seen by the policy's sidecar.
    Sidecar,
    /// Unseen: the pod has no sidecar.
    Plain,
    /// Unseen: the pod has opted out.
    OptedOut,
    /// Unseen: the sidecar belongs to another policy, and purges nothing of this one's.
    OtherPolicy,
    /// Unseen: the sidecar reports that it has no configuration.
    NoPolicy,
}

impl Sight {
    /// Returns the reason that writes through the pod are unseen, as the end of a sentence about it.
    const fn why(self) -> &'static str {
        match self {
            Self::Sidecar => "has the sidecar",
            Self::Plain => "has no sidecar",
            Self::OptedOut => "has opted out with larder.dev/inject",
            Self::OtherPolicy => "has the sidecar of another policy",
            Self::NoPolicy => "has a sidecar without a configuration",
        }
    }
}

/// Visibility of writes through all pods of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// Pods through which writes are unseen, with the reason.
    pub unseen: Vec<(String, Sight)>,
    /// Pods whose sidecar has not confirmed that it runs the current policy.
    pub awaited: Vec<String>,
}

/// The coverage of a policy, as its status reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Visibility of writes through all pods.
    pub assessment: Assessment,
    /// Behaviour of sidecars while some writes are unseen.
    pub choice: UnseenWrites,
    /// The state that the sidecars received.
    pub state: State,
}

/// Returns the pods that take requests, or will in a moment.
///
/// A pod counts from the creation of its containers, not from its readiness, because the news of it takes seconds to
/// reach the sidecars. It counts until it is gone, because it completes requests that it received before. A pod that is
/// stuck during creation does not count.
pub fn writers(
    stores: &Stores,
    (namespace, name): (&str, &str),
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    now: Timestamp,
) -> Vec<Writer> {
    let mut pods = stores.pods.selected(namespace, |labels| selector::matches(selector, labels));
    pods.retain(|pod| takes_requests(pod, now));
    pods.sort_by_key(|pod| pod.name_any());
    let writer = |pod: &Pod| {
        let owner = pod.labels().get(labels::POLICY).filter(|_| has_sidecar(pod));
        let sight = match owner {
            Some(owner) if owner == name => Sight::Sidecar,
            Some(_) => Sight::OtherPolicy,
            None if opted_out(pod) => Sight::OptedOut,
            None => Sight::Plain,
        };
        Writer {
            name: pod.name_any(),
            sight,
            address: pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
            admin_port: admin_port_of(pod),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        }
    };
    pods.iter().map(|pod| writer(pod)).collect()
}

fn takes_requests(pod: &Pod, now: Timestamp) -> bool {
    let status = pod.status.as_ref();
    let containers = || status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let all = || {
        containers().chain(status.iter().flat_map(|status| status.init_container_statuses.iter().flatten()))
    };
    let runs =
        |container: &ContainerStatus| container.state.as_ref().is_some_and(|state| state.running.is_some());
    if is_finished(pod) {
        return false;
    }
    if let Some(until) = &pod.metadata.deletion_timestamp {
        return containers().any(runs) && now < until.0 + OVERDUE_LIMIT;
    }
    let is_stuck = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        reason.is_some_and(|reason| !STARTING.contains(&reason))
    };
    let is_placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    is_ready(pod) || is_placed && !all().any(is_stuck)
}

/// Assesses the visibility of writes through these pods, by the reports of their sidecars on the configuration with
/// this `hash`.
pub fn assess(
    writers: &[Writer],
    answers: &BTreeMap<String, Result<PolicyReport, String>>,
    hash: &str,
) -> Assessment {
    let mut assessment = Assessment::default();
    for Writer { name, sight, .. } in writers {
        let answer = answers.get(name).and_then(|answer| answer.as_ref().ok());
        match (sight, answer) {
            (Sight::Sidecar, Some(answer)) if answer.hash.is_none() => {
                assessment.unseen.push((name.clone(), Sight::NoPolicy));
            }
            (Sight::Sidecar, Some(answer)) if answer.hash.as_deref() == Some(hash) => {}
            (Sight::Sidecar, _) => assessment.awaited.push(name.clone()),
            (sight, _) => assessment.unseen.push((name.clone(), *sight)),
        }
    }
    assessment
}

/// Returns the next state for the sidecars. `uid` is the policy's; `awaits_restart` means that pods without the sidecar
/// are about to be replaced.
pub fn next(
    before: Option<&Coverage>,
    uid: &str,
    assessment: &Assessment,
    choice: UnseenWrites,
    awaits_restart: bool,
    now: Timestamp,
) -> Coverage {
    let Assessment { unseen, awaited } = assessment;
    let told = |state| Coverage { policy: uid.to_owned(), state, since: format!("{now:.6}") };
    let before = before.filter(|before| before.policy == uid);
    if let Some(before) = before.filter(|before| before.state == State::Serving) {
        let goes_on = unseen.is_empty() || choice == UnseenWrites::Serve;
        return if goes_on { before.clone() } else { told(State::Interrupted) };
    }
    let lacks_pods = match choice {
        UnseenWrites::PassThrough => !unseen.is_empty(),
        UnseenWrites::Serve => !unseen.is_empty() && awaits_restart,
    };
    if lacks_pods || !awaited.is_empty() {
        return before.cloned().unwrap_or_else(|| told(State::Waiting));
    }
    told(State::Serving)
}

/// Returns true if the operator is about to replace pods that have no sidecar, or they are terminating already.
pub fn awaits_restart(
    policy_pods: &PolicyPods,
    writers: &[Writer],
    strategy: RolloutStrategy,
    now: Timestamp,
) -> bool {
    let restarts = strategy == RolloutStrategy::Restart
        && policy_pods.workloads.iter().any(|(workload, pods)| {
            let lacks = pods.iter().any(|pod| pod.deviation == Some(Deviation::Missed));
            lacks && matches!(decide(pods, &workload.progress, now), Decision::Restart(_) | Decision::Wait)
        });
    restarts || writers.iter().any(|writer| writer.leaving && writer.sight == Sight::Plain)
}

/// Returns the behaviour of sidecars while writes are unseen.
pub fn choice(spec: &CacheSpec) -> UnseenWrites {
    spec.invalidation.as_ref().map(|invalidation| invalidation.unseen_writes).unwrap_or_default()
}

impl Assessment {
    /// Returns a sentence that names the pods through which writes are unseen, and the reason; `None` if every write is
    /// seen.
    pub fn message(&self) -> Option<String> {
        let (name, sight) = self.unseen.first()?;
        let others = match self.unseen.len() - 1 {
            0 => String::new(),
            1 => " and 1 other".to_owned(),
            more => format!(" and {more} others"),
        };
        let why = sight.why();
        Some(format!(
            "writes through pod {name}{others} are not seen and purge nothing, because pod {name} {why}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        rollout::{PodState, Progress},
        workload::tests::workload_with,
    };

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn takes(change: Value) -> bool {
        let mut pod = json!({
            "metadata": {"name": "a"},
            "spec": {"nodeName": "node", "containers": []},
            "status": {"phase": "Running"},
        });
        json_patch(&mut pod, change);
        takes_requests(&serde_json::from_value(pod).unwrap(), now())
    }

    fn json_patch(into: &mut Value, change: Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(change)) => {
                for (key, value) in change {
                    json_patch(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, change) => *into = change,
        }
    }

    fn container(state: Value) -> Value {
        json!([{"name": "app", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state}])
    }

    #[test]
    fn pods_count_from_creation_until_they_are_gone() {
        let running = container(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
        let waiting = |reason: &str| container(json!({"waiting": {"reason": reason}}));
        assert!(takes(json!({})), "no status of its containers yet");
        assert!(takes(json!({"status": {"containerStatuses": waiting("ContainerCreating")}})));
        assert!(takes(json!({"status": {"containerStatuses": running.clone()}})), "not ready yet");
        assert!(!takes(json!({"status": {"containerStatuses": waiting("CrashLoopBackOff")}})));
        assert!(!takes(json!({"status": {"containerStatuses": waiting("ImagePullBackOff")}})));
        assert!(!takes(json!({"status": {
            "containerStatuses": waiting("PodInitializing"), "initContainerStatuses": waiting("CrashLoopBackOff"),
        }})));
        assert!(!takes(json!({"spec": {"nodeName": null}})), "not placed");
        assert!(!takes(json!({"status": {"phase": "Succeeded"}})));
        let ready = json!([{"type": "Ready", "status": "True"}]);
        assert!(takes(json!({"status": {"conditions": ready, "containerStatuses": running.clone()}})));

        let leaving = |until: &str, containers: &Value| {
            takes(
                json!({"metadata": {"deletionTimestamp": until}, "status": {"containerStatuses": containers}}),
            )
        };
        assert!(leaving("2026-01-01T00:00:20Z", &running), "it answers what it was asked before");
        assert!(leaving("2025-12-31T23:59:50Z", &running));
        assert!(!leaving("2025-12-31T23:58:00Z", &running), "its node is lost");
        assert!(!leaving("2026-01-01T00:00:20Z", &container(json!({"terminated": {"exitCode": 0}}))));
    }

    fn writer(name: &str, sight: Sight) -> Writer {
        Writer { name: name.into(), sight, address: None, admin_port: None, leaving: false }
    }

    fn answer(hash: Option<&str>) -> Result<PolicyReport, String> {
        Ok(PolicyReport { hash: hash.map(str::to_owned), ..PolicyReport::default() })
    }

    #[test]
    fn unconfirmed_sidecar_is_awaited() {
        let pods = ["current", "older", "silent", "new", "empty"].map(|name| writer(name, Sight::Sidecar));
        let answers = [
            ("current".to_owned(), answer(Some("h"))),
            ("older".to_owned(), answer(Some("g"))),
            ("silent".to_owned(), Err("connection refused".to_owned())),
            ("empty".to_owned(), answer(None)),
        ];
        let assessment = assess(&pods, &answers.into(), "h");
        assert_eq!(assessment.awaited, ["older", "silent", "new"]);
        assert_eq!(assessment.unseen, [("empty".to_owned(), Sight::NoPolicy)]);
        let others = [Sight::Plain, Sight::OptedOut, Sight::OtherPolicy].map(|sight| writer("a", sight));
        assert_eq!(assess(&others, &BTreeMap::new(), "h").unseen.len(), 3);
    }

    fn seen() -> Assessment {
        Assessment::default()
    }

    fn unseen() -> Assessment {
        Assessment { unseen: vec![("a".into(), Sight::Plain)], awaited: vec![] }
    }

    fn step(before: Option<&Coverage>, assessment: &Assessment, choice: UnseenWrites) -> Coverage {
        next(before, "u", assessment, choice, false, now())
    }

    #[test]
    fn serving_begins_when_every_write_is_seen() {
        let awaited = Assessment { awaited: vec!["a".into()], ..seen() };
        let waiting = step(None, &unseen(), UnseenWrites::PassThrough);
        assert_eq!(waiting.state, State::Waiting);
        assert_eq!(step(Some(&waiting), &awaited, UnseenWrites::PassThrough), waiting);
        assert_eq!(step(Some(&waiting), &seen(), UnseenWrites::PassThrough).state, State::Serving);
        assert_eq!(step(None, &seen(), UnseenWrites::PassThrough).state, State::Serving, "no pods yet");
    }

    #[test]
    fn plain_pod_interrupts_or_not_as_the_policy_chooses() {
        let serving = step(None, &seen(), UnseenWrites::PassThrough);
        assert_eq!(step(Some(&serving), &unseen(), UnseenWrites::Serve), serving);
        let interrupted = step(Some(&serving), &unseen(), UnseenWrites::PassThrough);
        assert_eq!(interrupted.state, State::Interrupted);
        assert_eq!(step(Some(&interrupted), &unseen(), UnseenWrites::PassThrough), interrupted);
        let later = now() + SignedDuration::from_millis(1);
        let again = next(Some(&interrupted), "u", &seen(), UnseenWrites::PassThrough, false, later);
        assert_eq!(again.state, State::Serving);
        assert_ne!(again.round(), serving.round(), "what was stored before is not served");
    }

    #[test]
    fn sidecar_that_reloads_or_is_silent_interrupts_nothing() {
        let serving = step(None, &seen(), UnseenWrites::PassThrough);
        let awaited = Assessment { awaited: vec!["a".into()], ..seen() };
        assert_eq!(step(Some(&serving), &awaited, UnseenWrites::PassThrough), serving);
    }

    #[test]
    fn recreated_policy_starts_a_new_period() {
        let earlier = Coverage { policy: "earlier".into(), ..step(None, &seen(), UnseenWrites::PassThrough) };
        assert_eq!(step(Some(&earlier), &unseen(), UnseenWrites::PassThrough).state, State::Waiting);
    }

    #[test]
    fn serve_waits_only_for_pods_that_are_replaced() {
        let first = |awaits| next(None, "u", &unseen(), UnseenWrites::Serve, awaits, now()).state;
        assert_eq!((first(true), first(false)), (State::Waiting, State::Serving));
        let policy_pods = |progress| PolicyPods {
            workloads: vec![(
                workload_with(progress),
                vec![PodState {
                    deviation: Some(Deviation::Missed),
                    newest: true,
                    injected: false,
                    obstacle: None,
                }],
            )],
            ..PolicyPods::default()
        };
        let rolls = Progress { complete: true, rolls: true, ..Progress::default() };
        let awaits = |progress, strategy| awaits_restart(&policy_pods(progress), &[], strategy, now());
        assert!(awaits(rolls, RolloutStrategy::Restart));
        assert!(!awaits(rolls, RolloutStrategy::OnCreate));
        assert!(!awaits(Progress { rolls: false, ..rolls }, RolloutStrategy::Restart));
        let leaving = Writer { leaving: true, ..writer("a", Sight::Plain) };
        assert!(awaits_restart(&PolicyPods::default(), &[leaving], RolloutStrategy::OnCreate, now()));
    }

    #[test]
    fn message_names_a_pod_and_the_reason() {
        let assessment = Assessment {
            unseen: ["a", "b", "c"].map(|name| (name.into(), Sight::OptedOut)).into(),
            awaited: vec![],
        };
        let message = assessment.message().unwrap();
        assert!(message.starts_with("writes through pod a and 2 others are not seen"), "{message}");
        assert!(message.contains("opted out"), "{message}");
        assert_eq!(seen().message(), None);
    }
}
