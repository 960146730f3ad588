//! `capture.mode: Redirect`.
//!
//! An init container with the capability `NET_ADMIN` sets rules of nftables in the pod's network namespace, by which
//! connections from outside the pod to the application's number arrive at the sidecar: whatever Service, name or address they
//! were made by. Nothing else of the pod changes but its probes and hooks, which the kubelet also sends from outside: a second
//! number leads them to the application.
//!
//! # Guarantees
//! - Connections from inside the pod are not redirected, so that the sidecar reaches the application by its own number.
//! - Connections that the pod forwards to other addresses, as a gateway or VPN does, are not redirected.
//! - The rules are replaced in one transaction: setting them again changes nothing.
//!
//! # Assumptions
//! The node's kernel has `nf_tables` with `nft_chain_nat`, `nft_redir` and `nft_fib_inet`, as kube-proxy and every distribution has.

use std::fmt::Write;

use larder_api::names;
use serde_json::{Map, Value, json};

use super::{
    Captured, Inputs, Skip, SkipReason, all_containers, located, number, ports, probes, text, unfit,
};
use crate::cli::{MAX_TARGETS, SidecarSettings};

/// The redirected ports of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    captured: Vec<Captured>,
    image: String,
}

impl Redirect {
    /// Finds the ports to redirect in a pod's JSON.
    ///
    /// # Errors
    /// The reason that there can be no sidecar.
    pub fn plan(pod: &Value, inputs: &Inputs<'_>) -> Result<Self, Skip> {
        let Inputs { targets, settings, pod_security, .. } = *inputs;
        let spec = &pod["spec"];
        let skip = |reason, message: String| Err(Skip { reason, message });
        let Some(image) = settings.redirect_image.clone() else {
            let message = "capture.mode Redirect gives an init container of each pod the capability NET_ADMIN, which this \
                           cluster's operator is not allowed to do: set capture.redirect.enabled=true in the chart's values, \
                           or choose another capture.mode";
            return skip(SkipReason::RedirectDisabled, message.into());
        };
        if let Some(level) = pod_security {
            let message = format!(
                "the namespace enforces the Pod Security level {level}, which admits no pod with the capability NET_ADMIN: \
                 label the namespace pod-security.kubernetes.io/enforce=privileged, or choose another capture.mode"
            );
            return skip(SkipReason::PodSecurity, message);
        }
        if let Some(skip) = unfit(pod, settings) {
            return Err(skip);
        }
        if let Some(name) = all_containers(spec)
            .map(|container| text(&container["name"]))
            .find(|name| *name == names::REDIRECT)
        {
            let message =
                format!("a container has the name {name}, which the redirection needs; give it another");
            return skip(SkipReason::NameClash, message);
        }
        let mut captured = located::locate(spec, targets, settings)?;
        // Names of one number have one rule together.
        captured.dedup_by_key(|one| one.port);
        let reserved = |port: &u16| captured.iter().any(|one| probe_port(one) == *port);
        let listed = all_containers(spec).flat_map(ports).filter_map(number);
        if let Some(port) =
            listed.chain([settings.admin_port]).chain(captured.iter().map(|one| one.port)).find(reserved)
        {
            let message = format!(
                "port {port} is in use, and probes reach the application through it; give the sidecar other ports with the \
                 chart's sidecar.dataPort"
            );
            return skip(SkipReason::PortClash, message);
        }
        Ok(Self { captured, image })
    }

    /// Returns the redirected ports.
    pub fn captured(&self) -> &[Captured] {
        &self.captured
    }

    /// Points the probes and hooks of all containers at the numbers that lead to the application.
    pub fn apply(&self, pod: &mut Value) {
        for container in containers_mut(pod) {
            bypass(container, &self.captured);
        }
    }

