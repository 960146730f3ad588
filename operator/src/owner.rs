//! The operator's ClusterRole, as the owner of what the operator creates for itself: these objects go with the chart.
//!
//! Helm removes bindings before roles, so that an operator that still runs can no longer create them again by then.

use k8s_openapi::{api::rbac::v1::ClusterRole, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, ResourceExt};

use crate::error::Result;

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
