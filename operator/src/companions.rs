//! Companions: Services beside those of a policy's pods, whose callers reach the sidecars (`capture.mode: CompanionService`).
//!
//! # Guarantees
//! - A companion leads to the application, as its Service does, while fewer than half of the Service's ready pods have the
//!   sidecar: its callers are never left to few pods, or to none.
//! - A companion stays until no pod has a sidecar with ports for it, even when the policy no longer asks for it.
//! - A Service of somebody else is neither changed nor deleted.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;
use larder_api::{labels, names};
use serde_json::{Value, json};

use crate::{
    capture::{Captured, sidecar_port_name},
    inject,
    pod::{has_sidecar, is_live, is_ready},
};

/// Maximum length of a Service's name.
pub const MAX_NAME: usize = 63;

/// Fields of a Service's spec that a companion has in common with it, its ports aside.
const COMMON: [&str; 6] = [
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "publishNotReadyAddresses",
    "internalTrafficPolicy",
    "trafficDistribution",
];

/// Inputs of a decision over a policy's companions.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The policy's name.
    pub policy: &'a str,
    /// True if the policy asks for companions.
    pub wanted: bool,
    /// The owner of companions: they are collected with it.
    pub owner: &'a OwnerReference,
    /// The Services of the namespace.
    pub services: &'a [Arc<Service>],
    /// The pods of the namespace.
    pub pods: &'a [Arc<Pod>],
}

/// A difference between the companions that exist and those that should.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A Service is to be created.
    Create(Box<Service>),
    /// A Service is to be changed by a merge patch.
    Change(Arc<Service>, Value),
    /// A Service is to be deleted, for a reason, which ends a sentence.
    Delete(Arc<Service>, &'static str),
}

/// Returns the steps to a policy's companions.
pub fn steps(inputs: &Inputs<'_>) -> Vec<Step> {
    let Inputs { policy, wanted, services, pods, .. } = *inputs;
    let live: Vec<_> =
        pods.iter().filter(|pod| is_live(pod)).map(|pod| (pod, carried(pod, policy))).collect();
    let needed = wanted || live.iter().any(|(_, carried)| !carried.is_empty());
    let mut steps = Vec::new();
    for service in services.iter().filter(|service| has_companion(service)) {
        let name = names::companion(&service.name_any());
        let existing = services.iter().find(|other| other.name_any() == name);
        let selected: Vec<_> = live.iter().filter(|(pod, _)| selects(service, pod)).collect();
        match existing {
            Some(existing) if !is_companion(existing, policy, &service.name_any()) => {}
            Some(existing) if !needed => {
                steps.push(Step::Delete(existing.clone(), "the policy no longer asks for it"));
            }
            Some(existing) => {
                let desired = companion(inputs, service, &selected);
                if common(existing) != common(&desired) {
                    steps.push(Step::Change(existing.clone(), change(existing, &desired)));
                }
            }
            None => {
                let leads = |port: &ServicePort| {
                    selected.iter().any(|(_, carried)| carried.iter().any(|one| leads_to(port, one)))
                };
                let spec = service.spec.iter();
                let leads = spec.flat_map(|spec| spec.ports.iter().flatten()).any(leads);
                if wanted && leads && name.len() <= MAX_NAME {
                    steps.push(Step::Create(Box::new(companion(inputs, service, &selected))));
                }
            }
        }
    }
    let orphans = services.iter().filter(|companion| {
        let Some(of) = companion.labels().get(labels::COMPANION_OF) else { return false };
        let has_service = services.iter().any(|service| service.name_any() == *of && has_companion(service));
        !has_service && is_companion(companion, policy, of)
    });
    steps.extend(
        orphans.map(|orphan| Step::Delete(orphan.clone(), "its Service is gone, or has no cluster IP now")),
    );
    steps
}

