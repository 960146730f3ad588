//! The property that must hold, and a record of a run.

use std::ops::AddAssign;

use super::protocol::{GRACE, PodId, Read};

/// Time that a busy event queue and drifting clocks may add to the grace.
const SLACK: u64 = 40;

/// Purges that were acknowledged.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    acknowledged: Vec<Acknowledged>,
    pub(super) seen: Seen,
}

#[derive(Debug)]
struct Acknowledged {
    key: usize,
    /// Value of the key in the application since the write.
    version: u64,
    at: u64,
    /// The pods that it was told to, if they all said so.
    reached: Vec<PodId>,
}

/// Counts of observed events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) hits: usize,
    /// Hits on what was purged, in pods that were not reached.
    pub(super) late_hits: usize,
    pub(super) lookups: usize,
    pub(super) joined: usize,
    pub(super) acknowledged: usize,
    pub(super) failovers: usize,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.late_hits += other.late_hits;
        self.lookups += other.lookups;
        self.joined += other.joined;
        self.acknowledged += other.acknowledged;
        self.failovers += other.failovers;
    }
}

impl Oracle {
    pub(super) fn acknowledged(&mut self, (key, version, at): (usize, u64, u64), reached: Vec<PodId>) {
        self.seen.acknowledged += 1;
        self.acknowledged.push(Acknowledged { key, version, at, reached });
    }

    pub(super) fn check(&mut self, read: Read) -> Result<(), String> {
        let Read { pod, key, began_at, version } = read;
        let removed =
            |purge: &&Acknowledged| purge.key == key && purge.version > version && purge.at < began_at;
        for purge in self.acknowledged.iter().filter(removed) {
            let late = began_at - purge.at;
            if purge.reached.contains(&pod) || late > GRACE + SLACK {
                return Err(format!("{read:?} began {late} ms after {purge:?}"));
            }
            self.seen.late_hits += 1;
        }
        Ok(())
    }
}
