//! The times at which other pods were asked for everything that they know.

use std::collections::BTreeMap;

use super::log::RETENTION_MS;

/// Time after which a process that was not asked may have forgotten something, in milliseconds. Shorter than what it remembers: it may have
/// heard of that before the request arrived, withheld it for a moment, or be an old reply that the other side has.
pub(super) const GAP_MS: u64 = RETENTION_MS - 60_000;

/// The last time at which each process was asked, as [`crate::clock::boot_ms`].
#[derive(Debug, Default)]
pub(super) struct Contacts(BTreeMap<u64, u64>);

impl Contacts {
    /// Records that a process was asked, or told on its own what an answer would have said.
    pub(super) fn record(&mut self, instance: u64, at: u64) {
        let last = self.0.entry(instance).or_default();
        *last = at.max(*last);
    }

    /// Returns true if a process may have forgotten purges since it was asked, or since both of them were there, for `age_ms`.
    pub(super) fn is_after_gap(&self, instance: u64, age_ms: u64, now: u64) -> bool {
        let since = self.0.get(&instance).map_or(age_ms, |at| now.saturating_sub(*at));
        since > GAP_MS
    }

    /// Forgets processes that are gone.
    pub(super) fn forget_old(&mut self, now: u64) {
        self.0.retain(|_, at| now.saturating_sub(*at) <= 2 * RETENTION_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gap_is_a_time_in_which_purges_may_have_been_forgotten() {
        let mut contacts = Contacts::default();
        assert!(!contacts.is_after_gap(1, GAP_MS, 0), "one of the two is new");
        assert!(contacts.is_after_gap(1, GAP_MS + 1, 0));
        contacts.record(1, 10);
        contacts.record(1, 9);
        assert!(!contacts.is_after_gap(1, u64::MAX, 10 + GAP_MS));
        assert!(contacts.is_after_gap(1, u64::MAX, 11 + GAP_MS));
        contacts.forget_old(11 + 2 * RETENTION_MS);
        assert!(contacts.0.is_empty());
    }
}
