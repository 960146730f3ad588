//! One bound on the memory of everything that is not L1.
//!
//! The container's limit is divided in four: what L1 may hold ([`Budget::l1_within`]), what the process takes by itself ([`BASE`]), two fifths
//! of the rest for what the allocator needs besides, and this budget. Decision 24 says which part of it each kind may have.
//!
//! # Guarantees
//! - What is reserved at the same time is never more than the budget, but for [`Reservation::force`].
//! - No kind takes more than its part, so that a flood of one leaves room for the others.
//! - A hit in memory reserves nothing and touches nothing here.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use crate::{
    connections::{Connections, STALLED_MS},
    in_progress::{self, InProgress},
};

mod limit;
#[cfg(test)]
mod tests;

pub use limit::{MemoryLimit, raise_file_limit};

/// Memory that the process takes by itself: code, threads, connections to tiers, and what L1 needs besides its bytes.
pub const BASE: u64 = 20 << 20;
/// Minimum of the budget, whatever the limit: without any, nothing but hits would be answered.
const MIN_BYTES: u64 = 12 << 20;
/// Assumed limit beyond `l1.maxSize` if none is known: that of the default policy.
const DEFAULT_BESIDE_L1: u64 = 64 << 20;
/// Memory that an idle connection takes: its task, and the buffers of both parsers.
pub const CONNECTION: u64 = 16 << 10;
/// Memory that a request in progress takes: its task, and the buffers of its connection to the application.
const REQUEST: u64 = 32 << 10;
/// Memory that a response takes while its client over HTTP/1 does not read: the buffers of both parsers, and pieces between them.
pub const UNREAD: u64 = 112 << 10;
/// Memory that a connection of HTTP/2 takes besides: the buffers of its frames.
const HTTP2_CONNECTION: u64 = 32 << 10;
/// Memory that a stream of HTTP/2 takes while its response is not read.
const STREAM: u64 = 2 << 10;
/// Minimum number of streams of a connection, however many connections there are.
const MIN_STREAMS: u32 = 8;
/// Minimum of the cap on connections.
const MIN_CONNECTIONS: u64 = 64;
/// Bytes that are not cached cost less than this to be counted for each.
const MIN_COUNTED: usize = 4 << 10;

larder_api::labelled! {
    /// Purpose of reserved memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// Heads of requests that come in pieces, are large, or came over HTTP/2.
        Heads = "heads",
        /// Bodies of requests that are part of a key, sent to the admin API, kept until an application that speaks HTTP/2 responds, or
        /// copied for the values in them.
        Requests = "requests",
        /// Responses on their way into the cache, and to and from Redis and Postgres.
        Responses = "responses",
        /// Responses that wait for clients over HTTP/1 which read slowly.
        Unread = "unread",
    }
}

/// A bound on the memory of everything that is not L1.
#[derive(Debug)]
pub struct Budget {
    memory: MemoryLimit,
    /// The connections of clients, which have a quarter of the budget.
    pub connections: Arc<Connections>,
    /// The requests in progress, hits in memory over HTTP/1 aside.
    pub in_progress: Arc<InProgress>,
    /// The writes among them that go on after their clients were told that they take too long.
    late_writes: Arc<InProgress>,
    bytes: AtomicU64,
    /// Number of open connections of HTTP/2, and of the streams that they may have.
    http2_connections: AtomicU64,
    streams: AtomicU64,
    /// The most that L1 may hold, and the most that one object may be.
    l1: AtomicU64,
    object: AtomicU64,
    reserved: [AtomicU64; Kind::ALL.len()],
    refused: [AtomicU64; Kind::ALL.len()],
    /// Bytes of bodies that are or were stored, and that L1 or a reader still holds.
    stored: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(MemoryLimit::default())
    }
}

impl Budget {
    /// Of a process with this limit, and the L1 of a sidecar without a policy.
    pub fn new(memory: MemoryLimit) -> Self {
        let budget = Self {
            memory,
            connections: Arc::new(Connections::new(0)),
            in_progress: Arc::default(),
            late_writes: Arc::default(),
            bytes: AtomicU64::new(0),
            http2_connections: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            l1: AtomicU64::new(0),
            object: AtomicU64::new(0),
            reserved: Default::default(),
            refused: Default::default(),
            stored: AtomicU64::new(0),
        };
        budget.leave_room_for(64 << 20, 1 << 20);
        budget
    }

    /// Returns the bytes that an L1 of `max` bytes may hold: as many as leave memory for the process and the smallest budget.
    ///
    /// An accepted policy leaves that much. A document from before the operator's bound on memory was lowered may not.
    pub fn l1_within(&self, max: u64) -> u64 {
        self.memory.bytes.map_or(max, |limit| max.min(limit.saturating_sub(BASE + MIN_BYTES)))
    }

