//! A stored answer.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use larder_policy::{PurgeName, freshness};

use crate::{
    barriers::{Barriers, Stamp},
    clock::{monotonic_ms, wall_ms},
};

pub mod codec;

/// A stored answer, as it was received: its own headers and times. How long it is fresh is computed when it is read, so
/// that a changed policy changes what is stored already.
#[derive(Debug)]
pub struct Entry {
    /// The status; 200.
    pub status: StatusCode,
    /// The end-to-end headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
    /// When its head was received, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// When its fill began, in the order of purges.
    pub stamp: Stamp,
    /// The names under which it can be purged.
    pub names: Box<[PurgeName]>,
    /// When it came into this pod, in [`monotonic_ms`].
    here_since: u64,
    /// The version of the barriers that it was last checked against.
    checked: AtomicU64,
}

/// What is to be stored, apart from what the pod adds itself.
#[derive(Debug)]
pub struct Parts {
    /// The status; 200.
    pub status: StatusCode,
    /// The end-to-end headers.
    pub headers: HeaderMap,
    /// When the head was received, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// When the fill began, in the order of purges.
    pub stamp: Stamp,
    /// The names under which it can be purged.
    pub names: Box<[PurgeName]>,
}

impl Entry {
    /// An entry that comes into this pod now.
    pub fn new(parts: Parts, body: Bytes) -> Self {
        let Parts { status, headers, received_at, stamp, names } = parts;
        Self {
            status,
            headers,
            body,
            received_at,
            stamp,
            names,
            here_since: monotonic_ms(),
            checked: AtomicU64::new(0),
        }
    }

    /// How much longer it is fresh under a route's `ttl`; `None` if it is not.
    pub fn fresh_for(&self, ttl: Option<Duration>) -> Option<Duration> {
        let lifetime = freshness::lifetime(&self.headers, ttl)?;
        lifetime.checked_sub(self.resident()).filter(|left| !left.is_zero())
    }

    /// Its age: what it came with and how long it has been stored (RFC 9111, section 4.2.3).
    pub fn age(&self) -> Duration {
        freshness::age(&self.headers) + self.resident()
    }

    fn resident(&self) -> Duration {
        Duration::from_millis(wall_ms().saturating_sub(self.received_at))
    }

    /// Whether a purge, or too long a time without hearing of any, forbids to serve it.
    pub fn is_purged(&self, barriers: &Barriers) -> bool {
        if !barriers.trusts(self.here_since) {
            return true;
        }
        let version = barriers.version();
        if self.checked.load(Ordering::Acquire) == version {
            return false;
        }
        let covered = barriers.covers(&self.names, self.stamp);
        if !covered {
            self.checked.store(version, Ordering::Release);
        }
        covered
    }

    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        const OVERHEAD: usize = 256;
        const PER_HEADER: usize = 48;
        let headers: usize =
            self.headers.iter().map(|(name, value)| PER_HEADER + name.as_str().len() + value.len()).sum();
        OVERHEAD + headers + self.body.len() + self.names.len() * size_of::<PurgeName>()
    }
}

/// Whether answers that vary by a header can be told apart: not by one that is added to on the way to the application.
pub fn can_vary_by(name: &HeaderName) -> bool {
    !["via", "x-forwarded-for"].contains(&name.as_str())
}

/// The part of a variant's key that the headers named by `Vary` make (RFC 9111, section 4.1): names and values, absent
/// ones told from empty ones.
pub fn variant(vary: &[HeaderName], request: &HeaderMap) -> String {
    let mut text = String::new();
    for name in vary {
        text.push('\n');
        text.push_str(name.as_str());
        for value in request.get_all(name) {
            text.push('=');
            text.push_str(
                &percent_encoding::percent_encode(value.as_bytes(), percent_encoding::NON_ALPHANUMERIC)
                    .to_string(),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    fn entry(cache_control: &'static str, received_ago: Duration) -> Entry {
        let headers =
            [(header::CACHE_CONTROL, HeaderValue::from_static(cache_control))].into_iter().collect();
        let received_at = wall_ms() - u64::try_from(received_ago.as_millis()).unwrap();
        let names = Box::new([PurgeName::path("/")]);
        Entry::new(
            Parts { status: StatusCode::OK, headers, received_at, stamp: Stamp::default(), names },
            Bytes::from_static(b"body"),
        )
    }

    #[test]
    fn a_changed_ttl_changes_what_is_stored() {
        let stored = entry("max-age=60", Duration::from_secs(30));
        let about = |left: Option<Duration>| left.map(|left| left.as_secs_f64().round());
        assert_eq!(about(stored.fresh_for(None)), Some(30.0));
        assert_eq!(about(stored.fresh_for(Some(Duration::from_secs(100)))), Some(70.0));
        assert_eq!(stored.fresh_for(Some(Duration::from_secs(10))), None);
    }

    #[test]
    fn a_purge_is_seen_at_the_next_read() {
        let barriers = Barriers::alone();
        let stored = entry("max-age=60", Duration::ZERO);
        assert!(!stored.is_purged(&barriers) && !stored.is_purged(&barriers));
        barriers.raise_locally(&[PurgeName::path("/other")]);
        assert!(!stored.is_purged(&barriers));
        barriers.raise_locally(&[PurgeName::path("/")]);
        assert!(stored.is_purged(&barriers));
    }

    #[test]
    fn variants_are_told_apart() {
        let vary = [header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE];
        let request = |lines: &[(HeaderName, &'static str)]| {
            variant(
                &vary,
                &lines
                    .iter()
                    .map(|(name, value)| (name, HeaderValue::from_static(value)))
                    .map(|(n, v)| (n.clone(), v))
                    .collect(),
            )
        };
        let gzip = request(&[(header::ACCEPT_ENCODING, "gzip")]);
        assert_eq!(gzip, request(&[(header::ACCEPT, "x"), (header::ACCEPT_ENCODING, "gzip")]));
        assert_ne!(gzip, request(&[(header::ACCEPT_LANGUAGE, "gzip")]));
        assert_ne!(request(&[(header::ACCEPT_ENCODING, "")]), request(&[]));
    }
}
