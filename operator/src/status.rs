//! The status of a policy, derived from observations. Nothing is assumed: a pod counts as current when its sidecar has
//! confirmed it.

mod injected;
mod traffic;
mod writes_seen;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use larder_crds::{CachePolicySpec, CachePolicyStatus, CaptureMode, ConditionType, PodCounts};
use larder_policy::coverage::State;

use crate::{coverage::View, policies::Refusal, sidecars::Answer, survey::Survey};

/// Maximum number of missed pods that are named.
const NAMED: usize = 10;

/// Inputs of a status.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    /// The policy's `metadata.generation`.
    pub generation: Option<i64>,
    /// The policy.
    pub spec: &'a CachePolicySpec,
    /// The reason that the policy is not in force.
    pub refusal: Option<&'a Refusal>,
    /// The hash of the configuration that sidecars should run.
    pub hash: Option<&'a str>,
    /// The policy's pods.
    pub survey: &'a Survey,
    /// Responses of the sidecars, by pod.
    pub answers: &'a BTreeMap<String, Result<Answer, String>>,
    /// The policy's coverage; `None` if nothing relies on it.
    pub coverage: Option<&'a View>,
    /// The Services of the namespace.
    pub services: &'a [Arc<Service>],
    /// The reason that the webhook is not ready.
    pub webhook: Option<&'a str>,
    /// The first rejected write, with the API server's message.
    pub write_refused: Option<&'a str>,
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
    let missed_pods: Vec<_> = missed(seen).take(NAMED).map(str::to_owned).collect();
    let accepted = accepted(seen);
    let injected = injected::injected(seen, &pods, now);
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
        pods,
        missed_pods,
        conditions: conditions.collect(),
    }
}

/// Returns the hash of a policy's last good document, which sidecars continue to run while the policy is invalid.
fn last_hash(seen: &Observation<'_>, previous: Option<&CachePolicyStatus>) -> Option<String> {
    let goes_on = matches!(seen.refusal, Some(Refusal::Invalid(_)));
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
        message: verdict.message,
        observed_generation: generation,
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
    }
}

