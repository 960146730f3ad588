//! The properties that must hold, and a record of a run.

use std::{collections::BTreeSet, ops::AddAssign};

use super::pod::{GRACE, Kind};

/// Time that a busy event queue may add to the grace.
const SLACK: u64 = 50;

/// Purges that were made.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// By the number of the purge.
    pub(super) purges: Vec<Purged>,
    pub(super) seen: Seen,
}

/// A purge, and what is said of it.
#[derive(Debug)]
pub(super) struct Purged {
    pub(super) kind: Kind,
    /// Process through which it was made, and its number there, if other pods are told of it.
    pub(super) place: Option<(u64, u64)>,
    /// Keys that it covers, with their values in the application since the write.
    pub(super) keys: Vec<(usize, u64)>,
    /// The response to the write has left.
    pub(super) acknowledged_at: Option<u64>,
    /// Processes that are said to have acknowledged it.
    pub(super) reached: Vec<u64>,
    /// Redis has it.
    pub(super) is_ordered: bool,
    /// Processes that have applied it.
    pub(super) heard_by: BTreeSet<u64>,
}

/// Counts of observed events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) hits: usize,
    pub(super) stale_hits: usize,
    /// Hits on what was purged, in pods that are not said to have acknowledged it.
    pub(super) late_hits: usize,
    pub(super) acknowledged: usize,
    pub(super) missed: usize,
    pub(super) everything: usize,
    pub(super) joined: usize,
    pub(super) by_redis: usize,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.stale_hits += other.stale_hits;
        self.late_hits += other.late_hits;
        self.acknowledged += other.acknowledged;
        self.missed += other.missed;
        self.everything += other.everything;
        self.joined += other.joined;
        self.by_redis += other.by_redis;
    }
}

/// A response from memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    pub(super) process: u64,
    pub(super) key: usize,
    pub(super) version: u64,
    pub(super) is_stale: bool,
    pub(super) at: u64,
}

impl Purged {
    /// Returns true if a response is one that the purge removed or, if it is a soft one, made stale.
    fn forbids(&self, hit: &Hit) -> bool {
        let is_older = self.keys.iter().any(|(key, version)| *key == hit.key && hit.version < *version);
        is_older && !(self.kind.is_soft() && hit.is_stale)
    }
}

impl Oracle {
    pub(super) fn check(&mut self, hit: Hit) -> Result<(), String> {
        self.seen.hits += 1;
        self.seen.stale_hits += usize::from(hit.is_stale);
        for purge in self.purges.iter().filter(|purge| purge.forbids(&hit)) {
            let Some(at) = purge.acknowledged_at.filter(|at| *at < hit.at) else { continue };
            if purge.reached.contains(&hit.process) || purge.is_ordered && hit.at - at > GRACE + SLACK {
                return Err(format!("{hit:?} {} ms after {purge:?}", hit.at - at));
            }
            self.seen.late_hits += 1;
        }
        Ok(())
    }

    /// A process has taken over purges without hearing of them: to others it says that everything was purged.
    pub(super) fn adopted(&mut self, by: u64, origin: u64, last: u64) {
        let is_among = |purge: &&mut Purged| purge.place.is_some_and(|(of, seq)| of == origin && seq <= last);
        for purge in self.purges.iter_mut().filter(is_among) {
            purge.heard_by.insert(by);
        }
    }

    /// Checks what a process has stored in the end. `there` are the processes that are there.
    pub(super) fn check_at_end(&self, hit: Hit, there: &[u64]) -> Result<(), String> {
        let is_known = |purge: &&Purged| {
            purge.is_ordered || there.iter().any(|process| purge.heard_by.contains(process))
        };
        match self.purges.iter().filter(is_known).find(|purge| purge.forbids(&hit)) {
            Some(purge) => Err(format!("{hit:?} in the end, with {there:?}, in spite of {purge:?}")),
            None => Ok(()),
        }
    }
}
