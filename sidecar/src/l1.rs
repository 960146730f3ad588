//! The cache in this pod's memory.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::HeaderName;
use larder_policy::spec::Eviction;

use self::shard::{Node, Queue, Shard, Step};
use crate::entry::Entry;
use parking_lot::Mutex;

mod ghosts;
mod shard;
#[cfg(test)]
mod tests;

/// Two requests on two cores want the same shard at the same time about once in `SHARDS` times that both are in the cache.
const SHARDS: usize = 32;

/// How many entries are shown under one lock.
const MAX_SHOWN: usize = 128;

/// What L1 holds under a key: an answer, or the names of the headers that its variants differ by.
#[derive(Clone, Debug)]
pub enum Stored {
    /// An answer.
    Entry(Arc<Entry>),
    /// The names that `Vary` listed.
    Vary(Arc<[HeaderName]>),
    /// Answers under this key are not for sharing: until then ([`crate::clock::monotonic_ms`]), nobody waits for another's.
    Unshared {
        /// The end of that.
        until: u64,
    },
}

impl Stored {
    /// About how many bytes it takes, without its key and its place in L1.
    pub fn weight(&self) -> usize {
        match self {
            Self::Entry(entry) => entry.weight(),
            Self::Unshared { .. } => 0,
            Self::Vary(names) => names.iter().map(|name| PER_NAME + name.as_str().len()).sum(),
        }
    }
}

/// A header's name, and what its allocation costs if it is no well-known one.
const PER_NAME: usize = size_of::<HeaderName>() + 16;

/// What may be in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How many bytes of keys, headers, bodies and their overhead.
    pub max_bytes: u64,
    /// How many entries; `None`: as many as there is room for.
    pub max_entries: Option<u64>,
}

/// An entry as [`L1::for_each`] shows it.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Its key.
    pub key: &'a str,
    /// What is stored under it.
    pub stored: &'a Stored,
    /// How many bytes it takes.
    pub bytes: u64,
    /// How often it was asked for since it came.
    pub hits: u32,
}

/// A cache bounded by bytes and by entries.
///
/// # Guarantees
/// - When [`Self::insert`] returns, both bounds hold but for what other threads are inserting; what had to make room is freed,
///   unless somebody still reads it.
/// - [`Self::get`] allocates nothing. It holds the lock of one of 32 shards for as long as a look-up takes; nobody holds one for
///   longer but to grow or shrink its table.
/// - The order is one for all shards, so an entry may be as large as the whole cache. The order of two reads is lost only if they
///   are of two shards and nothing was inserted between them.
#[derive(Debug)]
pub struct L1 {
    parts: Box<[Part]>,
    hasher: RandomState,
    bounds: Bounds,
    /// Grows by two with each entry that is put at the end of a queue, so that what is read after it has a number of its own.
    turn: AtomicU64,
    // What there is in all shards; each changes under the lock of the shard that it changes with, so none drops below zero.
    bytes: AtomicU64,
    small_bytes: AtomicU64,
    entries: AtomicU64,
    evictions: Arc<AtomicU64>,
}

/// A shard on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Part {
    shard: Mutex<Shard>,
    /// The turn of the first entry in each [`Queue`]; `u64::MAX` without one.
    first: [AtomicU64; 2],
}

impl L1 {
    /// A cache within bounds. `evictions` counts what made room.
    pub fn new(bounds: Bounds, eviction: Eviction, evictions: Arc<AtomicU64>) -> Self {
        let part = || Part {
            shard: Mutex::new(Shard::new(eviction)),
            first: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
        };
        Self {
            parts: (0..SHARDS).map(|_| part()).collect(),
            hasher: RandomState::new(),
            bounds,
            turn: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            small_bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            evictions,
        }
    }

    /// What is stored under a key.
    pub fn get(&self, key: &str) -> Option<Stored> {
        let hash = self.hasher.hash_one(key);
        self.part(hash).with(|shard| shard.get(hash, key, self.turn.load(Ordering::Relaxed) + 1))
    }

    /// Stores under a key, in place of what was there. What is larger than the whole cache is not stored.
    pub fn insert(&self, key: &str, stored: Stored) {
        let bytes = shard::OVERHEAD + (key.len() + stored.weight()) as u64;
        if bytes > self.bounds.max_bytes || self.bounds.max_entries == Some(0) {
            self.remove(key);
            return;
        }
        let hash = self.hasher.hash_one(key);
        // What is replaced, and what makes room, is freed without the lock.
        let _replaced = self.part(hash).with(|shard| {
            let turn = self.next_turn();
            let (queue, replaced) = shard.insert(hash, key, stored, bytes, turn);
            if let Some((_, bytes)) = &replaced {
                self.discount(queue, *bytes);
            }
            self.count(queue, bytes);
            replaced
        });
        while self.is_over() && self.step() {}
    }

    /// Forgets a key: what is stored under it can't be served any more.
    pub fn remove(&self, key: &str) {
        let hash = self.hasher.hash_one(key);
        let _removed = self.part(hash).with(|shard| {
            let node = shard.remove(hash, key)?;
            self.discount(node.queue, node.bytes);
            Some(node)
        });
    }

    /// Shows all entries, in no order. What comes or goes meanwhile may be missing or be shown twice. Readers of a shard wait
    /// while a hundred of its entries are shown.
    pub fn for_each(&self, mut see: impl FnMut(Held<'_>)) {
        for part in &self.parts {
            let mut from = 0;
            while part.with(|shard| shard.show(from..from + MAX_SHOWN, &mut see)) {
                from += MAX_SHOWN;
            }
        }
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many entries there may be, if that is bounded.
    pub fn max_entries(&self) -> Option<u64> {
        self.bounds.max_entries
    }

    /// How many bytes they may take.
    pub fn max_bytes(&self) -> u64 {
        self.bounds.max_bytes
    }

    /// How many entries made room for others.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
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

    /// Takes the next one in turn, which leaves or gets another chance. `false`: there is none.
    fn step(&self) -> bool {
        let Some((part, queue)) = self.next_to_leave() else { return false };
        let _evicted: Option<Node> = part.with(|shard| match shard.step(queue, || self.next_turn()) {
            Step::Evicted(node) => {
                self.discount(queue, node.bytes);
                self.evictions.fetch_add(1, Ordering::Relaxed);
                Some(node)
            }
            Step::Promoted { bytes } => {
                self.small_bytes.fetch_sub(bytes, Ordering::Relaxed);
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
        // A tenth of the cache is for what has not been asked for again yet.
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
