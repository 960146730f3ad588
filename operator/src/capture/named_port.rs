//! `capture.mode: NamedPort`.
//!
//! The containers of a pod share one network namespace and a port entry is only a note. The sidecar's number moves to the
//! entry that has the name, and everything that resolves the name (endpoint slices, load balancers, monitors) finds the
//! sidecar. No privilege is needed, and injected and plain pods coexist behind one Service.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{
    Captured, Inputs, Skip, SkipReason, entries_of, leads_to,
    network_policy::{Port, closed_by},
    no_such_port, number, text, unfit,
};

/// The ports of a pod whose names move to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    captured: Vec<Captured>,
}

impl NamedPort {
    /// Finds the ports to capture in a pod's JSON.
    ///
    /// # Errors
    /// The reason that there can be no sidecar.
    pub fn plan(pod: &Value, inputs: &Inputs<'_>) -> Result<Self, Skip> {
        let Inputs { targets, settings, network_policies, .. } = *inputs;
        let spec = &pod["spec"];
        if let Some(skip) = unfit(pod, settings) {
            return Err(skip);
        }
        let mut captured: Vec<Captured> = Vec::new();
        let mut sidecar_port = settings.data_port;
        for target in targets {
            let port = find(spec, &target.port)?;
            if captured.iter().any(|other| other.port == port) {
                continue;
            }
            let own = named_entries(spec, port, sidecar_port)?;
            let names: Vec<_> = own.iter().filter_map(|one| one.name.as_deref()).collect();
            let application = Port { number: port, names: &names };
            let sidecar = Port { number: sidecar_port, names: &names };
            if let Some(policy) = closed_by(pod, application, sidecar, network_policies) {
                return Err(Skip {
                    reason: SkipReason::NetworkPolicy,
                    message: format!(
                        "the NetworkPolicy {policy} allows port {port} by number and not {sidecar_port}, where the \
                         sidecar listens; refer to the port by its name, {}",
                        names[0]
                    ),
                });
            }
            captured.extend(own);
            sidecar_port = sidecar_port.saturating_add(1);
        }
        Ok(Self { captured })
    }

    /// Returns the plan of this mode for a pod, with the line to write for it.
    pub fn offer(pod: &Value, inputs: &Inputs<'_>) -> Option<(Self, String)> {
        let plan = Self::plan(pod, inputs).ok()?;
        let name = plan.captured.first()?.name.clone()?;
        let line = format!(
            "capture by NamedPort: write `capture: {{mode: NamedPort}}` and targets without portFrom in the policy, and \
             `targetPort: {name}` in the Services"
        );
        Some((plan, line))
    }

    /// Returns the captured ports.
    pub fn captured(&self) -> &[Captured] {
        &self.captured
    }

    /// Moves the names of ports in a container.
    pub fn apply(&self, container: &mut Value) {
        for captured in &self.captured {
            if let Some(name) = captured.name.as_deref()
                && container["name"] == captured.container.as_str()
            {
                move_name(container, name, captured);
            }
        }
    }
}

/// Assigns the sidecar's number to the entry with the port's name, and the application's number to an entry without a
/// name.
fn move_name(container: &mut Value, name: &str, captured: &Captured) {
    let Some(ports) = container["ports"].as_array_mut() else { return };
    if let Some(entry) = ports.iter_mut().find(|entry| entry["name"] == name) {
        entry["containerPort"] = json!(captured.sidecar_port);
    }
    let listed = |entry: &Value| {
        entry["containerPort"] == captured.port
            && entry.get("protocol").is_none_or(|protocol| protocol == "TCP")
    };
    if !ports.iter().any(listed) {
        ports.push(json!({ "containerPort": captured.port, "protocol": "TCP" }));
    }
}

/// Returns the names that lead to a port, in each container, to be moved to the sidecar's number. There is at least one.
fn named_entries(spec: &Value, port: u16, sidecar_port: u16) -> Result<Vec<Captured>, Skip> {
    let mut named: Vec<Captured> = Vec::new();
    for (container, entry) in entries_of(spec, &IntOrString::Int(port.into())) {
        if entry["hostPort"].as_u64().is_some_and(|port| port != 0) {
            return Err(Skip {
                reason: SkipReason::HostPort,
                message: format!("the port {port} is published on the node with hostPort; remove hostPort"),
            });
        }
        let container = text(&container["name"]);
        if let Some(name) = entry["name"].as_str().filter(|name| leads_to(spec, name, port))
            && !named.iter().any(|one| one.container == container && one.name.as_deref() == Some(name))
        {
            named.push(Captured {
                container: container.to_owned(),
                name: Some(name.to_owned()),
                port,
                sidecar_port,
                variable: None,
            });
        }
    }
    if named.is_empty() {
        return Err(Skip {
            reason: SkipReason::UnnamedPort,
            message: format!(
                "the container port {port} has no name, or that of another container's port; name it, such as http, and \
                 set the Service's targetPort to that name"
            ),
        });
    }
    Ok(named)
}

