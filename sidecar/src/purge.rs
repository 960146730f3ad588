//! Purges: raising barriers in this pod and in all others.

use std::sync::Arc;

use http::StatusCode;
use larder_api::admin::{PeersTold, PurgeReport, PurgeRequest};
use larder_policy::{Policy, PurgeName, Writing};

pub mod document;
pub mod fields;
mod pattern;
pub mod requests;

use crate::{
    config::ConfigWatcher,
    l2::{L2Error, Proof},
    peers::{self, Peers, Purgeable},
    snapshot::Snapshot,
    stats::{PurgeOrigin, Stats},
    store::{Store, TellOutcome},
};

/// The parts of a process that purges go through.
#[derive(Clone, Copy, Debug)]
pub struct Purging<'a> {
    /// The policy in force.
    pub config: &'a ConfigWatcher,
    /// The other pods, if they can be told directly.
    pub peers: Option<&'a Peers>,
    /// Counters.
    pub stats: &'a Stats,
}

/// A purge and its progress.
#[derive(Debug)]
pub struct Purge {
    /// Progress in this pod and in Redis.
    pub progress: Purged,
    /// The pods that were told directly, if any were.
    pub peers: Option<PeersTold>,
}

/// Progress of a purge.
#[derive(Debug)]
pub enum Purged {
    /// Applied in Redis and in every pod that acknowledged in time, there or directly, at this place in the order.
    Everywhere(u64),
    /// Applied in this pod, and in those that acknowledged it directly, without a Redis to inform, at this place in the pod's
    /// order.
    Here(u64),
    /// Applied in this pod, and in those that acknowledged it directly: Redis could not be informed, or is not proven to be
    /// the one that pods listen to. It is informed as soon as possible, by those pods, too; until then further pods may serve
    /// purged responses, those that reach Redis indefinitely, the others for `l1.busGrace`.
    Pending(L2Error),
}

