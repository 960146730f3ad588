//! Single flight: of concurrent requests for the same key, one leads and the others wait for its outcome.
//!
//! A lead that hangs must not make its key unusable. A request that has waited long enough, as its caller decides,
//! overtakes the flight: it leads in its place, and the others wait for the new lead.

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use hashbrown::HashTable;
use slab::Slab;

use crate::sync::Mutex;
use crate::wakes::{Bell, Wakes};

/// Locks that the keys are spread over; a power of two.
const SHARDS: usize = 16;

type Shard<T> = Mutex<HashTable<Arc<Flight<T>>>>;

/// The flights in progress, by key.
///
/// # Guarantees
/// - At any time at most one [`Lead`] or [`Landed`] is in this map for a key. One that was overtaken is not in it.
/// - Every waiter is woken when the lead lands, is dropped or is overtaken, whatever other waiters do; and when an
///   overtaken lead ends after all, because its outcome may be of use.
/// - Of several that overtake the same flight one leads, and the others wait for it.
/// - Nothing is left of a key once its `Lead` or `Landed` and its waiters are dropped.
/// - No lock is held while a waiter is woken, and none across keys for longer than a lookup in a map.
///
/// # Assumptions
/// - `T` is cheap to clone (an `Arc`, a few words): it is cloned for each waiter, under the lock of that flight.
pub struct Flights<T> {
    table: Arc<Table<T>>,
}

struct Table<T> {
    shards: [Shard<T>; SHARDS],
}

/// The key of a flight.
#[derive(Clone, Copy, Debug)]
pub struct FlightKey<'a> {
    /// The text.
    pub text: &'a str,
    /// Hash of the text, by a hasher with a secret if clients choose the text.
    pub hash: u64,
    /// The epoch: flights of different epochs have different keys.
    pub epoch: u64,
}

struct Flight<T> {
    text: Arc<str>,
    hash: u64,
    epoch: u64,
    shared: Mutex<Shared<T>>,
}

struct Shared<T> {
    state: State<T>,
    /// The last progress: the start, or the last call of [`Lead::goes_on`].
    since: Instant,
    /// Handles of waiters, polled or not.
    waits: usize,
    /// Number of times that waiters were sent to look again while the lead continued.
    releases: u64,
}

enum State<T> {
    /// A lead is in flight, with these waiters.
    Flying(Slab<Bell>),
    Landed(T),
    /// The lead was dropped before it landed, or was overtaken.
    Lost,
}

/// Result of joining a key.
#[derive(Debug)]
pub enum Joined<T: Clone + Send> {
    /// No flight was in progress: the caller leads, and must [`Lead::land`] its outcome.
    Lead(Lead<T>),
    /// A flight is in progress, or has just landed.
    Wait(Wait<T>),
}

impl<T: Clone + Send> Flights<T> {
    /// Creates a map without flights.
    pub fn new() -> Self {
        let shards = std::array::from_fn(|_| Mutex::new(HashTable::new()));
        Self { table: Arc::new(Table { shards }) }
    }

    /// Leads for `key` or waits for its current lead.
    pub fn join(&self, key: FlightKey<'_>) -> Joined<T> {
        let FlightKey { text, hash, epoch } = key;
        let mut shard = self.table.shard(hash).lock();
        if let Some(flight) = shard.find(hash, |flight| flight.is_under(text, epoch)) {
            return Joined::Wait(Wait::new(flight));
        }
        Joined::Lead(self.lead(&mut shard, Flight::new(text.into(), hash, epoch)))
    }

