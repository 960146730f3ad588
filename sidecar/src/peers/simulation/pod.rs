//! A pod: its process, and what it has stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use larder_policy::PurgeName;
use tokio::time::Instant;

use super::{
    super::{
        ledger::{Conditions, Ledger, Request},
        log::{Known, MAX_NAMES, Purge},
        state::{Reach, State},
    },
    world::PODS,
};
use crate::barriers::{Barriers, Covered, Stamp};

pub(super) const KEYS: usize = 4;
/// The policy's `l1.busGrace` in milliseconds.
pub(super) const GRACE: u64 = 5_000;

/// Kind of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tag {
        is_soft: bool,
    },
    Prefix {
        is_soft: bool,
    },
    Everything,
    /// Of one tag, beside so many others that a log does not list it.
    Many,
}

impl Kind {
    pub(super) const fn is_soft(self) -> bool {
        matches!(self, Self::Tag { is_soft: true } | Self::Prefix { is_soft: true })
    }

    /// Returns the keys that a purge of this kind covers with a write to `key`.
    pub(super) fn keys(self, key: usize) -> Vec<usize> {
        match self {
            Self::Tag { .. } | Self::Many => vec![key],
            Self::Prefix { .. } => (0..KEYS).filter(|other| other % 2 == key % 2).collect(),
            Self::Everything => (0..KEYS).collect(),
        }
    }

    pub(super) fn names(self, key: usize) -> Vec<PurgeName> {
        let (names, is_soft) = match self {
            Self::Tag { is_soft } => (vec![tag(key)], is_soft),
            Self::Prefix { is_soft } => (PurgeName::prefixes(prefix(key)).collect(), is_soft),
            Self::Everything => (PurgeName::prefixes("/").collect(), false),
            Self::Many => (vec![tag(key); MAX_NAMES + 1], false),
        };
        if is_soft { PurgeName::softly(names) } else { names }
    }
}

fn tag(key: usize) -> PurgeName {
    PurgeName::tag(&key.to_string())
}

const fn prefix(key: usize) -> &'static str {
    if key.is_multiple_of(2) { "/even" } else { "/odd" }
}

/// A stored response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) stamp: Stamp,
    pub(super) asked_at: u64,
}

/// A write that waits for acknowledgements.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) number: usize,
    pub(super) seq: u64,
    pub(super) began_at: u64,
    pub(super) left: BTreeSet<usize>,
    /// Processes that have acknowledged it.
    pub(super) reached: Vec<u64>,
}

/// Another pod, as this one sees it.
#[derive(Debug, Default)]
pub(super) struct Other {
    pub(super) state: State,
    pub(super) lacks: Option<Known>,
    pub(super) compares: bool,
    /// The request that is on its way, with its number.
    pub(super) asked: Option<(u64, Request)>,
    pub(super) rests_until: u64,
}

/// A process.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) process: u64,
    pub(super) ledger: Ledger,
    pub(super) barriers: Barriers,
    pub(super) others: [Other; PODS],
    pub(super) entries: [Option<Entry>; KEYS],
    pub(super) is_joining: bool,
    pub(super) is_leaving: bool,
    pub(super) waits: Vec<Wait>,
    pub(super) redis: Option<Link>,
    /// Numbers of purges that were taken over without being heard of, by process.
    pub(super) adopted: BTreeMap<u64, u64>,
}

/// A pod's way to Redis.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) is_connected: bool,
    /// Number of purges that were heard of, in the order of Redis.
    pub(super) heard: usize,
    /// Purges that Redis is to be told of.
    pub(super) pending: Vec<Purge>,
    pub(super) proven_at: u64,
}

impl Pod {
    pub(super) fn new(process: u64, has_redis: Option<usize>, now: u64) -> Self {
        let link = |heard| Link { is_connected: true, heard, pending: vec![], proven_at: now };
        Self {
            process,
            ledger: Ledger::new(process, now),
            barriers: Barriers::alone(),
            others: std::array::from_fn(|_| Other { compares: true, ..Other::default() }),
            entries: [None; KEYS],
            is_joining: true,
            is_leaving: false,
            waits: vec![],
            redis: has_redis.map(link),
            adopted: BTreeMap::new(),
        }
    }

    pub(super) const fn conditions(&self, now: u64) -> Conditions {
        let (is_joining, is_leaving) = (self.is_joining, self.is_leaving);
        Conditions { is_joining, is_leaving, has_redis: self.redis.is_some(), now }
    }

    pub(super) const fn serves(&self) -> bool {
        !self.is_joining && !self.is_leaving
    }

    /// Returns the stored response that may be served, and true if it is stale.
    pub(super) fn stored(&self, key: usize, now: u64) -> Option<(Entry, bool)> {
        let entry = self.entries[key]?;
        let is_trusted = self
            .redis
            .as_ref()
            .is_none_or(|link| link.is_connected || link.proven_at.max(entry.asked_at) + GRACE >= now);
        let path = format!("{}/{key}", prefix(key));
        match self.barriers.coverage(0, [tag(key)], &path, entry.stamp) {
            Covered::Wholly => None,
            covered => is_trusted.then_some((entry, covered == Covered::Softly)),
        }
    }

    /// Returns true if Redis has all purges of this pod and of others; `None` without Redis.
    pub(super) fn has_told_redis(&self) -> Option<bool> {
        self.redis.as_ref().map(|link| link.is_connected && link.pending.is_empty())
    }

    /// Returns true if nobody waits for another pod any more: it has acknowledged a purge, or can't be reached.
    pub(super) fn is_settled(&self, other: usize, seq: u64) -> bool {
        let state = &self.others[other].state;
        state.acknowledged >= seq || matches!(state.reach, Reach::Unreachable(_) | Reach::Absent)
    }
}

/// Returns a time as the sidecar's timers have it.
pub(super) fn instant(base: Instant, at: u64) -> Instant {
    base + Duration::from_millis(at)
}
