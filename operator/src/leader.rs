//! Runs the controllers on one replica at a time.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Client, Config, runtime::reflector::Store};
use kube_lease_manager::LeaseManagerBuilder;
use tokio_util::sync::CancellationToken;

use crate::{
    controller::{Shared, lead},
    error::{Error, Result},
    names,
};

/// How many seconds a leader that has gone silent still counts as leading.
const LEASE_SECONDS: u64 = 15;
/// How many seconds before the end of that it renews.
const GRACE_SECONDS: u64 = 5;
/// How long the API server may take to be connected to, and again to answer. Together less than [`GRACE_SECONDS`]: a
/// renewal that hangs has failed before the lease has run out.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Leads whenever the lease is this replica's, until `stop`; then the lease is given back, so that another leads at once.
///
/// # Guarantees
/// - The controllers end when the lease can't be renewed, before another replica may take it.
///
/// # Errors
/// If the controllers end by themselves.
pub async fn elect(
    shared: Arc<Shared>,
    network_policies: Store<NetworkPolicy>,
    stop: CancellationToken,
) -> Result<()> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    config.reset_reader_on_write = true;
    // The client's own retries could outlast the lease.
    config.default_retry = false;
    let client = Client::try_from(config)?;
    loop {
        let ended = take_part(&client, &shared, &network_policies, &stop).await;
        shared.metrics.leader.set(0);
        match ended {
            // A new start reads the lease: it may still be this replica's.
            Err(error @ Error::Lease(_)) => {
                tracing::warn!(%error, "the lease can't be held; this replica does not lead until it can");
            }
            other => return other,
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Takes part in the election until `stop`, or until the API server fails it.
async fn take_part(
    client: &Client,
    shared: &Arc<Shared>,
    network_policies: &Store<NetworkPolicy>,
    stop: &CancellationToken,
) -> Result<()> {
    let manager = LeaseManagerBuilder::new(client.clone(), names::LEASE)
        .with_namespace(&shared.arguments.namespace)
        .with_identity(&shared.arguments.pod_name)
        .with_field_manager(format!("{}-{}", names::LEASE, shared.arguments.pod_name))
        .with_duration(LEASE_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    let mut is_leader = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = manager.changed() => is_leader = changed?,
            () = lead(shared.clone(), network_policies.clone()), if is_leader => return Err(Error::WatchEnded),
        }
        if !is_leader {
            shared.metrics.leader.set(0);
            tracing::info!("this replica does not lead any more");
        }
    }
    if let Err(error) = manager.release().await {
        tracing::warn!(%error, "the lease could not be given back; another replica leads when it has run out");
    }
    Ok(())
}
