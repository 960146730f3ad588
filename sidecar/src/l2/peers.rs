//! Purges that pods tell one another of beside Redis.

use larder_policy::PurgeName;

use super::L2;

/// A purge that Redis has ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Place in the order; 0 if there was nothing to purge.
    pub order: u64,
    /// True if every pod that listens to Redis has acknowledged it in time.
    pub by_all: bool,
}

impl L2 {
    /// Applies a purge that another pod told of, and tells Redis soon, unless it was told by that pod. `version` is that of the policy
    /// whose names these are; the number is the purge's in messages of Redis, and the generation that in which Redis has ordered it.
    pub fn hear(&self, version: PurgeName, names: &[PurgeName], (number, generation): (u64, u64)) {
        self.link.hear(version, names, (number, generation));
    }

    /// Returns true if Redis takes purges now, as far as this pod knows.
    pub fn takes_purges(&self) -> bool {
        self.link.connection().is_some() && self.version.is_listed() && self.barriers.are_current()
    }
}
