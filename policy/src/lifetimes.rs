//! What a route says of how long answers are fresh, and of which answers are stored.

use std::time::Duration;

use http::StatusCode;

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
