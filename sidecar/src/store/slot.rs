//! Place of a response in every tier.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, StatusCode};
use larder_policy::{
    Lifetimes, PurgeName, Route,
    freshness::{keep_for, may_be_stale},
    storing::NotStored,
    vary,
};

use super::Store;
use crate::{
    budget::{Kind, Reservation},
    cache_key::CacheKey,
    clock::{monotonic_ms, wall_ms},
    entry::{Content, Entry, codec},
    l1::Stored,
    l2::{Lease, Proof},
};

/// Time for which requests for a response that must not be shared go to the origin without waiting for one another, in
/// milliseconds.
const UNSHARED_MS: u64 = 5_000;

/// Maximum error of the difference of two readings of a coarse clock.
const CLOCK_ERROR_LIMIT: Duration = Duration::from_millis(20);

/// Copies of a body while it is written to Redis or Postgres: the record, the command and the client's buffer.
pub const WRITTEN_COPIES: u64 = 3;

/// Place of a response in memory, in Redis and among the last known good responses.
#[derive(Clone, Debug)]
pub struct CacheSlot {
    /// The tiers.
    pub store: Arc<Store>,
    /// The route of the request.
    pub route: Arc<Route>,
    key: CacheKey,
    /// True if other pods do not get it.
    only_here: bool,
}

impl CacheSlot {
    /// Creates the place of a response that every pod may have.
    pub fn shared(store: &Arc<Store>, route: &Arc<Route>, key: CacheKey) -> Self {
        Self { store: Arc::clone(store), route: Arc::clone(route), key, only_here: false }
    }

    /// Creates the place of a response that stays in this pod's memory, such as one to HEAD.
    pub fn only_here(store: &Arc<Store>, route: &Arc<Route>, key: CacheKey) -> Self {
        Self { only_here: true, ..Self::shared(store, route, key) }
    }

    /// Returns the key of the response.
    pub fn key(&self) -> &CacheKey {
        &self.key
    }

    fn lifetimes(&self) -> &Lifetimes {
        &self.route.lifetimes
    }

    /// Notes that the response must not be shared. Other variants are not affected.
    pub fn note_unshared(&self) {
        self.store.l1.insert_hashed(self.key.hash(), self.key.whole(), unshared_from_now());
    }

    /// Stores a response in memory.
    pub fn store_in_memory(&self, entry: &Arc<Entry>) {
        let l1 = &self.store.l1;
        l1.insert_hashed(self.key.hash(), self.key.whole(), Stored::Entry(Arc::clone(entry)));
        if !self.key.vary().is_empty() {
            l1.insert(self.key.primary(), Stored::Vary(Arc::new(self.key.vary().to_vec())));
        }
    }

    /// Stores a response in memory, unless a newer one is there.
    pub fn store_in_memory_unless_newer(&self, entry: &Arc<Entry>) {
        let is_newer = |known: &Entry| known.times().received_at >= entry.times().received_at;
        match self.store.l1.get_hashed(self.key.hash(), self.key.whole()) {
            Some(Stored::Entry(known)) if is_newer(&known) => {}
            _ => self.store_in_memory(entry),
        }
    }

    /// Returns true if memory has the response to a later request: one that hung and has come back to life does not replace it.
    fn has_later(&self, entry: &Entry) -> bool {
        let Some(Stored::Entry(known)) = self.store.l1.get_hashed(self.key.hash(), self.key.whole()) else {
            return false;
        };
        let (known_at, requested_at) = (known.times().requested_at, entry.times().requested_at);
        // A time in the future is from before the clock was set back.
        requested_at < known_at && known_at <= wall_ms() && !known.is_purged(&self.store.barriers)
    }

    /// Drops the stored response: in this pod at once, and in Redis and other pods soon, where it is purged under `name`.
    pub fn forget(&self, name: PurgeName) {
        self.store.l1.remove(self.key.whole());
        self.store.forget_last_known_good(&[name]);
        let Some(l2) = self.store.l2.clone() else { return };
        // The link makes up for a failure, as for every purge.
        tokio::spawn(async move { l2.purge(&[name], Proof::Recent, None).await });
    }

    /// Stores a response in memory, and in the background in Redis, for which only pods wait that asked for the lease. A response to
    /// a later request is not replaced.
    pub fn store(self, entry: Arc<Entry>, lease: Option<Lease>) {
        if self.has_later(&entry) {
            return;
        }
        self.store_in_memory(&entry);
        if self.only_here {
            return;
        }
        self.persist_as_last_known_good(&entry);
        let lifetimes = self.lifetimes();
        let left = keep_for(entry.meta(), lifetimes).checked_sub(entry.resident());
        let left = left.map(|left| lifetimes.l2_ttl.map_or(left, |most| left.min(most)));
        let l2 = self.store.l2.clone().filter(|l2| l2.takes(&entry));
        let (Some(left), Some(l2)) = (left, l2) else { return };
        let Some(room) = self.room_to_write(&entry) else { return };
        tokio::spawn(async move {
            // A failure is counted where it happens, and the response is in memory all the same.
            let max_body = self.store.policy.l1.max_object_size.0;
            let stored = l2.store(&self.key, &entry, max_body, left).await;
            if let (Ok(()), Some(mut lease)) = (stored, lease) {
                lease.stored();
            }
            drop(room);
        });
    }