/// Returns the number of a target's port.
fn find(spec: &Value, port: &IntOrString) -> Result<u16, Skip> {
    entries_of(spec, port).find_map(|(_, entry)| number(entry)).ok_or_else(|| no_such_port(port))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use larder_crds::{Capture, Target};

    use super::*;
    use crate::{
        capture::tests::inputs,
        inject::tests::{pod, settings},
    };

    fn plan(
        pod: &Value,
        targets: &[Target],
        network_policies: &[Arc<NetworkPolicy>],
    ) -> Result<Vec<Captured>, Skip> {
        let (capture, settings) = (Capture::default(), settings());
        let inputs = Inputs { network_policies, ..inputs(&capture, targets, &settings) };
        Ok(NamedPort::plan(pod, &inputs)?.captured)
    }

    pub(in crate::capture) fn check(
        pod: &Value,
        port: Value,
        policies: Value,
    ) -> Result<Vec<Captured>, SkipReason> {
        let targets = [serde_json::from_value(json!({ "port": port })).unwrap()];
        let policies: Vec<NetworkPolicy> = serde_json::from_value(policies).unwrap();
        let policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
        plan(pod, &targets, &policies).map_err(|skip| skip.reason)
    }

    fn http() -> Captured {
        Captured {
            container: "app".into(),
            name: Some("http".into()),
            port: 8080,
            sidecar_port: 24800,
            variable: None,
        }
    }

    #[test]
    fn port_is_found_by_name_and_by_number() {
        assert_eq!(check(&pod(), json!("http"), json!([])), Ok(vec![http()]));
        assert_eq!(check(&pod(), json!(8080), json!([])), Ok(vec![http()]));
        assert_eq!(check(&pod(), json!("https"), json!([])), Err(SkipReason::NoSuchPort));
        assert_eq!(check(&pod(), json!(9999), json!([])), Err(SkipReason::NoSuchPort));
    }

    #[test]
    fn each_target_gets_a_port_of_its_own() {
        let targets: Vec<Target> =
            serde_json::from_value(json!([{"port": "http"}, {"port": 8080}, {"port": "admin"}])).unwrap();
        let captured = plan(&pod(), &targets, &[]).unwrap();
        let ports: Vec<_> =
            captured.iter().map(|one| (one.name.as_deref().unwrap(), one.sidecar_port)).collect();
        assert_eq!(ports, [("http", 24800), ("admin", 24801)]);
    }

    #[test]
    fn uncapturable_pod_is_skipped_with_reason() {
        let mut unnamed = pod();
        unnamed["spec"]["containers"][0]["ports"][0].as_object_mut().unwrap().remove("name");
        assert_eq!(check(&unnamed, json!(8080), json!([])), Err(SkipReason::UnnamedPort));

        let mut host_network = pod();
        host_network["spec"]["hostNetwork"] = json!(true);
        assert_eq!(check(&host_network, json!("http"), json!([])), Err(SkipReason::HostNetwork));

        let mut host_port = pod();
        host_port["spec"]["containers"][0]["ports"][0]["hostPort"] = json!(80);
        assert_eq!(check(&host_port, json!("http"), json!([])), Err(SkipReason::HostPort));

        for port in [24800, 24803, 24890] {
            let mut clash = pod();
            clash["spec"]["containers"][1]["ports"] = json!([{"containerPort": port}]);
            assert_eq!(check(&clash, json!("http"), json!([])), Err(SkipReason::PortClash), "{port}");
        }

        let mut udp = pod();
        udp["spec"]["containers"][0]["ports"][0]["protocol"] = json!("UDP");
        assert_eq!(check(&udp, json!("http"), json!([])), Err(SkipReason::NoSuchPort));
    }

    #[test]
    fn every_name_of_a_number_is_captured_once() {
        let mut pod = pod();
        pod["spec"]["containers"][0]["ports"] = json!([
            {"name": "http", "containerPort": 8080}, {"name": "web", "containerPort": 8080},
            {"name": "quic", "containerPort": 8080, "protocol": "UDP"},
        ]);
        pod["spec"]["containers"][1]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
        for target in [json!("http"), json!("web"), json!(8080)] {
            let captured = check(&pod, target, json!([])).unwrap();
            let names: Vec<_> = captured
                .iter()
                .map(|one| (one.container.as_str(), one.name.as_deref().unwrap(), one.sidecar_port))
                .collect();
            assert_eq!(names, [("app", "http", 24800), ("app", "web", 24800), ("other", "http", 24800)]);
        }
    }

    #[test]
    fn name_that_leads_to_another_container_captures_nothing() {
        let mut pod = pod();
        pod["spec"]["containers"][1]["ports"] = json!([{"name": "http", "containerPort": 9090}]);
        assert_eq!(check(&pod, json!("http"), json!([])), Ok(vec![http()]));
        assert_eq!(check(&pod, json!(9090), json!([])), Err(SkipReason::UnnamedPort));
        pod["spec"]["containers"][1]["ports"] =
            json!([{"name": "http", "containerPort": 9090}, {"name": "web", "containerPort": 9090}]);
        let captured = check(&pod, json!(9090), json!([])).unwrap();
        let names: Vec<_> = captured.iter().map(|one| one.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["web"]);
    }

    #[test]
    fn port_of_a_native_sidecar_is_found_and_that_of_an_init_container_is_not() {
        let mut pod = pod();
        pod["spec"]["initContainers"] = json!([{"name": "proxy", "restartPolicy": "Always",
            "ports": [{"name": "proxy", "containerPort": 8000}]}]);
        let captured = check(&pod, json!("proxy"), json!([])).unwrap();
        assert_eq!(captured[0].container, "proxy");
        pod["spec"]["initContainers"][0]["restartPolicy"] = Value::Null;
        assert_eq!(check(&pod, json!("proxy"), json!([])), Err(SkipReason::NoSuchPort));
    }
}