    /// Leads in place of the flight that `overdue` waits for, which can no longer be joined: its remaining waiters are
    /// sent to join again. Waits instead if another flight is by now in progress under its key.
    ///
    /// A flight that has landed may be overtaken, too: those who joined it get its outcome all the same.
    pub fn overtake(&self, overdue: Wait<T>) -> Joined<T> {
        let flight = &overdue.flight;
        let next = Flight::new(Arc::clone(&flight.text), flight.hash, flight.epoch);
        let lead = {
            let mut shard = self.table.shard(flight.hash).lock();
            if let Ok(current) = shard.find_entry(flight.hash, |known| known.has_key_of(flight)) {
                if !Arc::ptr_eq(current.get(), flight) {
                    return Joined::Wait(Wait::new(current.get()));
                }
                current.remove();
            }
            self.lead(&mut shard, next)
        };
        // After the key: those who are woken must find the new lead when they join again.
        flight.end(State::Lost);
        Joined::Lead(lead)
    }

    /// Begins a flight whose key is free.
    fn lead(&self, shard: &mut HashTable<Arc<Flight<T>>>, flight: Flight<T>) -> Lead<T> {
        let flight = Arc::new(flight);
        shard.insert_unique(flight.hash, Arc::clone(&flight), |flight| flight.hash);
        Lead(Entry { table: Arc::clone(&self.table), flight })
    }

