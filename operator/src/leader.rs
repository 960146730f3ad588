//! Runs the controllers on one replica at a time.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
};
use kube_lease_manager::LeaseManagerBuilder;
use tokio_util::sync::CancellationToken;

use crate::{
    controller::{Dependencies, lead},
    error::{Error, Result},
    owner,
};
use larder_api::names;

/// Seconds for which a silent leader is still considered leading.
const LEASE_SECONDS: u64 = 15;
/// Seconds before the end of the lease at which the leader renews it.
const GRACE_SECONDS: u64 = 5;
/// Timeout for connecting to the API server, and again for its response. Together less than [`GRACE_SECONDS`], so that
/// a hung renewal fails before the lease expires.
const API_TIMEOUT: Duration = Duration::from_secs(2);
/// Delay before a failed attempt is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Leads whenever this replica holds the lease, until `stop`; the lease is then released, so that another replica leads
/// at once.
///
/// # Guarantees
/// - The controllers end when the lease cannot be renewed, before another replica may acquire it.
///
/// # Errors
/// If the controllers end by themselves.
pub async fn elect(dependencies: Arc<Dependencies>, stop: CancellationToken) -> Result<()> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(API_TIMEOUT);
    config.read_timeout = Some(API_TIMEOUT);
    config.reset_reader_on_write = true;
    // The client's own retries could outlast the lease.
    config.default_retry = false;
    let client = Client::try_from(config)?;
    if let Err(error) = own_lease(&client, &dependencies).await {
        tracing::warn!(%error, "the Lease has no owner, and would stay when the chart is uninstalled");
    }
    loop {
        let ended = take_part(&client, &dependencies, &stop).await;
        dependencies.metrics.leader.set(0);
        match ended {
            // A new start reads the lease: it may still be this replica's.
            Err(error @ Error::Lease(_)) => {
                tracing::warn!(%error, "could not acquire the lease; this replica does not lead until it can");
            }
            other => return other,
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

/// Makes the operator's ClusterRole the owner of the Lease.
async fn own_lease(client: &Client, dependencies: &Dependencies) -> Result<()> {
    let arguments = &dependencies.arguments;
    let Some(owner) = owner::find(client, &arguments.cluster_role).await? else { return Ok(()) };
    let leases: Api<Lease> = Api::namespaced(client.clone(), &arguments.namespace);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(names::LEASE.into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    };
    leases
        .patch(names::LEASE, &PatchParams::apply(names::FIELD_MANAGER).force(), &Patch::Apply(&lease))
        .await?;
    Ok(())
}

/// Takes part in the election until `stop`, or until requests to the API server fail.
async fn take_part(
    client: &Client,
    dependencies: &Arc<Dependencies>,
    stop: &CancellationToken,
) -> Result<()> {
    let manager = LeaseManagerBuilder::new(client.clone(), names::LEASE)
        .with_namespace(&dependencies.arguments.namespace)
        .with_identity(&dependencies.arguments.pod_name)
        .with_field_manager(format!("{}-{}", names::LEASE, dependencies.arguments.pod_name))
        .with_duration(LEASE_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    let mut is_leader = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = manager.changed() => is_leader = changed?,
            () = lead(dependencies.clone()), if is_leader => return Err(Error::WatchEnded),
        }
        if !is_leader {
            dependencies.metrics.leader.set(0);
            tracing::info!("this replica is no longer the leader");
        }
    }
    if let Err(error) = manager.release().await {
        tracing::warn!(%error, "could not release the lease; another replica leads once it expires");
    }
    Ok(())
}
