//! Purging: raising barriers in this pod and in every other.

use larder_policy::PurgeName;

use crate::{
    l2::L2Error,
    serving::Serving,
    stats::{PurgeOrigin, Stats},
};

/// How far a purge has come.
#[derive(Debug)]
pub enum Purged {
    /// Every pod has it or will refuse what it covers: its place in the order.
    Everywhere(u64),
    /// There is no Redis, so there is nobody to tell: its place in this pod's order.
    Here(u64),
    /// Redis could not be told yet. This pod has it; other pods serve what they hold in memory for `l1.busGrace` at most.
    Pending(L2Error),
}

/// Makes stale whatever bears one of these names and was filled before now. When it returns, no answer from this pod is
/// older than it.
pub async fn purge(serving: &Serving, names: &[PurgeName], origin: PurgeOrigin, stats: &Stats) -> Purged {
    stats.purged(origin);
    match &serving.l2 {
        None => Purged::Here(serving.barriers.raise_locally(names)),
        Some(l2) => match l2.purge(names).await {
            Ok(order) => Purged::Everywhere(order),
            Err(error) => {
                tracing::warn!(%error, "a purge has not reached redis yet");
                Purged::Pending(error)
            }
        },
    }
}
