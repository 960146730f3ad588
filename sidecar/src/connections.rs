//! A cap on the connections of clients, and which of them makes room for the next.
//!
//! # Guarantees
//! - No more than the cap are open, but for those that were told to leave and have not yet been polled.
//! - A connection that is being served is never told to leave.
//! - Nothing here is touched for each request that memory answers: a connection says what it does when it waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::AtomicWaker;
use tokio::net::TcpStream;

/// The response to a client that finds no place (RFC 9110, sections 10.2.3 and 15.6.4).
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/problem+json\r\ncontent-length: 84\r\n\r\n\
    {\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections are open\"}";

/// Tells a client that there is no place for it. What it has sent is read, as far as it is there: a connection that is closed
/// with unread bytes in it is reset, and the client may not see why.
pub fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(NO_PLACE);
    let _ = stream.try_read(&mut [0; 4 << 10]);
}

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
    /// Those that may make room, in the order in which they are asked to.
    const LEAVING: [Self; 4] = [Self::Unfinished, Self::Rested, Self::Resting, Self::Stalled];
}

/// One connection, as those who want its place see it.
#[derive(Debug)]
pub struct Connection {
    phase: AtomicU8,
    must_leave: AtomicBool,
    waker: AtomicWaker,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Unfinished as u8),
            must_leave: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }
}

impl Connection {
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
    next: AtomicU64,
    /// By the order in which they came.
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    dismissed: AtomicU64,
    refused: AtomicU64,
}

impl Connections {
    /// Of at most `max`.
    pub fn new(max: usize) -> Self {
        Self {
            max: AtomicUsize::new(max),
            next: AtomicU64::new(0),
            open: Mutex::default(),
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
        let connection = Arc::<Connection>::default();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut leaving = Vec::new();
        let is_admitted = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            while open.len() >= self.max() {
                let Some(id) = victim(&open) else { break };
                leaving.extend(open.remove(&id));
            }
            let has_room = open.len() < self.max();
            if has_room {
                open.insert(id, Arc::clone(&connection));
            }
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
}

/// Which connection makes room: the oldest of the first phase in [`Phase::LEAVING`] that any is in. One that has been between
/// requests since the last look is spared once: it may be in use.
fn victim(open: &BTreeMap<u64, Arc<Connection>>) -> Option<u64> {
    let mut oldest: [Option<u64>; Phase::LEAVING.len()] = Default::default();
    for (id, connection) in open {
        let phase = connection.phase.load(Ordering::Relaxed);
        let place = Phase::LEAVING.iter().position(|leaving| *leaving as u8 == phase);
        let Some(place) = place else { continue };
        oldest[place].get_or_insert(*id);
        if place == 0 {
            break;
        }
        if phase == Phase::Resting as u8 {
            let (from, to) = (Phase::Resting as u8, Phase::Rested as u8);
            let _ = connection.phase.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
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
        self.connections.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(connections: &Arc<Connections>, count: usize) -> Vec<Admitted> {
        (0..count).map(|_| connections.admit().unwrap()).collect()
    }

    fn leaving(all: &[Admitted]) -> Vec<usize> {
        (0..all.len()).filter(|at| all[*at].connection().must_leave()).collect()
    }

    #[test]
    fn the_oldest_unfinished_connection_makes_room_before_idle_ones() {
        let connections = Arc::new(Connections::new(4));
        let mut all = admitted(&connections, 4);
        all[0].connection().serves();
        all[1].connection().rests();
        all.extend(connections.admit());
        assert_eq!(leaving(&all), [2]);
        all[3].connection().stalls();
        all[4].connection().serves();
        all.extend(connections.admit());
        assert_eq!(leaving(&all), [1, 2], "an idle one before one that does not read");
        all[5].connection().serves();
        all.extend(connections.admit());
        assert_eq!(leaving(&all), [1, 2, 3]);
    }

    #[test]
    fn the_response_without_a_place_is_as_long_as_it_says() {
        let (head, body) = std::str::from_utf8(NO_PLACE).unwrap().split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }

    #[test]
    fn who_is_served_keeps_its_place() {
        let connections = Arc::new(Connections::new(2));
        let all = admitted(&connections, 2);
        all.iter().for_each(|one| one.connection().serves());
        assert!(connections.admit().is_none());
        assert_eq!((leaving(&all), connections.refused()), (vec![], 1));
        drop(all);
        assert!(connections.admit().is_some());
    }

    #[test]
    fn an_idle_connection_that_is_used_outlives_an_older_look() {
        let connections = Arc::new(Connections::new(3));
        let mut all = admitted(&connections, 3);
        all.iter().for_each(|one| one.connection().rests());
        all.extend(connections.admit());
        assert_eq!(leaving(&all), [0]);
        // The other two were seen idle. One of them has been used since.
        all[1].connection().rests();
        all[3].connection().serves();
        all.extend(connections.admit());
        assert_eq!(leaving(&all), [0, 2]);
    }
}
