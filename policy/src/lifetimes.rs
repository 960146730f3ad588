//! What a route says of how long answers are fresh, and of which answers are stored.

use std::time::Duration;

use http::{HeaderName, StatusCode};

/// What a route says of how long answers are fresh, and of which answers are stored. The default says nothing: the answer's
/// own headers decide (RFC 9111).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Replaces `max-age`, `s-maxage`, `Expires`, `no-cache` and `must-revalidate` of the answer.
    pub ttl: Option<Duration>,
    /// The longest life that the answer's own headers can give it.
    pub max_ttl: Option<Duration>,
    /// The statuses that are stored, some with a TTL of their own in place of `ttl`. Empty: 200 where there is a `ttl`, and
    /// what RFC 9111 lets a cache store where there is none.
    pub statuses: Vec<(StatusCode, Option<Duration>)>,
    /// Replaces the answer's `stale-while-revalidate` (RFC 5861, section 3).
    pub stale_while_revalidate: Option<Duration>,
    /// Replaces the answer's `stale-if-error` (RFC 5861, section 4).
    pub stale_if_error: Option<Duration>,
    /// What is stored although its headers forbid it.
    pub store_despite: StoreDespite,
    /// Where an answer says its TTL, which then goes before [`Lifetimes::ttl`].
    pub ttl_from: Option<TtlFrom>,
    /// By how many hundredths of it a TTL is shortened at most.
    pub jitter_percent: u8,
    /// How long a pod answers from memory before it looks into L2 again.
    pub in_l1: Option<Duration>,
    /// The longest that an answer stays in L2.
    pub in_l2: Option<Duration>,
    /// Whether an answer that is asked for often is renewed before it ends (XFetch).
    pub early_refresh: bool,
    /// How long what stands in for a failed answer is served before the failed place is asked again.
    pub retry_interval: Duration,
}

/// Where an answer says how long it is fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TtlFrom {
    /// A response header.
    Header(HeaderName),
    /// A JSON pointer (RFC 6901) into the body.
    Json(String),
}

/// What is stored although its headers forbid it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreDespite {
    /// `Cache-Control: no-store`.
    pub no_store: bool,
    /// `Cache-Control: private`.
    pub private: bool,
    /// `Set-Cookie`: the cookie is stored with the answer and goes to everybody.
    pub set_cookie: bool,
    /// `Vary: *`.
    pub vary_any: bool,
}

impl Lifetimes {
    /// The TTL that replaces what an answer of this status says of itself.
    pub fn ttl_of(&self, status: StatusCode) -> Option<Duration> {
        match self.statuses.iter().find(|(listed, _)| *listed == status) {
            Some((_, own)) => own.or(self.ttl),
            None => self.ttl,
        }
    }

    /// Whether answers of this status are stored at all, if their headers let them; `None`: RFC 9111 decides.
    pub fn stores(&self, status: StatusCode) -> Option<bool> {
        match (self.statuses.as_slice(), self.ttl) {
            ([], None) => None,
            ([], Some(_)) => Some(status == StatusCode::OK),
            (listed, _) => Some(listed.iter().any(|(listed, _)| *listed == status)),
        }
    }
}
