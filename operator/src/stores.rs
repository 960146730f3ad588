//! The leading replica's view of the cluster: lists that watches update.

use std::{hash::Hash, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, Service},
    networking::v1::NetworkPolicy,
};
use kube::{Resource, core::PartialObjectMeta, runtime::reflector::Store};

use crate::{
    error::{Error, Result},
    pod_security::PodSecurity,
};

/// The watched lists.
#[derive(Clone)]
pub struct Stores {
    /// Pods.
    pub pods: Store<Pod>,
    /// ReplicaSets, their metadata only, because they connect pods to Deployments.
    pub replica_sets: Store<PartialObjectMeta<ReplicaSet>>,
    /// Deployments.
    pub deployments: Store<Deployment>,
    /// StatefulSets.
    pub stateful_sets: Store<StatefulSet>,
    /// DaemonSets.
    pub daemon_sets: Store<DaemonSet>,
    /// Services.
    pub services: Store<Service>,
    /// Network policies.
    pub network_policies: Store<NetworkPolicy>,
    /// Pod Security levels of the namespaces.
    pub pod_security: PodSecurity,
}

impl Stores {
    /// Waits until every list is complete.
    ///
    /// # Errors
    /// If a watch has ended.
    pub async fn ready(&self) -> Result<()> {
        let Self {
            pods,
            replica_sets,
            deployments,
            stateful_sets,
            daemon_sets,
            services,
            network_policies,
            pod_security,
        } = self;
        let ended = |_| Error::WatchEnded;
        pods.wait_until_ready().await.map_err(ended)?;
        replica_sets.wait_until_ready().await.map_err(ended)?;
        deployments.wait_until_ready().await.map_err(ended)?;
        stateful_sets.wait_until_ready().await.map_err(ended)?;
        daemon_sets.wait_until_ready().await.map_err(ended)?;
        services.wait_until_ready().await.map_err(ended)?;
        network_policies.wait_until_ready().await.map_err(ended)?;
        pod_security.ready().await
    }
}

/// Returns the objects of a list that are in a namespace.
pub fn in_namespace<K>(store: &Store<K>, namespace: &str) -> Vec<Arc<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.state_filter(|object| object.meta().namespace.as_deref() == Some(namespace))
}
