//! Stored responses.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use larder_policy::{
    Lifetimes, PurgeName,
    cache_control::RequestDirectives,
    freshness::{self, Freshness, evaluate},
    range::Pieces,
    response_meta::{ResponseMeta, Times},
};

use crate::{
    barriers::{Barriers, Stamp},
    clock::{monotonic_ms, wall_ms},
};

pub mod authentication;
pub mod codec;

/// A stored response, as received: its own header fields and times. Its freshness is computed when it is read, so that
/// a changed policy applies to responses that are already stored.
#[derive(Debug)]
pub struct Entry {
    /// The response without its body.
    pub head: Head,
    /// The body, or parts of it.
    pub content: Content,
    /// The rendered status line and constant header fields in HTTP/1 form.
    rendered: Bytes,
    /// Time at which it came into this pod, as [`monotonic_ms`].
    here_since: u64,
    /// Revision of the barriers that it was last checked against.
    checked: AtomicU64,
    /// Time until which it is served in place of failed responses without another attempt, as [`monotonic_ms`].
    fallback_until: AtomicU64,
    /// True if a reader found that it is due for an early renewal, but had no time for it.
    renewal_is_due: AtomicBool,
}

/// A stored response without its body.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// The end-to-end header fields. `Content-Length` is among them only in a response to HEAD.
    pub headers: HeaderMap,
    /// The times of its request and of its arrival.
    pub times: Times,
    /// Cache metadata of the response.
    pub meta: ResponseMeta,
    /// The time of its fill in the order of purges.
    pub stamp: Stamp,
    /// The names under which it can be purged.
    pub names: Box<[PurgeName]>,
}

/// The stored part of a body.
#[derive(Clone, Debug)]
pub enum Content {
    /// The whole body.
    Whole(Bytes),
    /// Parts (RFC 9111, section 3.3).
    Parts(Pieces),
}

impl Content {
    /// Returns the number of stored bytes of the body.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Whole(body) => body.len() as u64,
            Self::Parts(pieces) => pieces.bytes(),
        }
    }
}

impl Head {
    /// Sets the position among responses that were stored at the same time, by which their TTLs differ. The position is
    /// the same in every pod.
    pub fn spread(self) -> Self {
        let name = self.names.first().map_or([0; 8], |name| {
            let mut start = [0; 8];
            start.copy_from_slice(&name.as_bytes()[..8]);
            start
        });
        let mixed = (u64::from_le_bytes(name) ^ self.times.received_at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { meta: self.meta.with_spread((mixed >> 48) as u16), ..self }
    }

    /// Returns the freshness for a request now.
    pub fn freshness(&self, lifetimes: &Lifetimes, asked: &RequestDirectives) -> Freshness {
        evaluate(&self.meta, lifetimes, self.resident(), asked)
    }

    /// Returns the time since it was received.
    pub fn resident(&self) -> Duration {
        Duration::from_millis(wall_ms().saturating_sub(self.times.received_at))
    }
}

impl Entry {
    /// Creates an entry that comes into this pod now.
    pub fn new(head: Head, content: Content) -> Self {
        let head = head.spread();
        let rendered = match &content {
            Content::Whole(body) => render(&head, body.len()),
            Content::Parts(_) => Bytes::new(),
        };
        Self {
            head,
            content,
            rendered,
            here_since: monotonic_ms(),
            checked: AtomicU64::new(0),
            fallback_until: AtomicU64::new(0),
            renewal_is_due: AtomicBool::new(false),
        }
    }

    /// Returns the time that it has been in this pod.
    pub fn here_for(&self) -> Duration {
        Duration::from_millis(monotonic_ms().saturating_sub(self.here_since))
    }

