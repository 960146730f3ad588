//! Probes and lifecycle hooks, which refer to a port by name and must continue to reach the application's number.

use serde_json::{Map, Value, json};

const PROBES: [&str; 3] = ["readinessProbe", "livenessProbe", "startupProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
/// Members of a probe or hook with a port that may be a name; `grpc` takes numbers only.
const ACTIONS: [&str; 2] = ["httpGet", "tcpSocket"];

/// Replaces `name` by `number` in every probe or hook of `container`.
pub(super) fn redirect(container: &mut Value, name: &str, number: u16) {
    let redirect = |handler: Option<&mut Value>| {
        let Some(handler) = handler.and_then(Value::as_object_mut) else { return };
        for action in ACTIONS {
            if let Some(port) = handler.get_mut(action).and_then(|action| action.get_mut("port"))
                && port == name
            {
                *port = json!(number);
            }
        }
    };
    for probe in PROBES {
        redirect(container.get_mut(probe));
    }
    for hook in HOOKS {
        redirect(container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(hook)));
    }
}

/// Adds a wait before termination to a container without a `preStop`. Returns true if it did.
pub(super) fn sleep_before_stop(container: &mut Value, seconds: u32) -> bool {
    let has_hook = container.get("lifecycle").and_then(|lifecycle| lifecycle.get("preStop"));
    if seconds == 0 || has_hook.is_some_and(|hook| !hook.is_null()) {
        return false;
    }
    let Some(container) = container.as_object_mut() else { return false };
    let lifecycle = container.entry("lifecycle").or_insert_with(|| Map::new().into());
    if lifecycle.is_null() {
        *lifecycle = json!({});
    }
    lifecycle["preStop"] = json!({ "sleep": { "seconds": seconds } });
    true
}
