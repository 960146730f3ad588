//! Rate limit of log lines that clients cause.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::monotonic_ms;

/// Minimum time between two lines, in milliseconds.
const LOG_INTERVAL_MS: u64 = 1000;

/// Admits the first line of each second, with the number of omitted ones before it.
///
/// A line for each request would let clients fill the node's disk.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// Earliest time of the next line, as [`monotonic_ms`].
    next_at: AtomicU64,
    left_out: AtomicU64,
}

impl LogLimit {
    /// Returns the number of lines omitted since the last one, if another may be written.
    pub fn admits(&self) -> Option<u64> {
        self.admits_at(monotonic_ms())
    }

    fn admits_at(&self, now: u64) -> Option<u64> {
        let next_at = self.next_at.load(Ordering::Relaxed);
        let is_due = now >= next_at
            && self
                .next_at
                .compare_exchange(next_at, now + LOG_INTERVAL_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_due {
            Some(self.left_out.swap(0, Ordering::Relaxed))
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_counts_the_omitted_ones() {
        let log = LogLimit::default();
        assert_eq!(log.admits_at(5), Some(0));
        assert_eq!([log.admits_at(5), log.admits_at(1004)], [None, None]);
        assert_eq!(log.admits_at(1005), Some(2));
        assert_eq!(log.admits_at(9000), Some(0));
    }
}
