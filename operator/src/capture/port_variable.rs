//! `capture.mode: PortVariable`.
//!
//! The application takes its port from an environment variable or an argument, which gets another number: the sidecar
//! listens on the application's own. Everything that leads to the port finds the sidecar, by name or number: Services,
//! headless ones too, `hostPort`, and clients that know the pod's address. No privilege is needed. The port's entry stays
//! where it is, because it is about the pod's network, where the number is still served.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use larder_crds::{Capture, CaptureMode, PortFrom, Target};
use serde_json::{Value, json};

use super::{
    Captured, Inputs, Skip, SkipReason, Variable, entries_of, leads_to, listeners, no_such_port, number,
    port_from, text, unfit_for, written,
};

/// The lowest port that a process without privileges can listen on.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// The ports of a pod that the sidecar takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortVariable {
    captured: Vec<Captured>,
}

impl PortVariable {
    /// Finds the ports to capture in a pod's JSON, and the places from which the application takes them.
    ///
    /// # Errors
    /// The reason that there can be no sidecar.
    pub fn plan(pod: &Value, inputs: &Inputs<'_>) -> Result<Self, Skip> {
        let Inputs { targets, settings, .. } = *inputs;
        let spec = &pod["spec"];
        let is_reserved = |port| settings.application_ports().contains(&port) || port == settings.admin_port;
        if let Some(skip) = unfit_for(pod, "sidecar.applicationPort", is_reserved) {
            return Err(skip);
        }
        let mut captured: Vec<Captured> = Vec::new();
        for target in targets {
            let refuse = |message: String| Skip { reason: SkipReason::PortNotVariable, message };
            let place = target.port_from.clone().unwrap_or(PortFrom { env: None, argument: None });
            let Listener { container, port, name } = find(spec, target, &place)?;
            if captured.iter().any(|other| other.sidecar_port == port) {
                continue;
            }
            if port < FIRST_UNPRIVILEGED {
                return Err(Skip {
                    reason: SkipReason::PrivilegedPort,
                    message: format!(
                        "the port {port} is below {FIRST_UNPRIVILEGED}, where the sidecar, which is not root, may not \
                         listen; let the application listen on another, such as 8080, or set capture.mode: NamedPort"
                    ),
                });
            }
            if is_reserved(port) {
                return Err(Skip {
                    reason: SkipReason::PortClash,
                    message: format!(
                        "the port {port} is reserved for the sidecar; give it other ports with the chart's \
                         sidecar.applicationPort and sidecar.adminPort"
                    ),
                });
            }
            let offset = u16::try_from(captured.len()).unwrap_or(u16::MAX);
            let moved = settings.application_port.saturating_add(offset);
            let container_name = text(&container["name"]).to_owned();
            let is_taken = captured.iter().any(|other| {
                other.container == container_name
                    && other.variable.as_ref().is_some_and(|other| other.place == place)
            });
            if is_taken {
                return Err(refuse("two targets have the same portFrom; give each its own".into()));
            }
            let adds = port_from::replace(&mut container.clone(), &place, port, moved, true)
                .map_err(|reason| refuse(format!("container {container_name}: {reason}")))?;
            captured.push(Captured {
                container: container_name,
                name: name.map(str::to_owned),
                port: moved,
                sidecar_port: port,
                variable: Some(Variable { place, added: adds }),
            });
        }
        Ok(Self { captured })
    }

    /// Returns the captured ports.
    pub fn captured(&self) -> &[Captured] {
        &self.captured
    }

    /// Gives the application its new number in a container, and points probes and hooks at that.
    pub fn apply(&self, container: &mut Value) {
        for captured in &self.captured {
            if let Some(variable) = &captured.variable
                && container["name"] == captured.container.as_str()
            {
                let Captured { port, sidecar_port, .. } = *captured;
                // The plan has tried it.
                let _ = port_from::replace(container, &variable.place, sidecar_port, port, true);
            }
        }
    }

