//! Resources of a pod as a whole, which bound those of its containers together.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use larder_crds::Resources;
use serde_json::{Value, json};

use crate::quantity::nanos;

/// Returns true if the sidecar's resources fit into those of the pod: a container's limit may not exceed the pod's, nor the
/// sum of the requests the pod's. A pod without resources of its own has room.
pub(super) fn leave_room(pod: &Value, sidecar: &Resources) -> bool {
    let whole = &pod["spec"]["resources"];
    let sidecar = json!(sidecar);
    let read = |value: &Value| value.as_str().and_then(|text| nanos(&Quantity(text.to_owned())));
    let limit = |of: &Value, resource: &str| read(&of["limits"][resource]);
    let request =
        |of: &Value, resource: &str| read(&of["requests"][resource]).or_else(|| limit(of, resource));
    ["cpu", "memory"].into_iter().all(|resource| {
        let limits =
            limit(whole, resource).zip(limit(&sidecar, resource)).is_none_or(|(whole, own)| own <= whole);
        let requests = request(whole, resource).is_none_or(|whole| {
            let list = |key: &str| pod["spec"][key].as_array().into_iter().flatten();
            let native = list("initContainers").filter(|container| container["restartPolicy"] == "Always");
            let others = list("containers").chain(native);
            let sum: i128 = others.filter_map(|container| request(&container["resources"], resource)).sum();
            sum + request(&sidecar, resource).unwrap_or_default() <= whole
        });
        limits && requests
    })
}
