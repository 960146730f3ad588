//! Facts about a single pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::ResourceExt;
use larder_api::{labels, names};
use serde_json::json;

use crate::{inject, rollout::Obstacle};

/// Reasons of a container that waits for its image.
const IMAGE_REASONS: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
];
/// Reasons of a container that cannot be created, or ends again and again.
const START_REASONS: [&str; 4] =
    ["CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"];

/// Returns the reason that a pod with the sidecar does not start, if it is one that only a change removes.
pub fn obstacle(pod: &Pod) -> Option<(Obstacle, String)> {
    let status = pod.status.as_ref()?;
    if !has_sidecar(pod) || is_ready(pod) {
        return None;
    }
    if let Some(words) = unschedulable(pod) {
        return Some((Obstacle::Unschedulable, words));
    }
    let containers = status.init_container_statuses.iter().flatten();
    let is_ours = |name: &str| [names::REDIRECT, names::SIDECAR].contains(&name);
    let found = containers
        .filter(|container| is_ours(&container.name))
        .find_map(|container| Some((container, container.state.as_ref()?.waiting.as_ref()?)));
    let Some((container, waiting)) = found else { return application_ends(pod) };
    let obstacle = match waiting.reason.as_deref()? {
        reason if IMAGE_REASONS.contains(&reason) => Obstacle::Image,
        reason if START_REASONS.contains(&reason) => Obstacle::Sidecar,
        _ => return None,
    };
    let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref()?.message.as_ref());
    let words = waiting.message.clone().or_else(|| waiting.reason.clone()).unwrap_or_default();
    Some((obstacle, ended.map_or_else(|| words.clone(), |ended| format!("{words}: {}", ended.trim()))))
}

/// Returns the scheduler's words, if no node takes a pod.
fn unschedulable(pod: &Pod) -> Option<String> {
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let unplaced = |condition: &&PodCondition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
    };
    Some(conditions.find(unplaced)?.message.clone().unwrap_or_default())
}

/// Returns the reason that a pod does not start, of whatever container, in Kubernetes' words.
pub fn stuck_because(pod: &Pod) -> Option<String> {
    if let Some(words) = unschedulable(pod) {
        return Some(format!("pod {}: {words}", pod.name_any()));
    }
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.into_iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let is_stuck = IMAGE_REASONS.contains(&reason) || START_REASONS.contains(&reason);
        let words = waiting.message.as_deref().unwrap_or(reason);
        is_stuck.then(|| format!("pod {}: container {}: {words}", pod.name_any(), container.name))
    })
}

/// Returns the obstacle of a pod whose application ends again and again, after it was given another port: it may not take its
/// port from where the policy says.
fn application_ends(pod: &Pod) -> Option<(Obstacle, String)> {
    let status = pod.status.as_ref()?;
    let captured = inject::captured_of(&json!({ "metadata": { "annotations": pod.annotations() } }));
    let was_moved = |name: &str| captured.iter().any(|one| one.variable.is_some() && one.container == name);
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let mut containers = lists.into_iter().flatten().flatten();
    containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let ends = waiting.reason.as_deref() == Some("CrashLoopBackOff") && was_moved(&container.name);
        let words = waiting.message.as_deref().unwrap_or("CrashLoopBackOff");
        ends.then(|| (Obstacle::Application, format!("container {}: {words}", container.name)))
    })
}

/// Returns true if a pod was created that long ago: an image may fail to be pulled once, and a node may have to be added.
pub fn has_existed_for(pod: &Pod, time: Duration, now: Timestamp) -> bool {
    pod.creation_timestamp().is_some_and(|created| now >= created.0 + time)
}

/// Returns the port of the admin API of a pod's sidecar.
pub fn admin_port_of(pod: &Pod) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut ports = containers
        .filter(|container| container.name == names::SIDECAR)
        .flat_map(|container| container.ports.iter().flatten());
    ports.find_map(|port| u16::try_from(port.container_port).ok())
}

/// Returns true if a pod has the sidecar.
pub fn has_sidecar(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    pod.labels().contains_key(labels::POLICY)
        && containers.into_iter().any(|container| container.name == names::SIDECAR)
}

/// Returns true if a pod's sidecar runs, or may run for all that is known.
pub fn runs_sidecar(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let mut sidecars = statuses.filter(|container| container.name == names::SIDECAR);
    sidecars
        .next()
        .and_then(|sidecar| sidecar.state.as_ref())
        .is_none_or(|state| state.running.is_some() || state.waiting.is_none() && state.terminated.is_none())
}

/// Returns true if a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Returns true if a pod is ready with a sidecar of this image, or with what another webhook has made of it.
pub fn is_ready_with(pod: &Pod, image: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut sidecars = containers.filter(|container| container.name == names::SIDECAR);
    let noted = || inject::image_of(&json!({ "metadata": { "annotations": pod.annotations() } }));
    has_sidecar(pod)
        && is_ready(pod)
        && sidecars.any(|sidecar| noted().or_else(|| sidecar.image.clone()).as_deref() == Some(image))
}

/// Returns true if a pod has completed.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Returns true if a pod is neither terminating nor completed.
pub fn is_live(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_finished(pod)
}

#[cfg(test)]
mod tests {
    use larder_api::annotations;
    use serde_json::json;

    use super::*;

    #[test]
    fn application_that_ends_on_its_new_port_is_an_obstacle() {
        let pod = |captured: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"labels": {labels::POLICY: "shop"},
                    "annotations": {annotations::ORIGINAL: json!({"captured": [captured]}).to_string()}},
                "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": names::SIDECAR}]},
                "status": {"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false,
                    "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}]},
            }))
            .unwrap()
        };
        let named = json!({"container": "app", "name": "http", "port": 8080, "sidecarPort": 24800});
        assert_eq!(obstacle(&pod(named.clone())), None, "it may end for reasons of its own");
        let mut moved = named;
        moved["variable"] = json!({"place": {"env": "PORT"}, "added": true});
        let (found, words) = obstacle(&pod(moved)).unwrap();
        assert_eq!((found, words.as_str()), (Obstacle::Application, "container app: back-off"));
        assert!(!found.is_common());
    }

    #[test]
    fn redirection_that_fails_is_an_obstacle_in_the_words_of_nft() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"labels": {labels::POLICY: "shop"}},
            "spec": {"containers": [], "initContainers": [{"name": names::REDIRECT}, {"name": names::SIDECAR}]},
            "status": {"initContainerStatuses": [
                {"name": names::REDIRECT, "image": "", "imageID": "", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": {"exitCode": 1, "message": "Error: Operation not permitted\n"}}},
                {"name": names::SIDECAR, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "PodInitializing"}}},
            ]},
        }))
        .unwrap();
        let (found, words) = obstacle(&pod).unwrap();
        assert_eq!(found, Obstacle::Sidecar);
        assert_eq!(words, "back-off: Error: Operation not permitted");
    }

    #[test]
    fn finished_pods_are_not_listed() {
        for phase in ["Pending", "Running", "Succeeded", "Failed", "Unknown"] {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {}, "status": {"phase": phase}})).unwrap();
            let is_listed =
                names::UNFINISHED_PODS.split(',').all(|term| term != format!("status.phase!={phase}"));
            assert_eq!(is_listed, !is_finished(&pod), "{phase}");
        }
    }
}
