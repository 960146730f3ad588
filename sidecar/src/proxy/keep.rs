//! Storing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderName, StatusCode};
use larder_policy::{
    PurgeName,
    freshness::{keep_for, may_be_stale},
    vary,
};

use super::{question::Question, rescue::last_known_good_id};
use crate::{
    budget::{Kind, Reservation},
    clock::{monotonic_ms, wall_ms},
    entry::{Content, Entry, codec},
    l1::Stored,
    l2::{Lease, Proof},
    serving::Serving,
};

/// How long those who ask for what is not for sharing go to the application each by itself, without waiting to learn that.
const UNSHARED_MS: u64 = 5_000;

/// By how much the difference of two readings of a coarse clock may be off.
const OFF: Duration = Duration::from_millis(20);

/// Copies of a body while it is written to Redis or Postgres: the record, the command and the client's buffer.
pub(super) const WRITTEN_COPIES: u64 = 3;

/// Where an answer is stored.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) serving: Arc<Serving>,
    pub(super) route: usize,
    key: String,
    vary: Vec<HeaderName>,
    variant: String,
    /// An answer to HEAD stays in this pod's memory.
    only_here: bool,
}

impl Place {
    pub(super) fn new(question: &Question, vary: Vec<HeaderName>) -> Self {
        let mut variant = String::new();
        vary::write_variant(&mut variant, &vary, &question.headers);
        Self {
            serving: Arc::clone(&question.serving),
            route: question.route,
            key: question.key.as_str().to_owned(),
            vary,
            variant,
            only_here: question.is_head(),
        }
    }

    /// Where an answer to GET is stored, for what is under the same URL.
    pub(super) fn looked_up(question: &Question, vary: Vec<HeaderName>) -> Self {
        let key = question.key_of_answer().as_str().to_owned();
        Self { key, only_here: false, ..Self::new(question, vary) }
    }

    /// The key under which the variant of a request would be stored.
    pub(super) fn key_for(&self, question: &Question) -> String {
        let mut key = self.key.clone();
        vary::write_variant(&mut key, &self.vary, &question.headers);
        key
    }

    pub(super) fn is_for(&self, question: &Question) -> bool {
        self.key_for(question)[self.key.len()..] == self.variant
    }

    /// The key of this variant alone.
    fn own_key(&self) -> String {
        format!("{}{}", self.key, self.variant)
    }

    /// Notes that what is asked for here is not for sharing. Other variants stay what they are.
    pub(super) fn note_unshared(&self) {
        self.serving.l1.insert(&self.own_key(), unshared_from_now());
    }

    pub(super) fn keep_in_memory(&self, entry: &Arc<Entry>) {
        let l1 = &self.serving.l1;
        if self.vary.is_empty() {
            l1.insert(&self.key, Stored::Entry(Arc::clone(entry)));
        } else {
            l1.insert(&self.own_key(), Stored::Entry(Arc::clone(entry)));
            l1.insert(&self.key, Stored::Vary(self.vary.as_slice().into()));
        }
    }

    /// Stores in memory, unless something that came later is there.
    pub(super) fn keep_unless_newer(&self, entry: &Arc<Entry>) {
        let is_newer = |known: &Entry| known.head.times.received_at >= entry.head.times.received_at;
        match self.serving.l1.get(&self.own_key()) {
            Some(Stored::Entry(known)) if is_newer(&known) => {}
            _ => self.keep_in_memory(entry),
        }
    }

    /// Returns true if memory has what was asked for after `entry` was: one that hung and has come back to life does not take the
    /// place of what was asked for in its stead.
    fn has_later(&self, entry: &Entry) -> bool {
        let Some(Stored::Entry(known)) = self.serving.l1.get(&self.own_key()) else { return false };
        let (known_at, asked_at) = (known.head.times.requested_at, entry.head.times.requested_at);
        // What is of the future was stored before the clock was set back.
        asked_at < known_at && known_at <= wall_ms() && !known.is_purged(&self.serving.barriers)
    }

