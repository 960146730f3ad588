//! Acknowledgements of purges by other pods.
//!
//! A hit in memory asks nobody, so a writer's answer waits until the other pods know: otherwise the next read in one of
//! them races with the message on the bus, and loses about once in a hundred times.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

/// Maximum time for which a purge waits for other pods, so that a pod that hangs does not delay every writer for long.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_millis(100);
/// More counts than this are not kept: the oldest go first, which nobody waits for any more.
const MAX_COUNTS: usize = 4096;

/// Counts the pods that have heard of each purge of this pod's.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    counts: Mutex<Counts>,
    counted: Notify,
}

/// The number of pods in which a purge holds, by what the pod that asked for it was called on the bus then, and its order.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<(u64, u64), usize>);

impl Counts {
    /// Purges hold in one more pod.
    pub(super) fn count(&mut self, asker: u64, orders: &[u64]) {
        for order in orders {
            *self.0.entry((asker, *order)).or_default() += 1;
            if self.0.len() > MAX_COUNTS {
                self.0.pop_first();
            }
        }
    }

    /// Returns true if this number of pods has acknowledged a purge.
    pub(super) fn has_reached(&self, asker: u64, order: u64, pods: usize) -> bool {
        self.0.get(&(asker, order)).copied().unwrap_or(0) >= pods
    }

    /// Nobody waits for this purge any more.
    pub(super) fn forget(&mut self, asker: u64, order: u64) {
        self.0.remove(&(asker, order));
    }
}

impl Acknowledgements {
    /// A pod has heard of purges that were asked for under this name.
    pub(super) fn count(&self, asker: u64, orders: &[u64]) {
        self.counts.lock().count(asker, orders);
        self.counted.notify_waiters();
    }

    /// Waits until so many pods have heard of a purge, but not long. Returns true if they have.
    pub(super) async fn wait_for(&self, asker: u64, order: u64, pods: usize) -> bool {
        let heard = async {
            loop {
                let mut counted = std::pin::pin!(self.counted.notified());
                counted.as_mut().enable();
                if self.counts.lock().has_reached(asker, order, pods) {
                    return;
                }
                counted.await;
            }
        };
        let have_heard = timeout(ACKNOWLEDGEMENT_TIMEOUT, heard).await.is_ok();
        if !have_heard {
            tracing::debug!(order, pods, "not every pod acknowledged a purge in time");
        }
        self.counts.lock().forget(asker, order);
        have_heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn purge_waits_for_every_pod() {
        let acknowledgements = Acknowledgements::default();
        acknowledgements.count(1, &[7]);
        let mut waiting = std::pin::pin!(acknowledgements.wait_for(1, 7, 2));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        acknowledgements.count(1, &[8]);
        acknowledgements.count(2, &[7]);
        assert!(futures::poll!(waiting.as_mut()).is_pending(), "another purge, and another pod's");
        acknowledgements.count(1, &[6, 7]);
        assert!(waiting.await);
        assert_eq!(acknowledgements.counts.lock().0.len(), 3, "what was waited for is forgotten");
    }

    #[test]
    fn oldest_acknowledgements_make_room() {
        let mut counts = Counts::default();
        for order in 0..10_000 {
            counts.count(1, &[order]);
        }
        assert_eq!(counts.0.len(), MAX_COUNTS);
        assert!(counts.has_reached(1, 9_999, 1) && !counts.has_reached(1, 0, 1));
    }
}
