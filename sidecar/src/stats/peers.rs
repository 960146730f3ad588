//! Counters of purges from pod to pod.

use std::sync::atomic::{AtomicU64, Ordering};

larder_api::labelled! {
    /// Outcome of a purge that went from pod to pod.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum PeerOutcome {
        /// Another pod acknowledged it in time.
        Acknowledged = "acknowledged",
        /// Another pod did not acknowledge it in time.
        Missed = "missed",
        /// Another pod told of it.
        Heard = "heard",
    }
}

/// Counters of purges from pod to pod.
#[derive(Debug, Default)]
pub struct PeerStats {
    purges: [AtomicU64; PeerOutcome::ALL.len()],
    reachable: AtomicU64,
    unreachable: AtomicU64,
}

impl PeerStats {
    /// Counts purges, once for each other pod.
    pub fn count(&self, outcome: PeerOutcome, purges: usize) {
        self.purges[outcome as usize].fetch_add(purges as u64, Ordering::Relaxed);
    }

    /// Returns the number of purges, once for each other pod.
    pub fn purges(&self, outcome: PeerOutcome) -> u64 {
        self.purges[outcome as usize].load(Ordering::Relaxed)
    }

    /// Records the numbers of pods that can and can't be told.
    pub fn set_pods(&self, reachable: usize, unreachable: usize) {
        self.reachable.store(reachable as u64, Ordering::Relaxed);
        self.unreachable.store(unreachable as u64, Ordering::Relaxed);
    }

    /// Returns the numbers of pods that could and could not be told a second ago.
    pub fn pods(&self) -> [(&'static str, u64); 2] {
        let [reachable, unreachable] =
            [&self.reachable, &self.unreachable].map(|pods| pods.load(Ordering::Relaxed));
        [("reachable", reachable), ("unreachable", unreachable)]
    }
}
