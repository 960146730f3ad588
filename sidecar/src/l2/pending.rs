//! Purges that Redis has not heard of.

use larder_policy::PurgeName;

/// More purged names than this are not remembered one by one while Redis is away: everything is purged instead.
const MAX_NAMES: usize = 4096;

/// Purges that Redis has not heard of.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    pub(super) names: Vec<PurgeName>,
    /// The last of them, in this pod's own order.
    pub(super) up_to: u64,
}

impl Pending {
    /// Remembers names whose barriers this pod raised, `up_to` being their place in its own order. Returns whether there is room:
    /// if not, everything is to be purged.
    #[must_use]
    pub(super) fn add(&mut self, names: &[PurgeName], up_to: u64) -> bool {
        self.up_to = up_to;
        let has_room = self.names.len() + names.len() <= MAX_NAMES;
        if has_room {
            self.names.extend_from_slice(names);
        } else {
            self.names.clear();
        }
        has_room
    }

    /// Forgets what Redis was told. What came meanwhile was added at the end, unless there was so much that everything is purged.
    pub(super) fn forget(&mut self, told: &Self) {
        let told = told.names.len().min(self.names.len());
        self.names.drain(..told);
    }
}
