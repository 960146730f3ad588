//! Removal of an injected sidecar from a pod that is being created.

use larder_api::{annotations, labels, names};
use serde_json::{Map, Value, json};

use super::{DEFAULT_GRACE_SECONDS, captured_of};
use crate::capture::{Captured, probes};

/// Returns the pod without the sidecar, and the position that the sidecar had among the init containers. Changes that others
/// have made since the injection stay.
pub(super) fn withdraw(pod: &Value) -> (Value, Option<usize>) {
    let captured = captured_of(pod);
    let original: Value = pod["metadata"]["annotations"][annotations::ORIGINAL]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut pod = pod.clone();
    let mut wait = 0;
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let before = &original["containers"][&name];
        for captured in captured.iter().filter(|captured| captured.container == name) {
            restore_port(container, captured, &before["ports"]);
            probes::restore(container, before, &captured.name, captured.port);
        }
        wait = wait.max(restore_pre_stop(container, before));
    }
    let mut position = None;
    if let Some(spec) = pod["spec"].as_object_mut() {
        restore_grace(spec, &original, wait);
        let containers = spec.get_mut("initContainers").and_then(Value::as_array_mut);
        position = containers.and_then(|containers| {
            let position = containers.iter().position(|container| container["name"] == names::SIDECAR)?;
            containers.remove(position);
            Some(position)
        });
        retain(spec, "initContainers", |_| true);
        retain(spec, "volumes", |volume| {
            !names::is_sidecar_volume(volume["name"].as_str().unwrap_or_default())
        });
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        remove_members(metadata, "labels", &[labels::POLICY]);
        remove_members(metadata, "annotations", &[annotations::INJECTION_HASH, annotations::ORIGINAL]);
    }
    (pod, position)
}

/// Gives a port's name back to the application's number.
fn restore_port(container: &mut Value, captured: &Captured, before: &Value) {
    let Some(ports) = container["ports"].as_array_mut() else { return };
    let is_named = |entry: &Value| entry["name"] == captured.name.as_str();
    let is_listed = |entry: &Value| {
        entry["containerPort"] == captured.port
            && entry.get("protocol").is_none_or(|protocol| protocol == "TCP")
    };
    let listed_before =
        before.as_array().into_iter().flatten().any(|entry| is_listed(entry) && !is_named(entry));
    if !listed_before
        && let Some(added) = ports.iter().position(|entry| is_listed(entry) && entry["name"].is_null())
    {
        ports.remove(added);
    }
    let entry =
        ports.iter_mut().find(|entry| is_named(entry) && entry["containerPort"] == captured.sidecar_port);
    if let Some(entry) = entry {
        entry["containerPort"] = json!(captured.port);
    }
}

/// Removes the wait that the injection added, and returns its seconds.
fn restore_pre_stop(container: &mut Value, before: &Value) -> u64 {
    let had_hook = !before["lifecycle"]["preStop"].is_null();
    let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) else { return 0 };
    let seconds = lifecycle.get("preStop").and_then(|hook| hook["sleep"]["seconds"].as_u64());
    let Some(seconds) = seconds.filter(|_| !had_hook && before.is_object()) else { return 0 };
    lifecycle.remove("preStop");
    if lifecycle.is_empty() && before["lifecycle"].is_null() {
        container.as_object_mut().expect("it has a member").remove("lifecycle");
    }
    seconds
}

fn restore_grace(spec: &mut Map<String, Value>, original: &Value, wait: u64) {
    let Some(before) = original.get("terminationGracePeriodSeconds").filter(|_| wait > 0) else { return };
    let grace =
        spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(DEFAULT_GRACE_SECONDS);
    let grace = grace.saturating_sub(wait);
    if before.is_null() && grace == DEFAULT_GRACE_SECONDS {
        spec.remove("terminationGracePeriodSeconds");
    } else {
        spec.insert("terminationGracePeriodSeconds".into(), json!(grace));
    }
}

/// Retains the items of a list that satisfy a condition, and removes a list without any.
fn retain(spec: &mut Map<String, Value>, key: &str, condition: impl Fn(&Value) -> bool) {
    let Some(items) = spec.get_mut(key).and_then(Value::as_array_mut) else { return };
    items.retain(condition);
    if items.is_empty() {
        spec.remove(key);
    }
}

fn remove_members(metadata: &mut Map<String, Value>, key: &str, names: &[&str]) {
    let Some(members) = metadata.get_mut(key).and_then(Value::as_object_mut) else { return };
    for name in names {
        members.remove(*name);
    }
    if members.is_empty() {
        metadata.remove(key);
    }
}