    /// Returns the init container that sets the rules, with the resources of the sidecar: it ends before the application starts,
    /// so that the pod takes no more than it does with the sidecar.
    pub fn init_container(&self, settings: &SidecarSettings, sidecar: &Value) -> Value {
        let mounts = sidecar["volumeMounts"].as_array().into_iter().flatten();
        let mounts: Vec<_> = mounts.filter(|mount| mount["name"] == names::NO_TOKEN_VOLUME).collect();
        let mut container = json!({
            "name": names::REDIRECT,
            "image": self.image,
            "args": [rules(&self.captured)],
            "resources": sidecar["resources"],
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {
                "runAsUser": 0,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "allowPrivilegeEscalation": false,
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "volumeMounts": mounts,
        });
        if let Some(policy) = settings.redirect_pull_policy {
            container["imagePullPolicy"] = json!(policy.as_str());
        }
        container
    }

    /// Returns the probes and hooks of `pod`, a pod before [`Self::apply`], that it changes, by container.
    pub fn original(&self, pod: &Value) -> Value {
        let mut before = Map::new();
        for container in all_containers(&pod["spec"]) {
            let mut changed = container.clone();
            bypass(&mut changed, &self.captured);
            let mut fields = json!({});
            for field in probes::FIELDS {
                let (was, is) = (container.pointer(field), changed.pointer(field));
                if was != is {
                    fields[field] = was.cloned().unwrap_or_default();
                }
            }
            if fields.as_object().is_some_and(|fields| !fields.is_empty()) {
                before.insert(text(&container["name"]).to_owned(), fields);
            }
        }
        before.into()
    }
}

/// Undoes the redirection of an injected pod: probes and hooks that are as [`Redirect::apply`] left them become those of
/// `original`, and the init container is removed and returned.
pub(crate) fn withdraw(pod: &mut Value, original: &Value, captured: &[Captured]) -> Option<Value> {
    for container in containers_mut(pod) {
        let before = original[text(&container["name"])].as_object();
        for (field, was) in before.into_iter().flatten() {
            let mut redirected = was.clone();
            bypass_handler(&mut redirected, &container["ports"], captured);
            if let Some(is) = container.pointer_mut(field)
                && *is == redirected
            {
                *is = was.clone();
            }
        }
    }
    let containers = pod["spec"]["initContainers"].as_array_mut()?;
    let position = containers.iter().position(|container| container["name"] == names::REDIRECT)?;
    Some(containers.remove(position))
}

/// Returns the number that leads to the application from outside the pod.
fn probe_port(captured: &Captured) -> u16 {
    captured.sidecar_port.saturating_add(MAX_TARGETS)
}

/// Returns the rules, as `nft` takes them. The table is added before it is deleted, because it may not exist.
fn rules(captured: &[Captured]) -> String {
    let mut rules =
        "table inet larder\ndelete table inet larder\ntable inet larder {\n  chain prerouting {\n    \
                     type nat hook prerouting priority dstnat; policy accept;\n    iifname \"lo\" return\n    \
                     fib daddr type != local return\n"
            .to_owned();
    for one in captured {
        let (port, sidecar, probe) = (one.port, one.sidecar_port, probe_port(one));
        let lines = format!(
            "    tcp dport {port} redirect to :{sidecar}\n    tcp dport {probe} redirect to :{port}\n"
        );
        rules.push_str(&lines);
    }
    let _ = write!(rules, "  }}\n}}\n");
    rules
}

fn containers_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod["spec"].as_object_mut();
    let lists = spec.into_iter().flat_map(|spec| {
        spec.iter_mut().filter(|(key, _)| ["containers", "initContainers"].contains(&key.as_str()))
    });
    lists
        .filter_map(|(_, list)| list.as_array_mut())
        .flatten()
        .filter(|container| container["name"] != names::SIDECAR)
}

/// Points each probe and hook of a container that leads to a captured number at the number beside it.
fn bypass(container: &mut Value, captured: &[Captured]) {
    let own = container["ports"].clone();
    for field in probes::FIELDS {
        if let Some(handler) = container.pointer_mut(field) {
            bypass_handler(handler, &own, captured);
        }
    }
}

/// Points a probe or hook at the number beside a captured one. A handler with a `host` leads elsewhere. `own` are the ports
/// of its container, one of which it may name.
fn bypass_handler(handler: &mut Value, own: &Value, captured: &[Captured]) {
    for action in probes::ACTIONS {
        let Some(action) = handler.get_mut(action).and_then(Value::as_object_mut) else { continue };
        if action.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
            continue;
        }
        let Some(port) = action.get_mut("port") else { continue };
        let resolved = match &*port {
            Value::String(name) => {
                let mut entries = own.as_array().into_iter().flatten();
                entries.find(|entry| entry["name"] == name.as_str()).and_then(number)
            }
            other => other.as_u64().and_then(|number| u16::try_from(number).ok()),
        };
        if let Some(one) = captured.iter().find(|one| Some(one.port) == resolved) {
            *port = json!(probe_port(one));
        }
    }
}

#[cfg(test)]
mod tests {
    use larder_crds::Capture;

    use super::*;
    use crate::{
        capture::tests::inputs,
        inject::tests::{pod, settings},
    };

    fn plan(pod: &Value, targets: Value, pod_security: Option<&str>) -> Result<Redirect, Skip> {
        let targets: Vec<_> = serde_json::from_value(targets).unwrap();
        let settings = SidecarSettings { redirect_image: Some("larder/redirect:1".into()), ..settings() };
        let capture = Capture::default();
        Redirect::plan(pod, &Inputs { pod_security, ..inputs(&capture, &targets, &settings) })
    }

