//! A cap on the connections of clients, and which of them makes room for the next.
//!
//! # Guarantees
//! - No more than the cap are open, but for those that were told to leave and have not yet been polled.
//! - A connection that is being served is never told to leave.
//! - Nothing here is touched for each request that memory answers: a connection says what it does when it waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::clock::monotonic_ms;

#[cfg(test)]
mod tests;

/// The response to a client that finds no place (RFC 9110, sections 10.2.3 and 15.6.4).
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/problem+json\r\ncontent-length: 85\r\n\r\n\
    {\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections are open\"}";

/// Tells a client that there is no place for it. What it has sent is read, as far as it is there: a connection that is closed
/// with unread bytes in it is reset, and the client may not see why.
pub fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(NO_PLACE);
    let _ = stream.try_read(&mut [0; 4 << 10]);
}

/// Time, in milliseconds, for which one that was found between requests is spared: it may be in use.
const SPARED_MS: u64 = 250;
/// Time, in milliseconds, after which a client that takes nothing makes room for others.
pub const STALLED_MS: u64 = 1_000;

/// So many connections must come after one before it makes room because its head is not whole; fewer where few may be open.
const GRACE: u64 = 32;

/// Activity of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// No whole head has come yet, or the next one has begun and is not whole.
    Unfinished,
    /// Between requests, and not looked at since.
    Rested,
    /// Between requests since the last look for one that makes room.
    Resting,
    /// The client does not read its response.
    Stalled,
    /// A request is being served.
    Serving,
}

impl Phase {
    /// Those that may make room, in the order in which they are asked to, and for how many milliseconds they have been so.
    const LEAVING: [(Self, u64); 6] = [
        (Self::Unfinished, 0),
        (Self::Rested, SPARED_MS),
        (Self::Stalled, STALLED_MS),
        (Self::Rested, 0),
        (Self::Resting, 0),
        (Self::Stalled, 0),
    ];
}

/// One connection, as those who want its place see it.
#[derive(Debug)]
pub struct Connection {
    /// The application's port, where the sidecar stands before several.
    target: Option<u16>,
    phase: AtomicU8,
    must_leave: AtomicBool,
    /// Set when the connection is to end as soon as nothing is under way on it.
    ends_when_idle: AtomicBool,
    waker: AtomicWaker,
    /// Bytes of the budget that its request's head takes.
    held: AtomicU64,
    /// When its client stopped reading, or it was found between requests, in [`monotonic_ms`].
    since: AtomicU64,
}

impl Default for Connection {
    fn default() -> Self {
        Self::to(None)
    }
}

impl Connection {
    fn to(target: Option<u16>) -> Self {
        Self {
            target,
            phase: AtomicU8::new(Phase::Unfinished as u8),
            must_leave: AtomicBool::new(false),
            ends_when_idle: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            held: AtomicU64::new(0),
            since: AtomicU64::new(0),
        }
    }

    fn enter(&self, phase: Phase) {
        // One that is written only when it changes stays in the caches of those who read it.
        if self.phase.load(Ordering::Relaxed) != phase as u8 {
            self.phase.store(phase as u8, Ordering::Relaxed);
        }
    }

    /// Notes that a head has begun.
    pub fn reads_head(&self) {
        self.enter(Phase::Unfinished);
    }

    /// Notes that nothing is under way.
    pub fn rests(&self) {
        self.enter(Phase::Resting);
    }

    /// Notes that a request is being served.
    pub fn serves(&self) {
        self.enter(Phase::Serving);
    }

    /// Notes that the client does not read.
    pub fn stalls(&self) {
        if !self.is_stalled() {
            self.since.store(monotonic_ms(), Ordering::Relaxed);
        }
        self.enter(Phase::Stalled);
    }

    /// Whether a request is being served.
    pub fn is_serving(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Serving as u8
    }

    /// Whether the client did not read when it was last written to.
    pub fn is_stalled(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Stalled as u8
    }

    /// Notes what its request's head takes of the budget, in bytes.
    pub fn holds(&self, bytes: u64) {
        self.held.store(bytes, Ordering::Relaxed);
    }

