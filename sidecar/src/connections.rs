//! Limit on client connections, and the choice of the connection that makes room for a new one.
//!
//! # Guarantees
//! - At most the limit are open, apart from those that were told to leave and have not yet been polled.
//! - A connection that is being served is never told to leave.
//! - Responses from memory cost nothing here: a connection updates its phase only when it waits.

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

/// The response to a client for which there is no room (RFC 9110, sections 10.2.3 and 15.6.4).
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/problem+json\r\ncontent-length: 85\r\n\r\n\
    {\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections are open\"}";

/// Tells a client that there is no room. Bytes that have arrived are read first, because closing a connection with
/// unread bytes resets it, and the client might not see the response.
pub fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(NO_PLACE);
    let _ = stream.try_read(&mut [0; 4 << 10]);
}

/// Time in milliseconds for which a connection is spared after it was seen idle, because it may be in use.
const SPARED_MS: u64 = 250;
/// Time in milliseconds after which a client that does not read makes room for others.
pub const STALLED_MS: u64 = 1_000;

/// Number of later connections before one with an incomplete head makes room; fewer under a low limit.
const GRACE: u64 = 32;

/// Activity of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// No complete head has arrived yet, or the next one is incomplete.
    Unfinished,
    /// Between requests, not seen by a check since.
    Rested,
    /// Between requests since the last check.
    Resting,
    /// The client does not read its response.
    Stalled,
    /// A request is being served.
    Serving,
}

impl Phase {
    /// Phases of connections that may be told to leave, in the order of preference, with the minimum time in the phase
    /// in milliseconds.
    const LEAVING: [(Self, u64); 6] = [
        (Self::Unfinished, 0),
        (Self::Rested, SPARED_MS),
        (Self::Stalled, STALLED_MS),
        (Self::Rested, 0),
        (Self::Resting, 0),
        (Self::Stalled, 0),
    ];
}

/// A connection, as seen by those that need its place.
#[derive(Debug)]
pub struct Connection {
    /// The application's port, if the sidecar serves several.
    target: Option<u16>,
    phase: AtomicU8,
    must_leave: AtomicBool,
    /// True if the connection must end as soon as no request is in progress.
    ends_when_idle: AtomicBool,
    waker: AtomicWaker,
    /// Bytes of the memory budget that its request's head holds.
    held: AtomicU64,
    /// Time at which the client stopped reading, or the connection was seen idle, as [`monotonic_ms`].
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
        // Written only on a change, so that the cache line stays with its readers.
        if self.phase.load(Ordering::Relaxed) != phase as u8 {
            self.phase.store(phase as u8, Ordering::Relaxed);
        }
    }

    /// Records that a head has begun.
    pub fn reads_head(&self) {
        self.enter(Phase::Unfinished);
    }

    /// Records that no request is in progress.
    pub fn rests(&self) {
        self.enter(Phase::Resting);
    }

    /// Records that a request is being served.
    pub fn serves(&self) {
        self.enter(Phase::Serving);
    }

    /// Records that the client does not read.
    pub fn stalls(&self) {
        if !self.is_stalled() {
            self.since.store(monotonic_ms(), Ordering::Relaxed);
        }
        self.enter(Phase::Stalled);
    }

    /// Returns true if a request is being served.
    pub fn is_serving(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Serving as u8
    }

    /// Returns true if the client did not read at the last write.
    pub fn is_stalled(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Stalled as u8
    }

    /// Records the bytes of the memory budget that its request's head holds.
    pub fn holds(&self, bytes: u64) {
        self.held.store(bytes, Ordering::Relaxed);
    }

    /// Returns true if its place was given to another connection.
    pub fn must_leave(&self) -> bool {
        self.must_leave.load(Ordering::Acquire)
    }

    /// Completes when its place is given to another connection.
    pub fn poll_must_leave(&self, context: &Context<'_>) -> Poll<()> {
        if !self.must_leave() {
            self.waker.register(context.waker());
        }
        if self.must_leave() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns true if its place was given to another connection, and no request is being served.
    pub fn gives_way(&self) -> bool {
        self.must_leave() && !self.is_serving()
    }

    /// Returns true if the connection must end as soon as no request is in progress.
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

    /// Tells the connection to leave.
    pub fn dismiss(&self) {
        self.must_leave.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The open connections.
#[derive(Debug)]
pub struct Connections {
    max: AtomicUsize,
    count: AtomicUsize,
    next: AtomicU64,
    /// True if three quarters of the places are taken.
    is_crowded: AtomicBool,
    /// The open connections by the order of their arrival.
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    /// Time of the last check for idle connections, as [`monotonic_ms`].
    looked_at: AtomicU64,
    dismissed: AtomicU64,
    refused: AtomicU64,
}

impl Connections {
    /// Creates a limit of `max` connections.
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

    /// Changes the limit. Connections above it leave as others come.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Returns the limit.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns true if so many connections are open that idle ones should hold no memory.
    pub fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// Publishes the number of open connections for readers without the lock.
    fn note(&self, open: usize) {
        self.count.store(open, Ordering::Relaxed);
        let is_crowded = open >= self.max() / 4 * 3;
        if is_crowded != self.is_crowded() {
            self.is_crowded.store(is_crowded, Ordering::Relaxed);
        }
    }

    /// Returns the number of connections that were told to leave for others.
    pub fn dismissed(&self) -> u64 {
        self.dismissed.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that were turned away.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Admits a new connection, if necessary in the place of the oldest one that is not being served; `None` if all
    /// are.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        self.admit_to(None)
    }

    /// Admits a client of the application's port `target`, if the sidecar serves several.
    pub fn admit_to(self: &Arc<Self>, target: Option<u16>) -> Option<Admitted> {
        let connection = Arc::new(Connection::to(target));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut leaving = Vec::new();
        let is_admitted = {
            let mut open = self.open.lock();
            if self.is_crowded() && monotonic_ms() >= self.looked_at.load(Ordering::Relaxed) + SPARED_MS {
                // With all places taken, idle connections must be known.
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

    /// Checks the connections to a target. Those that have been idle since the last check end if `ends` is true; one
    /// that was used since is spared, so that it is not closed while its next request is on its way.
    pub fn look_at_idle(&self, target: Option<u16>, ends: bool) {
        let open = self.open.lock();
        let of_target = open.values().filter(|connection| connection.target == target);
        of_target.for_each(|connection| connection.end_if_seen_idle(ends));
    }

    /// Disconnects the client that has not read for longest, if that is at least `milliseconds`.
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

    /// Tells the connections to leave that have been reading a head for longest, until they hold `bytes` in sum; none,
    /// if all of them hold less. Spares `asking`.
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

/// Returns the connection that makes room for number `coming`: the oldest in the first phase of [`Phase::LEAVING`] that
/// any has been in for long enough. New connections come last, because they may not have had the time to send a head. A
/// connection that has rested since the last check is spared for a while, because it may be in use.
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

/// A connection's place, free again when dropped.
#[derive(Debug)]
pub struct Admitted {
    connections: Arc<Connections>,
    id: u64,
    connection: Arc<Connection>,
}

impl Admitted {
    /// Returns the connection that holds the place.
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
