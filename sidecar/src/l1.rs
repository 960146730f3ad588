//! The cache in this pod's memory (L1).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::HeaderName;
use larder_policy::spec::Eviction;
use tokio::task::yield_now;

use self::shard::{Node, Queue, Shard, Step, Value};
use crate::{
    cache_key::hash_of,
    entry::{Entry, allocated},
};
use parking_lot::Mutex;

mod ghosts;
mod shard;
#[cfg(test)]
mod tests;

/// Number of shards: two requests on two cores want the same one at the same time about once in this many times that
/// both are in the cache.
const SHARDS: usize = 32;

/// Number of entries that are shown under one lock.
const MAX_SHOWN: usize = 128;

/// The value under a key in L1: an entry, or the names of the headers that its variants differ by.
#[derive(Clone, Debug)]
pub enum Stored {
    /// A stored response.
    Entry(Arc<Entry>),
    /// The names that `Vary` listed.
    Vary(Arc<Vec<HeaderName>>),
    /// The responses under this key can't be shared: requests are not collapsed.
    Unshared {
        /// End of that state, as [`crate::clock::monotonic_ms`].
        until: u64,
    },
}

impl Stored {
    /// Returns the memory that it takes, without its key and its place in L1.
    pub fn weight(&self) -> usize {
        // A header name that is not a well-known one has an allocation of its own, and is shared with the key.
        const PER_NAME: usize = 32;
        match self {
            Self::Entry(entry) => entry.weight(),
            Self::Unshared { .. } => 0,
            Self::Vary(names) => {
                let of_names: usize =
                    names.iter().map(|name| PER_NAME + allocated(name.as_str().len())).sum();
                allocated(40) + allocated(names.capacity() * size_of::<HeaderName>()) + of_names
            }
        }
    }
}

/// Limits of L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of bytes of keys, headers, bodies and their overhead.
    pub max_bytes: u64,
    /// Maximum number of entries; `None`: limited by bytes only.
    pub max_entries: Option<u64>,
}

/// An entry as [`L1::for_each`] shows it.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// The key.
    pub key: &'a str,
    /// The value.
    pub stored: &'a Stored,
    /// Number of bytes that it takes.
    pub bytes: u64,
    /// Number of hits since it was inserted.
    pub hits: u32,
}

/// A cache limited by bytes and by entries.
///
/// # Guarantees
/// - When [`Self::insert`] returns, both limits hold, apart from entries that other threads are inserting; evicted
///   entries are freed unless they are still being read.
/// - [`Self::get`] allocates nothing. It holds the lock of one of 32 shards during the lookup; a lock is held longer
///   only to grow or shrink its table.
/// - There is one order for all shards, so an entry may be as large as the whole cache. The order of two reads is lost
///   only if they are of two shards without an insert between them.
#[derive(Debug)]
pub struct L1 {
    parts: Box<[Part]>,
    eviction: Eviction,
    bounds: Bounds,
    /// Number of the next turn. Grows by two with each entry that is put at the end of a queue, so that later reads
    /// have numbers of their own.
    turn: AtomicU64,
    // Sums of all shards; each changes under the lock of the shard that it changes with, so none drops below zero.
    bytes: AtomicU64,
    small_bytes: AtomicU64,
    entries: AtomicU64,
    evictions: Arc<AtomicU64>,
}

/// A shard in its own cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Part {
    shard: Mutex<Shard>,
    /// Turn of the first entry in each [`Queue`]; `u64::MAX` without one.
    first: [AtomicU64; 2],
}

impl L1 {
    /// Creates a cache with limits. `evictions` counts evicted entries.
    pub fn new(bounds: Bounds, eviction: Eviction, evictions: Arc<AtomicU64>) -> Self {
        let part = || Part {
            shard: Mutex::new(Shard::new(eviction)),
            first: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
        };
        Self {
            parts: (0..SHARDS).map(|_| part()).collect(),
            eviction,
            bounds,
            turn: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            small_bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            evictions,
        }
    }

    /// Returns the value under a key.
    pub fn get(&self, key: &str) -> Option<Stored> {
        self.get_hashed(hash_of(key), key)
    }

    /// Returns the value under a key of this [hash](hash_of).
    pub fn get_hashed(&self, hash: u64, key: &str) -> Option<Stored> {
        self.part(hash).with(|shard| shard.get(hash, key, self.turn.load(Ordering::Relaxed) + 1))
    }

    /// Stores a value under a key, replacing the previous one. A value larger than the whole cache is not stored.
    pub fn insert(&self, key: &str, stored: Stored) {
        self.insert_hashed(hash_of(key), key, stored);
    }

