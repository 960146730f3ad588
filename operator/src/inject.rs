//! Injection of the sidecar into a pod: a pure function over the pod's JSON.
//!
//! # Guarantees
//! - Fields that the operator's types do not know survive: the pod is never parsed into them.
//! - `inject(inject(pod)) == inject(pod)`: an admission webhook is called again when other webhooks changed the pod.
//! - On such a call the injection follows the changes: probes and hooks that were added are redirected, and a pod whose
//!   requests can no longer be captured loses the sidecar.
//! - The injected pod passes the `restricted` Pod Security Standard if the pod did.
//! - Probes and lifecycle hooks of the application reach the application, as before.

mod pod_resources;
mod pre_stop;
mod pull_secrets;
mod sidecar;
#[cfg(test)]
pub(crate) mod tests;
mod withdrawal;

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use larder_api::{annotations, labels, names};
use larder_crds::CachePolicySpec;
use larder_policy::spec::SecretKeyRef;
use serde_json::{Map, Value, json};

use self::withdrawal::Withdrawn;
use crate::{
    capture::{Captured, Inputs, Mode, Plan, Skip, SkipReason, listeners_mut, mesh},
    cli::SidecarSettings,
    compile,
};

/// The default of a pod's `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: u64 = 30;

/// Maximum size of an object's annotations, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Room for the annotations that the operator adds to an injected pod later, in bytes: the hash of its configuration and
/// its coverage.
const LATER_ANNOTATIONS: usize = 256;

/// Result of an injection.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The pod has the sidecar.
    Injected(Injected),
    /// The pod cannot have the sidecar.
    Skipped(Skip),
}

/// A pod with the sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod's JSON.
    pub pod: Value,
    /// The hash of the injection's inputs.
    pub hash: String,
    /// The captured ports.
    pub captured: Vec<Captured>,
}

/// Inputs of an injection, besides the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Injection<'a> {
    /// The policy's namespace, which is the pod's.
    pub namespace: &'a str,
    /// The policy's name.
    pub policy: &'a str,
    /// The policy.
    pub spec: &'a CachePolicySpec,
    /// Settings of injected sidecars.
    pub settings: &'a SidecarSettings,
    /// The namespace's network policies.
    pub network_policies: &'a [Arc<NetworkPolicy>],
    /// The namespace's Pod Security level, if it forbids capabilities.
    pub pod_security: Option<&'a str>,
}

/// Injects the sidecar into `pod`, a pod's JSON, or returns the reason against it.
pub fn inject(pod: &Value, injection: &Injection<'_>) -> Outcome {
    let secrets = compile::secrets(&injection.spec.cache);
    let hash = hash(injection, &secrets);
    if !has_sidecar(pod) {
        return inject_plain(pod, injection, &secrets, hash, None);
    }
    if pod["metadata"]["annotations"][annotations::INJECTION_HASH] != hash.as_str() {
        return Outcome::Skipped(Skip {
            reason: SkipReason::ForeignSidecar,
            message: format!(
                "the pod already has a container {} with other settings; remove it and the larder.dev annotations from \
                 the pod template",
                names::SIDECAR
            ),
        });
    }
    let (plain, before) = withdrawal::withdraw(pod);
    inject_plain(&plain, injection, &secrets, hash, before)
}

