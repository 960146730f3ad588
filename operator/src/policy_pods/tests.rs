//! Tests of the observed state of pods.

use super::*;
use crate::{
    coverage::{self, Sight},
    inject::tests as pods,
    list::{List, Listed},
    pod_security::PodSecurity,
    policies::{Policies, tests as policy_tests},
    scoped::Scope,
};
use kube::runtime::reflector;
use tokio::sync::watch;

pub(crate) fn list<K: Listed>(objects: Vec<Value>) -> List<K> {
    let list = List::default();
    for object in objects {
        list.write().insert(serde_json::from_value::<K>(object).unwrap());
    }
    list
}

pub(crate) fn stores(pods: Vec<Value>) -> Stores {
    let template = self::pods::pod();
    Stores {
        pods: list(pods),
        replica_sets: list(vec![json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "shop-1", "namespace": "shop",
                "annotations": {"deployment.kubernetes.io/revision": "1"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop", "uid": "d", "controller": true}]},
        })]),
        deployments: list(vec![json!({
            "metadata": {"name": "shop", "namespace": "shop", "uid": "d", "annotations": {"deployment.kubernetes.io/revision": "1"}},
            "spec": {"selector": {}, "template": {"metadata": template["metadata"], "spec": template["spec"]}},
        })]),
        stateful_sets: list(vec![]),
        daemon_sets: list(vec![]),
        services: list(vec![]),
        scope: Scope { wanted: watch::channel(None).1, covered: vec![], forbidden: Default::default() },
        network_policies: reflector::store().0,
        pod_security: PodSecurity::default(),
        rollouts: Default::default(),
    }
}

fn plain(name: &str) -> Value {
    let mut pod = pods::pod();
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = json!("shop");
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-1", "uid": "r", "controller": true}]);
    pod
}

fn injected(name: &str, policies: &Policies) -> Value {
    let policy = policies.of("shop").iter().next().unwrap().clone();
    let settings = pods::settings();
    let name_of_policy = policy.name_any();
    let injection = Injection { policy: &name_of_policy, ..pods::injection(&policy.spec, &settings) };
    match inject::inject(&plain(name), &injection) {
        Outcome::Injected(injected) => injected.pod,
        Outcome::Skipped(skip) => panic!("{skip}"),
    }
}

fn shop() -> Policies {
    policy_tests::policies(&[policy_tests::policy("shop", "2026-01-01T00:00:00Z", json!({"app": "shop"}))])
}

fn look(pods: Vec<Value>, name: &str, policies: &Policies, settings: &SidecarSettings) -> PolicyPods {
    let policy = policies.get("shop", name).and_then(|policy| policy.0.clone().ok());
    let subject = Subject {
        namespace: "shop",
        name,
        policy: policy.as_ref(),
        frozen: false,
        others: &policies.of("shop"),
        settings,
        patience: Duration::from_secs(300),
        now: Timestamp::UNIX_EPOCH,
    };
    policy_pods(&stores(pods), &subject)
}

fn deviations(policy_pods: &PolicyPods) -> Vec<Option<Deviation>> {
    policy_pods.pods.iter().map(|pod| pod.deviation).collect()
}

#[test]
fn missed_and_injected_pods_are_distinguished() {
    let policies = shop();
    let policy_pods = look(vec![plain("a"), injected("b", &policies)], "shop", &policies, &pods::settings());
    assert_eq!(deviations(&policy_pods), [Some(Deviation::Missed), None]);
    assert_eq!(policy_pods.workloads.len(), 1);
    assert_eq!(
        policy_pods.workloads[0].1[0],
        PodState { deviation: Some(Deviation::Missed), newest: true, injected: false, obstacle: None }
    );
    assert_eq!(policy_pods.pods[1].admin_port, Some(24890));
    assert_eq!(policy_pods.pods[1].captured[0].port, 8080);
}

#[test]
fn writers_are_all_pods_that_take_requests() {
    let policies = shop();
    let selector = policies.of("shop").iter().next().unwrap().spec.selector.clone();
    let placed = |mut pod: Value| {
        pod["spec"]["nodeName"] = json!("node");
        pod
    };
    let (mut out, mut foreign, mut leaving) = (plain("c"), injected("d", &policies), plain("e"));
    out["metadata"]["labels"][labels::INJECT] = json!("false");
    foreign["metadata"]["labels"][labels::POLICY] = json!("another");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
    leaving["status"] = json!({"containerStatuses": [{"name": "app", "image": "i", "imageID": "i", "ready": true,
        "restartCount": 0, "state": {"running": {}}}]});
    let mut other = plain("f");
    other["metadata"]["labels"]["app"] = json!("other");
    let pods = vec![plain("z"), plain("a"), injected("b", &policies), out, foreign, leaving, other];
    let stores = stores(pods.into_iter().map(placed).collect());
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let writers = coverage::writers(&stores, ("shop", "shop"), &selector, now);
    let found: Vec<_> = writers.iter().map(|writer| (writer.name.as_str(), writer.sight)).collect();
    let expected = [
        ("a", Sight::Plain),
        ("b", Sight::Sidecar),
        ("c", Sight::OptedOut),
        ("d", Sight::OtherPolicy),
        ("e", Sight::Plain),
        ("z", Sight::Plain),
    ];
    assert_eq!(found, expected);
    assert_eq!(writers[1].admin_port, Some(24890));
    assert!(writers[4].leaving);
}

