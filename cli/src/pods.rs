//! Pods with a sidecar.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use larder_api::{names, ports};

/// A pod with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SidecarPod {
    /// Namespace of the pod.
    pub(crate) namespace: String,
    /// Name of the pod.
    pub(crate) name: String,
    /// Port of the admin API.
    pub(crate) port: u16,
    /// Address of the admin API in the cluster's network, where the pod has one.
    pub(crate) address: Option<SocketAddr>,
    /// True if the sidecar runs.
    pub(crate) running: bool,
    /// True if the pod is ready.
    pub(crate) ready: bool,
    /// True if the pod is being deleted.
    pub(crate) terminating: bool,
}

impl SidecarPod {
    /// Reads a pod; `None` if it has no sidecar.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let containers = pod.spec.as_ref()?.init_containers.iter().flatten();
        let sidecar = containers.into_iter().find(|container| container.name == names::SIDECAR)?;
        let mut ports = sidecar.ports.iter().flatten();
        let admin = ports.find(|port| port.name.as_deref() == Some(names::ADMIN_PORT));
        let port = admin.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(ports::ADMIN);
        let status = pod.status.as_ref();
        let address = status.and_then(|status| status.pod_ip.as_ref()?.parse::<IpAddr>().ok());
        let mut statuses =
            status.into_iter().flat_map(|status| status.init_container_statuses.iter().flatten());
        let sidecar = statuses.find(|container| container.name == names::SIDECAR);
        let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
        Some(Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            port,
            address: address.map(|address| SocketAddr::new(address, port)),
            running: sidecar.and_then(|container| container.state.as_ref()?.running.as_ref()).is_some(),
            ready: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

#[cfg(test)]
impl SidecarPod {
    /// Returns a pod that runs and is ready.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            namespace: "shop".into(),
            name: name.into(),
            port: 24890,
            address: None,
            running: true,
            ready: true,
            terminating: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pod_has_the_sidecars_port_and_state() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "shop-1", "namespace": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "containers": [{"name": "app"}],
                "initContainers": [{"name": "larder-sidecar", "ports": [
                    {"name": "http", "containerPort": 24800}, {"name": "larder-admin", "containerPort": 9000},
                ]}],
            },
            "status": {
                "podIP": "fd00::7",
                "conditions": [{"type": "Ready", "status": "True"}],
                "initContainerStatuses": [{
                    "name": "larder-sidecar", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                    "state": {"running": {}},
                }],
            },
        }))
        .unwrap();
        let read = SidecarPod::of(&pod).unwrap();
        assert_eq!(read.address.unwrap().to_string(), "[fd00::7]:9000");
        assert_eq!((read.port, read.running, read.ready, read.terminating), (9000, true, true, true));
        assert_eq!(SidecarPod::of(&Pod::default()), None);
    }
}
