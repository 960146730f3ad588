//! Purges that pods tell one another of beside Redis.

use larder_policy::PurgeName;

use tokio::time::timeout;

use super::{L2, link::PURGE_DEADLINE};

/// A purge that Redis has ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Place in the order; 0 if there was nothing to purge.
    pub order: u64,
    /// True if every pod that listens to Redis has acknowledged it in time.
    pub by_all: bool,
    /// Number of pods that listen to Redis, this one among them; `None` if none had to be told, or another pod has passed the purge on.
    pub told: Option<usize>,
}

impl L2 {
    /// Applies a purge that another pod told of, and tells Redis soon, unless it was told by that pod. `version` is that of the policy
    /// whose names these are; the number is the purge's in messages of Redis, and the generation that in which Redis has ordered it.
    pub fn hear(&self, version: PurgeName, names: &[PurgeName], (number, generation): (u64, u64)) {
        self.link.hear(version, names, (number, generation));
    }

    /// Returns true if there are purges, or writes, that Redis could not be told of, or that a server in its place may not know of.
    pub fn has_pending_purges(&self) -> bool {
        self.link.has_pending_purges()
    }

    /// Returns true if Redis takes purges now, as far as this pod knows.
    pub fn takes_purges(&self) -> bool {
        self.link.connection().is_some() && self.version.is_listed() && self.barriers.are_current()
    }

    /// Returns true if Redis takes purges, by a write that it took after this was called. Those who ask at a time share it.
    pub async fn takes_purges_now(&self) -> bool {
        let writes = async {
            let Some(mut connection) = self.link.connection() else { return false };
            matches!(timeout(PURGE_DEADLINE, self.version.list(&mut connection)).await, Ok(Ok(())))
        };
        self.takes_purges() && self.round_trips.after_now(writes).await && self.takes_purges()
    }
}
