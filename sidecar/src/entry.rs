//! Stored responses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use larder_policy::{
    Fields as _, Lifetimes, PurgeName,
    cache_control::RequestDirectives,
    freshness::{self, Freshness, StaleUse, State, evaluate},
    key::path_of,
    range::Pieces,
    response_meta::{self, ResponseMeta, Times},
};

use self::{block::Block, marks::Marks};
pub use self::{block::StoredFields, head::Head};

use crate::{
    barriers::{Barriers, Covered, Stamp},
    clock::{monotonic_ms, wall_ms},
    headers::FieldLines,
};

pub mod authentication;
mod block;
pub mod codec;
mod head;
mod marks;

/// A stored response, as received: its own header fields and times. Its freshness is computed when it is read, so that
/// a changed policy applies to responses that are already stored.
///
/// Two allocations besides its body: itself, and a [`Block`] with everything that differs in length.
#[derive(Debug)]
pub struct Entry {
    meta: ResponseMeta,
    stamp: Stamp,
    block: Block,
    /// The body, or parts of it.
    pub content: Content,
    /// Time at which it came into this pod, as [`monotonic_ms`].
    here_since: u64,
    /// Revision of the barriers that it was last checked against.
    checked: AtomicU64,
    marks: Marks,
}

/// Length up to which a body is copied where it is stored, and for each reader: a reference would take as much memory
/// as the copy of a small body takes time.
pub const MAX_COPIED: usize = 4 << 10;

/// The stored part of a body.
#[derive(Clone, Debug)]
pub enum Content {
    /// The whole body.
    Whole(Bytes),
    /// Parts (RFC 9111, section 3.3).
    Parts(Box<Pieces>),
}

impl Content {
    /// Returns the number of stored bytes of the body.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Whole(body) => body.len() as u64,
            Self::Parts(pieces) => pieces.bytes(),
        }
    }

    /// Returns about as many bytes as it takes in a record.
    fn encoded(&self) -> usize {
        match self {
            Self::Whole(body) => body.len(),
            Self::Parts(pieces) => pieces.iter().map(|(_, piece)| 16 + piece.len()).sum(),
        }
    }

    /// Returns the memory that it takes besides its own size, as the allocator counts it.
    fn memory(&self) -> usize {
        // A body that is counted in the budget has an owner, and any that is shared a counter.
        const SHARED: usize = 64;
        let memory_of = |bytes: &Bytes| match bytes.len() {
            0..=MAX_COPIED => allocated(bytes.len()),
            length => allocated(length) + SHARED,
        };
        match self {
            Self::Whole(body) => memory_of(body),
            Self::Parts(pieces) => {
                let of_pieces: usize = pieces.iter().map(|(_, piece)| 40 + memory_of(piece)).sum();
                allocated(size_of::<Pieces>()) + of_pieces
            }
        }
    }
}

/// Returns a small body in an allocation of its own, and of its length.
fn own(body: Bytes) -> Bytes {
    if body.len() > MAX_COPIED { body } else { Bytes::copy_from_slice(&body) }
}

/// Returns the bytes of a body for one of its readers.
pub fn for_reader(body: &Bytes) -> Bytes {
    if body.len() > MAX_COPIED { body.clone() } else { Bytes::copy_from_slice(body) }
}