/// Returns true if one of these Services is a companion of a policy.
pub fn has_companions(policy: &str, services: &[Arc<Service>]) -> bool {
    services.iter().any(|service| {
        let of = service.labels().get(labels::COMPANION_OF);
        of.is_some_and(|of| is_companion(service, policy, of))
    })
}

/// Returns true if a Service may have a companion: one with a cluster IP and a selector, that is none itself.
pub fn has_companion(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let is_companion = service.labels().contains_key(labels::COMPANION_OF)
        && service.labels().get(labels::MANAGED_BY).is_some_and(|manager| manager == labels::MANAGER);
    !is_companion
        && spec.is_some_and(|spec| {
            spec.cluster_ip.as_deref() != Some("None")
                && spec.type_.as_deref() != Some("ExternalName")
                && spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
        })
}

/// Returns true if a Service is a policy's companion of another one.
pub fn is_companion(service: &Service, policy: &str, of: &str) -> bool {
    let own = service.labels();
    let wanted =
        [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, policy), (labels::COMPANION_OF, of)];
    wanted.into_iter().all(|(label, value)| own.get(label).is_some_and(|own| own == value))
        && service.name_any() == names::companion(of)
}

/// Returns true if a Service's port leads to a captured one.
pub fn leads_to(port: &ServicePort, captured: &Captured) -> bool {
    let number = i32::from(captured.port);
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
        && match &port.target_port {
            Some(IntOrString::Int(target)) => *target == number,
            Some(IntOrString::String(name)) => captured.name.as_ref() == Some(name),
            None => port.port == number,
        }
}

/// Returns the captured ports of a pod beside which the policy's sidecar in it has port entries.
fn carried(pod: &Pod, policy: &str) -> Vec<Captured> {
    if !has_sidecar(pod) || pod.labels().get(labels::POLICY).is_none_or(|own| own != policy) {
        return Vec::new();
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let entries: Vec<_> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| port.name.as_ref())
        .collect();
    let mut captured = inject::captured_of(&json!({ "metadata": { "annotations": pod.annotations() } }));
    captured.retain(|one| entries.contains(&&sidecar_port_name(one)));
    captured
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.iter().flat_map(|spec| spec.selector.iter().flatten());
    selector.into_iter().all(|(key, value)| pod.labels().get(key) == Some(value))
}