    /// Returns the plan of this mode for a pod, with the lines to write for it: the places from which the containers may take
    /// the ports of all targets.
    pub fn offer(pod: &Value, inputs: &Inputs<'_>) -> Option<(Self, String)> {
        let spec = &pod["spec"];
        let mut targets = Vec::new();
        let mut found = Vec::new();
        for target in inputs.targets {
            let port = match &target.port {
                IntOrString::Int(port) => u16::try_from(*port).ok()?,
                IntOrString::String(_) => {
                    entries_of(spec, &target.port).find_map(|(_, entry)| number(entry))?
                }
            };
            let lists =
                |container: &&Value| entries_of(spec, &target.port).any(|(other, _)| other == *container);
            let is_listed = listeners(spec).any(|container| lists(&container));
            let mut candidates =
                listeners(spec).filter(|container| !is_listed || lists(container)).flat_map(|container| {
                    port_from::places(container, port)
                        .into_iter()
                        .map(|place| (text(&container["name"]), place))
                });
            let (container, place) = candidates.find(|(_, place)| {
                let target = Target { port: target.port.clone(), port_from: Some(place.clone()) };
                Self::plan(pod, &Inputs { targets: &[target], ..*inputs }).is_ok()
            })?;
            found.push(match (&place.env, &place.argument) {
                (Some(name), _) => {
                    format!("container {container} has the variable {name} with the port {port}")
                }
                (None, argument) => {
                    let argument = argument.as_deref().unwrap_or_default();
                    format!("container {container} has the argument {argument} with the port {port}")
                }
            });
            targets.push(Target { port: target.port.clone(), port_from: Some(place) });
        }
        let capture = &Capture { mode: CaptureMode::PortVariable };
        let plan = Self::plan(pod, &Inputs { capture, targets: &targets, ..*inputs }).ok()?;
        let mode = if inputs.capture.mode == CaptureMode::Auto {
            ""
        } else {
            "capture: {mode: PortVariable}` and `"
        };
        let targets: Vec<_> = targets.iter().map(line).collect();
        let line = format!(
            "capture by PortVariable: write `{mode}targets: [{}]` in the policy, if that is how the application takes its \
             port ({})",
            targets.join(", "),
            found.join(", ")
        );
        Some((plan, line))
    }
}

/// Writes a target as YAML.
fn line(target: &Target) -> String {
    let place = target.port_from.as_ref();
    let (key, value) = match place.and_then(|place| place.argument.as_ref()) {
        Some(argument) => ("argument", argument.as_str()),
        None => ("env", place.and_then(|place| place.env.as_deref()).unwrap_or_default()),
    };
    let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    let value = if is_plain { value.to_owned() } else { json!(value).to_string() };
    format!("{{port: {}, portFrom: {{{key}: {value}}}}}", written(&target.port))
}

/// A container that listens on a captured port.
struct Listener<'a> {
    container: &'a Value,
    port: u16,
    name: Option<&'a str>,
}

