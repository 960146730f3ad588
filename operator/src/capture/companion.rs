//! `capture.mode: CompanionService`.
//!
//! The pod's own ports stay as they are, and so does everything that leads to them. The sidecar has port entries of its own,
//! whose names the companion of a Service refers to ([`crate::controller`] writes it): its callers reach the sidecars, and
//! those of the Service reach the application. The entries are in a container of the application, because endpoint controllers of
//! Kubernetes 1.30 and 1.31 ignore the names of an init container's ports (kubernetes#127958, completed by #128850), and a port
//! entry is only a note.

use larder_api::names;
use serde_json::{Value, json};

use super::{
    Captured, Inputs, Skip, SkipReason, all_containers, located, names_of,
    network_policy::{Port, closed_by},
    ports, text, unfit,
};

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
            let own: Vec<_> =
                all_containers(spec).flat_map(|container| names_of(container, one.port)).collect();
            let beside = captured.iter().filter(|other| other.port == one.port).map(sidecar_port_name);
            let beside: Vec<_> = beside.collect();
            let application = Port { number: one.port, names: &own };
            let sidecar = Port { number, names: &beside };
            if let Some(policy) = closed_by(pod, application, sidecar, network_policies) {
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

    /// Adds the sidecar's port entries to the container that listens, or to the pod's first one if that is an init container.
    pub fn apply(&self, pod: &mut Value) {
        let Some(containers) = pod["spec"]["containers"].as_array_mut() else { return };
        for one in &self.captured {
            let own = containers.iter().position(|container| container["name"] == one.container.as_str());
            let Some(container) = containers.get_mut(own.unwrap_or(0)) else { return };
            let entry = json!({ "name": sidecar_port_name(one), "containerPort": one.sidecar_port, "protocol": "TCP" });
            match container["ports"].as_array_mut() {
                Some(ports) => ports.push(entry),
                None => container["ports"] = json!([entry]),
            }
        }
    }
}

/// Removes from a container the port entries that [`Companion::apply`] added to those of `before`.
pub(crate) fn withdraw(container: &mut Value, captured: &[Captured], before: &Value) {
    let Some(ports) = container.get_mut("ports").and_then(Value::as_array_mut) else { return };
    let is_added = |entry: &Value| {
        let is_beside = |one: &Captured| {
            entry["containerPort"] == one.sidecar_port && text(&entry["name"]) == sidecar_port_name(one)
        };
        let mut before = before.as_array().into_iter().flatten();
        captured.iter().any(is_beside) && !before.any(|old| old["name"] == entry["name"])
    };
    ports.retain(|entry| !is_added(entry));
    if ports.is_empty() && before.is_null() {
        container.as_object_mut().expect("it has a member").remove("ports");
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
    use std::sync::Arc;

    use larder_crds::Capture;

    use super::*;
    use crate::{
        capture::tests::inputs,
        inject::tests::{pod, settings},
    };

    fn named(name: &str, port: u16) -> Captured {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        Captured { container: "app".into(), name, port, sidecar_port: 24800, variable: None }
    }

    fn plan(pod: &Value) -> Result<Companion, Skip> {
        plan_behind(pod, json!([]))
    }

    /// Plans behind a NetworkPolicy for each list of ports.
    fn plan_behind(pod: &Value, ports: Value) -> Result<Companion, Skip> {
        let policies = ports.as_array().unwrap().iter().map(|ports| {
            let policy = json!({"metadata": {"name": "web"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
                "ingress": [{"ports": ports}]}});
            Arc::new(serde_json::from_value(policy).unwrap())
        });
        let network_policies: Vec<_> = policies.collect();
        let targets: Vec<_> = serde_json::from_value(json!([{"port": "http"}, {"port": 9000}])).unwrap();
        let (capture, settings) = (Capture::default(), settings());
        let inputs = inputs(&capture, &targets, &settings);
        Companion::plan(pod, &Inputs { network_policies: &network_policies, ..inputs })
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
    fn sidecar_has_a_port_entry_for_each_name_in_an_ordinary_container() {
        let mut before = pod();
        let own = json!([{"name": "http", "containerPort": 8080}, {"name": "web", "containerPort": 8080}]);
        before["spec"]["containers"][0]["ports"] = own;
        before["spec"]["initContainers"] = json!([{"name": "native", "restartPolicy": "Always",
            "ports": [{"name": "native", "containerPort": 9000}]}]);
        let plan = plan(&before).unwrap();
        let mut after = before.clone();
        plan.apply(&mut after);
        let entry =
            |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
        let added = &after["spec"]["containers"][0]["ports"].as_array().unwrap()[2..];
        assert_eq!(
            added,
            [entry("larder-http", 24800), entry("larder-web", 24800), entry("larder-native", 24801)]
        );
        assert_eq!(after["spec"]["initContainers"], before["spec"]["initContainers"]);
        for container in after["spec"]["containers"].as_array_mut().unwrap() {
            let before = before["spec"]["containers"].as_array().unwrap();
            let before = before.iter().find(|one| one["name"] == container["name"]).unwrap();
            withdraw(container, plan.captured(), &before["ports"]);
        }
        assert_eq!(after, before);
    }

    #[test]
    fn network_policy_must_admit_the_port_of_the_sidecar() {
        let reason = |ports: Value| plan_behind(&pod(), json!([ports])).err().map(|skip| skip.reason);
        let closed = Some(SkipReason::NetworkPolicy);
        assert_eq!(reason(json!([{"port": 8080}])), closed);
        assert_eq!(reason(json!([{"port": "http"}])), closed, "its name is the application's");
        assert_eq!(reason(json!([{"port": "http"}, {"port": "larder-http"}])), None);
        assert_eq!(reason(json!([{"port": "http"}, {"port": 24800}])), None);
        assert_eq!(reason(json!([{"port": "metrics"}])), None, "the application could not be reached either");
        let mut second = pod();
        second["spec"]["containers"][1]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        let refused = plan_behind(&second, json!([[{"port": "web"}]])).unwrap_err();
        assert_eq!(Some(refused.reason), closed, "another name of the number");
    }

    #[test]
    fn port_with_the_name_of_one_of_the_sidecar_is_refused() {
        let mut clash = pod();
        clash["spec"]["containers"][1]["ports"] = json!([{"name": "larder-http", "containerPort": 7000}]);
        assert_eq!(plan(&clash).unwrap_err().reason, SkipReason::NameClash);
    }
}
