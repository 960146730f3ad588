//! Recent purges of this pod.
//!
//! A master that is replaced while it lives takes purges until the pods have left it, and the new one never hears of them:
//! whoever comes from there tells them again.
//!
//! Time is that until which all purges are known to be applied ([`crate::barriers::Barriers::known_until`]): as long as no majority
//! of the Sentinels vouches for a master, nothing that it was told is forgotten.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use larder_policy::PurgeName;

/// Longer than a pod stays with a master that was replaced, in milliseconds.
const LATE_MS: u64 = 60_000;
/// More names than this are not kept one by one.
const MOST_NAMES: usize = 4096;

/// Names that were purged of late.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    /// The latest last, with the time in milliseconds until which all purges were known.
    kept: VecDeque<(u64, PurgeName)>,
    /// When a write passed for which this version of the policy names nothing.
    unnamed_write_at: Option<u64>,
    /// When everything was purged, or a name that is not kept.
    everything_at: Option<u64>,
}

impl Told {
    /// These are about to be purged. Without any, they are what pods of other versions stored.
    pub(super) fn add(&self, names: &[PurgeName], now: u64) {
        let mut told = self.lock();
        if names.is_empty() {
            told.unnamed_write_at = Some(now);
        }
        while told.kept.front().is_some_and(|(at, _)| is_past(*at, now)) {
            told.kept.pop_front();
        }
        if told.kept.len() + names.len() > MOST_NAMES {
            told.kept.clear();
            told.everything_at = Some(now);
        } else {
            told.kept.extend(names.iter().map(|name| (now, *name)));
        }
    }

    /// Everything is about to be purged.
    pub(super) fn add_everything(&self, now: u64) {
        self.lock().everything_at = Some(now);
    }

    /// Returns the names that were purged recently; `None` means everything.
    pub(super) fn recent(&self, now: u64) -> Option<Vec<PurgeName>> {
        let told = self.lock();
        if told.everything_at.is_some_and(|at| !is_past(at, now)) {
            return None;
        }
        let unnamed =
            told.unnamed_write_at.filter(|at| !is_past(*at, now)).map(|_| PurgeName::unnamed_write());
        let kept = told.kept.iter().filter(|(at, _)| !is_past(*at, now)).map(|(_, name)| *name);
        Some(kept.chain(unnamed).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn is_past(at: u64, now: u64) -> bool {
    now.saturating_sub(at) > LATE_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_names_are_everything() {
        let told = Told::default();
        assert_eq!(told.recent(1), Some(vec![]));
        let names: Vec<_> = (0..MOST_NAMES).map(|number| PurgeName::tag(&number.to_string())).collect();
        told.add(&names, 0);
        assert_eq!(told.recent(1), Some(names));
        told.add(&[PurgeName::tag("one more")], 0);
        assert_eq!(told.recent(1), None);
        assert!(told.lock().kept.is_empty());
    }

    #[test]
    fn write_without_a_name_is_repeated_as_such() {
        let told = Told::default();
        told.add(&[], 0);
        told.add(&[PurgeName::tag("a")], 0);
        told.add(&[], 0);
        assert_eq!(told.recent(1), Some(vec![PurgeName::tag("a"), PurgeName::unnamed_write()]));
        assert_eq!(told.recent(LATE_MS + 1), Some(vec![]));
    }

    #[test]
    fn everything_is_everything() {
        let told = Told::default();
        told.add(&[PurgeName::tag("a")], 0);
        told.add_everything(0);
        assert_eq!(told.recent(1), None);
        assert_eq!(told.recent(LATE_MS + 1), Some(vec![]), "in time it is forgotten");
    }
}