    /// Whether its place was given to another.
    pub fn must_leave(&self) -> bool {
        self.must_leave.load(Ordering::Acquire)
    }

    /// Ready when its place is given to another.
    pub fn poll_must_leave(&self, context: &Context<'_>) -> Poll<()> {
        if !self.must_leave() {
            self.waker.register(context.waker());
        }
        if self.must_leave() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether its place was given to another, and nothing is served on it.
    pub fn gives_way(&self) -> bool {
        self.must_leave() && !self.is_serving()
    }

    /// Returns true if the connection is to end as soon as nothing is under way on it.
    pub fn ends_when_idle(&self) -> bool {
        self.ends_when_idle.load(Ordering::Acquire)
    }

    /// Marks a connection between requests as seen. Returns true if it was seen before, and has rested since.
    fn see_idle(&self) -> bool {
        let (resting, rested) = (Phase::Resting as u8, Phase::Rested as u8);
        if self.phase.load(Ordering::Relaxed) == resting {
            self.since.store(monotonic_ms(), Ordering::Relaxed);
        }
        let seen = self.phase.compare_exchange(resting, rested, Ordering::Relaxed, Ordering::Relaxed);
        seen == Err(rested)
    }

    /// Returns the time for which it has stalled, or been known to rest, in milliseconds.
    fn lasts(&self, now: u64) -> u64 {
        now.saturating_sub(self.since.load(Ordering::Relaxed))
    }

    /// Marks a connection between requests as seen. One that was seen before, and has rested since, is to end.
    fn end_if_seen_idle(&self, ends: bool) {
        let was_seen = self.see_idle();
        if ends && was_seen {
            self.ends_when_idle.store(true, Ordering::Release);
            self.waker.wake();
        }
    }

    /// Tells it to leave.
    pub fn dismiss(&self) {
        self.must_leave.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The connections that are open.
#[derive(Debug)]
pub struct Connections {
    max: AtomicUsize,
    count: AtomicUsize,
    next: AtomicU64,
    /// Whether three quarters of the places are taken.
    is_crowded: AtomicBool,
    /// By the order in which they came.
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    /// When somebody last looked at who is idle, in [`monotonic_ms`].
    looked_at: AtomicU64,
    dismissed: AtomicU64,
    refused: AtomicU64,
}

impl Connections {
    /// Of at most `max`.
    pub fn new(max: usize) -> Self {
        Self {
            max: AtomicUsize::new(max),
            count: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            is_crowded: AtomicBool::new(false),
            open: Mutex::default(),
            looked_at: AtomicU64::new(0),
            dismissed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Changes the cap. Those above it leave as others come.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The cap.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether so many are open that idle ones should hold nothing.
    pub fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// Notes how many are open, for those who do not take the lock.
    fn note(&self, open: usize) {
        self.count.store(open, Ordering::Relaxed);
        let is_crowded = open >= self.max() / 4 * 3;
        if is_crowded != self.is_crowded() {
            self.is_crowded.store(is_crowded, Ordering::Relaxed);
        }
    }

    /// How many were told to leave for others.
    pub fn dismissed(&self) -> u64 {
        self.dismissed.load(Ordering::Relaxed)
    }

    /// How many found no place.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A place for a connection that came, if need be that of the oldest one that is not being served. `None` if all are.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        self.admit_to(None)
    }

    /// Admits a client of the application's port `target`, where the sidecar stands before several.
    pub fn admit_to(self: &Arc<Self>, target: Option<u16>) -> Option<Admitted> {
        let connection = Arc::new(Connection::to(target));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut leaving = Vec::new();
        let is_admitted = {
            let mut open = self.open.lock();
            if self.is_crowded() && monotonic_ms() >= self.looked_at.load(Ordering::Relaxed) + SPARED_MS {
                // When all places are taken it is known who has been idle.
                self.looked_at.store(monotonic_ms(), Ordering::Relaxed);
                for connection in open.values() {
                    connection.see_idle();
                }
            }
            while open.len() >= self.max() {
                let Some(id) = victim(&open, id) else { break };
                leaving.extend(open.remove(&id));
            }
            let has_room = open.len() < self.max();
            if has_room {
                open.insert(id, Arc::clone(&connection));
            }
            self.note(open.len());
            has_room
        };
        self.dismissed.fetch_add(leaving.len() as u64, Ordering::Relaxed);
        leaving.iter().for_each(|connection| connection.dismiss());
        if !is_admitted {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Admitted { connections: Arc::clone(self), id, connection })
    }

    /// Looks at the connections to a target. Those that have been idle since the last look end if `ends` says so; one that was
    /// used since is spared, so that it is not closed while its next request is on its way.
    pub fn look_at_idle(&self, target: Option<u16>, ends: bool) {
        let open = self.open.lock();
        let of_target = open.values().filter(|connection| connection.target == target);
        of_target.for_each(|connection| connection.end_if_seen_idle(ends));
    }

    /// Cuts off the client that has taken nothing for longest, if any has for so many milliseconds.
    pub fn dismiss_stalled(&self, milliseconds: u64) {
        let longest = {
            let open = self.open.lock();
            let stalled =
                open.values().filter(|connection| connection.is_stalled() && !connection.must_leave());
            let longest = stalled.min_by_key(|connection| connection.since.load(Ordering::Relaxed));
            longest.cloned()
        };
        let now = monotonic_ms();
        if let Some(connection) = longest.filter(|connection| connection.lasts(now) >= milliseconds) {
            self.dismissed.fetch_add(1, Ordering::Relaxed);
            connection.dismiss();
        }
    }

    /// Tells those to leave that have been reading a head for longest, until what they hold is so many bytes; nobody, if all of
    /// them hold less. `asking` stays.
    pub fn dismiss_readers(&self, bytes: u64, asking: &Arc<Connection>) -> bool {
        let (mut leaving, mut held) = (Vec::new(), 0);
        {
            let open = self.open.lock();
            let reads = |connection: &&Arc<Connection>| {
                let phase = connection.phase.load(Ordering::Relaxed);
                phase == Phase::Unfinished as u8
                    && !connection.must_leave()
                    && !Arc::ptr_eq(connection, asking)
            };
            for connection in open.values().filter(reads) {
                let holds = connection.held.load(Ordering::Relaxed);
                if holds > 0 {
                    held += holds;
                    leaving.push(Arc::clone(connection));
                }
                if held >= bytes {
                    break;
                }
            }
        }
        if held < bytes {
            return false;
        }
        self.dismissed.fetch_add(leaving.len() as u64, Ordering::Relaxed);
        leaving.iter().for_each(|connection| connection.dismiss());
        true
    }
}

/// Which connection makes room for the one with the number `coming`: the oldest of the first phase in [`Phase::LEAVING`] that any
/// is in for long enough. One that came just now may not have had the time to send its head: it makes room last. One that has been between
/// requests since the last look is spared for a while: it may be in use.
fn victim(open: &BTreeMap<u64, Arc<Connection>>, coming: u64) -> Option<u64> {
    let now = monotonic_ms();
    let grace = (open.len() as u64 / 4).min(GRACE);
    let mut oldest: [Option<u64>; Phase::LEAVING.len() + 1] = Default::default();
    for (id, connection) in open {
        let phase = connection.phase.load(Ordering::Relaxed);
        let place = Phase::LEAVING.iter().position(|(leaving, time)| {
            *leaving as u8 == phase && (*time == 0 || connection.lasts(now) >= *time)
        });
        let Some(place) = place else { continue };
        if place == 0 && coming.saturating_sub(*id) <= grace {
            oldest[Phase::LEAVING.len()].get_or_insert(*id);
            continue;
        }
        oldest[place].get_or_insert(*id);
        if place == 0 {
            break;
        }
        if phase == Phase::Resting as u8 {
            connection.see_idle();
        }
    }
    oldest.into_iter().flatten().next()
}

/// A connection's place, which is free again when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    connections: Arc<Connections>,
    id: u64,
    connection: Arc<Connection>,
}

impl Admitted {
    /// What it tells those who want its place.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        open.remove(&self.id);
        self.connections.note(open.len());
    }
}
