//! Stale windows: the time past its lifetime that a response may be served (RFC 9111, section 4.2.4; RFC 5861).

use std::time::Duration;

use super::{Lifetimes, RequestDirectives, ResponseMeta, StaleUse};

/// The time past its lifetime that a response may be served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    never: bool,
    /// True if a client may request a stale response.
    clients: bool,
    revalidating: Duration,
    on_error: Duration,
}

impl Windows {
    /// Computes the windows of a response, with the `ttl` of its route if it has one.
    pub(super) fn of(meta: &ResponseMeta, lifetimes: &Lifetimes, ttl: Option<Duration>) -> Self {
        if ttl.is_none() && meta.forbids_stale() {
            let none = Duration::ZERO;
            return Self { never: true, clients: false, revalidating: none, on_error: none };
        }
        let directives = meta.directives();
        // A route's window follows a life; where nothing says or lets us guess one, it must not stand in for it.
        let has_life = ttl.is_some() || meta.lifetime().is_some();
        // An error must not outlive its cause: a route's windows are for what the application serves when it works. What is missing
        // may still stand in for a failure.
        let by_route = |window: Option<Duration>, unless| {
            window.map(|window| if unless { Duration::ZERO } else { window })
        };
        let (status, given) = (meta.status(), lifetimes.stale_while_revalidate);
        let is_error = status.is_client_error() || status.is_server_error();
        let route = by_route(given, is_error).filter(|_| has_life);
        Self {
            never: false,
            clients: ttl.is_some() || directives.s_maxage.is_none(),
            revalidating: route.or(directives.stale_while_revalidate).unwrap_or_default(),
            on_error: by_route(lifetimes.stale_if_error, status.is_server_error())
                .or(directives.stale_if_error)
                .unwrap_or_default(),
        }
    }

    pub(super) fn longest(&self) -> Duration {
        self.revalidating.max(self.on_error)
    }

    /// Returns the permitted use of a response that has been stale for this long.
    pub(super) fn use_of(&self, age: Duration, stale_for: Duration, asked: &RequestDirectives) -> StaleUse {
        if self.never || asked.no_cache {
            return StaleUse::No;
        }
        let young = asked.max_age.is_none_or(|most| age <= most);
        // With max-age or min-fresh a client wants nothing stale, unless it says max-stale too (section 5.2.1.1).
        let particular = asked.max_age.is_some() || asked.min_fresh.is_some();
        let tolerates = asked.max_stale.map(|most| most.allows(stale_for));
        if stale_for < self.revalidating && young && tolerates.unwrap_or(!particular) {
            StaleUse::WhileRevalidating
        } else if self.clients && young && tolerates.unwrap_or(false) {
            StaleUse::AsAsked
        } else if stale_for < self.on_error.max(self.revalidating).max(self.clients_on_error(asked)) {
            // "Regardless of other freshness information" (RFC 5861, section 4).
            StaleUse::OnError
        } else {
            StaleUse::No
        }
    }

    /// Returns the window that the client grants (RFC 5861, section 4).
    fn clients_on_error(&self, asked: &RequestDirectives) -> Duration {
        asked.stale_if_error.filter(|_| self.clients).unwrap_or_default()
    }
}
