//! `capture.mode: CompanionService`.
//!
//! The pod's own ports stay as they are, and so does everything that leads to them. The sidecar's container has port entries of
//! its own, whose names the companion of a Service refers to ([`crate::controller`] writes it): its callers reach the sidecars,
//! and those of the Service reach the application.

use larder_api::names;
use serde_json::{Value, json};

use super::{Captured, Inputs, Skip, SkipReason, all_containers, located, named_port, ports, unfit};

/// Maximum length of the name of a port.
const MAX_PORT_NAME: usize = 15;
/// Start of the names of the sidecar's port entries.
const PREFIX: &str = "larder-";

/// The ports of a pod that have one of the sidecar beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    captured: Vec<Captured>,
}

impl Companion {
    /// Finds the ports in a pod's JSON.
    ///
    /// # Errors
    /// The reason that there can be no sidecar.
    pub fn plan(pod: &Value, inputs: &Inputs<'_>) -> Result<Self, Skip> {
        let Inputs { targets, settings, network_policies, .. } = *inputs;
        let spec = &pod["spec"];
        let skip = |reason, message: String| Err(Skip { reason, message });
        if let Some(skip) = unfit(pod, settings) {
            return Err(skip);
        }
        let captured = located::locate(spec, targets, settings)?;
        for one in &captured {
            let name = sidecar_port_name(one);
            if all_containers(spec).flat_map(ports).any(|entry| entry["name"] == name.as_str()) {
                let message = format!("a port has the name {name}, which the sidecar needs; give it another");
                return skip(SkipReason::NameClash, message);
            }
            let number = one.sidecar_port;
            if let Some(policy) = named_port::closed_by(pod, &[&name], one.port, number, network_policies) {
                let message = format!(
                    "the NetworkPolicy {policy} allows port {} and not {number}, where the sidecar listens; allow the port \
                     {name} as well",
                    one.port
                );
                return skip(SkipReason::NetworkPolicy, message);
            }
        }
        Ok(Self { captured })
    }

    /// Returns the ports.
    pub fn captured(&self) -> &[Captured] {
        &self.captured
    }

    /// Returns the port entries of the sidecar's container.
    pub fn sidecar_ports(&self) -> Vec<Value> {
        let entry = |one: &Captured| json!({ "name": sidecar_port_name(one), "containerPort": one.sidecar_port, "protocol": "TCP" });
        self.captured.iter().map(entry).collect()
    }
}

/// Returns the name of the sidecar's port for one of the application: made of the port's name, or else of its number, so that it
/// is the same in pods of before and after a change of the other.
pub fn sidecar_port_name(captured: &Captured) -> String {
    let number = captured.port.to_string();
    let own = captured.name.as_ref().unwrap_or(&number);
    let name = format!("{PREFIX}{own}");
    if name.len() <= MAX_PORT_NAME && name != names::ADMIN_PORT {
        return name;
    }
    let digest = blake3::hash(own.as_bytes()).to_hex();
    format!("{PREFIX}{}", &digest[..MAX_PORT_NAME - PREFIX.len()])
}

#[cfg(test)]
mod tests {
    use larder_crds::Capture;

    use super::*;
    use crate::inject::tests::{pod, settings};

    fn named(name: &str, port: u16) -> Captured {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        Captured { container: "app".into(), name, port, sidecar_port: 24800, variable: None }
    }

    fn plan(pod: &Value) -> Result<Companion, Skip> {
        let targets: Vec<_> = serde_json::from_value(json!([{"port": "http"}, {"port": 9000}])).unwrap();
        let inputs = Inputs {
            capture: &Capture::default(),
            targets: &targets,
            settings: &settings(),
            network_policies: &[],
            pod_security: None,
        };
        Companion::plan(pod, &inputs)
    }

    #[test]
    fn ports_of_the_sidecar_have_valid_names_of_their_own() {
        assert_eq!(sidecar_port_name(&named("http", 8080)), "larder-http");
        assert_eq!(sidecar_port_name(&named("", 8080)), "larder-8080");
        for name in ["admin", "grpc-internal", "ninechars"] {
            let made = sidecar_port_name(&named(name, 1));
            assert!(
                made.len() == MAX_PORT_NAME && made != names::ADMIN_PORT && !made.ends_with(name),
                "{made}"
            );
        }
        assert_ne!(
            sidecar_port_name(&named("grpc-internal", 1)),
            sidecar_port_name(&named("grpc-external", 1))
        );
    }

    #[test]
    fn sidecar_has_a_port_entry_for_each_target() {
        let ports = plan(&pod()).unwrap().sidecar_ports();
        assert_eq!(ports[0], json!({"name": "larder-http", "containerPort": 24800, "protocol": "TCP"}));
        assert_eq!(ports[1]["containerPort"], 24801);
    }

    #[test]
    fn port_with_the_name_of_one_of_the_sidecar_is_refused() {
        let mut clash = pod();
        clash["spec"]["containers"][1]["ports"] = json!([{"name": "larder-http", "containerPort": 7000}]);
        assert_eq!(plan(&clash).unwrap_err().reason, SkipReason::NameClash);
    }
}
