//! Purging: raising barriers in this pod and in every other.

use std::sync::Arc;

use larder_policy::{Policy, PurgeName, Writing};

use crate::{
    config::Config,
    l2::{L2Error, Proof},
    serving::Snapshot,
    stats::{PurgeOrigin, Stats},
};

/// How far a purge has come.
#[derive(Debug)]
pub enum Purged {
    /// Redis has it, and so has every pod that answered within the wait of `l2::acknowledgements`: its place in the order.
    Everywhere(u64),
    /// There is no Redis, so there is nobody to tell: its place in this pod's order.
    Here(u64),
    /// Redis could not be told yet, or is not proven to be the one that pods listen to. This pod has it, and tells Redis when it can; until then other pods may serve what it
    /// covers: those that reach Redis as before, the others for `l1.busGrace`.
    Pending(L2Error),
}

/// Makes stale whatever bears one of these names and was filled before now. When it returns, no answer from this pod is
/// older than it.
pub async fn purge(snapshot: &Snapshot, names: &[PurgeName], origin: PurgeOrigin, stats: &Stats) -> Purged {
    stats.purged(origin);
    snapshot.store.forget_last_known_good(names);
    let proof = match origin {
        PurgeOrigin::Api => Proof::Afterwards,
        PurgeOrigin::Write => Proof::Recent,
    };
    match &snapshot.store.l2 {
        None => {
            let order = snapshot.store.barriers.raise_locally(names);
            snapshot.store.formers.tell(names, snapshot.store.version, None).await;
            Purged::Here(order)
        }
        Some(l2) => match l2.purge(names, proof).await {
            Ok(order) => Purged::Everywhere(order),
            Err(error) => {
                tracing::warn!(%error, "a purge has not reached redis yet");
                Purged::Pending(error)
            }
        },
    }
}

/// Purges what somebody asked for, `names` being the names of that under a policy. Where the policy changed meanwhile, what the one
/// before could not tell Redis yet is purged under the new one.
pub async fn on_request(config: &Config, names: impl Fn(&Policy) -> Vec<PurgeName>, stats: &Stats) -> Purged {
    let mut snapshot = config.snapshot();
    loop {
        let purged = purge(&snapshot, &names(&snapshot.policy), PurgeOrigin::Api, stats).await;
        let now = config.snapshot();
        if matches!(purged, Purged::Everywhere(_)) || Arc::ptr_eq(&now, &snapshot) {
            return purged;
        }
        snapshot = now;
    }
}

/// Purges what a write made stale, under what was served by when it came and under what is served by now: it may have been
/// under way while the policy changed. Where a policy names nothing, pods that serve by another version of it are told, since that may.
/// What could not be purged in Redis, because no policy named one, is remembered.
pub async fn after_write(
    config: &Config,
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
        let names = now.policy.purged_by(writing);
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
