//! Records as they are written to Redis and read from it: bounded in size, authenticated, and refused if no sidecar of this
//! policy can have written them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use super::keyspace::{Keyspace, RecordPlace, ScopedKeys};
use crate::{
    clock::monotonic_ms,
    entry::{
        authentication::{Authentication, MAC_LENGTH, State},
        codec::{self, MetaFrom, Record, Rules},
    },
    stats::RecordError,
    telemetry::Telemetry,
};

/// Bytes of a record besides the body that it holds: the header fields, the names of purges, the MAC.
const MAX_OVERHEAD: u64 = 128 << 10;
/// Minimum interval between warnings about refused records.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Writes and reads the records of one policy.
#[derive(Debug)]
pub(super) struct Records {
    authentication: Arc<Authentication>,
    telemetry: Arc<Telemetry>,
    keys: Keyspace,
    /// The policy's shape: what was stored under another is not found.
    shape: String,
    /// The last seal that was asked for.
    seal: ArcSwapOption<Seal>,
    /// When the next refused record may be in the log, in [`monotonic_ms`].
    warns_at: AtomicU64,
}

/// Authentication of records, and their keys, during one operation, even if the token is replaced meanwhile.
#[derive(Debug)]
pub(super) struct Seal {
    state: Arc<State>,
    keys: ScopedKeys,
}

impl Records {
    /// The records of a policy of this shape.
    pub(super) fn new(
        authentication: Arc<Authentication>,
        telemetry: Arc<Telemetry>,
        keys: Keyspace,
        shape: &str,
    ) -> Self {
        let (shape, seal, warns_at) = (shape.to_owned(), ArcSwapOption::empty(), AtomicU64::new(0));
        Self { authentication, telemetry, keys, shape, seal, warns_at }
    }

    /// Returns the current authentication of records; `None` while the token cannot be read.
    pub(super) fn seal(&self) -> Option<Arc<Seal>> {
        let state = self.authentication.state();
        if let Some(seal) = self.seal.load_full().filter(|seal| Arc::ptr_eq(&seal.state, &state)) {
            return Some(seal);
        }
        let keys = match &*state {
            State::Unavailable(_) => return None,
            State::Off => self.keys.within(&self.shape),
            State::On(key) => self.keys.within(&[&*self.shape, "+", key.name()].concat()),
        };
        let seal = Arc::new(Seal { state, keys });
        self.seal.store(Some(Arc::clone(&seal)));
        Some(seal)
    }

    /// Returns the reason for which no record can be written or read.
    pub(super) fn last_error(&self) -> Option<String> {
        match &*self.authentication.state() {
            State::Unavailable(why) => Some(format!("records can't be authenticated: {why}")),
            State::Off | State::On(_) => None,
        }
    }

    /// The record that was found under `place`; L1 holds a response under `key`. A record that is refused counts as none.
    pub(super) fn read(
        &self,
        (seal, place, key): (&Seal, &RecordPlace, &str),
        found: Option<Bytes>,
        limit: u64,
        rules: Rules<'_>,
    ) -> Option<Record> {
        let found = found?;
        if self.is_too_large(&place.name, found.len() as u64, limit) {
            return None;
        }
        let opened = match &*seal.state {
            State::On(key) => key.open(&place.identity, found),
            State::Off | State::Unavailable(_) => Some(found),
        };
        let Some(record) = opened else {
            let why = "no sidecar with this token wrote it under this key".to_owned();
            return self.refuse(RecordError::Unauthentic, &place.name, why);
        };
        // The policy's shape is part of the key.
        match codec::decode(record, rules, key, MetaFrom::Record) {
            Ok(record) => Some(record),
            Err(error) => self.refuse(RecordError::Malformed, &place.name, error.to_string()),
        }
    }

    /// Returns true if the record under a key is longer than the policy allows, which refuses it.
    pub(super) fn is_too_large(&self, key: &str, length: u64, limit: u64) -> bool {
        if length > limit {
            self.refuse(RecordError::TooLarge, key, format!("it has more than {limit} bytes"));
        }
        length > limit
    }

    fn refuse(&self, reason: RecordError, key: &str, why: String) -> Option<Record> {
        self.telemetry.stats.refused_record(reason);
        let (now, next) = (monotonic_ms(), self.warns_at.load(Ordering::Relaxed));
        let then = now + WARNING_INTERVAL.as_millis() as u64;
        if now >= next
            && self.warns_at.compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let reason = reason.as_str();
            tracing::warn!(reason, key, why, "a record in redis is refused; further ones are counted");
        }
        None
    }
}

impl Seal {
    /// The keys of records, which keep those apart that are authenticated differently, and policies of different shapes.
    pub(super) const fn keys(&self) -> &ScopedKeys {
        &self.keys
    }

    /// The record as it is stored under `place`.
    pub(super) fn close(&self, place: &RecordPlace, record: Bytes) -> Bytes {
        match &*self.state {
            State::On(key) => key.seal(&place.identity, &record),
            State::Off | State::Unavailable(_) => record,
        }
    }
}

/// Maximum length of a record, where bodies have at most so many bytes.
pub(super) const fn limit(max_body: u64) -> u64 {
    max_body + MAX_OVERHEAD + MAC_LENGTH as u64
}