    /// Leaves room for an L1 of so many bytes, with objects of at most `object`.
    pub fn leave_room_for(&self, l1: u64, object: u64) {
        let MemoryLimit { bytes, files } = self.memory;
        let limit = bytes.unwrap_or(l1.saturating_add(DEFAULT_BESIDE_L1));
        let budget = (limit.saturating_sub(l1).saturating_sub(BASE) / 5 * 3).max(MIN_BYTES);
        self.bytes.store(budget, Ordering::Relaxed);
        self.l1.store(l1, Ordering::Relaxed);
        self.object.store(object, Ordering::Relaxed);
        let connections = (budget / 4 / CONNECTION).min(files / 2).max(MIN_CONNECTIONS);
        self.connections.set_max(usize::try_from(connections).unwrap_or(usize::MAX));
    }

    /// All of it, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Maximum number of requests in progress: as many as fit into half of the budget, and no more than half of the open files,
    /// because each may need a connection to the application.
    pub fn places(&self) -> usize {
        let places = (self.bytes() / 2 / REQUEST).min(self.memory.files / 2).max(MIN_CONNECTIONS);
        usize::try_from(places).unwrap_or(usize::MAX)
    }

    /// Lets a write go on after its client was told that it takes too long, if such writes have less than a quarter of the places.
    pub fn late_write(&self) -> Option<in_progress::Counted> {
        Some(in_progress::Counted::begin(&self.late_writes, self.places() / 4)?.0)
    }

    /// Makes room for others, where there is none: the client that has taken nothing for longest is cut off.
    pub fn make_room(&self) {
        self.connections.dismiss_stalled(STALLED_MS);
    }

    /// Streams for a connection of HTTP/2: `max` as long as there are few such connections, fewer as they become many.
    ///
    /// A stream that nobody reads takes memory even after its request has ended here. All streams together may have a quarter of
    /// the budget, and a connection an eighth of what is left of that.
    pub fn grant_streams(self: &Arc<Self>, max: u32) -> Streams {
        let free = (self.bytes() / 4 / STREAM).saturating_sub(self.streams.load(Ordering::Relaxed));
        let count = u32::try_from(free / 8).unwrap_or(max).clamp(MIN_STREAMS.min(max), max);
        self.http2_connections.fetch_add(1, Ordering::Relaxed);
        self.streams.fetch_add(count.into(), Ordering::Relaxed);
        Streams { budget: Arc::clone(self), count }
    }

    /// Returns the reserved bytes of a kind.
    pub fn reserved(&self, kind: Kind) -> u64 {
        let reserved = self.reserved[kind as usize].load(Ordering::Relaxed);
        if kind == Kind::Responses { reserved + self.read_after_l1() } else { reserved }
    }

    /// Returns the number of reservations of a kind that were refused.
    pub fn refused(&self, kind: Kind) -> u64 {
        self.refused[kind as usize].load(Ordering::Relaxed)
    }

    /// Returns the bytes that open connections take.
    pub fn connection_bytes(&self) -> u64 {
        let http2 = self.http2_connections.load(Ordering::Relaxed);
        self.connections.open() as u64 * CONNECTION + http2 * HTTP2_CONNECTION
    }

    /// Memory that requests in progress take, in bytes.
    pub fn request_bytes(&self) -> u64 {
        self.in_progress.count() as u64 * REQUEST
    }

    /// Memory that is reserved for all kinds, in bytes.
    fn reserved_in_sum(&self) -> u64 {
        Kind::ALL.into_iter().map(|kind| self.reserved(kind)).sum()
    }

    /// Bodies that L1 has let go of, or has no room for, and that somebody still reads.
    fn read_after_l1(&self) -> u64 {
        self.stored.load(Ordering::Relaxed).saturating_sub(self.l1.load(Ordering::Relaxed))
    }

    /// The most that one kind may take.
    fn part(&self, kind: Kind) -> u64 {
        let bytes = self.bytes();
        match kind {
            Kind::Heads | Kind::Requests => bytes / 4,
            // One object always has room, and half as much for the buffer that it is copied into when it is whole.
            Kind::Responses => (bytes / 4 * 3).max(bytes.min(self.object.load(Ordering::Relaxed) / 2 * 3)),
            Kind::Unread => bytes,
        }
    }

