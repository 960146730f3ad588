//! The wait of an application's container before it is stopped.

use serde_json::{Map, Value, json};

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