/// Injects the sidecar into a pod that has none, or had this one `before`: its container goes back to its place, with what
/// the API server and other webhooks have added to it.
fn inject_plain(
    pod: &Value,
    injection: &Injection<'_>,
    secrets: &[SecretKeyRef],
    hash: String,
    before_call: Option<Withdrawn>,
) -> Outcome {
    if pod["metadata"]["annotations"][annotations::WITHHELD] == hash.as_str() {
        return Outcome::Skipped(Skip {
            reason: SkipReason::RolloutUndone,
            message: "a rollout with the sidecar could not end and was undone; the sidecar is tried again when the pod \
                      template or the policy's sidecar changes"
                .into(),
        });
    }
    let inputs = Inputs {
        capture: &injection.spec.capture,
        targets: &injection.spec.targets,
        settings: injection.settings,
        network_policies: injection.network_policies,
        pod_security: injection.pod_security,
    };
    let plan = match Plan::new(pod, &inputs) {
        Ok(plan) => plan,
        Err(skip) => return Outcome::Skipped(skip),
    };
    let captured = plan.captured().to_vec();
    let mesh = match mesh::plan(pod, &plan, injection.settings) {
        Ok(additions) => additions,
        Err(skip) => return Outcome::Skipped(skip),
    };

    let before = pod;
    let mut pod = before.clone();
    let mut original = json!({ "captured": captured, "image": injection.settings.image });
    plan.apply(&mut pod);
    mesh::apply(&mesh, &captured, &mut pod);
    if !mesh.is_empty() {
        original["mesh"] = json!(mesh);
    }
    original["containers"] = changed_containers(before, &mut pod, &captured);
    delay_stop(&mut pod, &captured, injection.settings.drain_seconds, &mut original);
    let container = sidecar::container(injection, before, &captured, secrets);
    if let Err(skip) = add_containers(&mut pod, container, &plan, injection.settings, before_call) {
        return Outcome::Skipped(skip);
    }
    if let Some(redirect) = plan.redirect() {
        original["redirect"] = redirect.original(before);
    }
    let spec = member(&mut pod, "spec");
    list(spec, "volumes").extend(sidecar::volumes(injection.policy, secrets));
    let added = pull_secrets::add(spec, &injection.settings.pull_secrets);
    if !added.is_empty() {
        original[pull_secrets::FIELD] = json!(added);
    }

    let metadata = member(&mut pod, "metadata");
    map(metadata, "labels").insert(labels::POLICY.into(), json!(injection.policy));
    let annotations = map(metadata, "annotations");
    annotations.remove(annotations::SKIPPED);
    annotations.insert(annotations::INJECTION_HASH.into(), json!(hash));
    annotations.insert(annotations::ORIGINAL.into(), json!(original.to_string()));
    if size_of_annotations(&pod) > MAX_ANNOTATIONS - LATER_ANNOTATIONS {
        return Outcome::Skipped(Skip {
            reason: SkipReason::Annotations,
            message: format!(
                "the pod's annotations leave no room for those of the sidecar: all together may have {MAX_ANNOTATIONS} bytes"
            ),
        });
    }
    Outcome::Injected(Injected { pod, hash, captured })
}

/// Returns the former fields of the containers of `pod` that differ from `before`, or that listen on a captured port.
fn changed_containers(before: &Value, pod: &mut Value, captured: &[Captured]) -> Value {
    let mut changed = json!({});
    for (before, container) in listeners_mut(&mut before.clone()).zip(listeners_mut(pod)) {
        let name = before["name"].as_str().unwrap_or_default();
        if is_captured(name, captured) || before != container {
            changed[name] = rewritten_fields(before);
        }
    }
    changed
}

/// Lets the containers that listen on a captured port wait before they stop, and the pod with them.
fn delay_stop(pod: &mut Value, captured: &[Captured], seconds: u32, original: &mut Value) {
    let mut waits = false;
    for container in listeners_mut(pod) {
        if is_captured(container["name"].as_str().unwrap_or_default(), captured) {
            waits |= pre_stop::sleep_before_stop(container, seconds);
        }
    }
    if !waits {
        return;
    }
    let spec = member(pod, "spec");
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
    original["terminationGracePeriodSeconds"] = json!(grace);
    original["drainSeconds"] = json!(seconds);
    let grace = grace.unwrap_or(DEFAULT_GRACE_SECONDS) + u64::from(seconds);
    spec.insert("terminationGracePeriodSeconds".into(), json!(grace));
}

fn is_captured(container: &str, captured: &[Captured]) -> bool {
    captured.iter().any(|one| one.container == container)
}

/// Adds the sidecar's container, and that of a redirection, or gives those that were `withdrawn` back to their places.
fn add_containers(
    pod: &mut Value,
    mut container: Value,
    plan: &Plan,
    settings: &SidecarSettings,
    withdrawn: Option<Withdrawn>,
) -> Result<(), Skip> {
    let containers = list(member(pod, "spec"), "initContainers");
    let mut position = containers.len();
    let mut former_redirect = None;
    if let Some(withdrawn) = withdrawn {
        let (args, ports) = (container["args"].take(), container["ports"].take());
        container = withdrawn.container;
        container["args"] = args;
        container["ports"] = ports;
        position = withdrawn.position.min(position);
        former_redirect = withdrawn.redirect;
    }
    let position = place(containers, position, plan.captured())?;
    containers.insert(position, container);
    if let Some(redirect) = plan.redirect() {
        let mut fresh = redirect.init_container(settings, &containers[position]);
        if let Some(mut former) = former_redirect {
            former["args"] = fresh["args"].take();
            fresh = former;
        }
        // Before every other one, so that no container runs without the rules.
        containers.insert(0, fresh);
    }
    Ok(())
}

/// Returns the sidecar's position among the init containers, the one asked for if nothing is against it: after a mesh's, and
/// before a native sidecar in whose place it listens, whose callers may be the next init containers.
fn place(containers: &[Value], position: usize, captured: &[Captured]) -> Result<usize, Skip> {
    let is_replaced = |container: &Value| {
        captured.iter().any(|one| one.variable.is_some() && container["name"] == one.container.as_str())
    };
    let replaced = containers.iter().position(is_replaced).unwrap_or(containers.len());
    let position = position.min(replaced).max(mesh::first_place(containers));
    let between = containers.get(replaced..position).unwrap_or_default();
    let may_call =
        |container: &&Value| container["restartPolicy"] != "Always" && !mesh::has_container(container);
    match between.iter().find(may_call) {
        Some(caller) => Err(Skip {
            reason: SkipReason::PortNotVariable,
            message: format!(
                "the init container {} runs after the one that listens and before the mesh's, after which the sidecar starts: \
                 it would find nobody on the port; set capture.mode: NamedPort",
                caller["name"].as_str().unwrap_or_default()
            ),
        }),
        None => Ok(position),
    }
}

