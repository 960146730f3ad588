//! Removal of what the operator does not read from the objects that it watches: a cluster has thousands of pods of others.

use k8s_openapi::{
    api::core::v1::{
        Affinity, Container, ContainerStatus, EnvFromSource, EnvVar, EnvVarSource, NodeAffinity,
        NodeSelector, NodeSelectorTerm, Pod, PodCondition, Volume,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use larder_api::{GROUP, names};

use crate::capture::{ends_with_port, mesh, windows};

/// Annotations of others that decide over a pod's sidecar.
const READ_ANNOTATIONS: [&str; 2] = ["openshift.io/scc", "kubernetes.io/config.mirror"];

/// Maximum length of an argument that is kept for the one after it, in bytes.
const MAX_ARGUMENT: usize = 256;
/// The annotation in which kubectl keeps the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Removes from a pod what neither the injection nor the status depends on.
pub fn pod(pod: &mut Pod) {
    let is_read = |name: &str| name.starts_with(&format!("{GROUP}/")) || READ_ANNOTATIONS.contains(&name);
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| is_read(name));
    }
    pod.metadata.managed_fields = None;
    pod.metadata.resource_version = None;
    if let Some(spec) = &mut pod.spec {
        spec.containers.iter_mut().for_each(container);
        spec.init_containers.iter_mut().flatten().for_each(container);
        spec.ephemeral_containers = None;
        spec.affinity = spec.affinity.take().and_then(affinity);
        spec.tolerations = None;
        spec.topology_spread_constraints = None;
        spec.host_aliases = None;
        spec.dns_config = None;
        for volume in spec.volumes.iter_mut().flatten() {
            *volume = Volume { name: std::mem::take(&mut volume.name), ..Volume::default() };
        }
    }
    if let Some(status) = &mut pod.status {
        for condition in status.conditions.iter_mut().flatten() {
            let PodCondition { type_, status, reason, message, .. } = std::mem::take(condition);
            *condition = PodCondition { type_, status, reason, message, ..PodCondition::default() };
        }
        status.container_statuses.iter_mut().flatten().for_each(container_status);
        status.init_container_statuses.iter_mut().flatten().for_each(container_status);
        status.ephemeral_container_statuses = None;
    }
}

/// Removes from the metadata of an object what was only written for others, and its version, which changes with parts that
/// the operator does not read.
pub fn workload(metadata: &mut ObjectMeta) {
    metadata.resource_version = None;
    annotations(metadata);
}

/// Removes from the metadata of an object what was only written for others.
pub fn annotations(metadata: &mut ObjectMeta) {
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// Returns an affinity with the operating systems of the required nodes only.
fn affinity(affinity: Affinity) -> Option<Affinity> {
    let required = affinity.node_affinity?.required_during_scheduling_ignored_during_execution?;
    let terms: Vec<_> = required.node_selector_terms.into_iter().map(operating_system).collect();
    let is_about_it = terms.iter().any(|term| term.match_expressions.is_some());
    is_about_it.then(|| Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: terms,
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    })
}

fn operating_system(term: NodeSelectorTerm) -> NodeSelectorTerm {
    let mut expressions = term.match_expressions.unwrap_or_default();
    expressions.retain(|expression| windows::is_os_label(&expression.key));
    NodeSelectorTerm {
        match_expressions: (!expressions.is_empty()).then_some(expressions),
        match_fields: None,
    }
}

fn container(container: &mut Container) {
    let Container {
        name,
        image,
        ports,
        resources,
        restart_policy,
        security_context,
        env,
        env_from,
        command,
        args,
        ..
    } = std::mem::take(container);
    let image = image.filter(|_| name == names::SIDECAR);
    let args = if mesh::reads_arguments_of(&name) { args } else { args.and_then(arguments) };
    let env: Vec<_> = env.into_iter().flatten().map(variable).collect();
    *container = Container {
        name,
        image,
        ports,
        resources,
        restart_policy,
        security_context,
        env: (!env.is_empty()).then_some(env),
        env_from: env_from.filter(|sources| !sources.is_empty()).map(|_| vec![EnvFromSource::default()]),
        command: command.and_then(arguments),
        args,
        ..Container::default()
    };
}

/// Returns a variable without a value that cannot be the port of an application, and without the source of its value. The
/// name stays, because a policy may expect the port there.
fn variable(variable: EnvVar) -> EnvVar {
    let EnvVar { name, value, value_from } = variable;
    let value = value.filter(|value| ends_with_port(value));
    EnvVar { name, value, value_from: value_from.map(|_| EnvVarSource::default()) }
}

/// Returns those of a container's arguments that may have the port of an application, each with the argument before it.
fn arguments(all: Vec<String>) -> Option<Vec<String>> {
    let has_port = |item: &String| ends_with_port(item.split_once('=').map_or(item, |(_, value)| value));
    let is_kept: Vec<_> = all.iter().map(has_port).collect();
    let kept = all.into_iter().enumerate().filter(|(index, item)| {
        let is_before = is_kept.get(index + 1).is_some_and(|next| *next) && item.len() < MAX_ARGUMENT;
        is_kept[*index] || is_before
    });
    let kept: Vec<_> = kept.map(|(_, item)| item).collect();
    (!kept.is_empty()).then_some(kept)
}

