//! Probes and lifecycle hooks, which refer to a port by name and must continue to reach the application's number.

use serde_json::{Value, json};

const PROBES: [&str; 3] = ["readinessProbe", "livenessProbe", "startupProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
/// Members of a probe or hook with a port that may be a name; `grpc` takes numbers only.
const ACTIONS: [&str; 2] = ["httpGet", "tcpSocket"];

/// Probes and hooks, as JSON pointers in a container.
pub(super) const FIELDS: [&str; 5] =
    ["/readinessProbe", "/livenessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
/// Members of a probe or hook with a port.
pub(super) const NUMBERED_ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

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

/// Returns each probe and hook of `container` to its form in `before` if that is what [`redirect`] made it from.
pub(crate) fn restore(container: &mut Value, before: &Value, name: &str, number: u16) {
    let mut redirected = before.clone();
    redirect(&mut redirected, name, number);
    for field in FIELDS {
        if let (Some(now), Some(then), Some(before)) =
            (container.pointer_mut(field), redirected.pointer(field), before.pointer(field))
            && now == then
        {
            *now = before.clone();
        }
    }
}
