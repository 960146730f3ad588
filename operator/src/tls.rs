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
        let owners = owners(&client, current.as_ref(), &arguments.cluster_role).await;
        if let Some(written) = renew(&secrets, current.as_ref(), owners, &dns_names).await {
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

/// Returns the owners of the Secret: those that it has, or the operator's ClusterRole.
async fn owners(client: &Client, current: Option<&Secret>, cluster_role: &str) -> Vec<OwnerReference> {
    let present = current.map(ResourceExt::owner_references).unwrap_or_default();
    if !present.is_empty() {
        return present.to_vec();
    }
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
async fn renew(
    secrets: &Api<Secret>,
    current: Option<&Secret>,
    owners: Vec<OwnerReference>,
    dns_names: &[String],
) -> Option<Secret> {
    let material = current.and_then(|secret| match Material::read(secret) {
        Ok(material) => Some(material),
        Err(error) => {
            tracing::warn!(%error, "recreating the certificates");
            None
        }
    });
    let is_owned = owners.is_empty() || current.is_some_and(|secret| !secret.owner_references().is_empty());
    let renewed = match authority::renew(material.clone(), dns_names, Timestamp::now()) {
        Ok(renewed) => renewed.or_else(|| material.filter(|_| !is_owned))?,
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
    let written = match current {
        None => secrets.create(&options, &secret).await,
        Some(current) => {
            secret.metadata.resource_version = current.resource_version();
            secrets.replace(names::TLS_SECRET, &options, &secret).await
        }
    };
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
