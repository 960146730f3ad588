//! Purges: raising barriers in this pod and in all others.

use std::sync::Arc;

use larder_policy::{Policy, PurgeName, Writing};

pub mod document;

use crate::{
    config::ConfigWatcher,
    l2::{L2Error, Proof},
    snapshot::Snapshot,
    stats::{PurgeOrigin, Stats},
};

/// Progress of a purge.
#[derive(Debug)]
pub enum Purged {
    /// Applied in Redis and in every pod that acknowledged within the timeout of `l2::acknowledgements`, at this place
    /// in the order.
    Everywhere(u64),
    /// Applied in this pod, without a Redis to inform, at this place in the pod's order.
    Here(u64),
    /// Applied in this pod only: Redis could not be informed, or is not proven to be the one that pods listen to. It is
    /// informed as soon as possible; until then other pods may serve purged responses, those that reach Redis
    /// indefinitely, the others for `l1.busGrace`.
    Pending(L2Error),
}

/// Purges the entries with one of these names that were filled before now. No response of this pod is older than the
/// purge when this returns.
pub async fn purge(snapshot: &Snapshot, names: &[PurgeName], origin: PurgeOrigin, stats: &Stats) -> Purged {
    stats.purged(origin);
    snapshot.store.forget_last_known_good(names);
    let proof = match origin {
        PurgeOrigin::Api | PurgeOrigin::Postgres => Proof::Afterwards,
        PurgeOrigin::Write | PurgeOrigin::Response => Proof::Recent,
    };
    match &snapshot.store.l2 {
        None => {
            let order = snapshot.store.barriers.raise_locally(names);
            snapshot.store.formers.tell(names, snapshot.store.version).await;
            Purged::Here(order)
        }
        Some(l2) => match l2.purge(names, proof).await {
            Ok(order) => Purged::Everywhere(order),
            Err(error) => {
                tracing::warn!(%error, "a purge is not in redis yet; it is sent again when redis responds");
                Purged::Pending(error)
            }
        },
    }
}

/// Purges on request; `names` returns the purged names under a policy. If the policy changed meanwhile, purges
/// that the previous one could not send to Redis are repeated under the new one.
pub async fn on_request(
    config: &ConfigWatcher,
    names: impl Fn(&Policy) -> Vec<PurgeName>,
    origin: PurgeOrigin,
    stats: &Stats,
) -> Purged {
    let mut snapshot = config.snapshot();
    loop {
        let purged = purge(&snapshot, &names(snapshot.policy()), origin, stats).await;
        let now = config.snapshot();
        if matches!(purged, Purged::Everywhere(_)) || Arc::ptr_eq(&now, &snapshot) {
            return purged;
        }
        snapshot = now;
    }
}

/// Purges after a write, under the policies at its start and now, because the policy may have changed meanwhile. If a
/// policy names nothing, pods with another version are informed, because that may name something. Purges that could not
/// reach Redis, because no policy had one, are remembered.
pub async fn after_write(
    config: &ConfigWatcher,
    then: &Arc<Snapshot>,
    writing: &Writing,
    names: &[PurgeName],
    stats: &Stats,
) {
    purge_or_tell(then, names, stats).await;
    let mut done = Arc::clone(then);
    loop {
        done.store.note_write();
        let now = config.snapshot();
        if Arc::ptr_eq(&now, &done) {
            return;
        }
        let mut names = now.policy().purged_by(writing);
        // What the response said of it was judged by the policy before, which may have had no route for it.
        names.extend(now.policy().names_of_stored(writing.paths().iter()));
        purge_or_tell(&now, &names, stats).await;
        done = now;
    }
}

async fn purge_or_tell(snapshot: &Snapshot, names: &[PurgeName], stats: &Stats) {
    if names.is_empty() {
        snapshot.store.tell_other_versions().await;
    } else {
        purge(snapshot, names, PurgeOrigin::Write, stats).await;
    }
}