    /// Marks the response as a fallback: for `interval` it is served in place of failed responses without another attempt.
    pub fn mark_fallback_for(&self, interval: Duration) {
        let until = monotonic_ms().saturating_add(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
        self.fallback_until.store(until, Ordering::Relaxed);
    }

    /// Returns true if it is served in place of failed responses without another attempt.
    pub fn is_fallback(&self) -> bool {
        let until = self.fallback_until.load(Ordering::Relaxed);
        until != 0 && monotonic_ms() < until
    }

    /// Returns true if it is due for an early renewal by XFetch, although it is fresh for `left`.
    pub fn is_renewed_early(&self, left: Duration) -> bool {
        freshness::refreshes_early(&self.head.meta, left, self.head.resident(), fastrand::u64(..))
    }

    /// Leaves an early renewal to the next reader that has time for it.
    pub fn ask_for_renewal(&self) {
        self.renewal_is_due.store(true, Ordering::Relaxed);
    }

    /// Returns true once if a reader left a renewal to others.
    pub fn takes_renewal(&self) -> bool {
        self.renewal_is_due.load(Ordering::Relaxed) && self.renewal_is_due.swap(false, Ordering::Relaxed)
    }

    /// Returns the whole body, and the head in HTTP/1 form without its empty last line.
    pub fn rendered(&self) -> Option<(&Bytes, &Bytes)> {
        match &self.content {
            Content::Whole(body) => Some((&self.rendered, body)),
            Content::Parts(_) => None,
        }
    }

    /// Returns true if it was requested so long ago that it is not trusted without proof that all purges since were
    /// heard.
    pub fn is_out_of_touch(&self, barriers: &Barriers) -> bool {
        !barriers.trusts(self.head.stamp.asked_at)
    }

    /// Returns true if a purge, or too long a time without hearing of purges, forbids serving it.
    pub fn is_purged(&self, barriers: &Barriers) -> bool {
        if self.is_out_of_touch(barriers) {
            return true;
        }
        let revision = barriers.revision();
        if self.checked.load(Ordering::Acquire) == revision {
            return false;
        }
        let covered = barriers.covers(&self.head.names, self.head.stamp);
        if !covered {
            self.checked.store(revision, Ordering::Release);
        }
        covered
    }

    /// Returns the approximate number of bytes that it takes.
    pub fn weight(&self) -> usize {
        const OVERHEAD: usize = 512;
        // Memory of a field in a `HeaderMap` besides its text.
        const PER_HEADER: usize = 104;
        const PER_PIECE: usize = 48;
        let headers: usize = self
            .head
            .headers
            .iter()
            .map(|(name, value)| PER_HEADER + name.as_str().len() + value.len())
            .sum();
        let content = match &self.content {
            Content::Whole(body) => body.len(),
            Content::Parts(pieces) => pieces.iter().map(|(_, piece)| PER_PIECE + piece.len()).sum(),
        };
        OVERHEAD + headers + self.rendered.len() + content + self.head.names.len() * size_of::<PurgeName>()
    }
}

fn render(head: &Head, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(128 + head.headers.len() * 48);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        if name == http::header::AGE {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    // A 204 has no Content-Length (RFC 9110, section 8.6).
    if head.status != StatusCode::NO_CONTENT && !head.headers.contains_key(CONTENT_LENGTH) {
        out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    Bytes::copy_from_slice(&out)
}

#[cfg(test)]
pub(crate) mod tests {
    use http::{HeaderValue, header};

    use super::*;

    /// Returns the head of a response that was received some time ago.
    pub(crate) fn head(cache_control: &'static str, received_ago: Duration) -> Head {
        let headers: HeaderMap =
            [(header::CACHE_CONTROL, HeaderValue::from_static(cache_control))].into_iter().collect();
        let received_at = wall_ms() - u64::try_from(received_ago.as_millis()).unwrap();
        let times = Times { requested_at: received_at, received_at };
        let meta = ResponseMeta::read(StatusCode::OK, &headers, times, &[]);
        let names = Box::new([PurgeName::path("/")]);
        Head { status: StatusCode::OK, headers, times, meta, stamp: Stamp::default(), names }
    }

    fn entry() -> Entry {
        Entry::new(head("max-age=60", Duration::ZERO), Content::Whole(Bytes::from_static(b"body")))
    }

    #[test]
    fn a_purge_is_seen_at_the_next_read() {
        let barriers = Barriers::alone();
        let stored = entry();
        assert!(!stored.is_purged(&barriers) && !stored.is_purged(&barriers));
        barriers.raise_locally(&[PurgeName::path("/other")]);
        assert!(!stored.is_purged(&barriers));
        barriers.raise_locally(&[PurgeName::path("/")]);
        assert!(stored.is_purged(&barriers));
    }

    #[test]
    fn head_of_an_entry_is_written_once() {
        let stored = entry();
        let (head, body) = stored.rendered().unwrap();
        assert_eq!(
            (&head[..], &body[..]),
            (&b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n"[..], &b"body"[..])
        );
    }
}
