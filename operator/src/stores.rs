//! The leading replica's view of the cluster: lists that watches update.

use std::{hash::Hash, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, Service},
    networking::v1::NetworkPolicy,
};
use kube::{Resource, core::PartialObjectMeta, runtime::reflector::Store};

use crate::{
    argo::Rollouts,
    error::{Error, Result},
    list::{List, Listed},
    pod_security::PodSecurity,
    scoped::Scope,
};

/// The watched lists.
#[derive(Clone)]
pub struct Stores {
    /// Pods that have not finished.
    pub pods: List<Pod>,
    /// ReplicaSets, their metadata only, because they connect pods to Deployments.
    pub replica_sets: List<PartialObjectMeta<ReplicaSet>>,
    /// Deployments.
    pub deployments: List<Deployment>,
    /// StatefulSets.
    pub stateful_sets: List<StatefulSet>,
    /// DaemonSets.
    pub daemon_sets: List<DaemonSet>,
    /// Services.
    pub services: List<Service>,
    /// The namespaces that are in the lists.
    pub scope: Scope,
    /// Network policies of all namespaces.
    pub network_policies: Store<NetworkPolicy>,
    /// Pod Security levels of the namespaces.
    pub pod_security: PodSecurity,
    /// Argo Rollouts, as last listed.
    pub rollouts: Rollouts,
}

impl Stores {
    /// Waits until the lists of a namespace are complete.
    ///
    /// # Errors
    /// If a watch has ended, or if it takes too long.
    pub async fn ready(&self, namespace: &str) -> Result<()> {
        self.network_policies.wait_until_ready().await.map_err(|_| Error::WatchEnded)?;
        self.pod_security.ready().await?;
        self.scope.ready(namespace).await
    }
}

/// Lists whose objects can be read by namespace.
pub trait ByNamespace<K> {
    /// Returns the objects of a namespace.
    fn of_namespace(&self, namespace: &str) -> Vec<Arc<K>>;
}

impl<K: Listed> ByNamespace<K> for List<K> {
    fn of_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.selected(namespace, |_| true)
    }
}

impl<K> ByNamespace<K> for Store<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    fn of_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.state_filter(|object| object.meta().namespace.as_deref() == Some(namespace))
    }
}

/// Returns the objects of a list that are in a namespace.
pub fn in_namespace<K>(list: &impl ByNamespace<K>, namespace: &str) -> Vec<Arc<K>> {
    list.of_namespace(namespace)
}
