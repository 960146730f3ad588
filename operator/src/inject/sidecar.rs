//! The sidecar's container and its volumes.

use std::collections::BTreeMap;

use larder_api::{admin::path, config_map, names};
use larder_crds::LogLevel;
use larder_policy::spec::SecretKeyRef;
use serde_json::{Value, json};

use super::{Injection, pod_resources};
use crate::{capture::Captured, compile};

/// The user of the sidecar's process, equal to the image's.
const USER: u32 = 65532;
/// The annotation by which OpenShift names the SecurityContextConstraints that admitted a pod.
const SCC: &str = "openshift.io/scc";
/// The first user that OpenShift assigns to a namespace.
const FIRST_ASSIGNED_USER: u64 = 1_000_000_000;
/// Folder of the token of the pod's service account.
const ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const POLICY_FOLDER: &str = "/etc/larder/policy";
const ADMIN_FOLDER: &str = "/etc/larder/admin";
/// Value of `RUST_LOG` for `sidecar.logLevel: Debug`.
const DEBUG_LOG: &str = "info,opentelemetry=warn,larder_sidecar=debug";

/// Returns the container: a native sidecar, so that the kubelet starts it before the application and stops it after.
/// There is no startup probe, because nothing waits for it.
pub(super) fn container(
    injection: &Injection<'_>,
    pod: &Value,
    captured: &[Captured],
    secrets: &[SecretKeyRef],
) -> Value {
    let settings = injection.settings;
    let mut args = Vec::new();
    for (index, port) in captured.iter().enumerate() {
        // Names of one number have one listener.
        if captured[..index].iter().any(|other| other.sidecar_port == port.sidecar_port) {
            continue;
        }
        args.push("--listen".to_owned());
        args.push(format!(":{}", port.sidecar_port));
        args.push("--upstream".to_owned());
        args.push(format!("http://127.0.0.1:{}", port.port));
    }
    let rest = [
        "--admin-listen".to_owned(),
        format!(":{}", settings.admin_port),
        "--policy".to_owned(),
        format!("{POLICY_FOLDER}/{}", config_map::DOCUMENT),
        "--admin-token-file".to_owned(),
        format!("{ADMIN_FOLDER}/token"),
        "--pod-ip".to_owned(),
        "$(POD_IP)".to_owned(),
    ];
    args.extend(rest);
    let mut mounts = vec![
        json!({ "name": names::POLICY_VOLUME, "mountPath": POLICY_FOLDER, "readOnly": true }),
        json!({ "name": names::ADMIN_VOLUME, "mountPath": ADMIN_FOLDER, "readOnly": true }),
        json!({ "name": names::NO_TOKEN_VOLUME, "mountPath": ACCOUNT_FOLDER, "readOnly": true }),
    ];
    mounts.extend(by_name(secrets).keys().enumerate().map(|(index, name)| {
        json!({ "name": names::secret_volume(index), "mountPath": compile::secret_folder(name), "readOnly": true })
    }));
    let field = |path: &str| json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": path } });
    let admin = |path: &str| json!({ "path": path, "port": settings.admin_port, "scheme": "HTTP" });
    let peers =
        format!("{}.{}.svc:{}", names::peers(injection.policy), injection.namespace, settings.admin_port);
    let mut env = vec![
        json!({ "name": "POD_IP", "valueFrom": field("status.podIP") }),
        json!({ "name": "POD_NAME", "valueFrom": field("metadata.name") }),
        json!({ "name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace") }),
        json!({ "name": "LARDER_POLICY", "value": format!("{}/{}", injection.namespace, injection.policy) }),
        json!({ "name": "LARDER_PEERS", "value": peers }),
    ];
    // The budget for everything but L1 is made from this limit: the container's own, or the policy's where the pod bounds
    // its containers together.
    let resources = &injection.spec.sidecar.resources;
    let has_resources = pod_resources::leave_room(pod, resources);
    env.push(if has_resources {
        let limit = json!({ "resourceFieldRef": { "resource": "limits.memory", "divisor": "0" } });
        json!({ "name": "LARDER_MEMORY_LIMIT", "valueFrom": limit })
    } else {
        json!({ "name": "LARDER_MEMORY_LIMIT", "value": resources.limits.memory })
    });
    match injection.spec.sidecar.log_level {
        LogLevel::Info => {}
        LogLevel::Debug => env.push(json!({ "name": "RUST_LOG", "value": DEBUG_LOG })),
    }
    let mut container = json!({
        "name": names::SIDECAR,
        "image": settings.image,
        "restartPolicy": "Always",
        "args": args,
        "env": env,
        "ports": [{ "name": names::ADMIN_PORT, "containerPort": settings.admin_port, "protocol": "TCP" }],
        "readinessProbe": { "httpGet": admin(path::READYZ), "periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 3 },
        "livenessProbe": { "httpGet": admin(path::LIVEZ), "periodSeconds": 10, "timeoutSeconds": 2, "failureThreshold": 3 },
        "lifecycle": { "preStop": { "exec": {
            "command": ["/larder-sidecar", "drain", "--admin", format!("127.0.0.1:{}", settings.admin_port)],
        } } },
        "resources": if has_resources { json!(resources) } else { json!({}) },
        "securityContext": {
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": mounts,
    });
    if let Some(user) = user(pod) {
        container["securityContext"]["runAsUser"] = json!(user);
        container["securityContext"]["runAsGroup"] = json!(user);
    }
    if let Some(policy) = settings.pull_policy {
        container["imagePullPolicy"] = json!(policy.as_str());
    }
    container
}

/// Returns the user of the sidecar's process; `None` leaves it to the platform, which gives each namespace a range of users
/// of its own.
fn user(pod: &Value) -> Option<u32> {
    let platform = &pod["metadata"]["annotations"][SCC];
    let pod_user = pod["spec"]["securityContext"]["runAsUser"].as_u64();
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut users =
        containers.filter_map(|container| container["securityContext"]["runAsUser"].as_u64()).chain(pod_user);
    let assigned = !platform.is_null() || users.any(|user| user >= FIRST_ASSIGNED_USER);
    if assigned && pod_user != Some(0) { None } else { Some(USER) }
}

/// Returns the volumes. All are optional: the application starts with or without them.
pub(super) fn volumes(policy: &str, secrets: &[SecretKeyRef]) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": names::POLICY_VOLUME, "configMap": { "name": names::config_map(policy), "optional": true } }),
        json!({ "name": names::ADMIN_VOLUME, "secret": { "secretName": names::admin_secret(policy), "optional": true } }),
        // The API server mounts the token of the pod's account into each container that has nothing else there.
        // In memory, because the cluster autoscaler does not evict pods with an emptyDir on the node's disk.
        json!({ "name": names::NO_TOKEN_VOLUME, "emptyDir": { "medium": "Memory" } }),
    ];
    volumes.extend(by_name(secrets).into_iter().enumerate().map(|(index, (name, keys))| {
        let items: Vec<_> = keys.iter().map(|key| json!({ "key": key, "path": key })).collect();
        json!({
            "name": names::secret_volume(index),
            "secret": { "secretName": name, "optional": true, "items": items },
        })
    }));
    volumes
}

fn by_name(secrets: &[SecretKeyRef]) -> BTreeMap<&str, Vec<&str>> {
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for SecretKeyRef { name, key } in secrets {
        names.entry(name).or_default().push(key);
    }
    names
}
