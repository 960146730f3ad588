//! Purges that are still to be sent to Postgres.

use std::collections::HashMap;

use larder_policy::PurgeName;
use parking_lot::{Mutex, MutexGuard};

/// Maximum number of names that are remembered, 24 bytes each; beyond that, everything is forgotten.
const MAX_NAMES: usize = 10_000;

/// Purges that are still to be sent to Postgres, numbered, so that a purge of a name that is being sent stays pending.
#[derive(Debug, Default)]
pub(super) struct UnsentPurges(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    names: HashMap<PurgeName, u64>,
    everything: Option<u64>,
}

/// The pending purges at some moment.
#[derive(Debug)]
pub(super) struct Batch {
    last: u64,
    /// `None`: everything.
    names: Option<Vec<PurgeName>>,
}

impl Batch {
    /// Returns the names to forget; `None`: everything.
    pub(super) fn names(&self) -> Option<&[PurgeName]> {
        self.names.as_deref()
    }
}

impl UnsentPurges {
    pub(super) fn is_empty(&self) -> bool {
        self.state().is_empty()
    }

    pub(super) fn add(&self, names: &[PurgeName]) {
        let mut state = self.state();
        state.last += 1;
        let last = state.last;
        state.names.extend(names.iter().map(|name| (*name, last)));
        if state.names.len() > MAX_NAMES {
            state.everything = Some(last);
        }
        state.forget_what_everything_covers();
    }

    pub(super) fn add_everything(&self) {
        let mut state = self.state();
        state.last += 1;
        state.everything = Some(state.last);
        state.forget_what_everything_covers();
    }

    pub(super) fn inherit(&self, other: &Self) {
        match other.batch() {
            Some(Batch { names: Some(names), .. }) => self.add(&names),
            Some(Batch { names: None, .. }) => self.add_everything(),
            None => {}
        }
    }

    /// Returns the pending purges, if there are any.
    pub(super) fn batch(&self) -> Option<Batch> {
        let state = self.state();
        let names = state.everything.is_none().then(|| state.names.keys().copied().collect());
        (!state.is_empty()).then_some(Batch { last: state.last, names })
    }

    /// Removes purges that were sent.
    pub(super) fn remove(&self, sent: &Batch) {
        let mut state = self.state();
        state.names.retain(|_, at| *at > sent.last);
        if sent.names.is_none() {
            state.everything = state.everything.filter(|at| *at > sent.last);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.everything.is_none()
    }

    fn forget_what_everything_covers(&mut self) {
        if self.everything.is_some() {
            self.names.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(range: std::ops::Range<usize>) -> Vec<PurgeName> {
        range.map(|number| PurgeName::tag(&number.to_string())).collect()
    }

    fn count(unsent: &UnsentPurges) -> Option<usize> {
        unsent.batch().map(|batch| batch.names().map_or(usize::MAX, <[_]>::len))
    }

    #[test]
    fn name_purged_during_a_transmission_is_transmitted_again() {
        let unsent = UnsentPurges::default();
        assert_eq!(count(&unsent), None);
        unsent.add(&tags(0..2));
        let batch = unsent.batch().unwrap();
        unsent.add(&tags(1..3));
        unsent.remove(&batch);
        assert_eq!(count(&unsent), Some(2));
        unsent.remove(&unsent.batch().unwrap());
        assert!(unsent.is_empty());
    }

    #[test]
    fn too_many_names_are_everything() {
        let unsent = UnsentPurges::default();
        unsent.add(&tags(0..MAX_NAMES));
        assert_eq!(count(&unsent), Some(MAX_NAMES));
        let batch = unsent.batch().unwrap();
        unsent.add(&tags(MAX_NAMES..MAX_NAMES + 1));
        unsent.remove(&batch);
        assert_eq!(count(&unsent), Some(usize::MAX), "what was told is not everything");
        let batch = unsent.batch().unwrap();
        unsent.add_everything();
        unsent.remove(&batch);
        assert_eq!(count(&unsent), Some(usize::MAX), "it was purged again meanwhile");
        let heir = UnsentPurges::default();
        heir.inherit(&unsent);
        assert_eq!(count(&heir), Some(usize::MAX));
        unsent.remove(&unsent.batch().unwrap());
        assert!(unsent.is_empty());
    }
}
