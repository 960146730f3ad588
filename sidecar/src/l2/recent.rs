//! Recent purges of this pod.
//!
//! A master that is replaced while it lives takes purges until the pods have left it, and the new one never hears of them:
//! whoever comes from there tells them again.
//!
//! Time is that until which all purges are known to be applied ([`crate::barriers::Barriers::known_until`]): as long as no majority
//! of the Sentinels vouches for a master, nothing that it was recent is forgotten.

use std::collections::VecDeque;

use larder_policy::PurgeName;
use parking_lot::Mutex;

/// Longer than a pod stays with a master that was replaced, in milliseconds.
const RECENT_MS: u64 = 60_000;
/// More names than this are not kept one by one.
const MAX_NAMES: usize = 4096;

/// Names that were purged of late.
#[derive(Debug, Default)]
pub(super) struct RecentPurges(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    /// The latest last, with the time in milliseconds until which all purges were known.
    kept: VecDeque<(u64, PurgeName)>,
    /// When a write passed for which this version of the policy names nothing.
    unnamed_write_at: Option<u64>,
    /// When everything was purged, or a name that is not kept.
    everything_at: Option<u64>,
}

impl RecentPurges {
    /// These are about to be purged. Without any, they are what pods of other versions stored.
    pub(super) fn add(&self, names: &[PurgeName], now: u64) {
        let mut recent = self.0.lock();
        if names.is_empty() {
            recent.unnamed_write_at = Some(now);
        }
        while recent.kept.front().is_some_and(|(at, _)| is_past(*at, now)) {
            recent.kept.pop_front();
        }
        if recent.kept.len() + names.len() > MAX_NAMES {
            recent.kept.clear();
            recent.everything_at = Some(now);
        } else {
            recent.kept.extend(names.iter().map(|name| (now, *name)));
        }
    }

    /// Everything is about to be purged.
    pub(super) fn add_everything(&self, now: u64) {
        self.0.lock().everything_at = Some(now);
    }

    /// Returns the names that were purged recently; `None` means everything.
    pub(super) fn names(&self, now: u64) -> Option<Vec<PurgeName>> {
        let recent = self.0.lock();
        if recent.everything_at.is_some_and(|at| !is_past(at, now)) {
            return None;
        }
        let unnamed =
            recent.unnamed_write_at.filter(|at| !is_past(*at, now)).map(|_| PurgeName::unnamed_write());
        let kept = recent.kept.iter().filter(|(at, _)| !is_past(*at, now)).map(|(_, name)| *name);
        Some(kept.chain(unnamed).collect())
    }
}

const fn is_past(at: u64, now: u64) -> bool {
    now.saturating_sub(at) > RECENT_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_names_are_everything() {
        let recent = RecentPurges::default();
        assert_eq!(recent.names(1), Some(vec![]));
        let names: Vec<_> = (0..MAX_NAMES).map(|number| PurgeName::tag(&number.to_string())).collect();
        recent.add(&names, 0);
        assert_eq!(recent.names(1), Some(names));
        recent.add(&[PurgeName::tag("one more")], 0);
        assert_eq!(recent.names(1), None);
        assert!(recent.0.lock().kept.is_empty());
    }

    #[test]
    fn write_without_a_name_is_repeated_as_such() {
        let recent = RecentPurges::default();
        recent.add(&[], 0);
        recent.add(&[PurgeName::tag("a")], 0);
        recent.add(&[], 0);
        assert_eq!(recent.names(1), Some(vec![PurgeName::tag("a"), PurgeName::unnamed_write()]));
        assert_eq!(recent.names(RECENT_MS + 1), Some(vec![]));
    }

    #[test]
    fn everything_is_everything() {
        let recent = RecentPurges::default();
        recent.add(&[PurgeName::tag("a")], 0);
        recent.add_everything(0);
        assert_eq!(recent.names(1), None);
        assert_eq!(recent.names(RECENT_MS + 1), Some(vec![]), "in time it is forgotten");
    }
}