    /// Takes so many bytes, if there is room.
    ///
    /// Where there is none for a response, the client that has taken nothing for longest makes room for later ones.
    fn take(&self, kind: Kind, bytes: u64) -> bool {
        self.reserved[kind as usize].fetch_add(bytes, Ordering::Relaxed);
        // Bodies that L1 has evicted count among the responses while slow readers still hold them.
        let is_within = |kind| self.reserved(kind) <= self.part(kind);
        let fits = is_within(kind)
            && (kind != Kind::Unread || is_within(Kind::Responses))
            && self.sum_for(kind) <= self.bytes();
        if !fits {
            self.give_back(kind, bytes);
            if matches!(kind, Kind::Responses | Kind::Unread) {
                self.make_room();
            }
        }
        fits
    }

    /// Returns the bytes that are taken for all kinds, as they limit what one kind may take.
    ///
    /// Responses on their way into the cache leave room for the clients of all requests in progress to read slowly: a client that
    /// does so must not be cut off for the sake of a response that others may ask for.
    fn sum_for(&self, kind: Kind) -> u64 {
        let sum = self.reserved_in_sum() + self.connection_bytes() + self.request_bytes();
        if kind != Kind::Responses {
            return sum;
        }
        sum + (self.in_progress.count() as u64 * UNREAD).saturating_sub(self.reserved(Kind::Unread))
    }

    /// Cuts off the client that has taken nothing for longest, however short that is, if the budget is overdrawn by an eighth, or
    /// the part of responses, which includes what L1 has let go of and somebody still reads.
    pub fn end_overdraft(&self) {
        let is_overdrawn = |taken, most| taken > most + most / 8;
        if is_overdrawn(self.sum_for(Kind::Unread), self.bytes())
            || is_overdrawn(self.reserved(Kind::Responses), self.part(Kind::Responses))
        {
            self.connections.dismiss_stalled(0);
        }
    }

    fn give_back(&self, kind: Kind, bytes: u64) {
        self.reserved[kind as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that something of a kind found no room.
    pub fn refuse(&self, kind: Kind) {
        self.refused[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Reserves memory, if there is room for it.
    pub fn reserve(self: &Arc<Self>, kind: Kind, bytes: u64) -> Option<Reservation> {
        let mut reservation = Reservation::new(self, kind);
        if reservation.grow(bytes) {
            Some(reservation)
        } else {
            self.refuse(kind);
            None
        }
    }

    /// A body that is stored, counted for as long as L1 or a reader holds it.
    pub fn counted(self: &Arc<Self>, body: Bytes) -> Bytes {
        if body.len() < MIN_COUNTED {
            return body;
        }
        self.stored.fetch_add(body.len() as u64, Ordering::Relaxed);
        Bytes::from_owner(Counted { budget: Arc::clone(self), body })
    }
}

/// Streams that a connection of HTTP/2 may have, until this is dropped.
#[derive(Debug)]
pub struct Streams {
    budget: Arc<Budget>,
    count: u32,
}

impl Streams {
    /// Number of the streams.
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.budget.http2_connections.fetch_sub(1, Ordering::Relaxed);
        self.budget.streams.fetch_sub(self.count.into(), Ordering::Relaxed);
    }
}

/// A body with the room that it takes.
struct Held {
    _reservation: Reservation,
    body: Bytes,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// A body that is counted.
struct Counted {
    budget: Arc<Budget>,
    body: Bytes,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.stored.fetch_sub(self.body.len() as u64, Ordering::Relaxed);
    }
}

/// Bytes of the budget, which are given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    kind: Kind,
    bytes: u64,
}

impl Reservation {
    /// Of nothing yet.
    pub fn new(budget: &Arc<Budget>, kind: Kind) -> Self {
        Self { budget: Arc::clone(budget), kind, bytes: 0 }
    }

    /// Returns the reserved bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A body that holds it for as long as anybody holds the body.
    pub fn of(self, body: Bytes) -> Bytes {
        Bytes::from_owner(Held { _reservation: self, body })
    }

    /// Takes so many bytes more, if there is room.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let fits = self.budget.take(self.kind, bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// Takes so many bytes more, or notes that there is no room.
    pub fn grow_or_refuse(&mut self, bytes: u64) -> bool {
        let fits = self.grow(bytes);
        if !fits {
            self.refuse();
        }
        fits
    }

    /// Notes that something found no room.
    pub fn refuse(&self) {
        self.budget.refuse(self.kind);
    }

    /// Becomes so many bytes, if there is room.
    pub fn resize(&mut self, bytes: u64) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(more) => more == 0 || self.grow(more),
            None => {
                self.budget.give_back(self.kind, self.bytes - bytes);
                self.bytes = bytes;
                true
            }
        }
    }

    /// Becomes so many bytes, for somebody who has been told to give back as many.
    pub fn force(&mut self, bytes: u64) {
        self.resize(0);
        self.budget.reserved[self.kind as usize].fetch_add(bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.kind, self.bytes);
    }
}