/// Returns `pod` without the sidecar that an earlier call injected, and with an annotation that states the reason, where
/// there is room for it.
pub fn skipped(pod: &Value, skip: &Skip) -> Value {
    let is_ours = has_sidecar(pod) && skip.reason != SkipReason::ForeignSidecar;
    let plain = if is_ours { withdrawal::withdraw(pod).0 } else { pod.clone() };
    let mut noted = plain.clone();
    map(member(&mut noted, "metadata"), "annotations")
        .insert(annotations::SKIPPED.into(), json!(skip.to_string()));
    if size_of_annotations(&noted) > MAX_ANNOTATIONS { plain } else { noted }
}

/// Returns a pod's JSON as it was before the sidecar that it has.
pub fn without_sidecar(pod: &Value) -> Value {
    if has_sidecar(pod) { withdrawal::withdraw(pod).0 } else { pod.clone() }
}

/// Returns the size of a pod's annotations as the API server counts it: the bytes of all names and values.
fn size_of_annotations(pod: &Value) -> usize {
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    annotations.map(|(name, value)| name.len() + value.as_str().map_or(0, str::len)).sum()
}

/// Returns true if a pod's JSON has the sidecar.
pub fn has_sidecar(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers.into_iter().any(|container| container["name"] == names::SIDECAR)
}

/// Returns the ports that were captured when the pod was injected.
pub fn captured_of(pod: &Value) -> Vec<Captured> {
    serde_json::from_value(original(pod)["captured"].clone()).unwrap_or_default()
}

/// Returns the image of the sidecar as it was injected; other webhooks may have replaced it by one of a mirror.
pub fn image_of(pod: &Value) -> Option<String> {
    original(pod)["image"].as_str().map(str::to_owned)
}

/// Returns what the injection noted of the pod.
fn original(pod: &Value) -> Value {
    let note = pod["metadata"]["annotations"][annotations::ORIGINAL].as_str();
    note.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Hashes everything that decides the shape of an injected pod, the pod itself aside. The input is JSON with sorted
/// objects, so that the hash is equal in every replica.
pub fn hash(injection: &Injection<'_>, secrets: &[SecretKeyRef]) -> String {
    // The settings of single modes are in their fingerprints.
    let SidecarSettings { image, pull_policy, pull_secrets, data_port, admin_port, drain_seconds, .. } =
        injection.settings;
    let mode = Mode::of(&injection.spec.capture, &injection.spec.targets);
    let mut parts = json!({
        "layout": 2,
        "capture": mode.map(|mode| mode.fingerprint(injection.settings)),
        "policy": injection.policy,
        "image": image,
        "pullPolicy": pull_policy.map(|policy| policy.as_str()),
        "dataPort": data_port,
        "adminPort": admin_port,
        "drainSeconds": drain_seconds,
        "targets": injection.spec.targets,
        "resources": injection.spec.sidecar.resources,
        "logLevel": injection.spec.sidecar.log_level,
        "secrets": secrets,
    });
    // Left out by default, so that pods of an operator that did not have the setting keep their hash.
    if !pull_secrets.is_empty() {
        parts["pullSecrets"] = json!(pull_secrets);
    }
    larder_policy::digest::short(&blake3::hash(parts.to_string().as_bytes()))
}

/// Returns the fields of a container that injection may rewrite, unchanged.
fn rewritten_fields(container: &Value) -> Value {
    let fields = ["ports", "readinessProbe", "livenessProbe", "startupProbe", "lifecycle"];
    fields
        .into_iter()
        .filter_map(|field| Some((field.to_owned(), without_nulls(container.get(field)?)?)))
        .collect::<Map<_, _>>()
        .into()
}

/// Returns a value without members that are null, which the API server does not distinguish from absent ones.
fn without_nulls(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(members) => {
            let members =
                members.iter().filter_map(|(key, value)| Some((key.clone(), without_nulls(value)?)));
            Some(members.collect::<Map<_, _>>().into())
        }
        Value::Array(items) => {
            Some(items.iter().map(|item| without_nulls(item).unwrap_or_default()).collect::<Vec<_>>().into())
        }
        other => Some(other.clone()),
    }
}

fn member<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    map(object.as_object_mut().expect("the value was just set to an object"), key)
}

fn map<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("the value was just set to an object")
}

fn list<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = object.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("the value was just set to an array")
}
