//! Which pods have heard of a purge.
//!
//! A hit in memory asks nobody, so a writer's answer waits until the other pods know: otherwise the next read in one of
//! them races with the message on the bus, and loses about once in a hundred times.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// How long a purge waits for other pods. One that hangs must not make every writer wait for long.
const PATIENCE: Duration = Duration::from_millis(100);
/// Counts that nobody waits for any more are dropped when there are so many.
const MOST_COUNTS: usize = 1024;

/// Counts the pods that have heard of each purge of this pod's.
#[derive(Debug)]
pub(super) struct Acknowledgements {
    /// What this pod is called on the bus.
    pub(super) asker: u64,
    counts: Mutex<HashMap<u64, usize>>,
    counted: Notify,
}

impl Acknowledgements {
    pub(super) fn new(asker: u64) -> Self {
        Self { asker, counts: Mutex::default(), counted: Notify::new() }
    }

    /// A pod has heard of a purge.
    pub(super) fn count(&self, order: u64) {
        let mut counts = self.counts();
        if counts.len() >= MOST_COUNTS {
            counts.clear();
        }
        *counts.entry(order).or_default() += 1;
        drop(counts);
        self.counted.notify_waiters();
    }

    /// Waits until so many pods have heard of a purge, but not long.
    pub(super) async fn wait_for(&self, order: u64, pods: usize) {
        let heard = async {
            loop {
                let mut counted = std::pin::pin!(self.counted.notified());
                counted.as_mut().enable();
                if self.counts().get(&order).copied().unwrap_or(0) >= pods {
                    return;
                }
                counted.await;
            }
        };
        if timeout(PATIENCE, heard).await.is_err() {
            tracing::debug!(order, pods, "not every pod acknowledged a purge in time");
        }
        self.counts().remove(&order);
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_every_pod() {
        let acknowledgements = Acknowledgements::new(1);
        acknowledgements.count(7);
        let mut waiting = std::pin::pin!(acknowledgements.wait_for(7, 2));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        acknowledgements.count(8);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        acknowledgements.count(7);
        waiting.await;
        assert_eq!(acknowledgements.counts().len(), 1, "what was waited for is forgotten");
    }
}
