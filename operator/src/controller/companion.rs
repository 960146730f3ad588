//! Writes the companions of a policy: see [`crate::companions`].

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, Preconditions},
};

use super::{
    Context,
    writes::{Held, WriteError, created, is_conflict, is_not_found, managed},
};
use crate::{
    companions::{Inputs, Step, has_companions, steps},
    error::Result,
    events, owner,
    stores::in_namespace,
};

impl Context {
    /// Creates, changes and deletes the companions of a policy. A failed write does not affect the others.
    pub(super) async fn put_companions(
        &self,
        (namespace, policy): (&str, &str),
        wanted: bool,
        held: &Held,
        about: &ObjectReference,
    ) -> Vec<WriteError> {
        let owner = owner::config_map(policy, &held.uid);
        let services = in_namespace(&self.stores.services, namespace);
        if !wanted && !has_companions(policy, &services) {
            return Vec::new();
        }
        let pods = in_namespace(&self.stores.pods, namespace);
        let inputs = Inputs { policy, wanted, owner: &owner, services: &services, pods: &pods };
        let mut failed = Vec::new();
        for step in steps(&inputs) {
            let name = match &step {
                Step::Create(service) => service.name_any(),
                Step::Change(service, _) | Step::Delete(service, _) => service.name_any(),
            };
            match self.put_companion(namespace, &step).await {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(event) = events::companion(&step) {
                        self.publish(&event, about).await;
                    }
                }
                Err(error) => {
                    failed.push(WriteError { what: format!("could not write Service {name}"), error })
                }
            }
        }
        failed
    }

    /// Carries out a step. Returns false if the Service has changed since it was observed: the next run sees it.
    async fn put_companion(&self, namespace: &str, step: &Step) -> Result<bool> {
        let api: Api<Service> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let written = match step {
            Step::Create(service) => api.create(&created(), service).await.map(drop),
            Step::Change(service, change) => {
                api.patch(&service.name_any(), &managed(), &Patch::Merge(change)).await.map(drop)
            }
            Step::Delete(service, _) => {
                let unchanged =
                    Preconditions { uid: service.uid(), resource_version: service.resource_version() };
                let options = DeleteParams::default().preconditions(unchanged);
                api.delete(&service.name_any(), &options).await.map(drop)
            }
        };
        match written {
            Ok(()) => Ok(true),
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
