//! Probes and lifecycle hooks, which refer to a port by name or number and must continue to reach the application.

use serde_json::{Value, json};

/// Probes and hooks, as JSON pointers in a container.
pub(super) const FIELDS: [&str; 5] =
    ["/readinessProbe", "/livenessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
/// Members of a probe or hook with a port. That of `grpc` is a number.
pub(super) const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Sets the port of every probe or hook of `container` to `number` for whose action `leads_there` holds.
pub(super) fn redirect(container: &mut Value, leads_there: impl Fn(&Value) -> bool, number: u16) {
    for field in FIELDS {
        let Some(handler) = container.pointer_mut(field).and_then(Value::as_object_mut) else { continue };
        for action in ACTIONS {
            if let Some(action) = handler.get_mut(action)
                && leads_there(action)
            {
                action["port"] = json!(number);
            }
        }
    }
}

/// Returns each probe and hook of `container` to its form in `before` if it still is as in `redirected`, which was made from
/// that.
pub(super) fn restore(container: &mut Value, before: &Value, redirected: &Value) {
    for field in FIELDS {
        if let (Some(now), Some(then), Some(before)) =
            (container.pointer_mut(field), redirected.pointer(field), before.pointer(field))
            && now == then
        {
            *now = before.clone();
        }
    }
}
