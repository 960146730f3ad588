//! Pods that run on Windows, where the sidecar does not.

use serde_json::Value;

/// The label of a node's operating system, and the one that it had before.
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];

/// Returns true if the key of an expression is a node's operating system.
pub(crate) fn is_os_label(key: &str) -> bool {
    OS_LABELS.contains(&key)
}

/// Returns true if only nodes with Windows take a pod with this spec.
pub(super) fn is_required(spec: &Value) -> bool {
    spec["os"]["name"] == "windows"
        || OS_LABELS.iter().any(|label| spec["nodeSelector"][label] == "windows")
        || affinity_requires(spec)
        || has_options(spec)
}

/// Returns true if each of the terms for nodes, one of which must hold, excludes Linux.
fn affinity_requires(spec: &Value) -> bool {
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let terms = required["nodeSelectorTerms"].as_array().map(Vec::as_slice).unwrap_or_default();
    let excludes_linux = |expression: &Value| {
        let has_linux = expression["values"].as_array().into_iter().flatten().any(|value| value == "linux");
        let is_os = expression["key"].as_str().is_some_and(is_os_label);
        is_os
            && matches!(
                (expression["operator"].as_str(), has_linux),
                (Some("In"), false) | (Some("NotIn"), true)
            )
    };
    !terms.is_empty()
        && terms
            .iter()
            .all(|term| term["matchExpressions"].as_array().into_iter().flatten().any(excludes_linux))
}

/// Returns true if a security context has options for Windows, which the API server refuses elsewhere.
fn has_options(spec: &Value) -> bool {
    let lists = ["containers", "initContainers"].into_iter().flat_map(|list| spec[list].as_array());
    let contexts = lists.flatten().map(|container| &container["securityContext"]);
    contexts
        .chain([&spec["securityContext"]])
        .any(|context| context["windowsOptions"].as_object().is_some_and(|options| !options.is_empty()))
}
