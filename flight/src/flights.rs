//! Single flight: of those who ask for the same key at the same time, one leads and the others wait for what it found.

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use slab::Slab;

use crate::sync::{Hasher, Mutex};
use crate::wakes::{Bell, Wakes};

/// Locks that the keys are spread over; a power of two.
const SHARDS: usize = 16;

type Shard<T> = Mutex<HashMap<Arc<str>, Arc<Flight<T>>, Hasher>>;

/// What is under way, by key.
///
/// # Guarantees
///
/// - At any time at most one [`Lead`] or [`Landed`] is in this map for a key.
/// - Everybody who waits is woken when the lead lands or is dropped, whatever other waiters do.
/// - Nothing is left of a key once its `Lead` or `Landed` and its waiters are dropped.
/// - No lock is held while somebody is woken, and none across keys for longer than a lookup in a map.
///
/// # Assumptions
///
/// - `T` is cheap to clone (an `Arc`, a few words): it is cloned for each who waits, under the lock of that flight.
pub struct Flights<T> {
    table: Arc<Table<T>>,
}

struct Table<T> {
    hasher: Hasher,
    shards: [Shard<T>; SHARDS],
}

struct Flight<T> {
    state: Mutex<State<T>>,
}

enum State<T> {
    /// Somebody leads; these wait.
    Flying(Slab<Bell>),
    Landed(T),
    /// The lead was dropped before it landed.
    Lost,
}

/// What became of asking for a key.
#[derive(Debug)]
pub enum Joined<T: Clone + Send> {
    /// Nobody was asking: the caller does, and must [`Lead::land`] what it finds.
    Lead(Lead<T>),
    /// Somebody is asking, or has just found something.
    Wait(Wait<T>),
}

impl<T: Clone + Send> Flights<T> {
    /// A map with nothing under way.
    pub fn new() -> Self {
        let hasher = Hasher::default();
        let shards = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(hasher.clone())));
        Self { table: Arc::new(Table { hasher, shards }) }
    }

    /// Leads for `key` or waits for the one who does.
    pub fn join(&self, key: &str) -> Joined<T> {
        let mut shard = self.table.shard(key).lock();
        if let Some(flight) = shard.get(key) {
            return Joined::Wait(Wait { flight: Arc::clone(flight), seat: None });
        }
        let key: Arc<str> = key.into();
        let flight = Arc::new(Flight { state: Mutex::new(State::Flying(Slab::new())) });
        shard.insert(Arc::clone(&key), Arc::clone(&flight));
        Joined::Lead(Lead(Entry { table: Arc::clone(&self.table), key, flight }))
    }

    /// How many keys are under way.
    pub fn len(&self) -> usize {
        self.table.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Table<T> {
    fn shard(&self, key: &str) -> &Shard<T> {
        // Not the low bits, which choose the place within the map.
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }
}

impl<T> Flight<T> {
    /// Ends the flight and wakes those who wait.
    fn end(&self, outcome: State<T>) {
        let mut wakes = Wakes::default();
        let before = {
            let mut state = self.state.lock();
            // Nobody waits for what has landed, and it stays what it is.
            if let State::Flying(waiters) = &mut *state {
                for (_, bell) in waiters.iter_mut() {
                    bell.ring(&mut wakes);
                }
                std::mem::replace(&mut *state, outcome)
            } else {
                outcome
            }
        };
        wakes.wake();
        drop(before);
    }
}

/// A place in the map. Dropped: the key is free, and those who still wait learn that nothing comes.
struct Entry<T> {
    table: Arc<Table<T>>,
    key: Arc<str>,
    flight: Arc<Flight<T>>,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        // First the key, then the waiters: one of them must find it free when it joins again.
        let removed = {
            let mut shard = self.table.shard(&self.key).lock();
            let own = shard.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
            if own { shard.remove_entry(&self.key) } else { None }
        };
        self.flight.end(State::Lost);
        drop(removed);
    }
}

/// The duty to ask the origin. Dropped without landing: the key is free, and those who wait get `None`.
#[must_use = "dropped, it sends those who wait away"]
pub struct Lead<T>(Entry<T>);

impl<T: Clone + Send> Lead<T> {
    /// Says what was found to those who wait, and to those who come while the returned guard is held.
    pub fn land(self, outcome: T) -> Landed<T> {
        self.0.flight.end(State::Landed(outcome));
        Landed { _entry: self.0 }
    }
}

/// What was found, for those who come. Dropped: the key is free. Those who joined before still get the outcome.
#[must_use = "dropped, those who come ask the origin again"]
pub struct Landed<T> {
    _entry: Entry<T>,
}

/// Waits for what the lead finds; `None` if the lead was dropped: join again, one of those who waited will lead.
///
/// It may be dropped at any time and leaves nothing behind. Polled again once it was ready, it says the same again.
#[must_use = "futures do nothing unless polled"]
pub struct Wait<T: Clone + Send> {
    flight: Arc<Flight<T>>,
    seat: Option<usize>,
}

impl<T: Clone + Send> Future for Wait<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut replaced = None;
        let mut state = this.flight.state.lock();
        let found = match &mut *state {
            State::Landed(outcome) => Poll::Ready(Some(outcome.clone())),
            State::Lost => Poll::Ready(None),
            State::Flying(waiters) => {
                let seat = *this.seat.get_or_insert_with(|| waiters.insert(Bell::default()));
                replaced = waiters[seat].wait(cx.waker());
                Poll::Pending
            }
        };
        drop(state);
        drop(replaced);
        found
    }
}

impl<T: Clone + Send> Drop for Wait<T> {
    fn drop(&mut self) {
        let Some(seat) = self.seat else { return };
        let mut state = self.flight.state.lock();
        let bell = match &mut *state {
            State::Flying(waiters) => waiters.try_remove(seat),
            State::Landed(_) | State::Lost => None,
        };
        drop(state);
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
        f.debug_tuple("Lead").field(&self.0.key).finish()
    }
}

impl<T> fmt::Debug for Landed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Landed").field(&self._entry.key).finish()
    }
}

impl<T: Clone + Send> fmt::Debug for Wait<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").finish_non_exhaustive()
    }
}
