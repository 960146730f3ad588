//! The observed state of a policy's pods: their selection, their sidecars and their deviations.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use larder_api::{annotations, labels, names};
use larder_crds::{CachePolicy, selector};
use serde_json::{Value, json};

use crate::{
    capture::{Captured, Skip},
    choice::Choice,
    cli::SidecarSettings,
    compile,
    in_force::InForce,
    inject,
    inject::{Injection, Outcome},
    pod::{admin_port_of, has_existed_for, has_sidecar, is_live, obstacle},
    quota::{self, Usage},
    rollout::{Deviation, Obstacle, PodState},
    stores::{Stores, in_namespace},
    workload::{self, Newest, Workload},
};

/// The end of the name of a pod's own choice, in JSON.
const CHOICE: &str = "larder.dev/inject\"";

/// A policy's pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyPods {
    /// Pods that the policy selects and that no older policy serves, and pods that have its sidecar.
    pub pods: Vec<PodReport>,
    /// The workloads that own them, with the state of all their pods here.
    pub workloads: Vec<(Workload, Vec<PodState>)>,
    /// The older policy that serves pods which this one also selects.
    pub conflict: Option<String>,
    /// Clauses about pods of the namespace whose choice for or against the sidecar has no effect.
    pub remarks: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodReport {
    /// The pod's name.
    pub name: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's address, once it has one.
    pub address: Option<IpAddr>,
    /// True if the policy selects the pod.
    pub matched: bool,
    /// True if the pod has the sidecar.
    pub injected: bool,
    /// True if the sidecar is ready.
    pub ready: bool,
    /// The port of the sidecar's admin API.
    pub admin_port: Option<u16>,
    /// The annotated hash of the configuration.
    pub config_hash: Option<String>,
    /// The annotated coverage.
    pub coverage: Option<String>,
    /// The captured ports.
    pub captured: Vec<Captured>,
    /// The pod itself, as far as the operator keeps it.
    pub object: Option<Arc<Pod>>,
    /// The pod's uid.
    pub uid: String,
    /// Kind of the object that controls the pod.
    pub owner: Option<String>,
    /// uid of the workload that owns the pod.
    pub workload: Option<String>,
    /// True if the pod was created from its workload's newest template.
    pub newest: bool,
    /// Requests and limits of the pod's sidecar.
    pub usage: Usage,
    /// The reason that the pod does not start now, with Kubernetes' words for it.
    pub not_started: Option<(Obstacle, String)>,
    /// The same, if it has lasted for the time after which a restart is undone.
    pub obstacle: Option<(Obstacle, String)>,
    /// The pod's deviation from the desired state.
    pub deviation: Option<Deviation>,
    /// The reason that the pod cannot have a sidecar.
    pub skip: Option<Skip>,
}

/// The policy whose pods are examined.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// The policy's name.
    pub name: &'a str,
    /// The policy, unless it was deleted.
    pub policy: Option<&'a CachePolicy>,
    /// True if the running state is to be left as it is, because the policy is invalid.
    pub frozen: bool,
    /// The namespace's policies that may be in force.
    pub others: &'a InForce,
    /// Settings of injected sidecars.
    pub settings: &'a SidecarSettings,
    /// Time after which a restart whose pods do not start is undone.
    pub patience: Duration,
    /// The current time.
    pub now: Timestamp,
}

