//! The container and the number of a target, in the modes that need neither a name nor a port entry.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use larder_crds::Target;
use serde_json::Value;

use super::{Captured, Skip, SkipReason, entries_of, leads_to, listeners, number, text};
use crate::cli::SidecarSettings;

/// Finds the ports of targets, with the numbers of the sidecar for them: each name of a number once, or else the number.
///
/// # Errors
/// [`SkipReason::NoSuchPort`], and [`SkipReason::PortClash`] for a number that the sidecar needs.
pub(super) fn locate(
    spec: &Value,
    targets: &[Target],
    settings: &SidecarSettings,
) -> Result<Vec<Captured>, Skip> {
    let mut captured: Vec<Captured> = Vec::new();
    let mut numbers = 0;
    for Target { port, .. } in targets {
        let (container, port) = match find(spec, port) {
            Some(found) => found,
            None => return Err(no_such_port(port)),
        };
        if settings.data_ports().contains(&port) || port == settings.admin_port {
            return Err(Skip {
                reason: SkipReason::PortClash,
                message: format!(
                    "the sidecar needs port {port}; give it others with the chart's sidecar.dataPort and \
                     sidecar.adminPort"
                ),
            });
        }
        if captured.iter().any(|other| other.port == port) {
            continue;
        }
        let sidecar_port = settings.data_port.saturating_add(numbers);
        numbers = numbers.saturating_add(1);
        let captured_as = |container: &str, name: Option<&str>| Captured {
            container: container.to_owned(),
            name: name.map(str::to_owned),
            port,
            sidecar_port,
            variable: None,
        };
        let before = captured.len();
        let wanted = IntOrString::Int(port.into());
        for (container, entry) in entries_of(spec, &wanted) {
            let own = &captured[before..];
            if let Some(name) = entry["name"].as_str().filter(|name| leads_to(spec, name, port))
                && !own.iter().any(|one| one.name.as_deref() == Some(name))
            {
                captured.push(captured_as(text(&container["name"]), Some(name)));
            }
        }
        if captured.len() == before {
            captured.push(captured_as(container, None));
        }
    }
    Ok(captured)
}

/// Returns a container that listens on a port, and its number. A number that no container lists belongs to the only container.
fn find<'a>(spec: &'a Value, port: &'a IntOrString) -> Option<(&'a str, u16)> {
    if let Some((container, entry)) = entries_of(spec, port).next() {
        return Some((text(&container["name"]), number(entry)?));
    }
    let mut containers = listeners(spec);
    match (port, containers.next(), containers.next()) {
        (IntOrString::Int(number), Some(only), None) => {
            Some((text(&only["name"]), u16::try_from(*number).ok()?))
        }
        _ => None,
    }
}

fn no_such_port(port: &IntOrString) -> Skip {
    let message = match port {
        IntOrString::Int(number) => format!(
            "no container of the pod lists port {number}, and it has several containers; add it to the ports of the one \
             that listens, or correct the policy's targets"
        ),
        IntOrString::String(name) => format!(
            "no container of the pod lists a TCP port {name}; add it to the container's ports, or correct the policy's \
             targets"
        ),
    };
    Skip { reason: SkipReason::NoSuchPort, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inject::tests::{pod, settings};

    fn located(pod: &Value, targets: Value) -> Result<Vec<Captured>, SkipReason> {
        let targets: Vec<Target> = serde_json::from_value(targets).unwrap();
        locate(&pod["spec"], &targets, &settings()).map_err(|skip| skip.reason)
    }

    fn in_app(name: Option<&str>, port: u16, sidecar_port: u16) -> Captured {
        Captured {
            container: "app".to_owned(),
            name: name.map(str::to_owned),
            port,
            sidecar_port,
            variable: None,
        }
    }

    #[test]
    fn port_needs_neither_a_name_nor_an_entry() {
        let http = in_app(Some("http"), 8080, 24800);
        assert_eq!(located(&pod(), json!([{"port": "http"}, {"port": 8080}])), Ok(vec![http]));
        assert_eq!(located(&pod(), json!([{"port": "https"}])), Err(SkipReason::NoSuchPort));
        assert_eq!(located(&pod(), json!([{"port": 7000}])), Err(SkipReason::NoSuchPort));
        let mut alone = pod();
        alone["spec"]["containers"].as_array_mut().unwrap().truncate(1);
        alone["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9000}]);
        let found = located(&alone, json!([{"port": 9000}, {"port": 7000}])).unwrap();
        assert_eq!(found, [in_app(None, 9000, 24800), in_app(None, 7000, 24801)]);
        assert_eq!(located(&alone, json!([{"port": 24802}])), Err(SkipReason::PortClash));
    }

    #[test]
    fn every_name_of_a_number_is_captured_once() {
        let mut pod = pod();
        pod["spec"]["containers"][0]["ports"] = json!([
            {"name": "http", "containerPort": 8080}, {"name": "web", "containerPort": 8080}, {"containerPort": 9000},
            {"name": "quic", "containerPort": 8080, "protocol": "UDP"},
        ]);
        pod["spec"]["containers"][1]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
        for target in [json!("http"), json!("web"), json!(8080)] {
            let captured = located(&pod, json!([{"port": target}, {"port": 9000}]));
            let expected = [
                in_app(Some("http"), 8080, 24800),
                in_app(Some("web"), 8080, 24800),
                in_app(None, 9000, 24801),
            ];
            assert_eq!(captured.as_deref(), Ok(expected.as_slice()), "{target}");
        }
    }

    #[test]
    fn port_of_a_native_sidecar_is_found() {
        let mut native = pod();
        native["spec"]["initContainers"] = json!([
            {"name": "setup", "ports": [{"name": "setup", "containerPort": 7000}]},
            {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 7001}]},
        ]);
        assert_eq!(located(&native, json!([{"port": "setup"}])), Err(SkipReason::NoSuchPort));
        assert_eq!(located(&native, json!([{"port": "proxy"}])).unwrap()[0].container, "proxy");
    }
}
