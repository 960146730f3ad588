//! What this pod purged of late.
//!
//! A master that is replaced while it lives takes purges until the pods have left it, and the new one never hears of them:
//! whoever comes from there tells them again.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use larder_policy::PurgeName;

/// Longer than a pod stays with a master that was replaced.
const LATE: Duration = Duration::from_secs(60);
/// More names than this are not kept one by one.
const MOST_NAMES: usize = 4096;

/// Names that were purged of late.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    /// The latest last.
    kept: VecDeque<(Instant, PurgeName)>,
    /// When everything was purged, or a name that is not kept.
    everything_at: Option<Instant>,
}

impl Told {
    /// These are about to be purged.
    pub(super) fn add(&self, names: &[PurgeName]) {
        let now = Instant::now();
        let mut told = self.lock();
        while told.kept.front().is_some_and(|(at, _)| is_past(*at)) {
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
    pub(super) fn add_everything(&self) {
        self.lock().everything_at = Some(Instant::now());
    }

    /// What was purged; `None`: everything.
    pub(super) fn recent(&self) -> Option<Vec<PurgeName>> {
        let told = self.lock();
        if told.everything_at.is_some_and(|at| !is_past(at)) {
            return None;
        }
        Some(told.kept.iter().filter(|(at, _)| !is_past(*at)).map(|(_, name)| *name).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_past(at: Instant) -> bool {
    at.elapsed() > LATE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_names_are_everything() {
        let told = Told::default();
        assert_eq!(told.recent(), Some(vec![]));
        let names: Vec<_> = (0..MOST_NAMES).map(|number| PurgeName::tag(&number.to_string())).collect();
        told.add(&names);
        assert_eq!(told.recent(), Some(names));
        told.add(&[PurgeName::tag("one more")]);
        assert_eq!(told.recent(), None);
        assert!(told.lock().kept.is_empty());
    }

    #[test]
    fn everything_is_everything() {
        let told = Told::default();
        told.add(&[PurgeName::tag("a")]);
        told.add_everything();
        assert_eq!(told.recent(), None);
    }
}
