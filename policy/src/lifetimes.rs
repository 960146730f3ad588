//! A route's rules on freshness and storing.

use std::time::Duration;

use http::{HeaderName, StatusCode};

use crate::{StatusPattern, spec::SetCookie};

/// A route's rules on freshness and storing. With the default, the response's own headers decide (RFC 9111).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Replaces `max-age`, `s-maxage`, `Expires`, `no-cache` and `must-revalidate` of the response.
    pub ttl: Option<Duration>,
    /// Maximum lifetime that the response's own headers can declare.
    pub max_ttl: Option<Duration>,
    /// Statuses and classes of them that are stored, some with a TTL of their own in place of `ttl`. Empty: 200 if there is a `ttl`,
    /// otherwise those that RFC 9111 allows a cache to store.
    pub statuses: Vec<(StatusPattern, Option<Duration>)>,
    /// Replaces the response's `stale-while-revalidate` (RFC 5861, section 3).
    pub stale_while_revalidate: Option<Duration>,
    /// Replaces the response's `stale-if-error` (RFC 5861, section 4).
    pub stale_if_error: Option<Duration>,
    /// Restrictions in headers that are overridden.
    pub store_despite: StoreDespite,
    /// Treatment of responses that set a cookie.
    pub set_cookie: SetCookie,
    /// The part of a response that states its TTL, which takes precedence over [`Lifetimes::ttl`].
    pub ttl_from: Option<TtlFrom>,
    /// Maximum TTL jitter in percent.
    pub jitter_percent: u8,
    /// Maximum time that a pod serves from memory before it checks L2 again.
    pub l1_ttl: Option<Duration>,
    /// Maximum time that a response stays in L2.
    pub l2_ttl: Option<Duration>,
    /// True if popular responses are refreshed before they expire (XFetch).
    pub early_refresh: bool,
    /// Time that a fallback response is served before the failed origin is tried again.
    pub retry_interval: Duration,
}

/// The part of a response that states its TTL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TtlFrom {
    /// A response header.
    Header(HeaderName),
    /// A JSON pointer (RFC 6901) into the body.
    Json(String),
}

/// Restrictions in headers that are overridden, so that the response is stored regardless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreDespite {
    /// `Cache-Control: no-store`.
    pub no_store: bool,
    /// `Cache-Control: private`.
    pub private: bool,
    /// `Vary: *`.
    pub vary_any: bool,
}

impl Lifetimes {
    /// Returns the TTL that replaces the lifetime declared by a response of this status.
    pub fn ttl_of(&self, status: StatusCode) -> Option<Duration> {
        self.listed(status).flatten().or(self.ttl)
    }

    /// Returns the TTL of a status that is listed, by itself or by its class, if it has one of its own.
    pub(crate) fn listed(&self, status: StatusCode) -> Option<Option<Duration>> {
        let ttl_of =
            |pattern| self.statuses.iter().find(|(listed, _)| *listed == pattern).map(|(_, ttl)| *ttl);
        ttl_of(StatusPattern::from(status)).or_else(|| ttl_of(StatusPattern::class_of(status)?))
    }

    /// Returns true if responses of this status are stored, headers permitting; `None`: RFC 9111 decides.
    pub fn stores(&self, status: StatusCode) -> Option<bool> {
        match (self.statuses.as_slice(), self.ttl) {
            ([], None) => None,
            ([], Some(_)) => Some(status == StatusCode::OK),
            _ => Some(self.listed(status).is_some()),
        }
    }
}

/// Returns the status whose rules apply to this one: a part counts as a part of a response with 200.
pub(crate) fn counted_as(status: StatusCode) -> StatusCode {
    if status == StatusCode::PARTIAL_CONTENT { StatusCode::OK } else { status }
}