fn container_status(status: &mut ContainerStatus) {
    let ContainerStatus { name, ready, state, last_state, .. } = std::mem::take(status);
    // The words of nft, when it fails.
    let last_state = last_state.filter(|_| name == names::REDIRECT);
    *status = ContainerStatus { name, ready, state, last_state, ..ContainerStatus::default() };
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::inject::{Outcome, inject, tests as pods};

    #[test]
    fn large_parts_that_nobody_reads_are_gone() {
        let mut large = pods::pod();
        let text = "x".repeat(20_000);
        large["metadata"]["annotations"] = json!({"a": text, "larder.dev/skipped": "Mesh"});
        large["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": text}]);
        large["spec"]["volumes"] = json!([{"name": "a", "configMap": {"name": text}}]);
        large["status"] = json!({"containerStatuses": [{"name": "app", "image": text, "imageID": text, "ready": true,
            "restartCount": 1, "state": {"running": {}}}]});
        let mut pod: Pod = serde_json::from_value(large).unwrap();
        super::pod(&mut pod);
        let pruned = serde_json::to_string(&pod).unwrap();
        assert!(pruned.len() < 2_000, "{pruned}");
        assert!(pruned.contains("larder.dev/skipped") && pruned.contains("running"), "{pruned}");
    }

    #[test]
    fn pruned_pod_is_judged_like_the_whole() {
        let settings = pods::settings();
        let spec = pods::spec(json!({}));
        let injection = pods::injection(&spec, &settings);
        let reason = |pod: &Value| match inject(pod, &injection) {
            Outcome::Injected(injected) => Err(injected.captured),
            Outcome::Skipped(skip) => Ok(skip.reason),
        };
        for (pointer, value) in [
            ("/spec/hostNetwork", json!(true)),
            ("/spec/os", json!({"name": "windows"})),
            ("/spec/nodeSelector", json!({"kubernetes.io/os": "windows"})),
            ("/spec/affinity", pods::on_nodes(json!([[pods::os("In", "windows")]]))),
            (
                "/spec/affinity",
                pods::on_nodes(json!([[pods::os("In", "windows")], [pods::os("In", "linux")]])),
            ),
            ("/spec/securityContext", json!({"windowsOptions": {"runAsUserName": "a"}})),
            ("/spec/containers/0/securityContext", json!({"windowsOptions": {"runAsUserName": "a"}})),
            ("/spec/initContainers", json!([{"name": "istio-proxy"}])),
            ("/spec/initContainers", json!([{"name": "istio-init", "args": ["istio-iptables"]}])),
            ("/spec/volumes", json!([{"name": "larder-policy", "emptyDir": {}}])),
            ("/spec/containers/0/ports/0/hostPort", json!(80)),
            ("/spec/containers/0/ports/0/name", json!("web")),
            ("/metadata/annotations", json!({"kubernetes.io/config.mirror": "a"})),
            ("/metadata/name", json!("other")),
        ] {
            let mut whole = pods::pod();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            whole.pointer_mut(parent).unwrap()[key] = value;
            let mut pruned: Pod = serde_json::from_value(whole.clone()).unwrap();
            super::pod(&mut pruned);
            assert_eq!(reason(&json!(pruned)), reason(&whole), "{pointer}");
        }
    }

    #[test]
    fn pruned_pod_is_judged_like_the_whole_by_the_place_of_its_port() {
        let settings = pods::settings();
        let reason = |pod: &Value, place: &Value| {
            let spec = pods::spec(json!({"targets": [{"port": "http", "portFrom": place}]}));
            let injection = pods::injection(&spec, &settings);
            match inject(pod, &injection) {
                Outcome::Injected(injected) => Err(injected.captured),
                Outcome::Skipped(skip) => Ok(skip.reason),
            }
        };
        let source = json!({"configMapKeyRef": {"name": "a", "key": "b"}});
        for fields in [
            json!({"env": [{"name": "A", "value": "b"}, {"name": "PORT", "value": "8080"}]}),
            json!({"env": [{"name": "PORT", "value": ":9090"}]}),
            json!({"env": [{"name": "PORT", "valueFrom": source}]}),
            json!({"env": [{"name": "PORT", "value": "http"}]}),
            json!({"env": [{"name": "LISTEN", "valueFrom": source}]}),
            json!({"env": [{"name": "LISTEN", "value": "80"}], "envFrom": [{"configMapRef": {"name": "a"}}]}),
            json!({"envFrom": [{"configMapRef": {"name": "a"}}]}),
            json!({"command": ["app", "--verbose"], "args": ["serve", "-p", "8080", "--x"]}),
            json!({"args": ["serve", "-p=8080"]}),
            json!({"args": ["serve", "-p=9090"]}),
        ] {
            let mut whole = pods::pod();
            for (key, value) in fields.as_object().unwrap() {
                whole["spec"]["containers"][0][key] = value.clone();
            }
            let mut pruned: Pod = serde_json::from_value(whole.clone()).unwrap();
            super::pod(&mut pruned);
            for place in [json!({"env": "PORT"}), json!({"env": "LISTEN"}), json!({"argument": "-p"})] {
                assert_eq!(reason(&json!(pruned), &place), reason(&whole, &place), "{fields} {place}");
            }
        }
    }
}