fn spread(meta: ResponseMeta, name: Option<&PurgeName>) -> ResponseMeta {
    let name = name.map_or([0; 8], |name| {
        let mut start = [0; 8];
        start.copy_from_slice(&name.as_bytes()[..8]);
        start
    });
    let mixed = (u64::from_le_bytes(name) ^ meta.times().received_at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    meta.with_spread((mixed >> 48) as u16)
}

/// Returns the time since a response was received.
fn resident(meta: &ResponseMeta) -> Duration {
    Duration::from_millis(wall_ms().saturating_sub(meta.times().received_at))
}

impl Entry {
    /// Creates an entry that comes into this pod now, and that L1 holds under `key`.
    pub fn new(key: &str, head: &Head, content: Content) -> Self {
        Self::with_meta(key, head, head.meta.clone(), content)
    }

    /// Creates an entry as [`Self::new`] does, with other metadata than those of the head.
    pub fn with_meta(key: &str, head: &Head, meta: ResponseMeta, content: Content) -> Self {
        let length = match &content {
            Content::Whole(body) => Some(body.len()),
            Content::Parts(_) => None,
        };
        // The body says how long it is.
        let is_told = length.is_some_and(|length| length > 0);
        let lines = head.stored_lines().filter(|(name, _)| !is_told || *name != b"content-length");
        let block = Block::new(key, &head.names, response_meta::stated_age(&*head.fields), lines);
        Self::with_block(spread(meta, head.names.first()), head.stamp, block, content)
    }

    fn with_block(meta: ResponseMeta, stamp: Stamp, block: Block, content: Content) -> Self {
        let content = match content {
            Content::Whole(body) => Content::Whole(own(body)),
            parts @ Content::Parts(_) => parts,
        };
        Self {
            meta,
            stamp,
            block,
            content,
            here_since: monotonic_ms(),
            checked: AtomicU64::new(0),
            marks: Marks::default(),
        }
    }

    /// Returns the same entry for another place in L1.
    pub fn under(self, key: &str) -> Self {
        Self { block: self.block.under(key), ..self }
    }

    /// Sets the time of its fill in the order of purges.
    pub fn set_stamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        *self.checked.get_mut() = 0;
    }

    /// Returns true if this is the key under which L1 holds it.
    pub fn is_under(&self, key: &str) -> bool {
        self.block.is_under(key)
    }

    /// Returns the key under which L1 holds it; empty for one that came from another tier and is not in L1 yet.
    pub fn key(&self) -> &str {
        self.block.key()
    }

    /// Returns the path of its key.
    pub fn path(&self) -> &str {
        path_of(self.key())
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.meta.status()
    }

    /// Returns the cache metadata of the response.
    pub fn meta(&self) -> &ResponseMeta {
        &self.meta
    }

    /// Returns the times of its request and of its arrival.
    pub fn times(&self) -> Times {
        self.meta.times()
    }

    /// Returns the time of its fill in the order of purges.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Returns the names under which it can be purged.
    pub fn names(&self) -> impl ExactSizeIterator<Item = PurgeName> + Clone + '_ {
        self.block.names()
    }

    /// Returns the end-to-end header fields, with lower-case names. `Content-Length` is among them only in a response
    /// to HEAD.
    pub fn fields(&self) -> StoredFields<'_> {
        self.block.fields()
    }

    /// Returns a map of the end-to-end header fields.
    pub fn headers(&self) -> HeaderMap {
        self.fields().to_map()
    }

    /// Returns a copy of everything besides the body.
    pub fn to_head(&self) -> Head {
        let (meta, names) = (self.meta.clone(), self.names().collect());
        let fields: FieldLines = self.fields().iter().collect();
        let is_to_head = fields.has(CONTENT_LENGTH.as_str());
        Head { fields: Arc::new(fields), is_to_head, meta, stamp: self.stamp, names }
    }

    /// Returns the freshness for a request now. After a soft purge, and once it is marked as outdated, it is stale.
    pub fn freshness(
        &self,
        lifetimes: &Lifetimes,
        asked: &RequestDirectives,
        barriers: &Barriers,
    ) -> Freshness {
        let freshness = evaluate(&self.meta, lifetimes, self.resident(), asked);
        match freshness.state {
            // The client's own directives may be all that makes it stale so far.
            State::Fresh { .. } | State::Stale { stale_for: Duration::ZERO, use_: StaleUse::OnError }
                if self.marks.is_outdated() || self.coverage(barriers) == Covered::Softly =>
            {
                freshness::outdated(&self.meta, lifetimes, freshness.age, asked)
            }
            _ => freshness,
        }
    }

    /// Returns the time since it was received.
    pub fn resident(&self) -> Duration {
        resident(&self.meta)
    }

    /// Returns the age now.
    pub fn age(&self) -> Duration {
        self.meta.initial_age() + self.resident()
    }

    /// Returns the time that it has been in this pod.
    pub fn here_for(&self) -> Duration {
        Duration::from_millis(monotonic_ms().saturating_sub(self.here_since))
    }

    /// Marks the response as a fallback: for `interval` it is served in place of failed responses without another attempt.
    pub fn mark_fallback_for(&self, interval: Duration) {
        self.marks.mark_fallback_for(interval);
    }

    /// Returns true if it is served in place of failed responses without another attempt.
    pub fn is_fallback(&self) -> bool {
        self.marks.is_fallback()
    }

    /// Returns true if it is due for an early renewal by XFetch, although it is fresh for `left`.
    pub fn is_renewed_early(&self, left: Duration) -> bool {
        freshness::refreshes_early(&self.meta, left, self.resident(), fastrand::u64(..))
    }

    /// Leaves an early renewal to the next reader that has time for it.
    pub fn ask_for_renewal(&self) {
        self.marks.ask_for_renewal();
    }

    /// Returns true once if a reader left a renewal to others.
    pub fn takes_renewal(&self) -> bool {
        self.marks.takes_renewal()
    }

    /// Makes it stale from now on, whatever its lifetime.
    pub fn set_outdated(&mut self) {
        self.marks.set_outdated();
    }

    /// Returns the whole body, if it is stored.
    pub fn body(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(body) => Some(body),
            Content::Parts(_) => None,
        }
    }

    /// Returns the header fields that a client gets as they are: without `Age` and, but for a response to HEAD,
    /// `Content-Length`.
    pub fn sent_fields(&self) -> StoredFields<'_> {
        self.block.sent_fields()
    }

    /// Returns those of [`Self::sent_fields`] that a 304 has, if it is known which they are.
    pub fn fields_of_304(&self) -> Option<StoredFields<'_>> {
        self.block.fields_of_304()
    }

    /// Returns the length that the head of a whole response states: none in a 204 (RFC 9110, section 8.6), and none
    /// beside that of a response to HEAD.
    pub fn content_length(&self) -> Option<usize> {
        let length = self.body()?.len();
        let is_stated =
            self.status() == StatusCode::NO_CONTENT || length == 0 && self.fields().has("content-length");
        (!is_stated).then_some(length)
    }

    /// Returns true if it was requested so long ago that it is not trusted without proof that all purges since were
    /// heard.
    pub fn is_out_of_touch(&self, barriers: &Barriers) -> bool {
        !barriers.trusts(self.stamp.asked_at)
    }

    /// Returns true if a purge, or too long a time without hearing of purges, forbids serving it.
    pub fn is_purged(&self, barriers: &Barriers) -> bool {
        self.is_out_of_touch(barriers) || self.is_covered(barriers)
    }

    /// Returns true if a purge that this pod knows of forbids serving it.
    pub fn is_covered(&self, barriers: &Barriers) -> bool {
        self.coverage(barriers) == Covered::Wholly
    }

    /// Returns the purges of it that this pod knows of.
    fn coverage(&self, barriers: &Barriers) -> Covered {
        let (revision, checked) = (barriers.revision(), self.checked.load(Ordering::Acquire));
        if checked == revision {
            return Covered::No;
        }
        let covered = barriers.coverage(checked, self.names(), self.path(), self.stamp);
        if covered == Covered::No {
            self.checked.store(revision, Ordering::Release);
        }
        covered
    }

    /// Returns the memory that it takes, as the allocator counts it.
    pub fn weight(&self) -> usize {
        const COUNTERS: usize = 2 * size_of::<usize>();
        allocated(COUNTERS + size_of::<Self>()) + self.block.memory() + self.content.memory()
    }
}