    fn reason(pod: &Value) -> Option<SkipReason> {
        plan(pod, json!([{"port": "http"}]), None).err().map(|skip| skip.reason)
    }

    #[test]
    fn numbers_are_redirected_to_the_sidecar_and_probes_to_the_application() {
        let plan = plan(&pod(), json!([{"port": "http"}, {"port": 9000}]), None).unwrap();
        let rules = rules(plan.captured());
        for rule in [
            "iifname \"lo\" return",
            "fib daddr type != local return",
            "tcp dport 8080 redirect to :24800",
            "tcp dport 24804 redirect to :8080",
            "tcp dport 9000 redirect to :24801",
            "tcp dport 24805 redirect to :9000",
        ] {
            assert_eq!(rules.matches(rule).count(), 1, "{rule} in {rules}");
        }
        assert!(!rules.contains("output"), "{rules}");
    }

    #[test]
    fn probes_and_hooks_of_every_container_bypass_the_sidecar() {
        let mut before = pod();
        let action = |port: Value| json!({"httpGet": {"path": "/", "port": port}});
        let containers = &mut before["spec"]["containers"];
        containers[0]["lifecycle"]["preStop"] = action(json!(8080));
        containers[1]["livenessProbe"] = json!({"grpc": {"port": 8080}});
        containers[1]["startupProbe"] = json!({"httpGet": {"host": "10.0.0.1", "port": 8080}});
        before["spec"]["initContainers"] =
            json!([{"name": "native", "restartPolicy": "Always", "startupProbe": action(json!(8080))}]);
        let plan = plan(&before, json!([{"port": "http"}]), None).unwrap();
        let mut pod = before.clone();
        plan.apply(&mut pod);
        let [app, other] = [0, 1].map(|index| pod["spec"]["containers"][index].clone());
        assert_eq!(app["readinessProbe"]["httpGet"]["port"], 24804);
        assert_eq!(app["livenessProbe"]["tcpSocket"]["port"], 24804);
        assert_eq!(app["startupProbe"]["httpGet"]["port"], "admin", "another port");
        assert_eq!(app["lifecycle"]["postStart"]["httpGet"]["port"], 24804);
        assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["port"], 24804);
        assert_eq!(app["ports"], before["spec"]["containers"][0]["ports"]);
        assert_eq!(other["readinessProbe"]["httpGet"]["port"], "http", "a name of another container");
        assert_eq!(other["livenessProbe"]["grpc"]["port"], 24804);
        assert_eq!(other["startupProbe"]["httpGet"]["port"], 8080, "another host");
        assert_eq!(pod["spec"]["initContainers"][0]["startupProbe"]["httpGet"]["port"], 24804);

        withdraw(&mut pod, &plan.original(&before), plan.captured());
        assert_eq!(pod, before);
    }

    #[test]
    fn rules_are_set_with_one_capability() {
        let plan = plan(&pod(), json!([{"port": "http"}]), None).unwrap();
        let container = plan.init_container(&settings(), &json!({"resources": {"requests": {"cpu": "20m"}}}));
        assert_eq!(container["image"], "larder/redirect:1");
        assert_eq!(
            container["securityContext"]["capabilities"],
            json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})
        );
        assert_eq!(container["securityContext"]["privileged"], false);
        assert_eq!(container["resources"]["requests"]["cpu"], "20m");
    }

    #[test]
    fn pod_that_cannot_be_redirected_is_skipped_with_reason() {
        let targets: Vec<_> = serde_json::from_value(json!([{"port": "http"}])).unwrap();
        let off = Redirect::plan(&pod(), &inputs(&Capture::default(), &targets, &settings())).unwrap_err();
        assert_eq!(off.reason, SkipReason::RedirectDisabled);
        assert!(off.message.contains("capture.redirect.enabled=true"), "{off}");

        let confined = plan(&pod(), json!([{"port": "http"}]), Some("baseline")).unwrap_err();
        assert_eq!(confined.reason, SkipReason::PodSecurity);
        assert!(confined.message.contains("baseline"), "{confined}");

        assert_eq!(reason(&pod()), None);
        let mut host_network = pod();
        host_network["spec"]["hostNetwork"] = json!(true);
        assert_eq!(reason(&host_network), Some(SkipReason::HostNetwork));
        let mut name = pod();
        name["spec"]["initContainers"] = json!([{"name": "larder-redirect"}]);
        assert_eq!(reason(&name), Some(SkipReason::NameClash));
        let mut port = pod();
        port["spec"]["containers"][1]["ports"] = json!([{"containerPort": 24804}]);
        assert_eq!(reason(&port), Some(SkipReason::PortClash));
        port["spec"]["containers"][1]["ports"] = json!([{"containerPort": 24805}]);
        assert_eq!(reason(&port), None, "not reserved for one target");
    }
}
