//! The webhook's certificates: a CA of its own and a leaf, in one Secret, renewed by wall clock.
//!
//! Every replica watches the Secret and loads its contents; any replica may renew, and of two concurrent writes the API
//! server accepts one (create, or replace with a resourceVersion).

mod authority;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use larder_api::{labels, names};
use tokio::sync::watch;

pub use authority::Material;

use crate::{
    cli::RunArguments,
    error::{Error, Result},
    owner,
};

/// Interval of the renewal check.
const TICK: Duration = Duration::from_secs(60);

/// Contents of the Secret that are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The leaf's chain, PEM.
    pub certificate: String,
    /// The leaf's key, PEM.
    pub key: String,
    /// Every CA that may have signed a leaf in use, PEM.
    pub bundle: String,
}

/// Maintains valid certificates in the Secret, and reports its contents to `loaded`, until the process ends.
///
/// # Errors
/// If the watch ends.
pub async fn keep(
    client: Client,
    arguments: &RunArguments,
    loaded: watch::Sender<Option<Arc<Loaded>>>,
) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &arguments.namespace);
    let dns_names = dns_names(&arguments.webhook_service, &arguments.namespace);
    let mut changes = watcher::watch_object(secrets.clone(), names::TLS_SECRET).default_backoff().boxed();
    let mut clock = tokio::time::interval(TICK);
    let mut current: Option<Secret> = None;
    let mut seen = false;
    let mut may_own = true;
    loop {
        tokio::select! {
            change = changes.next() => match change {
                None => return Err(Error::WatchEnded),
                Some(Ok(secret)) => { current = secret; seen = true; }
                Some(Err(error)) => { tracing::warn!(%error, "the watch of the TLS Secret failed; retrying"); continue; }
            },
            _ = clock.tick() => {}
        }
        if !seen {
            continue;
        }
        let cluster_role = may_own.then_some(arguments.cluster_role.as_str());
        let owners = owners(&client, current.as_ref(), cluster_role).await;
        if let Some(written) = renew(&secrets, current.as_ref(), owners, &dns_names, &mut may_own).await {
            current = Some(written);
        }
        let next = current.as_ref().and_then(|secret| Material::read(secret).ok()).map(|material| {
            Arc::new(Loaded {
                certificate: material.leaf.certificate.clone(),
                key: material.leaf.key.clone(),
                bundle: material.bundle(),
            })
        });
        if next.is_some() {
            loaded.send_if_modified(|loaded| {
                let changed = *loaded != next;
                *loaded = next;
                changed
            });
        }
    }
}

/// Returns the owners of the Secret: those that it has, or the operator's ClusterRole, if that may be one.
async fn owners(
    client: &Client,
    current: Option<&Secret>,
    cluster_role: Option<&str>,
) -> Vec<OwnerReference> {
    let present = current.map(ResourceExt::owner_references).unwrap_or_default();
    let Some(cluster_role) = cluster_role.filter(|_| present.is_empty()) else { return present.to_vec() };
    match owner::find(client, cluster_role).await {
        Ok(owner) => owner.into_iter().collect(),
        Err(error) => {
            tracing::warn!(%error, "the TLS Secret has no owner yet, and would stay when the chart is uninstalled");
            vec![]
        }
    }
}

