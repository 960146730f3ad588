//! How long past its life an answer may be served (RFC 9111, section 4.2.4; RFC 5861).

use std::time::Duration;

use super::{Claims, Lifetimes, RequestDirectives, ResponseDirectives, StaleUse, ttl};

/// How long past its life an answer may be served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    /// `no-cache`: not even within its life (section 5.2.2.4).
    pub(super) never_unasked: bool,
    /// Whether a client may ask for it.
    clients: bool,
    revalidating: Duration,
    on_error: Duration,
}

impl Windows {
    pub(super) fn of(claims: &Claims, lifetimes: &Lifetimes) -> Self {
        let directives = &claims.directives;
        let replaced = ttl(claims, lifetimes).is_some();
        let window = |route: Option<Duration>, own: Option<Duration>| route.or(own).unwrap_or_default();
        let mut windows = Self {
            never_unasked: directives.no_cache && !replaced,
            clients: replaced || !forbids_stale(directives) && directives.s_maxage.is_none(),
            revalidating: window(lifetimes.stale_while_revalidate, directives.stale_while_revalidate),
            on_error: window(lifetimes.stale_if_error, directives.stale_if_error),
        };
        if !replaced && forbids_stale(directives) {
            (windows.revalidating, windows.on_error) = (Duration::ZERO, Duration::ZERO);
        }
        windows
    }

    pub(super) fn longest(&self) -> Duration {
        self.revalidating.max(self.on_error)
    }

    /// What an answer is good for that has been past its life for this long.
    pub(super) fn use_of(&self, age: Duration, stale_for: Duration, asked: &RequestDirectives) -> StaleUse {
        if self.never_unasked || asked.no_cache {
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

    /// The window that the client gives (RFC 5861, section 4).
    fn clients_on_error(&self, asked: &RequestDirectives) -> Duration {
        asked.stale_if_error.filter(|_| self.clients).unwrap_or_default()
    }
}

/// Whether an answer must never be served stale (section 4.2.4).
///
/// `s-maxage` is not among them: it has the meaning of `proxy-revalidate` (section 5.2.2.10), and so forbids what a client
/// asks for, but who writes a stale window beside it, into the answer or the route, wants it used; it would mean nothing
/// otherwise.
fn forbids_stale(directives: &ResponseDirectives) -> bool {
    directives.no_cache || directives.must_revalidate || directives.proxy_revalidate
}
