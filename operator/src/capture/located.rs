//! The container and the number of a target, in the modes that need neither a name nor a port entry.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use larder_crds::Target;
use serde_json::Value;

use super::{Captured, Skip, SkipReason, number, ports, text};
use crate::cli::SidecarSettings;

/// Finds the ports of targets, each once, with the numbers of the sidecar for them.
///
/// # Errors
/// [`SkipReason::NoSuchPort`], and [`SkipReason::PortClash`] for a number that the sidecar needs.
pub(super) fn locate(
    spec: &Value,
    targets: &[Target],
    settings: &SidecarSettings,
) -> Result<Vec<Captured>, Skip> {
    let mut captured: Vec<Captured> = Vec::new();
    for Target { port, .. } in targets {
        let (container, name, port) = match find(spec, port) {
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
        let offset = u16::try_from(captured.len()).unwrap_or(u16::MAX);
        captured.push(Captured {
            container: container.to_owned(),
            name: name.map(str::to_owned),
            port,
            sidecar_port: settings.data_port.saturating_add(offset),
            variable: None,
        });
    }
    Ok(captured)
}

/// Returns the container, the port's name and its number. A number that no container lists belongs to the only container.
fn find<'a>(spec: &'a Value, port: &IntOrString) -> Option<(&'a str, Option<&'a str>, u16)> {
    let list = |key: &str| spec[key].as_array().into_iter().flatten();
    let native = list("initContainers").filter(|container| container["restartPolicy"] == "Always");
    let containers: Vec<_> = list("containers").chain(native).collect();
    let entries =
        containers.iter().flat_map(|container| ports(container).map(move |entry| (container, entry)));
    let mut fitting: Vec<_> = entries
        .filter(|(_, entry)| match port {
            IntOrString::Int(wanted) => number(entry).map(i32::from) == Some(*wanted),
            IntOrString::String(name) => entry["name"] == name.as_str(),
        })
        .collect();
    fitting.sort_by_key(|(_, entry)| entry["name"].is_null());
    if let Some((container, entry)) = fitting.first() {
        return Some((text(&container["name"]), entry["name"].as_str(), number(entry)?));
    }
    match (port, containers.as_slice()) {
        (IntOrString::Int(number), [only]) => Some((text(&only["name"]), None, u16::try_from(*number).ok()?)),
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