    /// Drops what is there: here at once, and in Redis and other pods soon, where it is purged under `name`.
    pub(super) fn forget(&self, name: PurgeName) {
        self.serving.l1.remove(&self.own_key());
        self.serving.forget_last_known_good(&[name]);
        let Some(l2) = self.serving.l2.clone() else { return };
        // A failure is made up for by the link, as that of every purge.
        tokio::spawn(async move { l2.purge(&[name], Proof::Recent).await });
    }

    /// Stores in memory, and in Redis in the background: nobody waits for that, but other pods, if it was this one's turn. Nothing is
    /// stored in place of what was asked for later.
    pub(super) fn keep(self, entry: Arc<Entry>, lease: Option<Lease>) {
        if self.has_later(&entry) {
            return;
        }
        self.keep_in_memory(&entry);
        if self.only_here {
            return;
        }
        self.keep_as_last_known_good(&entry);
        let lifetimes = &self.serving.policy.routes()[self.route].lifetimes;
        let left = keep_for(&entry.head.claims, lifetimes).checked_sub(entry.head.resident());
        let left = left.map(|left| lifetimes.in_l2.map_or(left, |most| left.min(most)));
        let l2 = self.serving.l2.clone().filter(|l2| l2.takes(&entry));
        let (Some(left), Some(l2)) = (left, l2) else { return };
        let Some(room) = self.room_to_write(&entry) else { return };
        tokio::spawn(async move {
            let Self { serving, key, vary, variant, .. } = self;
            // A failure is counted where it happens; the entry is in memory all the same.
            let most = serving.policy.l1.max_object_size.0;
            let stored = l2.store(&key, &vary, &variant, &entry, most, left).await;
            if let (Ok(()), Some(mut lease)) = (stored, lease) {
                lease.stored();
            }
            drop(room);
        });
    }

    /// Room for an answer that is written to a tier.
    fn room_to_write(&self, entry: &Entry) -> Option<Reservation> {
        self.serving.budget.reserve(Kind::Responses, WRITTEN_COPIES * entry.content.bytes())
    }

    /// Keeps an answer for when everything else fails, if its route says so: a whole one, that is the same for everybody.
    fn keep_as_last_known_good(&self, entry: &Arc<Entry>) {
        let Some(table) = self.serving.last_known_good(self.route).cloned() else { return };
        let is_whole = matches!(entry.content, Content::Whole(_));
        let lifetimes = &self.serving.policy.routes()[self.route].lifetimes;
        let may_be_stale = may_be_stale(&entry.head.claims, lifetimes);
        if [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&entry.head.status) {
            self.serving.forget_last_known_good(entry.head.names.get(..1).unwrap_or_default());
        }
        if entry.head.status != StatusCode::OK || !is_whole || !self.vary.is_empty() || !may_be_stale {
            return;
        }
        let id = last_known_good_id(&self.serving, &self.key);
        // Purges are compared with it: rather too early than too late.
        let age = Duration::from_millis(wall_ms().saturating_sub(entry.head.times.requested_at)) + OFF;
        let now = Instant::now();
        let Some(room) = self.room_to_write(entry) else { return };
        let (entry, route) = (Arc::clone(entry), self.serving.policy.routes()[self.route].name.clone());
        tokio::spawn(async move {
            let asked_at = now.checked_sub(age).unwrap_or(now);
            let record = codec::encode(&entry);
            if let Err(error) = table.store(id, &entry.head.names, record, asked_at).await {
                tracing::debug!(route, %error, "an answer was not kept as the last good one");
            }
            drop(room);
        });
    }
}

fn unshared_from_now() -> Stored {
    Stored::Unshared { until: monotonic_ms() + UNSHARED_MS }
}

impl Question {
    /// Notes that what it asks for is not for sharing. Other variants stay what they are.
    pub(super) fn note_unshared(&self) {
        let (l1, mut key) = (&self.serving.l1, self.key.as_str().to_owned());
        if let Some(Stored::Vary(names)) = l1.get(&key) {
            vary::write_variant(&mut key, &names, &self.headers);
        }
        // What is stored may still stand in for an error, or be said to hold.
        if !matches!(l1.get(&key), Some(Stored::Entry(_))) {
            l1.insert(&key, unshared_from_now());
        }
    }
}