    /// Returns the number of keys in flight.
    pub fn len(&self) -> usize {
        self.table.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Returns true if nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Table<T> {
    fn shard(&self, hash: u64) -> &Shard<T> {
        // Not the low bits, which choose the place within the shard.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl<T> Flight<T> {
    fn new(text: Arc<str>, hash: u64, epoch: u64) -> Self {
        let state = State::Flying(Slab::new());
        let shared = Mutex::new(Shared { state, since: Instant::now(), waits: 0, releases: 0 });
        Self { text, hash, epoch, shared }
    }

    fn is_under(&self, text: &str, epoch: u64) -> bool {
        self.epoch == epoch && *self.text == *text
    }

    fn has_key_of(&self, other: &Self) -> bool {
        self.is_under(&other.text, other.epoch)
    }

    /// Ends the flight and wakes its waiters.
    fn end(&self, outcome: State<T>) {
        let mut wakes = Wakes::default();
        let before = {
            let mut shared = self.shared.lock();
            // Nobody waits for what has landed or was lost, and it stays what it is.
            if let State::Flying(waiters) = &mut shared.state {
                ring(waiters, &mut wakes);
                std::mem::replace(&mut shared.state, outcome)
            } else {
                outcome
            }
        };
        wakes.wake();
        drop(before);
    }

    /// Sends waiters to look again. The lead continues.
    fn release(&self) {
        let mut wakes = Wakes::default();
        {
            let mut shared = self.shared.lock();
            shared.releases += 1;
            if let State::Flying(waiters) = &mut shared.state {
                ring(waiters, &mut wakes);
            }
        }
        wakes.wake();
    }
}

fn ring(waiters: &mut Slab<Bell>, wakes: &mut Wakes) {
    for (_, bell) in waiters.iter_mut() {
        bell.ring(wakes);
    }
}

/// An entry of the map. On drop, the key is free, and remaining waiters learn that nothing comes. An overtaken entry is
/// no longer in the map: on drop, it sends the waiters of its successor to look again.
struct Entry<T> {
    table: Arc<Table<T>>,
    flight: Arc<Flight<T>>,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        // First the key, then the waiters: one of them must find it free when it joins again.
        let (removed, successor) = {
            let hash = self.flight.hash;
            let mut shard = self.table.shard(hash).lock();
            match shard.find_entry(hash, |flight| flight.has_key_of(&self.flight)) {
                Ok(entry) if Arc::ptr_eq(entry.get(), &self.flight) => (Some(entry.remove().0), None),
                Ok(entry) => (None, Some(Arc::clone(entry.get()))),
                Err(_) => (None, None),
            }
        };
        self.flight.end(State::Lost);
        if let Some(successor) = successor {
            successor.release();
        }
        drop(removed);
    }
}

/// The duty to fetch from the origin. If dropped without landing, the key is free, and waiters get `None`.
#[must_use = "dropped, it sends those who wait away"]
pub struct Lead<T>(Entry<T>);

impl<T: Clone + Send> Lead<T> {
    /// Gives the outcome to waiters, and to those who join while the returned guard is held. The outcome of an
    /// overtaken lead reaches nobody.
    pub fn land(self, outcome: T) -> Landed<T> {
        self.0.flight.end(State::Landed(outcome));
        Landed { _entry: self.0 }
    }

    /// Reports progress: [`Wait::since`] is now.
    pub fn goes_on(&self) {
        self.0.flight.shared.lock().since = Instant::now();
    }

    /// Returns a handle that observes waiters, while the lead itself is elsewhere.
    pub fn audience(&self) -> Audience<T> {
        Audience { flight: Arc::clone(&self.0.flight) }
    }
}

/// The waiters of a lead.
pub struct Audience<T> {
    flight: Arc<Flight<T>>,
}

impl<T> Audience<T> {
    /// Returns true if nobody waits. Anyone who joins a moment later still finds the lead.
    pub fn is_empty(&self) -> bool {
        self.flight.shared.lock().waits == 0
    }
}

/// The outcome, for those who join later. On drop, the key is free. Those who joined before still get the outcome.
#[must_use = "dropped, those who come ask the origin again"]
pub struct Landed<T> {
    _entry: Entry<T>,
}

/// Waits for the outcome of the lead; `None` if the lead was dropped or overtaken, or if an earlier lead has ended
/// meanwhile: look up and join again. One of the waiters will lead, if nobody does.
///
/// May be dropped at any time without a trace. Polled again once it was ready, it is ready again.
#[must_use = "futures do nothing unless polled"]
pub struct Wait<T: Clone + Send> {
    flight: Arc<Flight<T>>,
    seat: Option<usize>,
    /// Number of releases before this wait began.
    releases: u64,
}

impl<T: Clone + Send> Wait<T> {
    fn new(flight: &Arc<Flight<T>>) -> Self {
        let releases = {
            let mut shared = flight.shared.lock();
            shared.waits += 1;
            shared.releases
        };
        Self { flight: Arc::clone(flight), seat: None, releases }
    }

    /// Returns the time of the lead's last progress: its start, or its last [call](Lead::goes_on).
    pub fn since(&self) -> Instant {
        self.flight.shared.lock().since
    }
}

impl<T: Clone + Send> Future for Wait<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut replaced = None;
        let mut shared = this.flight.shared.lock();
        let is_released = shared.releases != this.releases;
        let found = match &mut shared.state {
            State::Landed(outcome) => Poll::Ready(Some(outcome.clone())),
            State::Lost => Poll::Ready(None),
            State::Flying(_) if is_released => Poll::Ready(None),
            State::Flying(waiters) => {
                let seat = *this.seat.get_or_insert_with(|| waiters.insert(Bell::default()));
                replaced = waiters[seat].wait(cx.waker());
                Poll::Pending
            }
        };
        drop(shared);
        drop(replaced);
        found
    }
}

impl<T: Clone + Send> Drop for Wait<T> {
    fn drop(&mut self) {
        let mut shared = self.flight.shared.lock();
        shared.waits -= 1;
        let bell = match (&mut shared.state, self.seat) {
            (State::Flying(waiters), Some(seat)) => waiters.try_remove(seat),
            _ => None,
        };
        drop(shared);
        drop(bell);
    }
}

impl<T: Clone + Send> Default for Flights<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for Flights<T> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table) }
    }
}

impl<T> fmt::Debug for Flights<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Lead<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lead").field(&self.0.flight.text).finish()
    }
}

impl<T> fmt::Debug for Landed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Landed").field(&self._entry.flight.text).finish()
    }
}

impl<T> fmt::Debug for Audience<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audience").field(&self.flight.text).finish()
    }
}

impl<T: Clone + Send> fmt::Debug for Wait<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").finish_non_exhaustive()
    }
}
