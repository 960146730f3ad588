//! Tests of the status as a whole.

use larder_api::admin::PeersReport;
use serde_json::Value;

use super::*;
use crate::{
    capture::{Captured, Skip, SkipReason},
    inject::tests::{settings, spec},
    rollout::{Deviation, HoldReason, MAX_ATTEMPTS, PodState, Progress},
    vacancy::Awaited,
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
            name: Some("http".into()),
            port: 8080,
            sidecar_port: 24800,
            variable: None,
        }],
        ..PodReport::default()
    }
}

fn missed(name: &str) -> PodReport {
    let deviation = Some(Deviation::Missed);
    PodReport { injected: false, ready: false, captured: vec![], deviation, ..right(name) }
}

fn answer(hash: &str) -> Result<PolicyReport, String> {
    Ok(PolicyReport { hash: Some(hash.into()), admin_token: true, ..PolicyReport::default() })
}

/// Inputs of a test; defaults describe a healthy state.
pub(crate) struct Scene {
    pub(crate) spec: Value,
    pub(crate) policy_error: Option<PolicyError>,
    pub(crate) pods: Vec<PodReport>,
    pub(crate) answers: Vec<(&'static str, Result<PolicyReport, String>)>,
    pub(crate) coverage: Option<View>,
    pub(crate) services: Value,
    pub(crate) settings: SidecarSettings,
    pub(crate) webhook: Option<&'static str>,
    pub(crate) write_error: Option<&'static str>,
    pub(crate) workload: Option<Progress>,
    pub(crate) holds: Vec<Hold>,
    pub(crate) vacancy: Vacancy,
    pub(crate) rollouts_refused: Option<&'static str>,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            spec: json!({}),
            policy_error: None,
            pods: vec![right("a")],
            answers: vec![("a", answer(HASH))],
            coverage: None,
            services: json!([{"metadata": {"name": "shop"}, "spec": {"clusterIP": "10.0.0.1", "selector": {"app": "shop"},
                "ports": [{"port": 80, "targetPort": "http"}]}}]),
            settings: settings(),
            webhook: None,
            write_error: None,
            workload: None,
            holds: vec![],
            vacancy: Vacancy::NoWorkload,
            rollouts_refused: None,
        }
    }
}

