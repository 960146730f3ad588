//! The condition `TrafficCaptured`, derived from the Services that select the pods.

mod companion;
mod redirect;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use super::{Observation, Verdict, mode, other_modes};
use crate::{
    capture::{Captured, Mode},
    policy_pods::PodReport,
    wording,
};

/// Maximum number of Services that are named.
const MAX_NAMED: usize = 3;

/// Relation of a Service to a captured port.
enum Way {
    /// One of its ports leads to the sidecar.
    Captured,
    /// One of its ports leads to the application's number.
    Past(String),
    /// The Service has no address of its own: its clients choose the pod and, unless they look up SRV records, the
    /// number.
    Headless,
    /// The Service concerns other ports.
    Elsewhere,
}

/// Services that select the pods with a sidecar, by their relation to the captured ports.
#[derive(Default)]
struct Ways {
    captured: Vec<String>,
    headless: Vec<String>,
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
        // With `None`, pods that still have a sidecar may have got it by its port's name.
        Some(Mode::NamedPort) | None => by_service(seen, named_port),
        Some(Mode::PortVariable) => by_service(seen, port_variable),
        Some(Mode::Redirect) => redirect::redirected(seen),
        Some(Mode::CompanionService) => companion::captured(seen),
    }
}

/// Returns the verdict that a mode concludes from the Services, unless one leads past the sidecar.
fn by_service(
    seen: &Observation<'_>,
    conclude: impl Fn(&Observation<'_>, &[&PodReport], &Ways) -> Verdict,
) -> Verdict {
    let injected: Vec<_> = seen.policy_pods.pods.iter().filter(|pod| pod.matched && pod.injected).collect();
    if injected.is_empty() {
        return Verdict::new(None, "NoPods", "no pod has the sidecar");
    }
    ways(seen, &injected).map_or_else(|past| past, |ways| conclude(seen, &injected, &ways))
}

/// Returns the Services by their relation to the captured ports, or the verdict on one that leads past the sidecar.
fn ways(seen: &Observation<'_>, injected: &[&PodReport]) -> Result<Ways, Verdict> {
    let mut ways = Ways::default();
    for service in seen.services {
        let name = service.name_any();
        let by_pod = injected
            .iter()
            .filter(|pod| selects(service, pod))
            .flat_map(|pod| pod.captured.iter().map(move |port| (pod, way(service, port))));
        for (pod, way) in by_pod {
            match way {
                Way::Past(message) => {
                    let message = format!("Service {name}: {message}{}", other_modes(seen, pod));
                    return Err(Verdict::new(false, "NumericTargetPort", message));
                }
                Way::Captured if !ways.captured.contains(&name) => ways.captured.push(name.clone()),
                Way::Headless if !ways.headless.contains(&name) => ways.headless.push(name.clone()),
                Way::Captured | Way::Headless | Way::Elsewhere => {}
            }
        }
    }
    Ok(ways)
}

fn named_port(seen: &Observation<'_>, injected: &[&PodReport], ways: &Ways) -> Verdict {
    match (ways.captured.as_slice(), ways.headless.as_slice()) {
        ([], []) => Verdict::new(
            None,
            "NoService",
            format!("no Service selects the pods by a captured port{}", without_selector(seen)),
        ),
        ([], [name, ..]) => Verdict::new(
            false,
            "HeadlessService",
            format!(
                "Service {name} is headless: its clients connect to the application's port and bypass the cache; use \
                 a Service with a cluster IP, whose targetPort is the port's name{}",
                injected.first().map(|pod| other_modes(seen, pod)).unwrap_or_default()
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

fn port_variable(seen: &Observation<'_>, injected: &[&PodReport], ways: &Ways) -> Verdict {
    let has_number = |pod: &&PodReport| pod.captured.iter().all(|captured| captured.variable.is_some());
    if !injected.iter().all(has_number) {
        return named_port(seen, injected, ways);
    }
    let mut ports: Vec<_> =
        injected.iter().flat_map(|pod| pod.captured.iter().map(|captured| captured.sidecar_port)).collect();
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    let port = if ports.len() == 1 { "port" } else { "ports" };
    Verdict::new(
        true,
        "PortVariable",
        format!("the sidecars listen on {port} {} of the pods in place of the application", ports.join(", ")),
    )
}

/// Returns what the status says of the Services that select no pods: nothing tells where they lead.
fn without_selector(seen: &Observation<'_>) -> String {
    let names = |fits: &dyn Fn(&Service) -> bool| {
        let all: Vec<_> =
            seen.services.iter().filter(|service| fits(service)).map(|service| service.name_any()).collect();
        (!all.is_empty()).then(|| wording::list(&all, MAX_NAMED))
    };
    let external = names(&|service| is_external(service));
    let selectorless = names(&|service| !is_external(service) && selector(service).is_none());
    let external = external.map(|names| format!("; ExternalName Services are not considered: {names}"));
    let selectorless =
        selectorless.map(|names| format!("; Services without a selector are not considered: {names}"));
    format!("{}{}", external.unwrap_or_default(), selectorless.unwrap_or_default())
}

fn is_external(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Returns true if a Service leads to a pod by its selector, which one that is an external name does not.
fn selects(service: &Service, pod: &PodReport) -> bool {
    !is_external(service)
        && selector(service)
            .is_some_and(|selector| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
}

fn way(service: &Service, captured: &Captured) -> Way {
    let Some(spec) = service.spec.as_ref() else { return Way::Elsewhere };
    // A port of another protocol leads to another listener, of the same number or name though it may be.
    let is_tcp = |port: &&ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let leads_to = |number: u16| {
        let number = i32::from(number);
        spec.ports.iter().flatten().filter(is_tcp).any(|port| match &port.target_port {
            Some(IntOrString::Int(target)) => *target == number,
            None => port.port == number,
            Some(IntOrString::String(_)) => false,
        })
    };
    let goes_past = leads_to(captured.port);
    let named = spec.ports.iter().flatten().filter(is_tcp).any(|port| {
        matches!(&port.target_port, Some(IntOrString::String(name)) if captured.name.as_ref() == Some(name))
    });
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if captured.variable.is_some() {
        return match (goes_past, named || leads_to(captured.sidecar_port)) {
            (true, _) => Way::Past(format!(
                "its targetPort {} is the application's own and bypasses the cache; write `targetPort: {}` in the Service",
                captured.port, captured.sidecar_port
            )),
            (false, true) => Way::Captured,
            (false, false) => Way::Elsewhere,
        };
    }
    if headless {
        return if goes_past || named { Way::Headless } else { Way::Elsewhere };
    }
    if goes_past {
        return Way::Past(format!(
            "its targetPort {} bypasses the cache; write `targetPort: {}` in the Service",
            captured.port,
            captured.name.as_deref().unwrap_or_default()
        ));
    }
    if named || leads_to(captured.sidecar_port) { Way::Captured } else { Way::Elsewhere }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use larder_crds::ConditionType::TrafficCaptured;
    use serde_json::{Value, json};

    use crate::{
        inject::{Outcome, inject, tests as pods},
        policy_pods::PodReport,
        status::tests::{Scene, right},
    };

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
        scene(&[implied]).expect(
            TrafficCaptured,
            "False",
            "NumericTargetPort",
            "write `targetPort: http` in the Service",
        );
    }

    #[test]
    fn ports_of_another_protocol_lead_elsewhere() {
        for target in [json!(8080), json!("http")] {
            let udp =
                service("game", json!({"port": 80, "protocol": "UDP", "targetPort": target}), "10.0.0.1");
            scene(&[udp]).expect(TrafficCaptured, "Unknown", "NoService", "no Service");
        }
    }

    #[test]
    fn services_that_select_nothing_are_named_and_not_counted() {
        let mut external = service("shop-db", json!({"port": 8080}), "");
        external["spec"]["type"] = json!("ExternalName");
        let mut by_hand = service("by-hand", json!({"port": 80, "targetPort": "http"}), "10.0.0.1");
        by_hand["spec"].as_object_mut().unwrap().remove("selector");
        let both = [external, by_hand];
        scene(&both).expect(
            TrafficCaptured,
            "Unknown",
            "NoService",
            "ExternalName Services are not considered: shop-db",
        );
        scene(&both).expect(
            TrafficCaptured,
            "Unknown",
            "NoService",
            "Services without a selector are not considered: by-hand",
        );
        let named = service("web", json!({"port": 80, "targetPort": "http"}), "10.0.0.1");
        let [external, by_hand] = both;
        scene(&[external, named, by_hand]).expect(TrafficCaptured, "True", "NamedPort", "Service web; Auto");
    }

    /// Returns a pod that takes its port from a variable.
    fn with_variable(spec: &Value) -> PodReport {
        let mut pod = pods::pod();
        pod["spec"]["containers"][0]["env"] = json!([{"name": "PORT", "value": "8080"}]);
        let spec = pods::spec(spec.clone());
        let settings = pods::settings();
        let injection = pods::injection(&spec, &settings);
        let Outcome::Injected(injected) = inject(&pod, &injection) else { panic!("it is not injected") };
        let object = Some(Arc::new(serde_json::from_value(injected.pod).unwrap()));
        PodReport { captured: injected.captured, object, ..right("a") }
    }

    #[test]
    fn policy_that_does_not_capture_names_the_modes_that_could() {
        let numeric = || service("old", json!({"port": 80, "targetPort": 8080}), "10.0.0.1");
        let scene = |spec: Value| Scene { pods: vec![with_variable(&spec)], spec, ..scene(&[numeric()]) };
        let message = |spec| scene(spec).is(TrafficCaptured).2;
        let auto = message(json!({}));
        assert!(auto.contains("write `targetPort: http` in the Service"), "{auto}");
        assert!(
            auto.contains("write `targets: [{port: http, portFrom: {env: PORT}}]` in the policy"),
            "{auto}"
        );
        assert!(auto.ends_with("Auto chose NamedPort, because no target has portFrom"), "{auto}");
        assert!(auto.contains("write `capture: {mode: CompanionService}`"), "{auto}");
        assert!(!auto.contains("Redirect"), "the operator does not allow it: {auto}");
        let explicit = message(json!({"capture": {"mode": "NamedPort"}}));
        assert!(explicit.contains("`capture: {mode: PortVariable}` and `targets: ["), "{explicit}");
    }

    #[test]
    fn by_port_variable_every_service_is_captured() {
        let spec = json!({"targets": [{"port": "http", "portFrom": {"env": "PORT"}}]});
        let scene = |services: &[Value]| Scene {
            pods: vec![with_variable(&spec)],
            spec: spec.clone(),
            ..scene(services)
        };
        let numeric = service("old", json!({"port": 80, "targetPort": 8080}), "10.0.0.1");
        let headless = service("peers", json!({"port": 8080}), "None");
        for services in [vec![], vec![numeric], vec![headless]] {
            scene(&services).expect(TrafficCaptured, "True", "PortVariable", "listen on port 8080");
        }
        scene(&[]).expect(TrafficCaptured, "True", "PortVariable", "Auto chose PortVariable");
        let past = service("raw", json!({"port": 80, "targetPort": 24810}), "10.0.0.1");
        scene(&[past]).expect(TrafficCaptured, "False", "NumericTargetPort", "`targetPort: 8080`");
        assert_eq!(scene(&[]).assess(None).capture.as_deref(), Some("PortVariable"));
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
