//! Leases: of many pods that miss the same key, one asks for it and the others wait for what it stores.
//!
//! A lease is a key in Redis with a token and an end. Who waits for one says so in Redis, and is woken over the bus; a
//! lease whose holder dies runs out. It saves work and decides nothing: two holders at once do no harm.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, interval},
};
use tokio_util::task::AbortOnDropHandle;

use super::{L2, L2Error, Patience, commands, generation::random};

/// Time for which a lease lasts without renewal, and other pods wait for a holder that died.
pub(super) const TERM: Duration = Duration::from_secs(2);
/// A third: one renewal that is late does not lose it.
const RENEWAL: Duration = Duration::from_millis(650);
/// Prefix of messages on the bus about leases.
const MARK: &[u8] = b"L ";

/// Requests in this pod that wait for leases of other pods.
#[derive(Debug, Default)]
pub(super) struct Leases {
    waiting: Mutex<HashMap<Box<str>, Vec<oneshot::Sender<Woken>>>>,
}

/// Why somebody who waited for a lease goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The response is in Redis.
    Stored,
    /// The lease ended without a stored response, so each pod fetches its own.
    NotStored,
    /// Nothing was heard of it for as long as it lasts, or the bus is gone.
    Silence,
}

/// Outcome of a request for a lease.
#[derive(Debug)]
pub enum Leased {
    /// Granted to this pod; true if a response was stored under its key by then.
    Granted(Lease, bool),
    /// Another pod has it.
    Held(Waiting),
}

/// A lease of this pod's. Dropping it gives it back, and wakes those who wait for it.
#[derive(Debug)]
pub struct Lease {
    l2: Arc<L2>,
    /// Keys of the lease and of those who wait for it.
    keys: [String; 2],
    token: u64,
    stored: bool,
    _renewal: AbortOnDropHandle<()>,
}

/// Somebody who waits for a lease of another pod's.
#[derive(Debug)]
pub struct Waiting {
    leases: Arc<Leases>,
    key: Box<str>,
    woken: oneshot::Receiver<Woken>,
    left: Duration,
}

impl Leases {
    fn register(self: &Arc<Self>, key: &str) -> Waiting {
        let (sender, woken) = oneshot::channel();
        self.lock().entry(key.into()).or_default().push(sender);
        Waiting { leases: Arc::clone(self), key: key.into(), woken, left: TERM }
    }

    /// Takes a message on the bus, if it is about a lease.
    pub(super) fn hear(&self, payload: &[u8]) -> bool {
        let Some(message) = payload.strip_prefix(MARK) else { return false };
        let Some((outcome, key)) = message.split_first() else { return true };
        let waiting = std::str::from_utf8(key).ok().and_then(|key| self.lock().remove(key));
        let woken = if *outcome == b'1' { Woken::Stored } else { Woken::NotStored };
        for sender in waiting.into_iter().flatten() {
            // One that has gone away needs no waking.
            let _ = sender.send(woken);
        }
        true
    }

    /// The bus is gone: nobody is woken any more.
    pub(super) fn abandon(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<oneshot::Sender<Woken>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Waits until the lease is given back, or for as long as it lasts.
    pub async fn woken(mut self) -> Woken {
        match tokio::time::timeout(self.left, &mut self.woken).await {
            Ok(Ok(woken)) => woken,
            Ok(Err(_)) | Err(_) => Woken::Silence,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.woken.close();
        let mut waiting = self.leases.lock();
        if let Some(senders) = waiting.get_mut(&self.key) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}

impl Lease {
    /// Notes that the response is in Redis, where those who wait find it.
    pub fn stored(&mut self) {
        self.stored = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Where no runtime is left the process ends, and the lease runs out.
        let Ok(runtime) = Handle::try_current() else { return };
        let (l2, keys, token, stored) = (Arc::clone(&self.l2), self.keys.clone(), self.token, self.stored);
        runtime.spawn(async move { l2.give_back(&keys, token, stored).await });
    }
}

impl L2 {
    /// Asks for the lease of a key, or of the variant that a lookup named, since the last purge that it
    /// named. It ends after `longest` even if it is not given back: the source of one pod may hang while those of others do not.
    ///
    /// # Errors
    /// If Redis is down, slow or unwilling: then there are no leases.
    pub async fn lease(
        self: &Arc<Self>,
        (key, variant, purge): (&str, &str, u64),
        patience: Patience,
        longest: Duration,
    ) -> Result<Leased, L2Error> {
        // Without authentication nothing is stored that another pod could wait for.
        let scope = self.records.seal().ok_or(L2Error::Down)?.scope(&self.shape);
        let keys = self.keys.lease(&scope, key, variant, purge);
        let entry = match variant {
            "" => self.keys.primary(&scope, key),
            variant => self.keys.variant(&scope, key, variant),
        };
        // Before it is asked for: it may be given back at once.
        let mut waiting = self.link.leases().register(&keys[0]);
        let token = random();
        let reply = self
            .timed("lease", self.deadline(patience), async {
                let mut connection = self.link.connection().ok_or(L2Error::Down)?;
                Ok(commands::lease(&mut connection, &keys, &entry, token, TERM.min(longest)).await?)
            })
            .await;
        match reply {
            // The lease may have been granted all the same, and expires.
            Err(error) => Err(error),
            Ok(commands::LeaseReply::Granted { is_stored }) => {
                let renewal = tokio::spawn(Arc::clone(self).keep_renewing(
                    keys.clone(),
                    token,
                    Instant::now() + longest,
                ));
                let renewal = AbortOnDropHandle::new(renewal);
                let lease = Lease { l2: Arc::clone(self), keys, token, stored: false, _renewal: renewal };
                Ok(Leased::Granted(lease, is_stored))
            }
            Ok(commands::LeaseReply::Held { left }) => {
                waiting.left = left.min(TERM);
                Ok(Leased::Held(waiting))
            }
        }
    }

    async fn keep_renewing(self: Arc<Self>, keys: [String; 2], token: u64, end: Instant) {
        let mut ticks = interval(RENEWAL);
        ticks.tick().await;
        loop {
            let now = ticks.tick().await;
            let term = TERM.min(end.saturating_duration_since(now));
            if term < RENEWAL {
                return;
            }
            let renewed = self
                .timed("renew", self.hard_timeout, async {
                    let mut connection = self.link.connection().ok_or(L2Error::Down)?;
                    Ok(commands::renew(&mut connection, &keys[0], token, term).await?)
                })
                .await;
            if matches!(renewed, Ok(false)) {
                return;
            }
        }
    }

    async fn give_back(&self, keys: &[String; 2], token: u64, stored: bool) {
        let given_back = self
            .timed("release", self.hard_timeout, async {
                let mut connection = self.link.connection().ok_or(L2Error::Down)?;
                let message = [MARK, if stored { b"1" } else { b"0" }, keys[0].as_bytes()].concat();
                let channel = self.keys.barriers();
                Ok(commands::release(&mut connection, keys, token, channel, &message).await?)
            })
            .await;
        if let Err(error) = given_back {
            tracing::debug!(%error, "a lease was not given back; it runs out");
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
        assert_eq!(one.woken().await, Woken::Stored);
        assert!(leases.hear(b"L 0b"));
        assert_eq!(other.woken().await, Woken::NotStored);
        let last = leases.register("c");
        leases.abandon();
        assert_eq!(last.woken().await, Woken::Silence);
        for broken in [&b"L "[..], b"L 1", b"L 1\xff"] {
            assert!(leases.hear(broken));
        }
        assert!(leases.lock().is_empty());
    }
}
