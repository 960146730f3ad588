//! Owners of the operator's objects: a policy's ConfigMap, and the operator's ClusterRole for what it creates for itself. That goes with the chart.
//!
//! Helm removes bindings before roles, so that an operator that still runs can no longer create them again by then.

use k8s_openapi::{api::rbac::v1::ClusterRole, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, ResourceExt};
use larder_api::names;

use crate::error::Result;

/// Returns a reference to a policy's ConfigMap, with which the policy's other objects go.
pub fn config_map(policy: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: names::config_map(policy),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// Returns a reference to the ClusterRole of that name. There is none when the operator runs outside a cluster.
///
/// # Errors
/// If the API server rejects the request.
pub async fn find(client: &Client, cluster_role: &str) -> Result<Option<OwnerReference>> {
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let role = roles.get_metadata_opt(cluster_role).await?;
    Ok(role.map(|role| OwnerReference {
        api_version: "rbac.authorization.k8s.io/v1".into(),
        kind: "ClusterRole".into(),
        name: role.name_any(),
        uid: role.uid().unwrap_or_default(),
        ..OwnerReference::default()
    }))
}
