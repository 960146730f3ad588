//! Removal of what the operator does not read from the objects that it watches: a cluster has thousands of pods of others.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, Volume};
use larder_api::{GROUP, names};

use crate::capture::mesh;

/// Annotations of others that decide over a pod's sidecar.
const READ_ANNOTATIONS: [&str; 2] = ["openshift.io/scc", "kubernetes.io/config.mirror"];

/// Removes from a pod what neither the injection nor the status depends on.
pub fn pod(pod: &mut Pod) {
    let is_read = |name: &str| name.starts_with(&format!("{GROUP}/")) || READ_ANNOTATIONS.contains(&name);
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| is_read(name));
    }
    pod.metadata.managed_fields = None;
    if let Some(spec) = &mut pod.spec {
        spec.containers.iter_mut().for_each(container);
        spec.init_containers.iter_mut().flatten().for_each(container);
        spec.ephemeral_containers = None;
        spec.affinity = None;
        spec.tolerations = None;
        spec.topology_spread_constraints = None;
        spec.host_aliases = None;
        spec.dns_config = None;
        for volume in spec.volumes.iter_mut().flatten() {
            *volume = Volume { name: std::mem::take(&mut volume.name), ..Volume::default() };
        }
    }
    if let Some(status) = &mut pod.status {
        status.container_statuses.iter_mut().flatten().for_each(container_status);
        status.init_container_statuses.iter_mut().flatten().for_each(container_status);
        status.ephemeral_container_statuses = None;
    }
}

fn container(container: &mut Container) {
    let Container { name, image, args, ports, resources, restart_policy, security_context, .. } =
        std::mem::take(container);
    let image = image.filter(|_| name == names::SIDECAR);
    let args = args.filter(|_| mesh::reads_arguments_of(&name));
    *container = Container {
        name,
        image,
        args,
        ports,
        resources,
        restart_policy,
        security_context,
        ..Container::default()
    };
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
    use crate::inject::{Injection, Outcome, inject, tests as pods};

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
        let injection = Injection {
            namespace: "shop",
            policy: "shop",
            spec: &spec,
            settings: &settings,
            network_policies: &[],
            pod_security: None,
        };
        let reason = |pod: &Value| match inject(pod, &injection) {
            Outcome::Injected(injected) => Err(injected.captured),
            Outcome::Skipped(skip) => Ok(skip.reason),
        };
        for (pointer, value) in [
            ("/spec/hostNetwork", json!(true)),
            ("/spec/os", json!({"name": "windows"})),
            ("/spec/nodeSelector", json!({"kubernetes.io/os": "windows"})),
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
}
