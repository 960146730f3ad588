//! Removal of an injected sidecar from a pod that is being created.

use larder_api::{annotations, labels, names};
use serde_json::{Map, Value, json};

use super::{DEFAULT_GRACE_SECONDS, captured_of, pull_secrets};
use crate::capture::{Captured, companion, listeners_mut, mesh, redirect};

/// A sidecar's container that was removed.
pub(super) struct Withdrawn {
    /// The container, with everything that was added to it since its injection.
    pub(super) container: Value,
    /// Position among the init containers, that of the redirection aside.
    pub(super) position: usize,
    /// The container of the redirection.
    pub(super) redirect: Option<Value>,
}

/// Returns the pod without the sidecar, and the sidecar's container. Changes that others have made since the injection stay.
pub(super) fn withdraw(pod: &Value) -> (Value, Option<Withdrawn>) {
    let captured = captured_of(pod);
    let original = super::original(pod);
    let wait = original["drainSeconds"].as_u64();
    let mut pod = pod.clone();
    let mut waits = false;
    for container in listeners_mut(&mut pod) {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let before = &original["containers"][&name];
        let is_moved = |captured: &&Captured| captured.container == name && captured.variable.is_none();
        let moved: Vec<_> = captured.iter().filter(is_moved).collect();
        restore_ports(container, &moved, &before["ports"]);
        if before.is_object() {
            companion::withdraw(container, &captured, &before["ports"]);
        }
        for captured in &captured {
            captured.restore(container, &name, before);
        }
        let is_captured = captured.iter().any(|captured| captured.container == name);
        waits |= wait.is_some_and(|wait| is_captured && restore_pre_stop(container, before, wait));
    }
    let redirected = &original["redirect"];
    let redirection =
        if redirected.is_null() { None } else { redirect::withdraw(&mut pod, redirected, &captured) };
    let mut withdrawn = None;
    if let Some(spec) = pod["spec"].as_object_mut() {
        if let Some(wait) = wait.filter(|_| waits) {
            restore_grace(spec, &original, wait);
        }
        let containers = spec.get_mut("initContainers").and_then(Value::as_array_mut);
        withdrawn = containers.and_then(|containers| {
            let position = containers.iter().position(|container| container["name"] == names::SIDECAR)?;
            Some(Withdrawn { container: containers.remove(position), position, redirect: redirection })
        });
        pull_secrets::remove(spec, &original[pull_secrets::FIELD]);
        retain(spec, "initContainers", |_| true);
        retain(spec, "volumes", |volume| {
            !names::is_sidecar_volume(volume["name"].as_str().unwrap_or_default())
        });
    }
    let mesh: Vec<_> = serde_json::from_value(original["mesh"].clone()).unwrap_or_default();
    mesh::undo(&mesh, &captured, &mut pod);
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        remove_members(metadata, "labels", &[labels::POLICY]);
        remove_members(metadata, "annotations", &[annotations::INJECTION_HASH, annotations::ORIGINAL]);
    }
    (pod, withdrawn)
}

/// Gives the names of captured ports back to the application's numbers, and removes the entries that listed these.
fn restore_ports(container: &mut Value, captured: &[&Captured], before: &Value) {
    let Some(ports) = container.get_mut("ports").and_then(Value::as_array_mut) else { return };
    for captured in captured {
        let is_moved = |entry: &Value| {
            !entry["name"].is_null()
                && entry["name"].as_str() == captured.name.as_deref()
                && entry["containerPort"] == captured.sidecar_port
        };
        if let Some(entry) = ports.iter_mut().find(|entry| is_moved(entry)) {
            entry["containerPort"] = json!(captured.port);
        }
    }
    let is_captured = |entry: &Value| {
        entry["name"]
            .as_str()
            .is_some_and(|name| captured.iter().any(|one| one.name.as_deref() == Some(name)))
    };
    for (index, one) in captured.iter().enumerate() {
        // Names of one number have one entry together.
        if captured[..index].iter().any(|other| other.port == one.port) {
            continue;
        }
        let is_listed = |entry: &Value| {
            entry["containerPort"] == one.port
                && entry.get("protocol").is_none_or(|protocol| protocol == "TCP")
        };
        let was_listed =
            before.as_array().into_iter().flatten().any(|entry| is_listed(entry) && !is_captured(entry));
        if !was_listed
            && let Some(added) = ports.iter().position(|entry| is_listed(entry) && entry["name"].is_null())
        {
            ports.remove(added);
        }
    }
}

/// Removes the wait that the injection added. Returns true if it was still there.
fn restore_pre_stop(container: &mut Value, before: &Value, wait: u64) -> bool {
    let had_hook = !before["lifecycle"]["preStop"].is_null();
    let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) else { return false };
    let is_ours = lifecycle.get("preStop").is_some_and(|hook| hook["sleep"]["seconds"] == wait);
    if had_hook || !before.is_object() || !is_ours {
        return false;
    }
    lifecycle.remove("preStop");
    if lifecycle.is_empty() && before["lifecycle"].is_null() {
        container.as_object_mut().expect("it has a member").remove("lifecycle");
    }
    true
}

fn restore_grace(spec: &mut Map<String, Value>, original: &Value, wait: u64) {
    let Some(before) = original.get("terminationGracePeriodSeconds") else { return };
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