fn count(seen: &Observation<'_>) -> PodCounts {
    let mut counts = PodCounts::default();
    for pod in seen.survey.pods.iter().filter(|pod| pod.matched) {
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

fn wants_sidecars(seen: &Observation<'_>) -> bool {
    seen.spec.capture.mode != CaptureMode::None
}

fn missed<'a>(seen: &Observation<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let pods = seen.survey.pods.iter();
    let wanted = wants_sidecars(seen);
    pods.filter(move |pod| wanted && pod.matched && !pod.injected).map(|pod| pod.name.as_str())
}

fn accepted(seen: &Observation<'_>) -> Verdict {
    match seen.refusal {
        None => Verdict::new(true, "Accepted", "the policy is valid"),
        Some(refusal) => {
            let message = match refusal {
                Refusal::Invalid(faults) => faults.clone(),
                Refusal::NamespaceExcluded => {
                    "policies have no effect in the operator's own namespace and in kube-system; apply the policy elsewhere".into()
                }
                Refusal::Conflict { with } => format!(
                    "the older policy {with} selects the same pods and serves them; separate the selectors, or \
                     delete one of the two"
                ),
            };
            Verdict::new(false, refusal.as_str(), message)
        }
    }
}

fn config_current(seen: &Observation<'_>, pods: &PodCounts) -> Verdict {
    if pods.injected == 0 {
        return Verdict::new(None, "NoPods", "no pod has the sidecar");
    }
    let injected = || seen.survey.pods.iter().filter(|pod| pod.matched && pod.injected);
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
        return Verdict::new(true, "Current", of);
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
    let mut tiers = 0;
    let mut answered = false;
    for (pod, answer) in seen.answers.iter().filter_map(|(pod, answer)| Some((pod, answer.as_ref().ok()?))) {
        answered = true;
        for (tier, state) in &answer.tiers {
            tiers += 1;
            if state != "up" {
                down.entry(tier).or_default().push(pod);
            }
        }
    }
    if !down.is_empty() {
        let list =
            down.iter().map(|(tier, pods)| format!("{tier} does not respond to pod {}", pods.join(", ")));
        return Verdict::new(false, "TierDown", list.collect::<Vec<_>>().join("; "));
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
    if !accepted.is_true() || seen.spec.capture.mode == CaptureMode::None {
        return because(if accepted.is_true() { injected } else { accepted });
    }
    if seen.spec.cache.suspend {
        let message = "the policy is suspended: every sidecar passes everything through";
        return Verdict::new(false, "Suspended", message);
    }
    if injected.reason != "Injected" {
        let waits = seen.coverage.is_some_and(|view| view.state != State::Serving);
        let effect = if waits { "; until then every sidecar passes everything through" } else { "" };
        return Verdict::new(false, &injected.reason, format!("{}{effect}", injected.message));
    }
    if !current.is_true() {
        return match seen.write_refused {
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

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        capture::{Captured, Skip, SkipReason},
        inject::tests::spec,
        rollout::{Fault, MOST_ATTEMPTS, PodState, Progress},
        survey::PodReport,
        workload::tests::workload_with,
    };

    pub(crate) const HASH: &str = "0123456789abcdef";

    pub(crate) fn right(name: &str) -> PodReport {
        PodReport {
            name: name.into(),
            labels: [("app".to_owned(), "shop".to_owned())].into(),
            matched: true,
            injected: true,
            ready: true,
            captured: vec![Captured {
                container: "app".into(),
                name: "http".into(),
                port: 8080,
                sidecar_port: 24800,
            }],
            ..PodReport::default()
        }
    }

    fn missed(name: &str) -> PodReport {
        let fault = Some(Fault::Missed);
        PodReport { injected: false, ready: false, captured: vec![], fault, ..right(name) }
    }

    fn answer(hash: &str) -> Result<Answer, String> {
        Ok(Answer { hash: Some(hash.into()), ..Answer::default() })
    }

    /// Inputs of a test; defaults describe a healthy state.
    pub(crate) struct Scene {
        pub(crate) spec: Value,
        pub(crate) refusal: Option<Refusal>,
        pub(crate) pods: Vec<PodReport>,
        pub(crate) answers: Vec<(&'static str, Result<Answer, String>)>,
        pub(crate) coverage: Option<View>,
        pub(crate) services: Value,
        pub(crate) webhook: Option<&'static str>,
        pub(crate) write_refused: Option<&'static str>,
        pub(crate) workload: Option<Progress>,
    }

    impl Default for Scene {
        fn default() -> Self {
            Self {
                spec: json!({}),
                refusal: None,
                pods: vec![right("a")],
                answers: vec![("a", answer(HASH))],
                coverage: None,
                services: json!([{"metadata": {"name": "shop"}, "spec": {"clusterIP": "10.0.0.1", "selector": {"app": "shop"},
                    "ports": [{"port": 80, "targetPort": "http"}]}}]),
                webhook: None,
                write_refused: None,
                workload: None,
            }
        }
    }

    impl Scene {
        pub(crate) fn assess(self, previous: Option<&CachePolicyStatus>) -> CachePolicyStatus {
            let Self {
                spec: fields,
                refusal,
                pods,
                answers,
                coverage,
                services,
                webhook,
                write_refused,
                workload,
            } = self;
            let states = || pods.iter().map(|pod| PodState { fault: pod.fault, newest: true }).collect();
            let workloads =
                workload.into_iter().map(|progress| (workload_with(progress), states())).collect();
            let services: Vec<Service> = serde_json::from_value(services).unwrap();
            let seen = Observation {
                generation: Some(3),
                spec: &spec(fields),
                refusal: refusal.as_ref(),
                hash: Some(HASH),
                survey: &Survey { workloads, pods, ..Survey::default() },
                answers: &answers.into_iter().map(|(pod, answer)| (pod.to_owned(), answer)).collect(),
                coverage: coverage.as_ref(),
                services: &services.into_iter().map(Arc::new).collect::<Vec<_>>(),
                webhook,
                write_refused,
            };
            assess(&seen, previous, "2026-01-01T00:00:00Z".parse().unwrap())
        }

        pub(crate) fn is(self, kind: ConditionType) -> (String, String, String) {
            let status = self.assess(None);
            let condition = find(&status, kind).unwrap();
            (condition.status.clone(), condition.reason.clone(), condition.message.clone())
        }

        #[track_caller]
        pub(crate) fn expect(self, kind: ConditionType, status: &str, reason: &str, message: &str) {
            let (was, why, told) = self.is(kind);
            assert_eq!((was.as_str(), why.as_str()), (status, reason), "{told}");
            assert!(told.contains(message), "{told}");
        }
    }

    #[test]
    fn healthy_policy_has_true_conditions() {
        let status = Scene::default().assess(None);
        assert_eq!(status.pods, PodCounts { matched: 1, injected: 1, current: 1, ready: 1, missed: 0 });
        assert_eq!(status.conditions.len(), 7);
        for condition in &status.conditions {
            assert_eq!(condition.status, "True", "{condition:?}");
            assert_eq!(condition.observed_generation, Some(3));
        }
    }

    #[test]
    fn missed_pods_are_counted_and_named() {
        let scene = || Scene { pods: vec![right("a"), missed("b"), missed("c")], ..Scene::default() };
        let status = scene().assess(None);
        assert_eq!(status.pods, PodCounts { matched: 3, injected: 1, current: 1, ready: 1, missed: 2 });
        assert_eq!(status.missed_pods, ["b", "c"]);
        scene().expect(ConditionType::Injected, "False", "Missed", "1 of 3");
        scene().expect(ConditionType::Ready, "False", "Missed", "1 of 3");
        let down = Scene { webhook: Some("the webhook does not respond"), ..scene() };
        down.expect(ConditionType::Injected, "False", "WebhookUnreachable", "the webhook does not respond");
        let on_create = Scene { spec: json!({"sidecar": {"rollout": {"strategy": "OnCreate"}}}), ..scene() };
        on_create.expect(ConditionType::Injected, "False", "OnCreate", "recreated");
    }

    #[test]
    fn injected_reports_the_obstacle() {
        let complete = Progress { complete: true, rolls: true, ..Progress::default() };
        let scene = |workload| Scene { pods: vec![missed("b")], workload, ..Scene::default() };
        let injected = ConditionType::Injected;
        scene(Some(complete)).expect(injected, "False", "Missed", "StatefulSets are restarted");
        let paused = scene(Some(Progress { rolls: false, ..complete })).is(injected);
        assert!(paused.2.contains("Deployment shop must be recreated manually"), "{}", paused.2);
        assert!(!paused.2.contains("restarted"), "{}", paused.2);
        let bare = scene(None).is(injected);
        assert!(bare.2.contains("pods of no Deployment") && !bare.2.contains("restarted"), "{}", bare.2);
        let futile = || scene(Some(Progress { attempts: MOST_ATTEMPTS, ..complete }));
        futile().expect(injected, "False", "RestartsDoNotHelp", "port 9443");
        futile().expect(ConditionType::Ready, "False", "RestartsDoNotHelp", "Deployment shop");
    }

    #[test]
    fn rejected_write_is_in_the_status() {
        let refused = Some("could not restart Deployment shop: denied");
        let scene = || Scene { pods: vec![missed("b")], write_refused: refused, ..Scene::default() };
        scene().expect(ConditionType::Injected, "False", "WriteRefused", "denied");
        scene().expect(ConditionType::Ready, "False", "WriteRefused", "denied");
        let touch =
            || Scene { answers: vec![("a", answer("old"))], write_refused: refused, ..Scene::default() };
        touch().expect(ConditionType::Injected, "True", "Injected", "1 of 1");
        touch().expect(ConditionType::Ready, "False", "WriteRefused", "denied");
    }

    #[test]
    fn with_capture_none_no_pod_is_missed() {
        let scene =
            Scene { spec: json!({"capture": {"mode": "None"}}), pods: vec![missed("b")], ..Scene::default() };
        let status = scene.assess(None);
        assert_eq!((status.pods.matched, status.pods.missed), (1, 0));
        assert!(status.missed_pods.is_empty());
    }

    #[test]
    fn a_broken_edit_leaves_the_hash_of_the_last_good_document() {
        let before = Scene::default().assess(None);
        let hash_after = |refusal: Refusal| {
            let seen = Observation {
                generation: Some(4),
                spec: &spec(json!({})),
                refusal: Some(&refusal),
                hash: None,
                survey: &Survey::default(),
                answers: &BTreeMap::new(),
                coverage: None,
                services: &[],
                webhook: None,
                write_refused: None,
            };
            assess(&seen, Some(&before), "2026-01-01T00:00:00Z".parse().unwrap()).config_hash
        };
        assert_eq!(hash_after(Refusal::Invalid("typo".into())).as_deref(), Some(HASH));
        assert_eq!(hash_after(Refusal::NamespaceExcluded), None);
    }

    #[test]
    fn at_most_ten_missed_pods_are_named() {
        let pods = (0..20).map(|number| missed(&number.to_string())).collect();
        let status = Scene { pods, ..Scene::default() }.assess(None);
        assert_eq!((status.pods.missed, status.missed_pods.len()), (20, 10));
    }

    #[test]
    fn skipped_pod_reports_its_reason() {
        let skip = Skip { reason: SkipReason::HostNetwork, message: "take hostNetwork out".into() };
        let pod = PodReport { skip: Some(skip), fault: None, ..missed("b") };
        let scene = Scene { pods: vec![pod], ..Scene::default() };
        scene.expect(ConditionType::Injected, "False", "HostNetwork", "pod b: take hostNetwork out");
    }

    #[test]
    fn sidecar_is_current_once_confirmed() {
        let scene = |answers| Scene { answers, ..Scene::default() };
        scene(vec![]).expect(ConditionType::ConfigCurrent, "False", "Pending", "have not started");
        scene(vec![("a", answer("old"))]).expect(
            ConditionType::ConfigCurrent,
            "False",
            "Pending",
            "pod a runs configuration old",
        );
        let silent = vec![("a", Err("connection refused".to_owned()))];
        scene(silent).expect(
            ConditionType::ConfigCurrent,
            "False",
            "Unreachable",
            "pod a: connection refused",
        );
        let mut refused = answer(HASH).unwrap();
        refused.error = Some("line 3: not YAML".into());
        let refused = || vec![("a", Ok(refused.clone()))];
        scene(refused()).expect(
            ConditionType::ConfigCurrent,
            "False",
            "ConfigRefused",
            "pod a: line 3: not YAML",
        );
        scene(refused()).expect(ConditionType::Ready, "False", "ConfigRefused", "line 3");
    }

    #[test]
    fn a_tier_that_is_down_does_not_make_the_policy_unready() {
        let mut down = answer(HASH).unwrap();
        down.tiers = [("redis".to_owned(), "down".to_owned())].into();
        let scene = || Scene { answers: vec![("a", Ok(down.clone()))], ..Scene::default() };
        scene().expect(ConditionType::TiersHealthy, "False", "TierDown", "redis does not respond to pod a");
        scene().expect(ConditionType::Ready, "True", "Serving", "1 pods");
    }

    #[test]
    fn policy_not_in_force_reports_its_reason() {
        let conflict =
            || Scene { refusal: Some(Refusal::Conflict { with: "older".into() }), ..Scene::default() };
        conflict().expect(ConditionType::Accepted, "False", "Conflict", "older");
        conflict().expect(ConditionType::Ready, "False", "Conflict", "older");
        let suspended = Scene { spec: json!({"suspend": true}), ..Scene::default() };
        suspended.expect(ConditionType::Ready, "False", "Suspended", "passes everything through");
        let none = Scene { spec: json!({"capture": {"mode": "None"}}), ..Scene::default() };
        none.expect(ConditionType::Ready, "False", "CaptureNone", "1 pods");
        let empty = Scene { pods: vec![], answers: vec![], ..Scene::default() };
        empty.expect(ConditionType::Ready, "False", "NoPods", "selector");
    }

    #[test]
    fn a_transition_is_dated_when_it_happens() {
        let mut before = Scene::default().assess(None);
        let long_ago = Time("2020-01-01T00:00:00Z".parse().unwrap());
        for condition in &mut before.conditions {
            condition.last_transition_time = long_ago.clone();
        }
        let same = Scene::default().assess(Some(&before));
        assert_eq!(same, before);
        let suspended = Scene { spec: json!({"suspend": true}), ..Scene::default() }.assess(Some(&before));
        assert_ne!(find(&suspended, ConditionType::Ready).unwrap().last_transition_time, long_ago);
        assert_eq!(find(&suspended, ConditionType::Accepted).unwrap().last_transition_time, long_ago);
    }

    #[test]
    fn unreadable_policy_has_a_stable_status() {
        let once = unreadable(Some(1), Some(Timestamp::UNIX_EPOCH), "l1.maxSize");
        assert_eq!(once, unreadable(Some(1), Some(Timestamp::UNIX_EPOCH), "l1.maxSize"));
        assert_eq!(find(&once, ConditionType::Ready).unwrap().status, "False");
    }
}
