//! Writes the Service by which sidecars find one another: see [`crate::peers`].

use k8s_openapi::api::core::v1::Service;
use kube::{Api, api::Patch};
use larder_api::{labels, names};

use super::{
    Context,
    writes::{Held, created, is_conflict, is_not_found, managed},
};
use crate::{
    error::{Error, Result},
    owner,
    peers::{Step, step},
    stores::in_namespace,
};

impl Context {
    /// Creates or changes the Service of a policy's sidecars. It is collected with the policy's ConfigMap.
    pub(super) async fn put_peers(&self, namespace: &str, policy: &str, held: &Held) -> Result<()> {
        let owner = owner::config_map(policy, &held.uid);
        let services = in_namespace(&self.stores.services, namespace);
        let port = self.dependencies.arguments.sidecar.admin_port;
        let Some(step) = step(policy, port, &owner, &services) else { return Ok(()) };
        let api: Api<Service> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let name = names::peers(policy);
        let written = match step {
            Step::Create(service) => api.create(&created(), &service).await.map(drop),
            Step::Change(change) => api.patch(&name, &managed(), &Patch::Merge(&change)).await.map(drop),
            Step::Taken => {
                let label = format!("{}: {policy}", labels::POLICY);
                return Err(Error::NameTaken { kind: "Service", name, label });
            }
        };
        match written {
            // The next run sees what has changed since.
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(()),
            outcome => Ok(outcome?),
        }
    }
}