/// Returns the companion of a Service that selects these pods, each with what its sidecar carries.
fn companion(inputs: &Inputs<'_>, service: &Service, selected: &[&(&Arc<Pod>, Vec<Captured>)]) -> Service {
    let of = service.name_any();
    let own =
        [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, inputs.policy), (labels::COMPANION_OF, &of)];
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.into_iter().flatten().map(|port| ServicePort {
        target_port: Some(target(&port, selected)),
        node_port: None,
        ..port
    });
    Service {
        metadata: ObjectMeta {
            name: Some(names::companion(&of)),
            namespace: service.namespace(),
            labels: Some(own.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![inputs.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            ports: Some(ports.collect()),
            selector: spec.selector,
            session_affinity: spec.session_affinity,
            session_affinity_config: spec.session_affinity_config,
            publish_not_ready_addresses: spec.publish_not_ready_addresses,
            internal_traffic_policy: spec.internal_traffic_policy,
            traffic_distribution: spec.traffic_distribution,
            ip_families: spec.ip_families,
            ip_family_policy: spec.ip_family_policy,
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Returns the target of a companion's port: the sidecar's, if at least half of the ready pods have it, or the Service's own.
fn target(port: &ServicePort, selected: &[&(&Arc<Pod>, Vec<Captured>)]) -> IntOrString {
    let mut considered: Vec<_> = selected.iter().filter(|(pod, _)| is_ready(pod)).collect();
    if considered.is_empty() {
        considered = selected.iter().collect();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, carried) in &considered {
        if let Some(one) = carried.iter().find(|one| leads_to(port, one)) {
            *counts.entry(sidecar_port_name(one)).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    match most.filter(|(_, count)| count * 2 >= considered.len()) {
        Some((name, _)) => IntOrString::String(name),
        None => port.target_port.clone().unwrap_or(IntOrString::Int(port.port)),
    }
}

/// Returns everything in which a companion that exists must equal the one that should.
fn common(service: &Service) -> Value {
    let spec = json!(service.spec);
    let mut common: serde_json::Map<_, _> =
        COMMON.into_iter().map(|field| (field.to_owned(), spec[field].clone())).collect();
    common.insert("ports".into(), spec["ports"].clone());
    let owners: Vec<_> = service.owner_references().iter().map(|owner| &owner.uid).collect();
    common.insert("owners".into(), json!(owners));
    common.into()
}

/// Returns the merge patch that makes an existing companion the desired one, if nobody changes it meanwhile.
fn change(existing: &Service, desired: &Service) -> Value {
    let mut spec = common(desired);
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("owners");
    }
    json!({
        "metadata": {
            "uid": existing.uid(),
            "resourceVersion": existing.resource_version(),
            "ownerReferences": desired.owner_references(),
        },
        "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::inject::{Outcome, tests as pods};

    fn service(name: &str, spec: Value) -> Arc<Service> {
        let mut whole = json!({"clusterIP": "10.0.0.1", "type": "ClusterIP", "selector": {"app": "shop"}, "sessionAffinity": "None",
            "ports": [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30000}]});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": whole}))
                .unwrap(),
        )
    }

    fn pod(name: &str, injected: bool) -> Arc<Pod> {
        made(name, pods::pod(), injected)
    }

    /// Returns an injected pod whose application has these ports.
    fn pod_with(name: &str, ports: &Value) -> Arc<Pod> {
        let mut pod = pods::pod();
        pod["spec"]["containers"][0]["ports"] = ports.clone();
        made(name, pod, true)
    }

    fn made(name: &str, mut pod: Value, injected: bool) -> Arc<Pod> {
        if injected {
            let spec = pods::spec(json!({"capture": {"mode": "CompanionService"}}));
            let settings = pods::settings();
            let injection = pods::injection(&spec, &settings);
            let Outcome::Injected(injected) = inject::inject(&pod, &injection) else { panic!() };
            pod = injected.pod;
        }
        pod["metadata"]["name"] = json!(name);
        pod["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn look(services: &[Arc<Service>], pods: &[Arc<Pod>], wanted: bool) -> Vec<Step> {
        let owner =
            OwnerReference { uid: "map".into(), name: "larder-shop".into(), ..OwnerReference::default() };
        steps(&Inputs { policy: "shop", wanted, owner: &owner, services, pods })
    }

    fn created(services: &[Arc<Service>], pods: &[Arc<Pod>]) -> Arc<Service> {
        match look(services, pods, true).remove(0) {
            Step::Create(service) => Arc::new(*service),
            step => panic!("{step:?}"),
        }
    }

    fn target_of(service: &Service) -> Value {
        json!(service.spec)["ports"][0]["targetPort"].clone()
    }

    #[test]
    fn companion_has_the_ports_of_its_service_and_leads_to_the_sidecars() {
        let web = service("web", json!({}));
        let companion = created(from_ref(&web), &[pod("a", true)]);
        assert_eq!(companion.name_any(), "web-cached");
        let spec = json!(companion.spec);
        assert_eq!(
            spec["ports"],
            json!([{"name": "web", "port": 80, "protocol": "TCP", "targetPort": "larder-http"}])
        );
        assert_eq!(spec["selector"], json!({"app": "shop"}));
        assert_eq!(companion.owner_references()[0].uid, "map");
        assert_eq!(look(&[web, companion], &[pod("a", true)], true), [], "a second run changes nothing");
    }

    #[test]
    fn every_name_of_a_port_leads_to_the_sidecar() {
        let ports = json!([{"name": "http", "containerPort": 8080}, {"name": "web", "containerPort": 8080}]);
        let web = service(
            "web",
            json!({"ports": [{"port": 80, "targetPort": "web"}, {"port": 81, "targetPort": "http"}]}),
        );
        let companion = json!(created(&[web], &[pod_with("a", &ports)]).spec);
        assert_eq!(companion["ports"][0]["targetPort"], "larder-web");
        assert_eq!(companion["ports"][1]["targetPort"], "larder-http");
    }

    #[test]
    fn numeric_port_leads_to_the_sidecar_and_others_stay() {
        let web = service("web", json!({"ports": [{"port": 8080}, {"port": 9000, "name": "admin"}]}));
        let companion = json!(created(&[web], &[pod("a", true)]).spec);
        assert_eq!(companion["ports"][0]["targetPort"], "larder-http");
        assert_eq!(companion["ports"][1]["targetPort"], 9000);
    }

    #[test]
    fn service_that_nobody_can_be_put_beside_has_no_companion() {
        let pods = [pod("a", true)];
        for spec in [
            json!({"clusterIP": "None"}),
            json!({"type": "ExternalName"}),
            json!({"selector": {}}),
            json!({"selector": {"app": "other"}}),
            json!({"ports": [{"port": 80, "targetPort": "admin"}]}),
        ] {
            assert_eq!(look(&[service("web", spec.clone())], &pods, true), [], "{spec}");
        }
        assert_eq!(look(&[service(&"x".repeat(57), json!({}))], &pods, true), []);
        assert_eq!(look(&[service("web", json!({}))], &pods, false), []);
        assert_eq!(look(&[service("web", json!({}))], &[pod("a", false)], true), []);
    }

    #[test]
    fn service_of_somebody_else_is_left_alone() {
        let services = [service("web", json!({})), service("web-cached", json!({"ports": []}))];
        for wanted in [true, false] {
            assert_eq!(look(&services, &[pod("a", true)], wanted), []);
        }
    }

    #[test]
    fn companion_leads_to_the_application_while_few_pods_have_the_sidecar() {
        let web = service("web", json!({}));
        let companion = created(from_ref(&web), &[pod("a", true), pod("b", true)]);
        let services = [web.clone(), companion];
        assert_eq!(look(&services, &[pod("a", true), pod("b", false)], true), [], "half of them");
        for pods in [vec![pod("a", false)], vec![pod("a", true), pod("b", false), pod("c", false)]] {
            let Step::Change(_, change) = look(&services, &pods, true).remove(0) else { panic!() };
            assert_eq!(change["spec"]["ports"][0]["targetPort"], "http");
        }
        assert_eq!(target_of(&created(&[web], &[pod("a", true), pod("b", false)])), "larder-http");
    }

    #[test]
    fn companion_follows_its_service() {
        let companion = created(&[service("web", json!({}))], &[pod("a", true)]);
        let changed = service(
            "web",
            json!({"ports": [{"name": "web", "port": 81, "targetPort": "http", "protocol": "TCP"}]}),
        );
        let Step::Change(_, change) = look(&[changed, companion.clone()], &[pod("a", true)], true).remove(0)
        else {
            panic!()
        };
        assert_eq!(change["spec"]["ports"][0]["port"], 81);
        let Step::Delete(gone, _) = look(from_ref(&companion), &[pod("a", true)], true).remove(0) else {
            panic!()
        };
        assert_eq!(gone.name_any(), "web-cached");
    }

    #[test]
    fn companion_stays_until_the_last_sidecar_is_gone() {
        let web = service("web", json!({}));
        let companion = created(from_ref(&web), &[pod("a", true)]);
        let services = [web, companion];
        assert_eq!(look(&services, &[pod("a", true)], false), []);
        let Step::Delete(..) = look(&services, &[pod("a", false)], false).remove(0) else { panic!() };
    }
}