/// Returns the memory that an allocation takes: jemalloc has four sizes for each doubling.
pub fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=8 => 8,
        9..=128 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2)),
    }
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
        let (fields, names) = (Arc::new(FieldLines::from(&headers)), Box::new([PurgeName::path("/")]));
        Head { fields, is_to_head: false, meta, stamp: Stamp::default(), names }
    }

    impl Head {
        /// Adds a field.
        pub(crate) fn append(&mut self, name: &'static str, value: &'static str) {
            Arc::make_mut(&mut self.fields).push(name.as_bytes(), value.as_bytes());
        }
    }

    fn entry() -> Entry {
        Entry::new("key", &head("max-age=60", Duration::ZERO), Content::Whole(Bytes::from_static(b"body")))
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
    fn entry_with_another_stamp_is_checked_again() {
        let barriers = Barriers::alone();
        let local = barriers.raise_locally(&[PurgeName::path("/")]);
        let mut stored = entry();
        let before = stored.stamp();
        stored.set_stamp(Stamp { local, ..before });
        assert!(!stored.is_covered(&barriers));
        stored.set_stamp(before);
        assert!(stored.is_covered(&barriers));
    }

    #[test]
    fn fields_are_rendered_once_and_without_age_and_length() {
        let mut head = head("max-age=60", Duration::ZERO);
        for (name, value) in
            [("age", "7"), ("content-length", "4"), ("vary", "a"), ("age", "9"), ("vary", "b")]
        {
            head.append(name, value);
        }
        let stored = Entry::new("key", &head, Content::Whole(Bytes::from_static(b"body")));
        assert_eq!(stored.sent_fields().as_bytes(), b"cache-control: max-age=60\r\nvary: a\r\nvary: b\r\n");
        assert_eq!(stored.content_length(), Some(4));
        let mut headers = head.headers();
        headers.insert(header::AGE, HeaderValue::from_static("7"));
        assert_eq!(stored.headers(), headers, "the first age counts");
        assert_eq!((stored.key(), stored.names().collect::<Vec<_>>()), ("key", head.names.to_vec()));
        let moved = stored.under("another key");
        assert_eq!((moved.key(), moved.headers()), ("another key", headers));
    }

    #[test]
    fn response_to_head_states_its_own_length() {
        let mut head = head("max-age=60", Duration::ZERO);
        head.append("content-length", "1000");
        head.is_to_head = true;
        let stored = Entry::new("key", &head, Content::Whole(Bytes::new()));
        assert_eq!((stored.content_length(), stored.headers()), (None, head.headers()));
        head.is_to_head = false;
        let stored = Entry::new("key", &head, Content::Whole(Bytes::new()));
        assert_eq!(stored.content_length(), Some(0));
        let times = head.meta.times();
        head.meta = ResponseMeta::read(StatusCode::NO_CONTENT, &*head.fields, times, &[]);
        assert_eq!(Entry::new("key", &head, Content::Whole(Bytes::new())).content_length(), None);
    }

    #[test]
    fn small_body_has_an_allocation_of_its_own() {
        let received = Bytes::from(vec![b'x'; 64 << 10]);
        for (length, is_shared) in [(1024, false), (MAX_COPIED, false), (MAX_COPIED + 1, true)] {
            let body = received.slice(..length);
            let stored = Entry::new("key", &head("", Duration::ZERO), Content::Whole(body.clone()));
            let stored = stored.body().unwrap();
            assert_eq!((stored, stored.as_ptr() == body.as_ptr()), (&body, is_shared), "{length}");
            assert_eq!(for_reader(stored).as_ptr() == stored.as_ptr(), is_shared, "{length}");
        }
    }

    #[test]
    fn allocation_takes_one_of_four_sizes_for_each_doubling() {
        for (bytes, takes) in [
            (0, 0),
            (1, 8),
            (8, 8),
            (9, 16),
            (17, 32),
            (128, 128),
            (129, 160),
            (176, 192),
            (257, 320),
            (1024, 1024),
            (1025, 1280),
            (4097, 5120),
            (100_000, 114_688),
        ] {
            assert_eq!(allocated(bytes), takes, "{bytes}");
        }
        assert_eq!(allocated(16 + size_of::<Entry>()), 192);
    }
}
