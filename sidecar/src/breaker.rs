//! A circuit breaker.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::monotonic_ms;

/// Keeps a failing tier out of the request path: after several failures in a row it gets no requests for a while, then
/// a single trial request.
///
/// Guarantees: [`Breaker::allows`] never waits; while the breaker is open, it admits at most one caller per pause.
#[derive(Debug)]
pub struct Breaker {
    failures: AtomicU32,
    /// Time of the next trial, as [`monotonic_ms`]; 0 while closed.
    retry_at: AtomicU64,
    threshold: u32,
    pause: Duration,
}

/// Number of failures in a row after which a tier gets no requests, and the pause before the next trial.
const MAX_FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// The breaker of a tier.
impl Default for Breaker {
    fn default() -> Self {
        Self::new(MAX_FAILURES, PAUSE)
    }
}

impl Breaker {
    /// Creates a breaker that opens after `threshold` failures in a row, for `pause`.
    const fn new(threshold: u32, pause: Duration) -> Self {
        Self { failures: AtomicU32::new(0), retry_at: AtomicU64::new(0), threshold, pause }
    }

    /// Returns true if the tier may get a request now. The caller must then report the result.
    pub fn allows(&self) -> bool {
        self.allows_at(monotonic_ms())
    }

    fn allows_at(&self, now: u64) -> bool {
        let retry_at = self.retry_at.load(Ordering::Acquire);
        if retry_at == 0 {
            return true;
        }
        now >= retry_at
            && self
                .retry_at
                .compare_exchange(retry_at, self.pause_from(now), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Records a success of the tier.
    pub fn succeeded(&self) {
        self.failures.store(0, Ordering::Release);
        self.retry_at.store(0, Ordering::Release);
    }

    /// Records a failure of the tier.
    pub fn failed(&self) {
        self.failed_at(monotonic_ms());
    }

    fn failed_at(&self, now: u64) {
        if self.failures.fetch_add(1, Ordering::AcqRel) + 1 >= self.threshold {
            self.retry_at.store(self.pause_from(now), Ordering::Release);
        }
    }

    fn pause_from(&self, now: u64) -> u64 {
        now.saturating_add(u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX)).max(1)
    }

    /// Returns true if the breaker is closed.
    pub fn is_closed(&self) -> bool {
        self.retry_at.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_opens_after_failures_in_a_row_and_lets_one_try() {
        let breaker = Breaker::new(2, Duration::from_millis(100));
        breaker.failed_at(0);
        breaker.succeeded();
        breaker.failed_at(0);
        assert!(breaker.is_closed() && breaker.allows_at(1));
        breaker.failed_at(1);
        assert!(!breaker.is_closed() && !breaker.allows_at(100));
        assert!(breaker.allows_at(101));
        assert!(!breaker.allows_at(102), "only one caller tries");
        breaker.succeeded();
        assert!(breaker.allows_at(103));
    }
}