impl Scene {
    pub(crate) fn assess(self, previous: Option<&CachePolicyStatus>) -> CachePolicyStatus {
        let Self {
            spec: fields,
            policy_error,
            pods,
            answers,
            coverage,
            services,
            settings,
            webhook,
            write_error,
            workload,
            holds,
            vacancy,
            rollouts_refused,
        } = self;
        let states = || {
            pods.iter()
                .map(|pod| PodState {
                    deviation: pod.deviation,
                    newest: true,
                    injected: pod.injected,
                    obstacle: None,
                })
                .collect()
        };
        let workloads: Vec<_> =
            workload.into_iter().map(|progress| (workload_with(progress), states())).collect();
        let mut pods = pods;
        if let Some((workload, _)) = workloads.first() {
            pods.iter_mut().for_each(|pod| pod.workload = Some(workload.uid.clone()));
        }
        let services: Vec<Service> = serde_json::from_value(services).unwrap();
        let seen = Observation {
            namespace: "shop",
            name: "shop",
            generation: Some(3),
            spec: &spec(fields),
            policy_error: policy_error.as_ref(),
            hash: Some(HASH),
            policy_pods: &PolicyPods { workloads, pods, ..PolicyPods::default() },
            answers: &answers.into_iter().map(|(pod, answer)| (pod.to_owned(), answer)).collect(),
            coverage: coverage.as_ref(),
            services: &services.into_iter().map(Arc::new).collect::<Vec<_>>(),
            settings: &settings,
            network_policies: &[],
            pod_security: None,
            webhook,
            write_error,
            vacancy: &vacancy,
            rollouts_refused,
            throughput: None,
            holds: &holds,
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
fn secret_without_a_token_is_reported() {
    let scene = |tokens: &[bool]| {
        let answers = ["a", "b"].into_iter().zip(tokens).map(|(name, token)| {
            (
                name,
                Ok(PolicyReport { hash: Some(HASH.into()), admin_token: *token, ..PolicyReport::default() }),
            )
        });
        Scene { pods: vec![right("a"), right("b")], answers: answers.collect(), ..Scene::default() }
    };
    let current = ConditionType::ConfigCurrent;
    scene(&[false, false]).expect(
        current,
        "False",
        "NoAdminToken",
        "the Secret larder-shop-admin has no key token",
    );
    scene(&[false, true]).expect(current, "True", "Current", "2 of 2");
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
    scene(Some(complete)).expect(injected, "False", "Missed", "Deployment shop is being restarted");
    let paused = scene(Some(Progress { rolls: false, ..complete })).is(injected);
    assert!(
        paused.2.contains("Deployment shop is paused: resume it with `kubectl rollout resume"),
        "{}",
        paused.2
    );
    assert!(!paused.2.contains("restarted"), "{}", paused.2);
    let bare = scene(None).is(injected);
    assert!(bare.2.contains("kubectl replace --force") && !bare.2.contains("restarted"), "{}", bare.2);
    let of_job = PodReport { owner: Some("Job".into()), ..missed("b") };
    let of_job = Scene { pods: vec![of_job], ..Scene::default() }.is(injected);
    assert!(of_job.2.contains("pods of a Job are not restarted: delete them"), "{}", of_job.2);
    assert!(of_job.2.contains("kubectl delete pod b"), "{}", of_job.2);
    let futile = || scene(Some(Progress { attempts: MAX_ATTEMPTS, ..complete }));
    futile().expect(injected, "False", "RestartsDoNotHelp", "webhook.port");
    futile().expect(ConditionType::Ready, "False", "RestartsDoNotHelp", "Deployment shop");
}

#[test]
fn restart_that_does_not_begin_is_in_the_status() {
    let progress = Progress { complete: true, rolls: true, ..Progress::default() };
    let hold = |reason| Hold {
        uid: "u".into(),
        reason,
        message: "Deployment shop is not restarted, because X".into(),
    };
    let scene = |reason| Scene {
        pods: vec![right("a"), missed("b")],
        workload: Some(progress),
        holds: vec![hold(reason)],
        ..Scene::default()
    };
    for reason in [HoldReason::AdmissionRefused, HoldReason::NotInjected, HoldReason::DisruptionBudget] {
        scene(reason).expect(ConditionType::Injected, "False", reason.as_str(), "because X");
        scene(reason).expect(ConditionType::Ready, "False", reason.as_str(), "because X");
    }
    let queued = scene(HoldReason::Queued).is(ConditionType::Injected);
    assert_eq!(queued.1, "Waiting");
    assert!(queued.2.contains("because X") && !queued.2.contains("being restarted"), "{}", queued.2);
    let two = Scene { holds: vec![hold(HoldReason::AdmissionRefused); 2], ..scene(HoldReason::Queued) };
    two.expect(ConditionType::Injected, "False", "AdmissionRefused", "1 other workload");
}

#[test]
fn rollout_of_another_is_not_said_to_be_a_restart() {
    let progress = Progress { complete: false, rolls: true, ..Progress::default() };
    let scene = Scene { pods: vec![missed("b")], workload: Some(progress), ..Scene::default() };
    scene.expect(ConditionType::Injected, "False", "Waiting", "after a rollout that is in progress");
}

#[test]
fn pod_that_does_not_start_is_named_with_the_reason() {
    use crate::rollout::Obstacle;
    for (obstacle, reason) in [
        (Obstacle::Image, "ImageNotPulled"),
        (Obstacle::Unschedulable, "Unschedulable"),
        (Obstacle::Sidecar, "SidecarNotStarted"),
    ] {
        let pod = PodReport { ready: false, not_started: Some((obstacle, "words".into())), ..right("a") };
        let scene = || Scene { pods: vec![pod.clone()], answers: vec![], ..Scene::default() };
        let message = format!("pod a: {}: words", obstacle.as_str());
        scene().expect(ConditionType::ConfigCurrent, "False", reason, &message);
        scene().expect(ConditionType::Ready, "False", reason, &message);
    }
}

#[test]
fn rejected_write_is_in_the_status() {
    let refused = Some("could not restart Deployment shop: denied");
    let scene = || Scene { pods: vec![missed("b")], write_error: refused, ..Scene::default() };
    scene().expect(ConditionType::Injected, "False", "WriteRefused", "denied");
    scene().expect(ConditionType::Ready, "False", "WriteRefused", "denied");
    let touch = || Scene { answers: vec![("a", answer("old"))], write_error: refused, ..Scene::default() };
    touch().expect(ConditionType::Injected, "True", "Injected", "1 of 1");
    touch().expect(ConditionType::Ready, "False", "WriteRefused", "denied");
}

#[test]
fn with_capture_none_no_pod_is_missed() {
    let scene =
        Scene { spec: json!({"capture": {"mode": "None"}}), pods: vec![missed("b")], ..Scene::default() };
    let status = scene.assess(None);
    assert_eq!((status.pods.matched, status.pods.missed), (1, 0));
    assert_eq!(status.capture.as_deref(), Some("None"));
    assert!(status.missed_pods.is_empty());
}

#[test]
fn a_broken_edit_leaves_the_hash_of_the_last_good_document() {
    let before = Scene::default().assess(None);
    let hash_after = |policy_error: PolicyError| {
        let seen = Observation {
            namespace: "shop",
            name: "shop",
            generation: Some(4),
            spec: &spec(json!({})),
            policy_error: Some(&policy_error),
            hash: None,
            policy_pods: &PolicyPods::default(),
            answers: &BTreeMap::new(),
            coverage: None,
            services: &[],
            settings: &settings(),
            network_policies: &[],
            pod_security: None,
            webhook: None,
            write_error: None,
            vacancy: &Vacancy::NoWorkload,
            rollouts_refused: None,
            throughput: None,
            holds: &[],
        };
        assess(&seen, Some(&before), "2026-01-01T00:00:00Z".parse().unwrap()).config_hash
    };
    assert_eq!(hash_after(PolicyError::Invalid("typo".into())).as_deref(), Some(HASH));
    assert_eq!(hash_after(PolicyError::NamespaceExcluded), None);
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
    let pod = PodReport { skip: Some(skip), deviation: None, ..missed("b") };
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
    scene(silent).expect(ConditionType::ConfigCurrent, "False", "Unreachable", "pod a: connection refused");
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
    down.tiers = [("redis".to_owned(), TierState::Down)].into();
    let scene = || Scene { answers: vec![("a", Ok(down.clone()))], ..Scene::default() };
    scene().expect(ConditionType::TiersHealthy, "False", "TierDown", "redis does not respond to pod a");
    scene().expect(ConditionType::Ready, "True", "Serving", "1 pods");
}

#[test]
fn pods_that_cannot_tell_one_another_of_purges_are_named_unless_one_is_gone() {
    let pod = |name, address: &str, ready| PodReport {
        address: Some(address.parse().unwrap()),
        admin_port: Some(24890),
        ready,
        ..right(name)
    };
    let scene = |ready| {
        let unreachable =
            ["10.0.0.2:24890", "10.0.0.3:24890"].map(|to| (to.to_owned(), "timed out".to_owned()));
        let peers = PeersReport { unreachable: unreachable.into(), ..PeersReport::default() };
        let cut_off = PolicyReport { peers: Some(peers), ..answer(HASH).unwrap() };
        Scene {
            pods: vec![pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", ready)],
            answers: vec![("a", Ok(cut_off)), ("b", answer(HASH))],
            ..Scene::default()
        }
    };
    let message = "pod a can't tell pod b of purges (timed out): let the policy's pods reach one another";
    scene(true).expect(ConditionType::TiersHealthy, "False", "PeersUnreachable", message);
    scene(true).expect(ConditionType::Ready, "True", "Serving", "2 pods");
    scene(false).expect(ConditionType::TiersHealthy, "True", "NoTiers", "neither");
    let lost = PeersReport { error: Some("no such host".into()), ..PeersReport::default() };
    let lost = PolicyReport { peers: Some(lost), ..answer(HASH).unwrap() };
    let scene = Scene { answers: vec![("a", Ok(lost))], ..Scene::default() };
    scene.expect(ConditionType::TiersHealthy, "False", "PeersNotFound", "pod a can't find the others");
}

#[test]
fn policy_not_in_force_reports_its_reason() {
    let conflict =
        || Scene { policy_error: Some(PolicyError::Conflict { with: "older".into() }), ..Scene::default() };
    conflict().expect(ConditionType::Accepted, "False", "Conflict", "older");
    conflict().expect(ConditionType::Ready, "False", "Conflict", "older");
    let suspended = Scene { spec: json!({"suspend": true}), ..Scene::default() };
    suspended.expect(ConditionType::Ready, "False", "Suspended", "passes everything through");
    let none = Scene { spec: json!({"capture": {"mode": "None"}}), ..Scene::default() };
    none.expect(ConditionType::Ready, "False", "CaptureNone", "1 pods");
    let empty = Scene { pods: vec![], answers: vec![], ..Scene::default() };
    empty.expect(ConditionType::Ready, "False", "NoPods", "selector");
    let without = |vacancy| Scene { pods: vec![], answers: vec![], vacancy, ..Scene::default() };
    let idle = without(Vacancy::Idle("Deployment shop wants no pods".into()));
    idle.expect(ConditionType::Ready, "True", "NoPods", "Deployment shop wants no pods");
    let awaited = without(Vacancy::Awaited(Awaited { owner: "Deployment shop".into(), pod: json!({}) }));
    awaited.expect(ConditionType::Ready, "False", "NoPods", "no pods yet");
    let failed = || without(Vacancy::NotCreated("Deployment shop has no pods: exceeded quota".into()));
    failed().expect(ConditionType::Ready, "False", "PodsNotCreated", "exceeded quota");
    failed().expect(ConditionType::Injected, "False", "PodsNotCreated", "exceeded quota");
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
fn rollouts_that_may_not_be_listed_are_reported_where_pods_may_be_of_one() {
    let of = |owner: &str, pod: PodReport| Scene {
        pods: vec![PodReport { owner: Some(owner.into()), ..pod }],
        rollouts_refused: Some("cannot list resource \"rollouts\""),
        ..Scene::default()
    };
    let told = |scene: Scene| scene.is(ConditionType::Injected).2;
    for pod in [right("a"), missed("a")] {
        let message = told(of("Rollout", pod));
        assert!(message.contains("cannot list resource \"rollouts\"; grant its account `list`"), "{message}");
    }
    let message = told(of("Rollout", missed("a")));
    assert!(message.contains("pods of a Rollout are not restarted: delete them"), "{message}");
    assert!(!told(of("ReplicaSet", missed("a"))).contains("rollouts"));
    let none = || Scene { pods: vec![], answers: vec![], ..of("Rollout", right("a")) };
    assert!(told(none()).contains("rollouts"), "a Rollout may want no pods");
    let idle = Vacancy::Idle("Deployment shop wants no pods".into());
    assert!(!told(Scene { vacancy: idle, ..none() }).contains("rollouts"));
}

#[test]
fn policy_whose_pods_may_not_be_listed_is_neither_ready_nor_without_pods() {
    let before = Scene::default().assess(None);
    let at = |second| Timestamp::from_second(second).unwrap();
    let status = unseen(Some(&before), Some(4), "cannot list pods", at(1_800_000_000));
    let ready = find(&status, ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("Unknown", "NotListed"));
    assert!(ready.message.contains("cannot list pods") && status.observed_generation == Some(4));
    assert_eq!((status.pods, status.conditions.len()), (before.pods, before.conditions.len()));
    assert_eq!(unseen(Some(&status), Some(4), "cannot list pods", at(1_900_000_000)), status);
    assert_eq!(unseen(None, Some(1), "cannot list pods", at(1_800_000_000)).conditions.len(), 1);
}

#[test]
fn unreadable_policy_has_a_stable_status() {
    let once = unreadable(Some(1), Some(Timestamp::UNIX_EPOCH), "l1.maxSize");
    assert_eq!(once, unreadable(Some(1), Some(Timestamp::UNIX_EPOCH), "l1.maxSize"));
    assert_eq!(find(&once, ConditionType::Ready).unwrap().status, "False");
}

#[test]
fn message_is_no_longer_than_the_definition_allows() {
    let words = "é".repeat(40_000);
    let hold = Hold { uid: "u".into(), reason: HoldReason::AdmissionRefused, message: words };
    let scene = Scene { pods: vec![missed("a")], answers: vec![], holds: vec![hold], ..Scene::default() };
    let (.., message) = scene.is(ConditionType::Injected);
    assert!(message.len() <= 32_768 && message.ends_with('…'), "{} bytes", message.len());
}

#[test]
fn tier_that_is_down_names_a_few_pods() {
    let names: Vec<&'static str> = (0..1_000).map(|n| &*format!("a-pod-{n}").leak()).collect();
    let down = || {
        let tiers = [("redis".to_owned(), TierState::Down)].into();
        Ok(PolicyReport { tiers, ..answer(HASH).unwrap() })
    };
    let answers = names.iter().map(|name| (*name, down())).collect();
    let pods = names.iter().map(|name| right(name)).collect();
    let (_, reason, message) = Scene { pods, answers, ..Scene::default() }.is(ConditionType::TiersHealthy);
    assert_eq!(reason, "TierDown");
    assert!(message.len() < 300 && message.contains("and 995 more"), "{message}");
}
