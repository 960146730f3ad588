//! The stage that waits for another pod that fetches the same response.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, error::Elapsed, timeout_at};

use super::{
    Proxy, Served,
    fetch::{Fetch, Step},
};
use crate::l2::{LeaseOutcome, LeaseWait, Patience, WakeReason};

/// Returns the time that a pod waits for others before it fetches by itself: less than the requests wait that it leads in this pod.
fn lease_wait(collapse_timeout: Duration) -> Duration {
    collapse_timeout * 9 / 10
}

impl Proxy {
    /// Waits while another pod holds the lease, and responds with what that pod stored; passes the fetch on once this pod holds it, or
    /// if every pod is to fetch its own.
    pub(super) async fn wait_for_lease(self: &Arc<Self>, mut fetch: Box<Fetch>) -> Step {
        if fetch.is_for_other_pods()
            && let Some(served) = Box::pin(self.wait_for_other_pods(&mut fetch)).await
        {
            return Break(served);
        }
        // Redis was waited for, here or before.
        if fetch.request.store().l2.is_some() {
            fetch.shows_progress();
        }
        Continue(fetch)
    }

    async fn wait_for_other_pods(self: &Arc<Self>, fetch: &mut Fetch) -> Option<Box<Served>> {
        let request = &fetch.request;
        let (store, key) = (Arc::clone(request.store()), request.key.clone());
        let l2 = store.l2.as_ref()?;
        let term = request.route.collapse_timeout;
        let deadline = fetch.began_waiting + lease_wait(term);
        let mut patience = Patience::Soft;
        loop {
            let about = (key.as_str(), &*fetch.known.variant, fetch.known.purge);
            // Without time left, a free lease is taken all the same: what another pod holds has hung for long enough.
            match l2.lease(about, patience, term).await.ok()? {
                LeaseOutcome::Granted(mut lease, is_stored) => {
                    self.telemetry.stats.leased(true);
                    let variant = fetch.known.variant.clone();
                    // The holder before may have stored a response since the lookup.
                    let served = match is_stored {
                        true => self.look_until(deadline, fetch, patience).await,
                        false => None,
                    };
                    let is_other = fetch.known.variant != variant && Instant::now() < deadline;
                    if served.is_none() && is_other {
                        // There are variants after all: those who wait for this lease need that of their variant, too.
                        lease.stored();
                        continue;
                    }
                    if served.is_none() {
                        fetch.lease = Some(lease);
                    }
                    return served;
                }
                LeaseOutcome::Held(_) if deadline <= Instant::now() => return None,
                LeaseOutcome::Held(waiting) => {
                    let woken = self.wait_for(waiting, deadline).await.ok()?;
                    // A Redis that is slow for a moment must not cost what was waited for.
                    patience = Patience::Hard;
                    if woken == WakeReason::NotStored {
                        return None;
                    }
                    let served = self.look_until(deadline, fetch, patience).await;
                    if served.is_some() || fetch.known.redis_is_silent {
                        return served;
                    }
                }
            }
        }
    }

    async fn look_until(
        self: &Arc<Self>,
        deadline: Instant,
        fetch: &mut Fetch,
        patience: Patience,
    ) -> Option<Box<Served>> {
        timeout_at(deadline, self.look_in_redis(fetch, patience)).await.ok().flatten()
    }

    async fn wait_for(&self, waiting: LeaseWait, deadline: Instant) -> Result<WakeReason, Elapsed> {
        self.telemetry.stats.leased(false);
        timeout_at(deadline, waiting.woken()).await
    }
}

impl Fetch {
    /// Returns true if other pods may be fetching the same, or may get what this one fetches.
    fn is_for_other_pods(&self) -> bool {
        // Other pods get what requests in this pod share, and no response to HEAD.
        let is_shared = self.lead.is_some() && !self.request.is_head();
        // Redis would be as slow with a lease as with the lookup, and one wait is enough.
        is_shared && !self.known.redis_is_silent && self.request.store().l2.is_some()
    }
}
