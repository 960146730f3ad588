//! Requests in this pod that wait for leases of other pods ([`super::lease`]), and the messages that wake them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Time for which a lease lasts without renewal, and other pods wait for a holder that died.
pub(super) const LEASE_TERM: Duration = Duration::from_secs(2);
/// Prefix of messages on the bus about leases.
pub(super) const LEASE_PREFIX: &[u8] = b"L ";

/// Requests in this pod that wait for leases of other pods.
#[derive(Debug, Default)]
pub(super) struct Leases {
    waiting: Mutex<HashMap<Box<str>, Vec<oneshot::Sender<WakeReason>>>>,
}

/// Why somebody who waited for a lease goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// The response is in Redis.
    Stored,
    /// The lease ended without a stored response, so each pod fetches its own.
    NotStored,
    /// Nothing was heard of it for as long as it lasts, or the bus is gone.
    Silence,
}

/// Somebody who waits for a lease of another pod's.
#[derive(Debug)]
pub struct LeaseWait {
    leases: Arc<Leases>,
    key: Box<str>,
    woken: oneshot::Receiver<WakeReason>,
    pub(super) left: Duration,
}

impl Leases {
    pub(super) fn register(self: &Arc<Self>, key: &str) -> LeaseWait {
        let (sender, woken) = oneshot::channel();
        self.waiting.lock().entry(key.into()).or_default().push(sender);
        LeaseWait { leases: Arc::clone(self), key: key.into(), woken, left: LEASE_TERM }
    }

    /// Takes a message on the bus, if it is about a lease.
    pub(super) fn hear(&self, payload: &[u8]) -> bool {
        let Some(message) = payload.strip_prefix(LEASE_PREFIX) else { return false };
        let Some((outcome, key)) = message.split_first() else { return true };
        let waiting = std::str::from_utf8(key).ok().and_then(|key| self.waiting.lock().remove(key));
        let woken = if *outcome == b'1' { WakeReason::Stored } else { WakeReason::NotStored };
        for sender in waiting.into_iter().flatten() {
            // One that has gone away needs no waking.
            let _ = sender.send(woken);
        }
        true
    }

    /// The bus is gone: nobody is woken any more.
    pub(super) fn abandon(&self) {
        self.waiting.lock().clear();
    }
}

impl LeaseWait {
    /// Waits until the lease is given back, or for as long as it lasts.
    pub async fn woken(mut self) -> WakeReason {
        match tokio::time::timeout(self.left, &mut self.woken).await {
            Ok(Ok(woken)) => woken,
            Ok(Err(_)) | Err(_) => WakeReason::Silence,
        }
    }
}

impl Drop for LeaseWait {
    fn drop(&mut self) {
        self.woken.close();
        let mut waiting = self.leases.waiting.lock();
        if let Some(senders) = waiting.get_mut(&self.key) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiter_of_a_lease_is_woken_only_by_the_bus() {
        let leases = Arc::new(Leases::default());
        let (one, other) = (leases.register("a"), leases.register("b"));
        let gone = leases.register("a");
        drop(gone);
        assert!(!leases.hear(b"5 7 9 "), "a purge");
        assert!(leases.hear(b"L 1a"));
        assert_eq!(one.woken().await, WakeReason::Stored);
        assert!(leases.hear(b"L 0b"));
        assert_eq!(other.woken().await, WakeReason::NotStored);
        let last = leases.register("c");
        leases.abandon();
        assert_eq!(last.woken().await, WakeReason::Silence);
        for broken in [&b"L "[..], b"L 1", b"L 1\xff"] {
            assert!(leases.hear(broken));
        }
        assert!(leases.waiting.lock().is_empty());
    }
}
