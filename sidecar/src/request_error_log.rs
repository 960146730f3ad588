//! Rate-limited log of rejected requests.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{clock::monotonic_ms, http1_guard::RequestError};

/// Minimum time between two lines, in milliseconds.
const LOG_INTERVAL_MS: u64 = 1000;

/// Logs rejected requests: the first of each second, with the number of omitted ones before it.
///
/// A line for each would let clients fill the node's disk.
#[derive(Debug, Default)]
pub struct RequestErrorLog {
    /// Earliest time of the next line, as [`monotonic_ms`].
    next_at: AtomicU64,
    left_out: AtomicU64,
}

impl RequestErrorLog {
    /// Records that a request of `client` was rejected.
    pub fn note(&self, error: RequestError, client: IpAddr) {
        if let Some(left_out) = self.admits(monotonic_ms()) {
            tracing::warn!(
                reason = error.as_str(),
                status = error.status().as_u16(),
                %client,
                left_out,
                "refused a request: {}",
                error.detail()
            );
        }
    }

    /// Returns the number of lines omitted since the last one, if another may be written.
    fn admits(&self, now: u64) -> Option<u64> {
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
        let log = RequestErrorLog::default();
        assert_eq!(log.admits(5), Some(0));
        assert_eq!([log.admits(5), log.admits(1004)], [None, None]);
        assert_eq!(log.admits(1005), Some(2));
        assert_eq!(log.admits(9000), Some(0));
    }
}
