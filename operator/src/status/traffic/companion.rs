//! Traffic by way of the Services beside others: callers choose it, and what is observed is where these Services lead.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use super::{
    super::{Observation, Verdict},
    selects,
};
use crate::{
    capture::sidecar_port_name,
    companions::{MAX_NAME, has_companion, is_companion, leads_to},
    policy_pods::PodReport,
};
use larder_api::names;

pub(super) fn captured(seen: &Observation<'_>) -> Verdict {
    let injected: Vec<_> = seen.policy_pods.pods.iter().filter(|pod| pod.matched && pod.injected).collect();
    if injected.is_empty() {
        return Verdict::new(None, "NoPods", "no pod has the sidecar");
    }
    let mut companions = Vec::new();
    for service in seen.services.iter().filter(|service| has_companion(service)) {
        let pods = || injected.iter().copied().filter(|pod| selects(service, pod));
        if !ports(service).any(|port| pods().any(|pod| led_to(pod, port).is_some())) {
            continue;
        }
        let (name, own) = (service.name_any(), names::companion(&service.name_any()));
        if own.len() > MAX_NAME {
            let message = format!(
                "Service {name} can have no companion, because {own} is longer than {MAX_NAME} characters; create a Service \
                 of another name for its pods"
            );
            return Verdict::new(false, "NameTooLong", message);
        }
        let Some(companion) = seen.services.iter().find(|other| other.name_any() == own) else {
            return Verdict::new(false, "NotCreated", format!("Service {own} is not created yet"));
        };
        if !is_companion(companion, seen.name, &name) {
            let message = format!(
                "Service {own} exists and is not Larder's, or another policy's; delete or rename it, and the operator \
                 creates it"
            );
            return Verdict::new(false, "NameTaken", message);
        }
        let leads = |port: &ServicePort| {
            let target = port.target_port.clone();
            pods()
                .flat_map(|pod| &pod.captured)
                .any(|one| target == Some(IntOrString::String(sidecar_port_name(one))))
        };
        if !ports(companion).any(leads) {
            let message = format!(
                "Service {own} leads to the application, because most ready pods of Service {name} have no sidecar of this \
                 policy yet"
            );
            return Verdict::new(false, "TooFewSidecars", message);
        }
        companions.push((own, name));
    }
    if companions.is_empty() {
        let message = "no Service with a cluster IP and a selector leads to the captured ports, so that there is none to put \
                       another beside";
        return Verdict::new(None, "NoService", message);
    }
    let (companions, services): (Vec<_>, Vec<_>) = companions.into_iter().unzip();
    let message = format!(
        "callers of {} reach the sidecars; callers of {} reach the application, and their writes purge nothing",
        companions.join(", "),
        services.join(", ")
    );
    Verdict::new(true, "CompanionService", message)
}

fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

fn led_to<'a>(pod: &'a PodReport, port: &ServicePort) -> Option<&'a crate::capture::Captured> {
    pod.captured.iter().find(|captured| leads_to(port, captured))
}

#[cfg(test)]
mod tests {
    use larder_crds::ConditionType::TrafficCaptured;
    use serde_json::{Value, json};

    use crate::status::tests::Scene;

    fn service(name: &str, labels: Value, target: &str) -> Value {
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"clusterIP": "10.0.0.1", "selector": {"app": "shop"},
            "ports": [{"port": 80, "targetPort": target}]}})
    }

    fn ours(target: &str) -> Value {
        let labels = json!({"app.kubernetes.io/managed-by": "larder", "larder.dev/policy": "shop",
            "larder.dev/companion-of": "web"});
        service("web-cached", labels, target)
    }

    fn expect(services: &[Value], status: &str, reason: &str, words: &str) {
        let web = service("web", json!({}), "http");
        let services: Vec<_> = [&web].into_iter().chain(services).collect();
        let scene = Scene {
            spec: json!({"capture": {"mode": "CompanionService"}}),
            services: json!(services),
            ..Scene::default()
        };
        scene.expect(TrafficCaptured, status, reason, words);
    }

    #[test]
    fn companions_that_lead_to_sidecars_are_named() {
        expect(
            &[ours("larder-http")],
            "True",
            "CompanionService",
            "callers of web-cached reach the sidecars",
        );
        expect(&[], "False", "NotCreated", "web-cached");
        expect(&[ours("http")], "False", "TooFewSidecars", "leads to the application");
    }

    #[test]
    fn service_of_somebody_else_is_reported() {
        expect(&[service("web-cached", json!({}), "larder-http")], "False", "NameTaken", "web-cached exists");
    }

    #[test]
    fn service_whose_companion_has_no_valid_name_is_reported() {
        let long = "x".repeat(60);
        let web = service(&long, json!({}), "http");
        expect(&[ours("larder-http"), web], "False", "NameTooLong", "63 characters");
    }

    #[test]
    fn without_a_service_nothing_is_known() {
        let scene = Scene {
            spec: json!({"capture": {"mode": "CompanionService"}}),
            services: json!([]),
            ..Scene::default()
        };
        scene.expect(TrafficCaptured, "Unknown", "NoService", "no Service");
    }
}
