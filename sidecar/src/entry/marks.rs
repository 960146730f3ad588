//! Marks of a stored response, which readers set.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::monotonic_ms;

/// A reader found that the response is due for an early renewal, but had no time for it.
const RENEWAL_IS_DUE: u64 = 1;
/// The response is stale whatever its lifetime.
const IS_OUTDATED: u64 = 1 << 1;
/// Number of these bits.
const FLAGS: u32 = 2;

/// The time until which the response is served in place of failed ones without another attempt, as [`monotonic_ms`], above the bits of
/// the other marks.
#[derive(Debug, Default)]
pub(super) struct Marks(AtomicU64);

impl Marks {
    pub(super) fn mark_fallback_for(&self, interval: Duration) {
        let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let until = monotonic_ms().saturating_add(interval).min(u64::MAX >> FLAGS);
        // This mark is set before the response has readers.
        let outdated = self.0.load(Ordering::Relaxed) & IS_OUTDATED;
        self.0.store(until << FLAGS | outdated, Ordering::Relaxed);
    }

    pub(super) fn is_fallback(&self) -> bool {
        let until = self.0.load(Ordering::Relaxed) >> FLAGS;
        until != 0 && monotonic_ms() < until
    }

    pub(super) fn ask_for_renewal(&self) {
        self.0.fetch_or(RENEWAL_IS_DUE, Ordering::Relaxed);
    }

    pub(super) fn takes_renewal(&self) -> bool {
        let is_due = |state| state & RENEWAL_IS_DUE != 0;
        is_due(self.0.load(Ordering::Relaxed)) && is_due(self.0.fetch_and(!RENEWAL_IS_DUE, Ordering::Relaxed))
    }

    pub(super) fn set_outdated(&mut self) {
        *self.0.get_mut() |= IS_OUTDATED;
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.0.load(Ordering::Relaxed) & IS_OUTDATED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_independent() {
        let mut marks = Marks::default();
        assert!(!marks.is_outdated() && !marks.is_fallback() && !marks.takes_renewal());
        marks.set_outdated();
        marks.ask_for_renewal();
        assert!(marks.is_outdated() && !marks.is_fallback());
        assert!(marks.takes_renewal() && !marks.takes_renewal());
        marks.mark_fallback_for(Duration::MAX);
        assert!(marks.is_outdated() && marks.is_fallback() && !marks.takes_renewal());
        marks.mark_fallback_for(Duration::ZERO);
        assert!(marks.is_outdated() && !marks.is_fallback());
    }
}
