//! Catching up with Redis: a pod tells it what it has not heard of, and reads all barriers.
//!
//! Like [`super::bus`], this does no I/O: it says what to do next, and is told what came of it.

use anyhow::ensure;
use larder_policy::PurgeName;

use super::{generation::Mark, pending::PendingPurges};
use crate::barriers::{Barriers, RedisBarriers, Stamp};

/// Connection that catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CatchingUp {
    /// The one that is in use.
    InUse,
    /// A new one.
    New,
    /// A new one, to another Redis than before, it may be.
    Moved,
}

/// Next step of catching up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Reads all barriers.
    Read,
    /// Ends this generation.
    PurgeEverything(u64),
    /// Purges these names.
    Purge(Vec<PurgeName>),
    /// Nothing: it has caught up. Whether Redis was, or may have been, another one before.
    Done { has_changed: bool },
}

/// A pod that catches up.
#[derive(Debug)]
pub(super) struct CatchUp {
    which: CatchingUp,
    mark: Mark,
    known: Stamp,
    /// Whoever begins a generation after this covers it.
    local_floor: u64,
    pending: PendingPurges,
    found: Option<Found>,
}

/// Result of the first reading.
#[derive(Clone, Copy, Debug)]
struct Found {
    everything: bool,
    has_changed: bool,
}

impl CatchUp {
    /// Begins with [`Step::Read`]. `mark` is that of the server, `pending` what it has not heard of.
    pub(super) fn new(barriers: &Barriers, pending: PendingPurges, mark: Mark, which: CatchingUp) -> Self {
        let (known, local_floor) = (barriers.stamp_of(0), barriers.local_floor());
        Self { which, mark, known, local_floor, pending, found: None }
    }

    /// Returns the purges that Redis is told.
    pub(super) const fn pending(&self) -> &PendingPurges {
        &self.pending
    }

    /// Returns the last purge that was known before anything was read.
    pub(super) const fn known_order(&self) -> u64 {
        self.known.order
    }

    /// All barriers have been read. When it returns [`Step::Done`], `barriers` are as Redis has them.
    ///
    /// # Errors
    /// If another server counts than the one that was connected to.
    pub(super) fn read(&mut self, barriers: &Barriers, snapshot: &RedisBarriers) -> anyhow::Result<Step> {
        if let Some(found) = self.found {
            ensure!(self.mark.began(snapshot.generation), "another server has begun to count");
            return Ok(self.take_over(barriers, snapshot, found));
        }
        // A Redis that came back as it was earlier has lost purges, and gives their numbers away again.
        let went_back = snapshot.generation == self.known.generation && snapshot.order < self.known.order;
        // Another server took over, or the same one began anew: it may have gone back and counted on.
        let elsewhere = !self.mark.began(snapshot.generation);
        ensure!(!elsewhere || self.which != CatchingUp::InUse, "the server has changed its role");
        // The pod may come from another Redis, and pods at this one may not have heard its purges.
        let has_changed = self.which != CatchingUp::InUse
            && self.known.generation != 0
            && snapshot.generation != self.known.generation;
        let everything = went_back
            || elsewhere
            || self.local_floor > 0
            || (has_changed && self.which == CatchingUp::Moved);
        let found = Found { everything, has_changed };
        self.found = Some(found);
        Ok(if everything {
            Step::PurgeEverything(snapshot.generation)
        } else if self.pending.is_empty() {
            self.take_over(barriers, snapshot, found)
        } else {
            Step::Purge(self.pending.to_tell())
        })
    }

    fn take_over(&self, barriers: &Barriers, snapshot: &RedisBarriers, found: Found) -> Step {
        barriers.resync(snapshot);
        if found.everything {
            barriers.settle_everything(self.pending.up_to.max(self.local_floor));
        } else {
            barriers.settle(&self.pending.names, self.pending.up_to);
        }
        Step::Done { has_changed: found.has_changed }
    }
}