/// Returns the container of a target and the port's number: the container that lists the port or, of a number that none lists,
/// the one that has the number where `place` says.
fn find<'a>(spec: &'a Value, target: &'a Target, place: &PortFrom) -> Result<Listener<'a>, Skip> {
    let fits = |container: &Value, port| {
        port_from::replace(&mut container.clone(), place, port, port, false).is_ok()
    };
    let mut listed: Vec<_> = entries_of(spec, &target.port)
        .filter_map(|(container, entry)| {
            let port = number(entry)?;
            let name = entry["name"].as_str().filter(|name| leads_to(spec, name, port));
            Some(Listener { container, port, name })
        })
        .collect();
    // A name leads to the first container that lists it.
    if let IntOrString::Int(_) = &target.port {
        listed.sort_by_key(|listener| !fits(listener.container, listener.port));
    }
    if let Some(listener) = listed.into_iter().next() {
        return Ok(listener);
    }
    let IntOrString::Int(port) = &target.port else { return Err(no_such_port(&target.port)) };
    let port = u16::try_from(*port).map_err(|_| no_such_port(&target.port))?;
    listeners(spec)
        .find(|container| fits(container, port))
        .map(|container| Listener { container, port, name: None })
        .ok_or_else(|| no_such_port(&target.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capture::tests::inputs,
        inject::tests::{pod, settings},
    };

    fn with(container: usize, fields: Value) -> Value {
        let mut pod = pod();
        for (key, value) in fields.as_object().unwrap() {
            pod["spec"]["containers"][container][key] = value.clone();
        }
        pod
    }

    fn plan(pod: &Value, targets: Value) -> Result<Vec<Captured>, Skip> {
        let targets: Vec<Target> = serde_json::from_value(targets).unwrap();
        let capture = Capture { mode: CaptureMode::PortVariable };
        let settings = settings();
        let inputs = inputs(&capture, &targets, &settings);
        PortVariable::plan(pod, &inputs).map(|plan| plan.captured)
    }

    fn reason(pod: &Value, targets: Value) -> Option<SkipReason> {
        plan(pod, targets).err().map(|skip| skip.reason)
    }

    fn http(from: Value) -> Value {
        json!([{"port": "http", "portFrom": from}])
    }

    #[test]
    fn sidecar_gets_the_number_and_application_another() {
        let pod = with(0, json!({"env": [{"name": "PORT", "value": "8080"}], "args": ["--admin", "9000"]}));
        let targets = json!([
            {"port": "http", "portFrom": {"env": "PORT"}},
            {"port": 8080, "portFrom": {"env": "PORT"}},
            {"port": 9000, "portFrom": {"argument": "--admin"}},
        ]);
        let captured = plan(&pod, targets).unwrap();
        let ports: Vec<_> = captured.iter().map(|one| (one.sidecar_port, one.port)).collect();
        assert_eq!(ports, [(8080, 24810), (9000, 24811)]);
        assert!(!captured[0].variable.as_ref().unwrap().added);
    }

    #[test]
    fn port_that_no_container_lists_is_found_by_its_variable() {
        let mut pod = with(1, json!({"env": [{"name": "PORT", "value": "3000"}]}));
        let target = json!([{"port": 3000, "portFrom": {"env": "PORT"}}]);
        let captured = plan(&pod, target.clone()).unwrap();
        assert_eq!((captured[0].container.as_str(), captured[0].sidecar_port), ("other", 3000));
        assert_eq!(captured[0].name, None);
        pod["spec"]["containers"][1]["env"] = Value::Null;
        assert_eq!(reason(&pod, target), Some(SkipReason::NoSuchPort), "it is not guessed at");
    }

    #[test]
    fn native_sidecar_is_captured() {
        let mut pod = pod();
        pod["spec"]["initContainers"] = json!([{"name": "web", "restartPolicy": "Always",
            "ports": [{"name": "web", "containerPort": 8000}], "args": ["--port=8000"]}]);
        let captured = plan(&pod, json!([{"port": "web", "portFrom": {"argument": "--port"}}])).unwrap();
        assert_eq!((captured[0].container.as_str(), captured[0].sidecar_port), ("web", 8000));
    }

    #[test]
    fn pod_whose_port_cannot_be_replaced_is_left_alone_with_a_reason() {
        let env = json!({"env": "PORT"});
        for (fields, expected) in [
            (json!({}), None),
            (json!({"env": [{"name": "PORT", "value": "9090"}]}), Some(SkipReason::PortNotVariable)),
            (json!({"envFrom": [{"secretRef": {"name": "a"}}]}), Some(SkipReason::PortNotVariable)),
            (json!({"ports": [{"name": "http", "containerPort": 80}]}), Some(SkipReason::PrivilegedPort)),
            (json!({"ports": [{"name": "http", "containerPort": 24811}]}), Some(SkipReason::PortClash)),
            (json!({"ports": [{"name": "http", "containerPort": 24800}]}), None),
            (json!({"ports": [{"name": "http", "containerPort": 8080, "hostPort": 80}]}), None),
            (
                json!({"ports": [{"name": "http", "containerPort": 8080, "protocol": "UDP"}]}),
                Some(SkipReason::NoSuchPort),
            ),
        ] {
            assert_eq!(reason(&with(0, fields.clone()), http(env.clone())), expected, "{fields}");
        }
        assert_eq!(reason(&pod(), http(json!({"argument": "--port"}))), Some(SkipReason::PortNotVariable));
        let shared = json!([{"port": "http", "portFrom": env}, {"port": "admin", "portFrom": env}]);
        assert_eq!(reason(&pod(), shared), Some(SkipReason::PortNotVariable));
        assert_eq!(reason(&pod(), json!([{"port": 24890, "portFrom": env}])), Some(SkipReason::NoSuchPort));
        let mut on_host = pod();
        on_host["spec"]["hostNetwork"] = json!(true);
        assert_eq!(reason(&on_host, http(env)), Some(SkipReason::HostNetwork));
    }

    fn offer(pod: &Value, targets: Value, mode: CaptureMode) -> Option<String> {
        let targets: Vec<Target> = serde_json::from_value(targets).unwrap();
        let settings = settings();
        let capture = Capture { mode };
        let inputs = inputs(&capture, &targets, &settings);
        PortVariable::offer(pod, &inputs).map(|(_, line)| line)
    }

    #[test]
    fn offer_names_the_place_and_the_line() {
        let auto = CaptureMode::Auto;
        let named = json!([{"port": "http"}]);
        assert_eq!(offer(&pod(), named.clone(), auto), None);
        let pod = with(
            0,
            json!({
                "env": [{"name": "BACKEND", "value": "a:9000"}, {"name": "PORT", "value": "8080"}],
                "args": ["--listen", ":9000"],
            }),
        );
        let one = offer(&pod, named.clone(), auto).unwrap();
        assert!(
            one.contains("write `targets: [{port: http, portFrom: {env: PORT}}]` in the policy"),
            "{one}"
        );
        assert!(one.contains("container app has the variable PORT"), "{one}");
        let explicit = offer(&pod, named, CaptureMode::NamedPort).unwrap();
        assert!(explicit.contains("write `capture: {mode: PortVariable}` and `targets: ["), "{explicit}");
        let privileged =
            with(0, json!({"ports": [{"containerPort": 80}], "env": [{"name": "PORT", "value": "80"}]}));
        assert_eq!(offer(&privileged, json!([{"port": 80}]), auto), None);
        let second = offer(&pod, json!([{"port": 8080}, {"port": "admin"}]), auto).unwrap();
        assert!(
            second.contains("{port: 8080, portFrom: {env: PORT}}, {port: admin, portFrom: {env: BACKEND}}"),
            "{second}"
        );
    }

    #[test]
    fn line_of_an_offer_is_yaml_of_the_target() {
        for place in [
            json!({"env": "HTTP_PORT"}),
            json!({"argument": "--port"}),
            json!({"argument": "-p"}),
            json!({"argument": "a b: {"}),
        ] {
            let target: Target = serde_json::from_value(json!({"port": 8080, "portFrom": place})).unwrap();
            assert_eq!(serde_yaml::from_str::<Target>(&line(&target)).unwrap(), target);
        }
    }
}
