//! Storage of responses under one version of the policy: memory, Redis and the last known good responses.
//!
//! Nothing in here knows of requests: the request path looks up and stores through it, and tells it of writes.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use larder_policy::{Fields, Metadata, Policy, PurgeName, Route, storing::NotStored, vary};

use crate::{
    barriers::Barriers,
    budget::Budget,
    clock::monotonic_ms,
    entry::Entry,
    l1::{L1, Stored},
    l2::{Formers, L2, Proof},
    sources::last_known_good::LastKnownGood,
    stats::RouteStats,
};

pub mod fill;
pub mod in_flight;
pub mod slot;

/// Tiers that store responses, and the rules under which they do.
#[derive(Debug)]
pub struct Store {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Hash of the policy's rules on storing, with the round of its coverage where it follows one: a response that was stored under
    /// another is not served.
    pub fingerprint: String,
    /// Purge name of everything that is stored under this fingerprint.
    pub version: PurgeName,
    /// Namespace, name and UID of the policy.
    pub metadata: Metadata,
    /// Purges that apply in this pod.
    pub barriers: Arc<Barriers>,
    /// The cache in memory.
    pub l1: Arc<L1>,
    /// The shared cache.
    pub l2: Option<Arc<L2>>,
    /// Every Redis that this pod has left, where other pods may still be.
    pub formers: Arc<Formers>,
    /// The memory of everything that is not L1.
    pub budget: Arc<Budget>,
    /// Writes that no store was told of.
    pub missed_writes: Arc<MissedWrites>,
    /// Tables of last known good responses, by the name of their source.
    pub last_known_good: Vec<(String, Arc<LastKnownGood>)>,
    /// Counters of the routes, in their order.
    pub route_stats: Vec<Arc<RouteStats>>,
}

/// Stores that were not named by any policy when a write passed: a response in one of them may be stale.
#[derive(Debug, Default)]
pub struct MissedWrites {
    /// True if a write passed while there was no Redis.
    pub redis: AtomicBool,
    /// True if a write passed while there was no table of last known good responses.
    pub tables: AtomicBool,
}

/// Knowledge in other pods of a write that was told to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TellOutcome {
    /// Every pod that it concerns and that listens to Redis has acknowledged it: so many, or it concerns none.
    Acknowledged(Option<usize>),
    /// Redis has ordered it, and not every pod has acknowledged it in time.
    Ordered,
    /// Redis was not told, or there is none.
    NotOrdered,
}

/// Reason why memory has no response under a key.
#[derive(Clone, Copy, Debug)]
pub enum Missing {
    /// Nothing is stored.
    Nothing,
    /// Only responses with other values of the headers in `Vary` are stored.
    OtherVariants,
    /// The last response was not shareable, so there is nothing to wait for.
    Unshared,
}

impl Store {
    /// Finds the response under a key of this hash in memory, for a request with these fields. Where responses vary, the key of the
    /// selected variant is written into `variant`.
    ///
    /// # Errors
    /// The reason why there is none.
    pub fn find(
        &self,
        (hash, key): (u64, &str),
        variant: &mut String,
        fields: &impl Fields,
    ) -> Result<Arc<Entry>, Missing> {
        match self.l1.get_hashed(hash, key) {
            None => Err(Missing::Nothing),
            Some(Stored::Entry(entry)) => Ok(entry),
            Some(Stored::Unshared { until }) if monotonic_ms() < until => Err(Missing::Unshared),
            Some(Stored::Unshared { .. }) => Err(Missing::Nothing),
            Some(Stored::Vary(names)) => {
                variant.clear();
                variant.push_str(key);
                vary::write_variant(variant, &names, fields);
                match self.l1.get(variant) {
                    Some(Stored::Entry(entry)) => Ok(entry),
                    Some(Stored::Unshared { until }) if monotonic_ms() < until => Err(Missing::Unshared),
                    _ => Err(Missing::OtherVariants),
                }
            }
        }
    }

    /// Returns the table of a route's last known good responses, if it has one.
    pub fn last_known_good(&self, route: &Route) -> Option<&Arc<LastKnownGood>> {
        let source = route.last_known_good.as_ref()?;
        self.last_known_good.iter().find(|(known, _)| known == source).map(|(_, table)| table)
    }