/// Writes the Secret if a renewal is due or its owner is missing, and returns its contents. A replica that lost a concurrent
/// write sees the other's through its watch.
///
/// An API server with `OwnerReferencesPermissionEnforcement`, such as that of OpenShift, lets only those add an owner to an object who may
/// delete it. A refusal sets `may_own` to false, and the certificates are written without the owner.
async fn renew(
    secrets: &Api<Secret>,
    current: Option<&Secret>,
    owners: Vec<OwnerReference>,
    dns_names: &[String],
    may_own: &mut bool,
) -> Option<Secret> {
    let material = current.and_then(|secret| match Material::read(secret) {
        Ok(material) => Some(material),
        Err(error) => {
            tracing::warn!(%error, "recreating the certificates");
            None
        }
    });
    let is_owned = owners.is_empty() || current.is_some_and(|secret| !secret.owner_references().is_empty());
    let (renewed, is_due) = match authority::renew(material.clone(), dns_names, Timestamp::now()) {
        Ok(Some(renewed)) => (renewed, true),
        Ok(None) => (material.filter(|_| !is_owned)?, false),
        Err(error) => {
            tracing::error!(%error, "could not renew the certificates; retrying in a minute");
            return None;
        }
    };
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(names::TLS_SECRET.into()),
            owner_references: Some(owners),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        ..Secret::default()
    };
    secret.labels_mut().insert(labels::MANAGED_BY.into(), labels::MANAGER.into());
    secret.metadata.annotations = Some(renewed.annotations());
    secret.data = Some(
        renewed.data().into_iter().map(|(key, text)| (key.into(), ByteString(text.into_bytes()))).collect(),
    );
    let options = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    secret.metadata.resource_version = current.and_then(ResourceExt::resource_version);
    let write = async |secret: &Secret| match current {
        None => secrets.create(&options, secret).await,
        Some(_) => secrets.replace(names::TLS_SECRET, &options, secret).await,
    };
    let mut written = write(&secret).await;
    if let Err(kube::Error::Api(status)) = &written
        && status.code == 403
        && !is_owned
    {
        tracing::warn!(
            error = status.message,
            "the TLS Secret gets no owner, and would stay when the chart is uninstalled"
        );
        *may_own = false;
        if !is_due {
            return None;
        }
        secret.metadata.owner_references = None;
        written = write(&secret).await;
    }
    match written {
        Ok(written) => {
            tracing::info!(secret = names::TLS_SECRET, "wrote the webhook's certificates");
            Some(written)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => None,
        Err(error) => {
            tracing::error!(%error, "could not write the TLS Secret; retrying in a minute");
            None
        }
    }
}

/// Returns the names by which the API server may call the webhook.
fn dns_names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
    ]
}

/// Returns the contents of a new Secret.
#[cfg(test)]
pub(crate) fn fresh(dns_names: &[String]) -> Material {
    authority::renew(None, dns_names, Timestamp::now()).unwrap().unwrap()
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::Bytes,
        http::StatusCode,
        routing::{post, put},
    };
    use serde_json::{Value, json};

    use super::*;

    /// Replaces an object as OpenShift does for somebody who may not delete it.
    async fn replace(object: Bytes) -> (StatusCode, String) {
        let object: Value = serde_json::from_slice(&object).unwrap();
        let owners = object["metadata"]["ownerReferences"].as_array();
        if owners.is_none_or(Vec::is_empty) {
            return (StatusCode::OK, object.to_string());
        }
        let message = "cannot set an ownerRef on a resource you can't delete";
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "Forbidden", "code": 403, "message": message});
        (StatusCode::FORBIDDEN, status.to_string())
    }

    async fn secrets() -> Api<Secret> {
        let router = Router::new()
            .route("/api/v1/namespaces/larder/secrets", post(async |object: Bytes| object))
            .route("/api/v1/namespaces/larder/secrets/{name}", put(replace));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        Api::namespaced(client, "larder")
    }

    #[tokio::test]
    async fn refused_owner_does_not_prevent_a_renewal() {
        let (secrets, names) = (secrets().await, dns_names("larder-webhook", "larder"));
        let owner = || vec![OwnerReference { name: "larder".into(), ..OwnerReference::default() }];
        let mut may_own = true;
        let before = renew(&secrets, None, vec![], &names, &mut may_own).await.unwrap();
        let adopted = renew(&secrets, Some(&before), owner(), &names, &mut may_own).await;
        assert!(adopted.is_none() && !may_own, "nothing is due but the owner");

        may_own = true;
        let lost = Secret { data: None, ..before };
        let renewed = renew(&secrets, Some(&lost), owner(), &names, &mut may_own).await.unwrap();
        assert!(renewed.owner_references().is_empty() && !may_own);
        assert!(Material::read(&renewed).is_ok());
    }
}
