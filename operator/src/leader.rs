//! Runs the controllers on one replica at a time.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::reflector::Store;
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

/// Leads whenever the lease is this replica's, until `stop`; then the lease is given back, so that another leads at once.
///
/// # Errors
/// If the lease can't be made or watched.
pub async fn elect(
    shared: Arc<Shared>,
    network_policies: Store<NetworkPolicy>,
    stop: CancellationToken,
) -> Result<()> {
    let manager = LeaseManagerBuilder::new(shared.client.clone(), names::LEASE)
        .with_namespace(&shared.arguments.namespace)
        .with_identity(&shared.arguments.pod_name)
        .with_field_manager(format!("{}-{}", names::LEASE, shared.arguments.pod_name))
        .with_duration(LEASE_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    let (mut leading, watching) = manager.watch().await;
    loop {
        let is_leader = *leading.borrow_and_update();
        tokio::select! {
            () = stop.cancelled() => break,
            changed = leading.changed() => if changed.is_err() { return Err(Error::WatchEnded) },
            () = lead(shared.clone(), network_policies.clone()), if is_leader => return Err(Error::WatchEnded),
        }
        if is_leader {
            shared.metrics.leader.set(0);
            tracing::info!("this replica does not lead any more");
        }
    }
    drop(leading);
    match watching.await {
        Ok(released) => released.map(drop).map_err(Error::from),
        Err(_) => Ok(()),
    }
}