#[test]
fn another_image_makes_pods_outdated() {
    let policies = shop();
    let settings = SidecarSettings { image: "larder/sidecar:2".into(), ..pods::settings() };
    let policy_pods = look(vec![injected("a", &policies)], "shop", &policies, &settings);
    assert_eq!(deviations(&policy_pods), [Some(Deviation::Outdated)]);
}

#[test]
fn uncapturable_pod_is_not_missed() {
    let policies = shop();
    let mut meshed = plain("a");
    meshed["spec"]["initContainers"] = json!([{"name": "istio-proxy"}]);
    let policy_pods = look(vec![meshed], "shop", &policies, &pods::settings());
    assert_eq!(deviations(&policy_pods), [None]);
    assert_eq!(policy_pods.pods[0].skip.as_ref().unwrap().reason, crate::capture::SkipReason::Mesh);
}

#[test]
fn sidecars_of_a_policy_that_is_gone_are_strays() {
    let pod = injected("a", &shop());
    let policy_pods = look(vec![pod, plain("b")], "shop", &policy_tests::policies(&[]), &pods::settings());
    assert_eq!(deviations(&policy_pods), [Some(Deviation::Stray)]);
    assert!(!policy_pods.pods[0].matched);
}

#[test]
fn the_younger_of_two_policies_is_in_conflict() {
    let policies = policy_tests::policies(&[
        policy_tests::policy("shop", "2026-01-01T00:00:00Z", json!({"app": "shop"})),
        policy_tests::policy("late", "2026-01-02T00:00:00Z", json!({"app": "shop"})),
    ]);
    let policy_pods = look(vec![plain("a")], "late", &policies, &pods::settings());
    assert_eq!(policy_pods.conflict.as_deref(), Some("shop"));
    assert!(policy_pods.pods.is_empty());
}

#[test]
fn choice_of_a_pod_counts_as_label_and_as_annotation() {
    let policies = shop();
    let with = |name: &str, place: &str, value: &str| {
        let mut pod = plain(name);
        pod["metadata"][place][labels::INJECT] = json!(value);
        pod
    };
    let mut stray = injected("c", &policies);
    stray["metadata"]["annotations"][labels::INJECT] = json!("off");
    let mut foreign = with("e", "labels", "true");
    foreign["metadata"]["labels"]["app"] = json!("other");
    let pods = vec![
        with("a", "labels", "False"),
        with("b", "annotations", "disabled"),
        stray,
        with("d", "annotations", "perhaps"),
        foreign,
    ];
    let policy_pods = look(pods, "shop", &policies, &pods::settings());
    let names: Vec<_> = policy_pods.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["c", "d"]);
    assert_eq!(deviations(&policy_pods), [Some(Deviation::Stray), Some(Deviation::Missed)]);
    let [unknown, unselected] = policy_pods.remarks.as_slice() else { panic!("{policy_pods:?}") };
    assert!(unknown.starts_with("pod d: ") && unknown.contains("\"perhaps\""), "{unknown}");
    assert!(unselected.starts_with("pod e: ") && unselected.contains("no policy"), "{unselected}");
}

#[test]
fn pods_on_their_way_out_and_finished_ones_do_not_count() {
    let (mut leaving, mut finished, mut out) = (plain("a"), plain("b"), plain("c"));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    finished["status"] = json!({"phase": "Succeeded"});
    out["metadata"]["labels"][labels::INJECT] = json!("false");
    let policy_pods = look(vec![leaving, finished, out], "shop", &shop(), &pods::settings());
    assert_eq!(policy_pods, PolicyPods::default());
}

#[test]
fn rollout_whose_newest_pod_does_not_start_is_stalled() {
    let waiting = |reason: &str| {
        let mut pod = plain("a");
        pod["status"] = json!({"phase": "Pending", "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": reason, "message": "no such tag"}}}]});
        let policy_pods = look(vec![pod], "shop", &shop(), &pods::settings());
        policy_pods.workloads[0].0.stalled.clone()
    };
    assert_eq!(waiting("ImagePullBackOff").as_deref(), Some("pod a: container app: no such tag"));
    assert_eq!(waiting("ContainerCreating"), None);
}

#[test]
fn refusal_of_a_pod_without_a_workload_is_that_of_its_creation() {
    let noted = |name: &str| {
        let mut pod = plain(name);
        pod["metadata"]["annotations"] = json!({annotations::SKIPPED: "AdmissionRefused: no room"});
        pod
    };
    let mut bare = noted("b");
    bare["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    let policy_pods = look(vec![noted("a"), bare], "shop", &shop(), &pods::settings());
    assert_eq!(deviations(&policy_pods), [Some(Deviation::Missed), None], "a restart is tried");
    let skip = policy_pods.pods[1].skip.as_ref().unwrap();
    assert_eq!(skip.to_string(), "AdmissionRefused: no room; correct that, and create the pod again");
}