    /// Reserves memory for a response that is written to a tier.
    fn room_to_write(&self, entry: &Entry) -> Option<Reservation> {
        self.store.budget.reserve(Kind::Responses, WRITTEN_COPIES * entry.content.bytes())
    }

    /// Persists a response as the last known good one if its route says so: a whole 200 that does not vary.
    fn persist_as_last_known_good(&self, entry: &Arc<Entry>) {
        let Some(table) = self.store.last_known_good(&self.route).cloned() else { return };
        let is_whole = matches!(entry.content, Content::Whole(_));
        let may_be_stale = may_be_stale(entry.meta(), self.lifetimes());
        if [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&entry.status()) {
            let own: Vec<_> = entry.names().take(1).collect();
            self.store.forget_last_known_good(&own);
        }
        let varies = !self.key.vary().is_empty();
        if entry.status() != StatusCode::OK || !is_whole || varies || !may_be_stale {
            return;
        }
        let id = self.store.last_known_good_id(self.key.primary());
        // Purges are compared with this time: rather too early than too late.
        let requested_at = entry.times().requested_at;
        let age = Duration::from_millis(wall_ms().saturating_sub(requested_at)) + CLOCK_ERROR_LIMIT;
        let now = Instant::now();
        let Some(room) = self.room_to_write(entry) else { return };
        let (entry, route) = (Arc::clone(entry), Arc::clone(&self.route));
        tokio::spawn(async move {
            let requested_at = now.checked_sub(age).unwrap_or(now);
            let record = codec::encode(&entry);
            // Postgres finds nothing by a path.
            let names: Vec<_> = entry.names().chain(PurgeName::prefixes_of(entry.path())).collect();
            if let Err(error) = table.store(id, &names, record, requested_at).await {
                tracing::debug!(route = route.name, %error, "a response was not persisted as the last known good one");
            }
            drop(room);
        });
    }
}

impl Store {
    /// Returns the place of a stored response to a request with these fields.
    pub fn slot_of(
        self: &Arc<Self>,
        route: &Arc<Route>,
        primary: &str,
        entry: &Entry,
        fields: &HeaderMap,
    ) -> CacheSlot {
        CacheSlot::shared(self, route, CacheKey::new(primary, self.vary_of(primary, entry), fields))
    }

    /// Returns the names of the request headers by which a stored response is found under a primary key.
    pub fn vary_of(&self, primary: &str, entry: &Entry) -> Vec<HeaderName> {
        let own = vary::names_to_store(&entry.fields());
        self.vary_to_store(primary, entry.status(), own.clone(), &[]).unwrap_or(own)
    }

    /// Returns the names of the request headers by which a response is found once it is stored, where `own` are those that its `Vary`
    /// lists, and `in_redis` those of the responses in Redis. An error takes the names of the responses that it is stored beside,
    /// because applications often leave `Vary` out of errors, and other names would hide all of those.
    ///
    /// # Errors
    /// If an error varies by other headers than the responses beside it.
    pub fn vary_to_store(
        &self,
        primary: &str,
        status: StatusCode,
        own: Vec<HeaderName>,
        in_redis: &[HeaderName],
    ) -> Result<Vec<HeaderName>, NotStored> {
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(own);
        }
        let in_memory = match self.l1.get(primary) {
            Some(Stored::Vary(names)) => names.to_vec(),
            _ => vec![],
        };
        let known = if in_memory.is_empty() { in_redis.to_vec() } else { in_memory };
        if known.is_empty() {
            return Ok(own);
        }
        let selects = own.iter().chain(in_redis).all(|name| known.contains(name));
        if selects { Ok(known) } else { Err(NotStored::WouldReplace) }
    }

    /// Notes that the response to a request with this key and these fields must not be shared. Other variants are not affected.
    pub fn note_unshared(&self, primary: &str, fields: &HeaderMap) {
        let mut key = primary.to_owned();
        if let Some(Stored::Vary(names)) = self.l1.get(&key) {
            vary::write_variant(&mut key, &names, fields);
        }
        // A stored response may still replace an error, or be revalidated.
        if !matches!(self.l1.get(&key), Some(Stored::Entry(_))) {
            self.l1.insert(&key, unshared_from_now());
        }
    }
}

fn unshared_from_now() -> Stored {
    Stored::Unshared { until: monotonic_ms() + UNSHARED_MS }
}
