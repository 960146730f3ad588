//! Counts of requests in progress.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Requests in progress, and how many there may be.
#[derive(Debug)]
pub struct InProgress {
    count: AtomicUsize,
    max: AtomicUsize,
}

impl Default for InProgress {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), max: AtomicUsize::new(usize::MAX) }
    }
}

impl InProgress {
    /// Allows so many at most.
    pub fn limit_to(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Maximum number of requests in progress.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Number of requests in progress.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// One request in progress, counted until this is dropped.
#[derive(Debug)]
pub struct Counted(Arc<InProgress>);

impl Counted {
    /// Begins a request if fewer than `max` are in progress, and returns how many those are.
    pub(crate) fn begin(among: &Arc<InProgress>, max: usize) -> Option<(Self, usize)> {
        // Dropping this undoes the addition.
        let counted = Self(Arc::clone(among));
        let before = among.count.fetch_add(1, Ordering::Relaxed);
        (before < max).then_some((counted, before))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}
