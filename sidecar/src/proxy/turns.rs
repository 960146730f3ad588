//! Taking turns with other pods: one asks for what several miss.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, error::Elapsed, timeout_at};

use super::{Answered, Proxy, fetch::Errand};
use crate::l2::{Leased, Patience, Waiting, Woken};

/// Time that a pod waits for others before it asks by itself, of what those who wait for it in turn allow it.
fn lease_wait(collapse_timeout: Duration) -> Duration {
    collapse_timeout * 9 / 10
}

impl Proxy {
    /// Waits while another pod asks for the same, and answers from what it stored. `None`: it is this pod's turn, or everybody
    /// is to ask for itself.
    pub(super) async fn wait_for_turn(self: &Arc<Self>, errand: &mut Errand) -> Option<Answered> {
        // It would be as long about a lease as about a lookup, and one wait is enough.
        if errand.redis_is_silent {
            return None;
        }
        let question = &errand.question;
        // Only what may be shared in this pod is shared with others, and an answer to HEAD is not stored for them.
        errand.lead.as_ref().filter(|_| !question.is_head())?;
        let (serving, key) = (Arc::clone(&question.serving), question.key.clone());
        let l2 = serving.l2.as_ref()?;
        let term = errand.question.route().collapse_timeout;
        let deadline = errand.began_at + lease_wait(term);
        let mut patience = Patience::Soft;
        loop {
            let about = (key.as_str(), &*errand.variant, errand.barrier);
            // Who has no time left takes the lease if it is free: what others hold has hung for long enough.
            match l2.lease(about, patience, term).await.ok()? {
                Leased::Granted(mut lease, is_stored) => {
                    self.telemetry.stats.leased(true);
                    let variant = errand.variant.clone();
                    // The one before us may have stored it since we looked.
                    let answered = match is_stored {
                        true => self.look_until(deadline, errand, patience).await,
                        false => None,
                    };
                    let is_other = errand.variant != variant && Instant::now() < deadline;
                    if answered.is_none() && is_other {
                        // There are variants after all: the lease of one is to be had, by those who wait for this, too.
                        lease.stored();
                        continue;
                    }
                    if answered.is_none() {
                        errand.lease = Some(lease);
                    }
                    return answered;
                }
                Leased::Held(_) if deadline <= Instant::now() => return None,
                Leased::Held(waiting) => {
                    let woken = self.wait_for(waiting, deadline).await.ok()?;
                    // What it has waited for is not to be lost to a Redis that is slow for a moment.
                    patience = Patience::Hard;
                    if woken == Woken::NotStored {
                        return None;
                    }
                    let answered = self.look_until(deadline, errand, patience).await;
                    if answered.is_some() || errand.redis_is_silent {
                        return answered;
                    }
                }
            }
        }
    }

    async fn look_until(
        self: &Arc<Self>,
        deadline: Instant,
        errand: &mut Errand,
        patience: Patience,
    ) -> Option<Answered> {
        timeout_at(deadline, self.look_in_redis(errand, patience)).await.ok().flatten()
    }

    async fn wait_for(&self, waiting: Waiting, deadline: Instant) -> Result<Woken, Elapsed> {
        self.telemetry.stats.leased(false);
        timeout_at(deadline, waiting.woken()).await
    }
}
