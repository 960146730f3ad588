//! Purges that Redis has not heard of.

use larder_policy::PurgeName;

/// More purged names than this are not remembered one by one while Redis is away: everything is purged instead.
const MAX_NAMES: usize = 4096;

/// Purges that Redis has not heard of.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingPurges {
    pub(super) names: Vec<PurgeName>,
    /// The last of them, in this pod's own order.
    pub(super) up_to: u64,
    /// Number of writes for which this version of the policy names nothing: responses that pods of others stored before are stale.
    pub(super) unnamed_writes: u64,
}

impl PendingPurges {
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

    /// Returns true if Redis has heard of all.
    pub(super) const fn is_empty(&self) -> bool {
        self.names.is_empty() && self.unnamed_writes == 0
    }

    /// The names that Redis is to be told: that of an unnamed write covers nothing but what other versions stored.
    pub(super) fn to_tell(&self) -> Vec<PurgeName> {
        let unnamed = (self.unnamed_writes > 0).then(PurgeName::unnamed_write);
        self.names.iter().copied().chain(unnamed).collect()
    }

    /// Forgets what Redis was told. What came meanwhile was added at the end, unless there was so much that everything is purged.
    pub(super) fn forget(&mut self, told: &Self) {
        self.unnamed_writes -= told.unnamed_writes;
        let told = told.names.len().min(self.names.len());
        self.names.drain(..told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purge_during_a_transmission_is_transmitted_next() {
        let mut pending = PendingPurges::default();
        assert!(pending.is_empty() && pending.add(&[PurgeName::tag("a")], 1));
        pending.unnamed_writes += 1;
        let told = pending.clone();
        assert_eq!(told.to_tell(), [PurgeName::tag("a"), PurgeName::unnamed_write()]);
        pending.unnamed_writes += 1;
        pending.forget(&told);
        assert_eq!((pending.is_empty(), pending.to_tell()), (false, vec![PurgeName::unnamed_write()]));
        pending.forget(&pending.clone());
        assert!(pending.is_empty());
    }
}
