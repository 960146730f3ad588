//! Writes the Service by which sidecars find one another: see [`crate::peers`].

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use larder_api::{labels, names};

use super::{
    Context,
    writes::{Held, is_conflict, is_not_found},
};
use crate::{
    error::{Error, Result},
    peers::{Step, step},
    stores::in_namespace,
};

impl Context {
    /// Creates or changes the Service of a policy's sidecars. It is collected with the policy's ConfigMap.
    pub(super) async fn put_peers(&self, namespace: &str, policy: &str, held: &Held) -> Result<()> {
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: names::config_map(policy),
            uid: held.uid.clone(),
            ..OwnerReference::default()
        };
        let services = in_namespace(&self.stores.services, namespace);
        let port = self.dependencies.arguments.sidecar.admin_port;
        let Some(step) = step(policy, port, &owner, &services) else { return Ok(()) };
        let api: Api<Service> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let (name, manager) = (names::peers(policy), Some(names::FIELD_MANAGER.to_owned()));
        let written = match step {
            Step::Create(service) => {
                let options = PostParams { field_manager: manager, ..PostParams::default() };
                api.create(&options, &service).await.map(drop)
            }
            Step::Change(change) => {
                let options = PatchParams { field_manager: manager, ..PatchParams::default() };
                api.patch(&name, &options, &Patch::Merge(&change)).await.map(drop)
            }
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