    /// Returns the key of a response in a table of last known good responses.
    pub fn last_known_good_id(&self, key: &str) -> [u8; 32] {
        *blake3::hash(format!("{} {} {key}", self.metadata.uid, self.fingerprint).as_bytes()).as_bytes()
    }

    /// Counts the reason why a response of a route was not stored; the log has the first of each reason.
    pub fn not_stored(&self, route: &Route, reason: NotStored) {
        if self.route_stats[route.index].not_stored(reason) {
            tracing::info!(
                route = route.name,
                reason = reason.as_str(),
                "a response was not stored; further ones are only counted"
            );
        }
    }

    /// Remembers that a write passed for the stores that are not there to be told.
    pub fn note_write(&self) {
        if self.l2.is_none() {
            self.missed_writes.redis.store(true, Ordering::SeqCst);
        }
        if self.last_known_good.is_empty() {
            self.missed_writes.tables.store(true, Ordering::SeqCst);
        }
    }

    /// Empties the stores that missed a write while no policy named them, and remembers writes that `previous` could not tell a store
    /// that this policy does not name.
    pub fn make_up_for_missed_writes(&self, previous: Option<&Self>) {
        let MissedWrites { redis, tables } = &*self.missed_writes;
        match &self.l2 {
            Some(l2) => {
                if redis.swap(false, Ordering::SeqCst) {
                    l2.purge_everything();
                }
            }
            None => {
                if previous
                    .and_then(|previous| previous.l2.as_ref())
                    .is_some_and(|l2| l2.has_pending_purges())
                {
                    redis.store(true, Ordering::SeqCst);
                }
            }
        }
        if self.last_known_good.is_empty() {
            let mut before = previous.iter().flat_map(|previous| &previous.last_known_good);
            if before.any(|(_, table)| table.has_unsent()) {
                tables.store(true, Ordering::SeqCst);
            }
        } else if tables.swap(false, Ordering::SeqCst) {
            for (_, table) in &self.last_known_good {
                tokio::spawn(table.forget_everything());
            }
        }
    }

    /// Drops the last known good responses that bear one of these names: in this pod at once, and in Postgres soon.
    pub fn forget_last_known_good(&self, names: &[PurgeName]) {
        for (_, table) in &self.last_known_good {
            // The table makes up for a failure to tell Postgres.
            tokio::spawn(table.forget(names));
        }
    }

    /// Tells pods with other versions of the policy of a write for which this version names nothing: responses that were stored
    /// there before are stale. `number` identifies the write to pods that hear of it in other ways.
    pub async fn tell_other_versions(&self, number: Option<u64>) -> TellOutcome {
        for (_, table) in &self.last_known_good {
            table.note_unnamed_write();
        }
        let Some(l2) = &self.l2 else {
            self.formers.tell(&[], self.version).await;
            return TellOutcome::NotOrdered;
        };
        match l2.purge(&[], Proof::Recent, number).await {
            Ok(acknowledged) if acknowledged.by_all => TellOutcome::Acknowledged(acknowledged.told),
            Ok(_) => TellOutcome::Ordered,
            Err(error) => {
                tracing::debug!(%error, "other versions of the policy have not been told of a write yet");
                TellOutcome::NotOrdered
            }
        }
    }

    /// Applies a purge that another pod told of directly, under its version of the policy. `redis` is its number in messages of Redis, and
    /// the generation in which Redis has ordered it.
    pub fn hear(&self, version: PurgeName, names: &[PurgeName], redis: (u64, u64)) {
        match &self.l2 {
            Some(l2) => l2.hear(version, names, redis),
            None => {
                // Where there is no Redis, nothing that is stored bears the name of its version.
                if version == self.version {
                    self.barriers.raise_locally(names);
                } else {
                    self.barriers.raise_on_everything();
                }
                self.note_write();
            }
        }
    }

    /// Makes everything stale that is stored: purges of other pods were missed.
    pub fn purge_everything(&self) {
        match &self.l2 {
            Some(l2) => l2.purge_everything(),
            None => self.barriers.raise_on_everything(),
        }
    }
}