/// Examines a policy's pods.
pub fn policy_pods(stores: &Stores, subject: &Subject<'_>) -> PolicyPods {
    let Subject { namespace, name, policy, frozen, others, settings, patience, now } = *subject;
    let network_policies = in_namespace(&stores.network_policies, namespace);
    let pod_security = stores.pod_security.confined(namespace);
    let injection = policy.map(|policy| Injection {
        namespace,
        policy: name,
        spec: &policy.spec,
        settings,
        network_policies: &network_policies,
        pod_security: pod_security.as_deref(),
    });
    let hash = injection.map(|injection| inject::hash(&injection, &compile::secrets(&injection.spec.cache)));
    let mut policy_pods = PolicyPods::default();
    let mut owners: HashMap<_, Option<Owner>> = HashMap::new();
    let is_selected =
        |labels: &_| policy.is_some_and(|policy| selector::matches(&policy.spec.selector, labels));
    let is_named = |labels: &BTreeMap<_, _>| labels.get(labels::POLICY).is_some_and(|owner| owner == name);
    let is_concerned = |labels: &_| is_selected(labels) || is_named(labels);
    // Others may have made a choice that has no effect.
    let mut pods = stores.pods.selected_or_mentioning(namespace, is_concerned, CHOICE);
    pods.sort_by_key(|pod| pod.name_any());
    for pod in pods.iter().filter(|pod| is_live(pod)) {
        let labels = pod.labels();
        let injected = has_sidecar(pod);
        let ours = injected && is_named(labels);
        let choice = Choice::of(labels, pod.annotations());
        let opted_out = choice == Choice::Out;
        let selected = is_selected(labels) && !opted_out;
        let deciding = others.serving(labels);
        if let Some(remark) = choice.remark(selected).filter(|_| selected || deciding.is_none()) {
            policy_pods.remarks.push(format!("pod {}: {remark}", pod.name_any()));
        }
        if !selected && !ours {
            continue;
        }
        let deciding = deciding.filter(|_| !opted_out).map(|other| other.name_any());
        let deciding = deciding.filter(|other| policy.is_some() || other != name);
        if let Some(other) = deciding.as_ref().filter(|other| *other != name) {
            if selected {
                policy_pods.conflict = Some(other.clone());
            }
            continue;
        }
        let controller = workload::controller(pod);
        let owner = controller.and_then(|controller| {
            let key = (controller.kind.clone(), controller.name.clone(), deciding.is_some());
            let find = || {
                let (mut workload, newest) = workload::of_owner(stores, namespace, controller)?;
                workload.progress.patience = patience;
                workload.aim_at(hash.as_deref().filter(|_| deciding.is_some()));
                let injection = injection.filter(|_| deciding.is_some() && !frozen);
                let template = injection.map(|injection| inject::inject(&workload.template, &injection));
                if let Some(Outcome::Injected(injected)) = &template {
                    workload.injected = Some(injected.pod.clone());
                }
                Some(Owner { workload, newest, template })
            };
            owners.entry(key).or_insert_with(find).as_ref()
        });
        let (deviation, skip) = match (&injection, &deciding) {
            _ if frozen => (None, None),
            (Some(injection), Some(_)) => {
                let right = ours && pod.annotations().get(annotations::INJECTION_HASH) == hash.as_ref();
                let own = || {
                    let mut own = json!(**pod);
                    if owner.is_some_and(|owner| !owner.workload.progress.undone) {
                        workload::take_withheld(&mut own);
                    }
                    own
                };
                let template = owner.and_then(|owner| owner.template.as_ref());
                judge(own, injected, right, template, injection)
            }
            _ => (injected.then_some(Deviation::Stray), None),
        };
        let mut report = report(pod, selected, injected, deviation, skip);
        report.not_started = obstacle(pod);
        report.obstacle = report.not_started.clone().filter(|_| has_existed_for(pod, patience, now));
        if let Some(Owner { workload, newest, .. }) = owner {
            let newest = newest.marks(pod);
            (report.workload, report.newest) = (Some(workload.uid.clone()), newest);
            let obstacle = report.obstacle.as_ref().map(|(obstacle, _)| *obstacle);
            let state = PodState { deviation, newest, injected, obstacle };
            match policy_pods.workloads.iter_mut().find(|(known, _)| known.uid == workload.uid) {
                Some((_, states)) => states.push(state),
                None => policy_pods.workloads.push((workload.clone(), vec![state])),
            }
        }
        policy_pods.pods.push(report);
    }
    policy_pods
}

/// The owner of some pods.
struct Owner {
    workload: Workload,
    newest: Newest,
    /// The result of injecting the pod that the workload would create now.
    template: Option<Outcome>,
}

/// Returns the deviation of a pod that the policy serves, from its JSON. `template` is the result of injecting the pod that its workload
/// would create now.
fn judge(
    pod: impl FnOnce() -> Value,
    injected: bool,
    right: bool,
    template: Option<&Outcome>,
    injection: &Injection<'_>,
) -> (Option<Deviation>, Option<Skip>) {
    match (injected, template) {
        (true, Some(Outcome::Skipped(skip))) => (Some(Deviation::Stray), Some(skip.clone())),
        (true, _) => ((!right).then_some(Deviation::Outdated), None),
        (false, Some(Outcome::Skipped(skip))) => (None, Some(skip.clone())),
        (false, _) => match inject::inject(&pod(), injection) {
            // Others put into the pod what its template does not show, such as a mesh's sidecar.
            Outcome::Skipped(skip) => (None, Some(skip)),
            Outcome::Injected(_) => (Some(Deviation::Missed), None),
        },
    }
}

fn report(
    pod: &Arc<Pod>,
    matched: bool,
    injected: bool,
    deviation: Option<Deviation>,
    skip: Option<Skip>,
) -> PodReport {
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
    let ready = statuses.into_iter().any(|container| container.name == names::SIDECAR && container.ready);
    let original = json!({ "metadata": { "annotations": pod.annotations() } });
    let usage = if injected { quota::of_sidecar(&json!(**pod)) } else { Usage::new() };
    PodReport {
        name: pod.name_any(),
        labels: pod.labels().clone(),
        address: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
        matched,
        injected,
        ready,
        admin_port: admin_port_of(pod),
        config_hash: pod.annotations().get(annotations::CONFIG_HASH).cloned(),
        coverage: pod.annotations().get(annotations::COVERAGE).cloned(),
        captured: inject::captured_of(&original),
        object: Some(pod.clone()),
        usage,
        uid: pod.uid().unwrap_or_default(),
        owner: pod
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.kind.clone()),
        deviation,
        skip,
        ..PodReport::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
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
            scope: Scope { wanted: watch::channel(None).1, covered: vec![] },
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
        let injection = Injection {
            namespace: "shop",
            policy: &name_of_policy,
            spec: &policy.spec,
            settings: &settings,
            network_policies: &[],
            pod_security: None,
        };
        match inject::inject(&plain(name), &injection) {
            Outcome::Injected(injected) => injected.pod,
            Outcome::Skipped(skip) => panic!("{skip}"),
        }
    }

    fn shop() -> Policies {
        policy_tests::policies(&[policy_tests::policy(
            "shop",
            "2026-01-01T00:00:00Z",
            json!({"app": "shop"}),
        )])
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
        let policy_pods =
            look(vec![plain("a"), injected("b", &policies)], "shop", &policies, &pods::settings());
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
        let policy_pods =
            look(vec![pod, plain("b")], "shop", &policy_tests::policies(&[]), &pods::settings());
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
}
