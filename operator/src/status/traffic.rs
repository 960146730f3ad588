//! The condition `TrafficCaptured`, derived from the Services that select the pods.

mod companion;
mod redirect;

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::util::intstr::IntOrString};
use kube::ResourceExt;

use super::{Observation, Verdict, mode, other_modes};
use crate::{
    capture::{Captured, Mode},
    policy_pods::PodReport,
};

/// Relation of a Service to the captured ports.
enum Way {
    /// One of its ports refers to a captured port by name.
    Captured,
    /// One of its ports leads to the application's number.
    Past(String),
    /// The Service has no address of its own: its clients choose the pod and, unless they look up SRV records, the
    /// number.
    Headless,
    /// The Service concerns other ports.
    Elsewhere,
}

/// Derives the condition `TrafficCaptured`, which depends on the way that requests reach the sidecar.
pub(super) fn captured(seen: &Observation<'_>) -> Verdict {
    let mut verdict = by_mode(seen);
    if let Some(choice) = mode(seen).and_then(|mode| mode.choice(&seen.spec.capture)) {
        verdict.message = format!("{}; {choice}", verdict.message);
    }
    verdict
}

fn by_mode(seen: &Observation<'_>) -> Verdict {
    match mode(seen) {
        Some(Mode::Redirect) => redirect::redirected(seen),
        Some(Mode::CompanionService) => companion::captured(seen),
        // With `None`, pods that still have a sidecar got it by its port's name.
        Some(Mode::NamedPort) | None => named_port(seen),
    }
}

fn named_port(seen: &Observation<'_>) -> Verdict {
    let injected: Vec<_> = seen.policy_pods.pods.iter().filter(|pod| pod.matched && pod.injected).collect();
    if injected.is_empty() {
        return Verdict::new(None, "NoPods", "no pod has the sidecar");
    }
    let mut captured = Vec::new();
    let mut headless = Vec::new();
    for service in seen.services {
        let name = service.name_any();
        let ways = injected
            .iter()
            .filter(|pod| selects(service, pod))
            .flat_map(|pod| pod.captured.iter().map(move |port| (pod, way(service, port))));
        for (pod, way) in ways {
            match way {
                Way::Past(message) => {
                    let message = format!("Service {name}: {message}{}", other_modes(seen, pod));
                    return Verdict::new(false, "NumericTargetPort", message);
                }
                Way::Captured if !captured.contains(&name) => captured.push(name.clone()),
                Way::Headless if !headless.contains(&name) => headless.push(name.clone()),
                Way::Captured | Way::Headless | Way::Elsewhere => {}
            }
        }
    }
    match (captured.as_slice(), headless.as_slice()) {
        ([], []) => Verdict::new(None, "NoService", "no Service selects the pods"),
        ([], [name, ..]) => Verdict::new(
            false,
            "HeadlessService",
            format!(
                "Service {name} is headless: its clients connect to the application's port and bypass the cache; use \
                 a Service with a cluster IP, whose targetPort is the port's name"
            ),
        ),
        (names, []) => {
            Verdict::new(true, "NamedPort", format!("by the named port of Service {}", names.join(", ")))
        }
        (names, [headless, ..]) => Verdict::new(
            true,
            "NamedPort",
            format!(
                "by the named port of Service {}; clients of the headless Service {headless} that connect to the \
                 application's port bypass the cache",
                names.join(", ")
            ),
        ),
    }
}

fn selects(service: &Service, pod: &PodReport) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    })
}

fn way(service: &Service, captured: &Captured) -> Way {
    let Some(spec) = service.spec.as_ref() else { return Way::Elsewhere };
    let ports = || spec.ports.iter().flatten();
    let number = i32::from(captured.port);
    let goes_past = ports().any(|port| match &port.target_port {
        Some(IntOrString::Int(target)) => *target == number,
        None => port.port == number,
        Some(IntOrString::String(_)) => false,
    });
    let named = ports().any(|port| {
        matches!(&port.target_port, Some(IntOrString::String(name)) if captured.name.as_ref() == Some(name))
    });
    if spec.cluster_ip.as_deref() == Some("None") {
        return if goes_past || named { Way::Headless } else { Way::Elsewhere };
    }
    if goes_past {
        return Way::Past(format!(
            "its targetPort {number} bypasses the cache; write targetPort: {}",
            captured.name.as_deref().unwrap_or_default()
        ));
    }
    if named { Way::Captured } else { Way::Elsewhere }
}

#[cfg(test)]
mod tests {
    use larder_crds::ConditionType::TrafficCaptured;
    use serde_json::{Value, json};

    use crate::status::tests::Scene;

    fn service(name: &str, port: Value, address: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "selector": {"app": "shop"}, "ports": [port]}})
    }

    fn scene(services: &[Value]) -> Scene {
        Scene { services: json!(services), ..Scene::default() }
    }

    #[test]
    fn a_named_target_port_is_captured() {
        let named = || service("web", json!({"port": 80, "targetPort": "http"}), "10.0.0.1");
        scene(&[named()]).expect(TrafficCaptured, "True", "NamedPort", "Service web");
        let metrics = service("metrics", json!({"port": 9000, "targetPort": 9000}), "10.0.0.2");
        scene(&[named(), metrics]).expect(TrafficCaptured, "True", "NamedPort", "Service web");
    }

    #[test]
    fn numeric_target_port_bypasses_the_sidecar() {
        let named = service("web", json!({"port": 80, "targetPort": "http"}), "10.0.0.1");
        let numeric = service("old", json!({"port": 80, "targetPort": 8080}), "10.0.0.1");
        scene(&[named, numeric]).expect(
            TrafficCaptured,
            "False",
            "NumericTargetPort",
            "Service old: its targetPort 8080",
        );
        let implied = service("old", json!({"port": 8080}), "10.0.0.1");
        scene(&[implied]).expect(TrafficCaptured, "False", "NumericTargetPort", "write targetPort: http");
    }

    #[test]
    fn headless_service_alone_bypasses_the_sidecar() {
        let headless = || service("peers", json!({"port": 8080, "targetPort": "http"}), "None");
        scene(&[headless()]).expect(TrafficCaptured, "False", "HeadlessService", "Service peers");
        let named = service("web", json!({"port": 80, "targetPort": "http"}), "10.0.0.1");
        scene(&[named, headless()]).expect(TrafficCaptured, "True", "NamedPort", "headless Service peers");
    }

    #[test]
    fn without_a_service_nothing_is_known() {
        scene(&[]).expect(TrafficCaptured, "Unknown", "NoService", "no Service");
        let other =
            json!({"metadata": {"name": "o"}, "spec": {"selector": {"app": "o"}, "ports": [{"port": 8080}]}});
        scene(&[other]).expect(TrafficCaptured, "Unknown", "NoService", "no Service");
    }
}
