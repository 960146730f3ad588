//! Secrets of a pod for pulling the sidecar's image.

use serde_json::{Map, Value, json};

use super::list;

/// Field of a pod's `spec`, and of the annotation with what the injection changed.
pub(super) const FIELD: &str = "imagePullSecrets";

/// Adds the Secrets that a pod's `spec` does not name yet, and returns their names.
pub(super) fn add(spec: &mut Map<String, Value>, names: &[String]) -> Vec<String> {
    let mut added = Vec::new();
    for name in names {
        let secret = json!({ "name": name });
        if !spec.get(FIELD).and_then(Value::as_array).is_some_and(|present| present.contains(&secret)) {
            list(spec, FIELD).push(secret);
            added.push(name.clone());
        }
    }
    added
}

/// Removes Secrets that an earlier call `added`, as the annotation lists them.
pub(super) fn remove(spec: &mut Map<String, Value>, added: &Value) {
    let added = added.as_array().map(Vec::as_slice).unwrap_or_default();
    if !added.is_empty()
        && let Some(present) = spec.get_mut(FIELD).and_then(Value::as_array_mut)
    {
        present.retain(|secret| !added.contains(&secret["name"]));
        if present.is_empty() {
            spec.remove(FIELD);
        }
    }
}