    /// Stores a value under a key of this [hash](hash_of), as [`Self::insert`] does.
    pub fn insert_hashed(&self, hash: u64, key: &str, stored: Stored) {
        let value = Value::new(key, stored);
        let bytes = self.overhead() + value.weight();
        if bytes > self.bounds.max_bytes || self.bounds.max_entries == Some(0) {
            self.remove(key);
            return;
        }
        // Replaced and evicted values are freed without the lock.
        let _replaced = self.part(hash).with(|shard| {
            let turn = self.next_turn();
            let (queue, replaced) = shard.insert(hash, key, value, turn);
            if let Some(value) = &replaced {
                self.discount(queue, self.overhead() + value.weight());
            }
            self.count(queue, bytes);
            replaced
        });
        while self.is_over() && self.step() {}
    }

    /// Removes a key: its value can't be served any more.
    pub fn remove(&self, key: &str) {
        let hash = hash_of(key);
        let _removed = self.part(hash).with(|shard| {
            let node = shard.remove(hash, key)?;
            self.discount(node.queue, self.overhead() + node.value.weight());
            Some(node)
        });
    }

    /// Shows all entries, in no order. Entries that come or go meanwhile may be missing or be shown twice. Readers of a
    /// shard, and the other tasks of the thread, wait while a hundred of its entries are shown.
    pub async fn for_each(&self, mut see: impl FnMut(Held<'_>)) {
        for part in &self.parts {
            let mut from = 0;
            while part.with(|shard| shard.show(from..from + MAX_SHOWN, &mut see)) {
                from += MAX_SHOWN;
                yield_now().await;
            }
            yield_now().await;
        }
    }

    /// Returns the number of entries.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the maximum number of entries, if there is one.
    pub fn max_entries(&self) -> Option<u64> {
        self.bounds.max_entries
    }

    /// Returns the maximum number of bytes.
    pub fn max_bytes(&self) -> u64 {
        self.bounds.max_bytes
    }

    /// Returns the number of evicted entries.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Returns the memory of an entry's place.
    fn overhead(&self) -> u64 {
        shard::overhead(self.eviction)
    }

    fn part(&self, hash: u64) -> &Part {
        // The table of a shard uses the lowest and the highest bits.
        &self.parts[(hash >> 32) as usize % SHARDS]
    }

    fn next_turn(&self) -> u64 {
        self.turn.fetch_add(2, Ordering::Relaxed) + 2
    }

    fn is_over(&self) -> bool {
        self.bytes() > self.bounds.max_bytes
            || self.bounds.max_entries.is_some_and(|max_entries| self.entries() > max_entries)
    }

    /// Evicts the next entry in turn, or gives it another chance. Returns false if there is none.
    fn step(&self) -> bool {
        let Some((part, queue)) = self.next_to_leave() else { return false };
        let _evicted: Option<Node> = part.with(|shard| match shard.step(queue, || self.next_turn()) {
            Step::Evicted(node) => {
                self.discount(queue, self.overhead() + node.value.weight());
                self.evictions.fetch_add(1, Ordering::Relaxed);
                Some(node)
            }
            Step::Promoted { weight } => {
                self.small_bytes.fetch_sub(self.overhead() + weight, Ordering::Relaxed);
                None
            }
            Step::Stayed => None,
        });
        true
    }

    fn next_to_leave(&self) -> Option<(&Part, Queue)> {
        let first_in = |queue: Queue| {
            let turn = |part: &&Part| part.first[queue.index()].load(Ordering::Relaxed);
            let part = self.parts.iter().min_by_key(turn)?;
            (turn(&part) < u64::MAX).then_some((part, queue))
        };
        // A tenth of the cache is for entries without a second request so far.
        if self.small_bytes.load(Ordering::Relaxed).saturating_mul(10) > self.bytes() {
            first_in(Queue::Small).or_else(|| first_in(Queue::Main))
        } else {
            first_in(Queue::Main).or_else(|| first_in(Queue::Small))
        }
    }

    fn count(&self, queue: Queue, bytes: u64) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if queue == Queue::Small {
            self.small_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn discount(&self, queue: Queue, bytes: u64) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if queue == Queue::Small {
            self.small_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Part {
    fn with<R>(&self, act: impl FnOnce(&mut Shard) -> R) -> R {
        let mut shard = self.shard.lock();
        let result = act(&mut shard);
        for queue in [Queue::Small, Queue::Main] {
            self.first[queue.index()].store(shard.first_turn(queue), Ordering::Relaxed);
        }
        result
    }
}
