//! Leases: of many pods that miss the same key, one asks for it and the others wait for what it stores.
//!
//! A lease is a key in Redis with a token and an end. Who waits for one says so in Redis, and is woken over the bus; a
//! lease whose holder dies runs out. It saves work and decides nothing: two holders at once do no harm.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Instant, interval},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    L2, L2Error, Patience, commands,
    generation::random,
    leases::{LEASE_PREFIX, LEASE_TERM, LeaseWait},
};

/// A third of the term: one renewal that is late does not lose the lease.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(650);
/// Outcome of a request for a lease.
#[derive(Debug)]
pub enum LeaseOutcome {
    /// Granted to this pod; true if a response was stored under its key by then.
    Granted(Lease, bool),
    /// Another pod has it.
    Held(LeaseWait),
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
    ) -> Result<LeaseOutcome, L2Error> {
        // Without authentication nothing is stored that another pod could wait for.
        let seal = self.records.seal().ok_or(L2Error::Down)?;
        let keys = seal.keys().lease(key, variant, purge);
        let entry = match variant {
            "" => seal.keys().primary(key).name,
            variant => seal.keys().variant(key, variant).name,
        };
        // Before it is asked for: it may be given back at once.
        let mut waiting = self.link.leases().register(&keys[0]);
        let token = random();
        let reply = self
            .timed(("lease", &*keys[0]), self.deadline(patience), async {
                let mut connection = self.link.connection().ok_or(L2Error::Down)?;
                Ok(commands::lease(&mut connection, &keys, &entry, token, LEASE_TERM.min(longest)).await?)
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
                Ok(LeaseOutcome::Granted(lease, is_stored))
            }
            Ok(commands::LeaseReply::Held { left }) => {
                waiting.left = left.min(LEASE_TERM);
                Ok(LeaseOutcome::Held(waiting))
            }
        }
    }

    async fn keep_renewing(self: Arc<Self>, keys: [String; 2], token: u64, end: Instant) {
        let mut ticks = interval(RENEWAL_INTERVAL);
        ticks.tick().await;
        loop {
            let now = ticks.tick().await;
            let term = LEASE_TERM.min(end.saturating_duration_since(now));
            if term < RENEWAL_INTERVAL {
                return;
            }
            let renewed = self
                .timed(("renew", &*keys[0]), self.hard_timeout, async {
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
            .timed(("release", &*keys[0]), self.hard_timeout, async {
                let mut connection = self.link.connection().ok_or(L2Error::Down)?;
                let message = [LEASE_PREFIX, if stored { b"1" } else { b"0" }, keys[0].as_bytes()].concat();
                let channel = self.keys.barriers();
                Ok(commands::release(&mut connection, keys, token, channel, &message).await?)
            })
            .await;
        if let Err(error) = given_back {
            tracing::debug!(%error, "a lease was not given back; it runs out");
        }
    }
}