impl Purging<'_> {
    /// Purges on request; `names` returns the purged names under a policy. If the policy changed meanwhile, purges that the
    /// previous one could not send to Redis are repeated under the new one.
    pub async fn on_request(self, names: impl Fn(&Policy) -> Vec<PurgeName>, origin: PurgeOrigin) -> Purge {
        let mut snapshot = self.config.snapshot();
        loop {
            let purge = self.purge(&snapshot, &names(snapshot.policy()), origin).await;
            let now = self.config.snapshot();
            if matches!(purge.progress, Purged::Everywhere(_)) || Arc::ptr_eq(&now, &snapshot) {
                return purge;
            }
            snapshot = now;
        }
    }

    /// Purges what a document names, and reports the progress: with a 202 if Redis or other pods may not have the purge.
    pub async fn report(self, request: PurgeRequest, origin: PurgeOrigin) -> (StatusCode, PurgeReport) {
        let names = |policy: &Policy| document::names_of(&request, policy);
        let Purge { progress, peers } = self.on_request(names, origin).await;
        let redis = matches!(progress, Purged::Everywhere(_));
        let (order, pending) = match progress {
            Purged::Here(order) => (Some(order), missing(peers.as_ref())),
            Purged::Everywhere(order) => (Some(order), None),
            Purged::Pending(error) => (None, Some(error.to_string())),
        };
        let status = if pending.is_none() { StatusCode::OK } else { StatusCode::ACCEPTED };
        (status, PurgeReport { purged: request.into(), order, redis, pending, peers })
    }

    /// Purges after a write, under the policies at its start and now, because the policy may have changed meanwhile. If a
    /// policy names nothing, pods with another version are informed, because that may name something. Purges that could not
    /// reach Redis, because no policy had one, are remembered.
    pub async fn after_write(self, then: &Arc<Snapshot>, writing: &Writing, names: &[PurgeName]) {
        self.purge_or_tell(then, names).await;
        let mut done = Arc::clone(then);
        loop {
            done.store.note_write();
            let now = self.config.snapshot();
            if Arc::ptr_eq(&now, &done) {
                return;
            }
            let mut names = now.policy().purged_by(writing);
            // What the response said of it was judged by the policy before, which may have had no route for it.
            names.extend(now.policy().names_of_stored(writing.paths().iter()));
            self.purge_or_tell(&now, &names).await;
            done = now;
        }
    }

    /// Returns true if a purge could be made to hold in every pod now, as a reply says to what was asked after this was called: Redis
    /// takes purges, or every other pod responds.
    pub async fn can_hold(self, store: &Store) -> bool {
        match (&store.l2, self.peers) {
            (Some(l2), _) if l2.takes_purges_now().await => true,
            (_, Some(peers)) => peers.respond().await,
            // Without Redis, and with no way to other pods, this one is alone.
            (l2, None) => l2.is_none(),
        }
    }

    async fn purge_or_tell(self, snapshot: &Snapshot, names: &[PurgeName]) {
        if !names.is_empty() {
            self.purge(snapshot, names, PurgeOrigin::Write).await;
            return;
        }
        let number = self.peers.map(Peers::number);
        let told = snapshot.store.tell_other_versions(number).await;
        if !matches!(told, TellOutcome::Acknowledged(pods) if self.are_all(pods)) {
            let is_ordered = told != TellOutcome::NotOrdered;
            self.tell_peers(&snapshot.store, &[PurgeName::unnamed_write()], number, is_ordered).await;
        }
    }

    /// Purges the entries with one of these names that were filled before now. No response of this pod is older than the
    /// purge when this returns.
    async fn purge(self, snapshot: &Snapshot, names: &[PurgeName], origin: PurgeOrigin) -> Purge {
        self.stats.purged(origin);
        let store = &snapshot.store;
        store.forget_last_known_good(names);
        let proof = match origin {
            PurgeOrigin::Api | PurgeOrigin::Request | PurgeOrigin::Postgres => Proof::Afterwards,
            PurgeOrigin::Write | PurgeOrigin::Response => Proof::Recent,
        };
        let number = self.peers.map(Peers::number);
        let Some(l2) = &store.l2 else {
            let order = store.barriers.raise_locally(names);
            let formers = store.formers.tell(names, store.version);
            // Without Redis each pod follows Postgres.
            let number = number.filter(|_| origin != PurgeOrigin::Postgres);
            let ((), peers) = tokio::join!(formers, self.tell_peers(store, names, number, false));
            return Purge { progress: Purged::Here(order), peers };
        };
        let (progress, is_ordered) = match l2.purge(names, proof, number).await {
            Ok(acknowledged) if acknowledged.by_all && self.are_all(acknowledged.told) => {
                return Purge { progress: Purged::Everywhere(acknowledged.order), peers: None };
            }
            Ok(acknowledged) => (Purged::Everywhere(acknowledged.order), true),
            Err(error) => {
                tracing::warn!(%error, "a purge is not in redis yet; it is sent again when redis responds");
                let is_ordered = matches!(error, L2Error::Unproven);
                (Purged::Pending(error), is_ordered)
            }
        };
        Purge { progress, peers: self.tell_peers(store, names, number, is_ordered).await }
    }

    /// Returns true if the pods that Redis has told are all that are known: one that it does not reach serves for `l1.busGrace` what it
    /// has. `None` stands for all.
    fn are_all(self, told: Option<usize>) -> bool {
        told.zip(self.peers).is_none_or(|(told, peers)| told > peers.reachable())
    }

    /// Tells other pods of a purge that is applied here. If Redis has ordered it, they need not tell Redis, unless they do not hear of it
    /// there.
    async fn tell_peers(
        self,
        store: &Store,
        names: &[PurgeName],
        number: Option<u64>,
        is_ordered: bool,
    ) -> Option<PeersTold> {
        let generation = if is_ordered { store.barriers.stamp().generation } else { 0 };
        Some(self.peers?.tell(store.version, names, (number?, generation)).await)
    }
}

/// Returns a text that names the pods which did not acknowledge a purge, if there are any.
fn missing(told: Option<&PeersTold>) -> Option<String> {
    let missing = &told?.missing;
    (!missing.is_empty()).then(|| format!("not acknowledged by {}", missing.join(", ")))
}

impl ConfigWatcher {
    /// Applies something to the store in force, and to each that takes its place meanwhile.
    fn apply_to_stores(&self, apply: impl Fn(&Store)) {
        let mut snapshot = self.snapshot();
        loop {
            apply(&snapshot.store);
            let now = self.snapshot();
            if Arc::ptr_eq(&now, &snapshot) {
                return;
            }
            snapshot = now;
        }
    }
}

impl Purgeable for ConfigWatcher {
    fn purge(&self, purge: &peers::Purge) {
        self.apply_to_stores(|store| {
            store.hear(purge.version, &purge.names, (purge.number, purge.generation))
        });
    }

    fn purge_everything(&self) {
        self.apply_to_stores(Store::purge_everything);
    }

    fn has_told_redis(&self) -> Option<bool> {
        let snapshot = self.snapshot();
        let l2 = snapshot.store.l2.as_ref()?;
        Some(l2.takes_purges() && !l2.has_pending_purges())
    }
}
