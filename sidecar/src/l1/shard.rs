//! A shard of the cache: a table of its entries, and the order of their eviction.

use std::{ops::Range, sync::Arc};

use hashbrown::HashTable;
use larder_policy::spec::Eviction;

use super::{Held, Stored, ghosts::Ghosts};
use crate::entry::{Entry, allocated};

/// Returns the memory of an entry besides its key and value: a node, its slot in the table, its ghost, and spare
/// capacity of vectors and tables.
pub(super) const fn overhead(eviction: Eviction) -> u64 {
    const NODE: u64 = size_of::<Node>() as u64;
    match eviction {
        Eviction::Lru => NODE + NODE / 16 + 8,
        Eviction::S3Fifo => NODE + NODE / 16 + 8 + 24,
    }
}

/// Number of nodes below which memory is not freed.
const FEW: usize = 64;

/// Maximum number of hits in the main queue that count as further rounds.
const MAX_HEAT: u8 = 3;

/// No node.
const NONE: u32 = u32::MAX;

/// Queues of entries; the first entry leaves first. An LRU has only the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// New entries.
    Small,
    /// Entries with a second request.
    Main,
}

impl Queue {
    /// Returns the index of the queue.
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// A key and its value. An entry knows its key.
#[derive(Debug)]
pub(super) enum Value {
    /// An entry under its own key.
    Entry(Arc<Entry>),
    /// Another value, with its key.
    Other(Box<(Box<str>, Stored)>),
}

impl Value {
    pub(super) fn new(key: &str, stored: Stored) -> Self {
        match stored {
            Stored::Entry(entry) if entry.is_under(key) => Self::Entry(entry),
            stored => Self::Other(Box::new((key.into(), stored))),
        }
    }

    /// Returns the memory that the key and the value take.
    pub(super) fn weight(&self) -> u64 {
        let weight = match self {
            Self::Entry(entry) => entry.weight(),
            Self::Other(other) => {
                let (key, stored) = &**other;
                allocated(size_of_val(&**other)) + allocated(key.len()) + stored.weight()
            }
        };
        weight as u64
    }

    fn is_under(&self, key: &str) -> bool {
        match self {
            Self::Entry(entry) => entry.is_under(key),
            Self::Other(other) => *other.0 == *key,
        }
    }

    fn stored(&self) -> Stored {
        match self {
            Self::Entry(entry) => Stored::Entry(Arc::clone(entry)),
            Self::Other(other) => other.1.clone(),
        }
    }
}

/// A key and its value, and their position in a queue.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    hash: u64,
    /// Turn in which it came to its position.
    turn: u64,
    before: u32,
    after: u32,
    hits: u32,
    /// Hits that still count, up to [`MAX_HEAT`].
    heat: u8,
    /// Queue that it is in.
    pub(super) queue: Queue,
}

/// Result of a step for the first entry of a queue.
#[derive(Debug)]
pub(super) enum Step {
    /// The entry was evicted.
    Evicted(Node),
    /// The entry had a second request, and has moved to the main queue.
    Promoted {
        /// Memory of its key and value.
        weight: u64,
    },
    /// The entry stays, or there is none.
    Stayed,
}

/// The ends of a queue.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

/// A shard of the cache.
#[derive(Debug)]
pub(super) struct Shard {
    eviction: Eviction,
    /// Indices in `nodes`.
    table: HashTable<u32>,
    nodes: Vec<Node>,
    queues: [Ends; 2],
    ghosts: Ghosts,
}

impl Shard {
    /// Creates an empty shard.
    pub(super) fn new(eviction: Eviction) -> Self {
        Self {
            eviction,
            table: HashTable::new(),
            nodes: Vec::new(),
            queues: [Ends { first: NONE, last: NONE }; 2],
            ghosts: Ghosts::default(),
        }
    }

    /// Returns the value under a key.
    pub(super) fn get(&mut self, hash: u64, key: &str, turn: u64) -> Option<Stored> {
        let place = self.find(hash, key)?;
        self.touch(place, turn);
        let node = &mut self.nodes[place as usize];
        node.hits = node.hits.saturating_add(1);
        Some(node.value.stored())
    }

    /// Stores a value under its key. Returns its queue, and the previous value.
    pub(super) fn insert(&mut self, hash: u64, key: &str, value: Value, turn: u64) -> (Queue, Option<Value>) {
        if let Some(place) = self.find(hash, key) {
            self.touch(place, turn);
            let node = &mut self.nodes[place as usize];
            return (node.queue, Some(std::mem::replace(&mut node.value, value)));
        }
        let queue = match self.eviction {
            Eviction::S3Fifo if !self.ghosts.forget(hash) => Queue::Small,
            Eviction::S3Fifo | Eviction::Lru => Queue::Main,
        };
        let place = u32::try_from(self.nodes.len()).expect("billions of entries exceed any memory");
        // Doubling, as a vector grows, would leave a quarter of it unused on average.
        if self.nodes.len() == self.nodes.capacity() {
            self.nodes.reserve_exact((self.nodes.len() / 8).max(8));
        }
        self.nodes.push(Node { value, hash, turn, before: NONE, after: NONE, hits: 0, heat: 0, queue });
        let nodes = &self.nodes;
        self.table.insert_unique(hash, place, |place| nodes[*place as usize].hash);
        self.link_last(place, queue, turn);
        (queue, None)
    }

    /// Removes the value under a key.
    pub(super) fn remove(&mut self, hash: u64, key: &str) -> Option<Node> {
        let place = self.find(hash, key)?;
        Some(self.take(place))
    }

    /// Takes the first entry of a queue, and evicts it or gives it another chance.
    pub(super) fn step(&mut self, queue: Queue, turn: impl FnOnce() -> u64) -> Step {
        let place = self.queues[queue.index()].first;
        let Some(node) = self.nodes.get_mut(place as usize) else { return Step::Stayed };
        if self.eviction == Eviction::Lru || node.heat == 0 {
            let node = self.take(place);
            if queue == Queue::Small {
                self.ghosts.remember(node.hash, self.nodes.len());
            }
            return Step::Evicted(node);
        }
        let weight = node.value.weight();
        node.heat = if queue == Queue::Small { 0 } else { node.heat - 1 };
        self.unlink(place);
        self.link_last(place, Queue::Main, turn());
        if queue == Queue::Small { Step::Promoted { weight } } else { Step::Stayed }
    }

    /// Returns the turn of the first entry of a queue; `u64::MAX` without one.
    pub(super) fn first_turn(&self, queue: Queue) -> u64 {
        self.nodes.get(self.queues[queue.index()].first as usize).map_or(u64::MAX, |node| node.turn)
    }

    /// Shows the entries at these indices; returns true if there are more behind them.
    pub(super) fn show(&self, places: Range<usize>, see: &mut impl FnMut(Held<'_>)) -> bool {
        let end = places.end.min(self.nodes.len());
        for Node { value, hits, .. } in self.nodes.get(places.start..end).unwrap_or_default() {
            let (bytes, hits) = (overhead(self.eviction) + value.weight(), *hits);
            match value {
                Value::Entry(entry) => {
                    see(Held { key: entry.key(), stored: &value.stored(), bytes, hits });
                }
                Value::Other(other) => see(Held { key: &other.0, stored: &other.1, bytes, hits }),
            }
        }
        end < self.nodes.len()
    }

    fn find(&self, hash: u64, key: &str) -> Option<u32> {
        self.table.find(hash, |place| self.nodes[*place as usize].value.is_under(key)).copied()
    }

    fn touch(&mut self, place: u32, turn: u64) {
        match self.eviction {
            Eviction::Lru => {
                self.unlink(place);
                self.link_last(place, Queue::Main, turn);
            }
            Eviction::S3Fifo => {
                let node = &mut self.nodes[place as usize];
                node.heat = (node.heat + 1).min(MAX_HEAT);
            }
        }
    }

    fn link_last(&mut self, place: u32, queue: Queue, turn: u64) {
        let ends = &mut self.queues[queue.index()];
        let before = std::mem::replace(&mut ends.last, place);
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.after = place,
            None => ends.first = place,
        }
        let node = &mut self.nodes[place as usize];
        (node.before, node.after, node.queue, node.turn) = (before, NONE, queue, turn);
    }

    fn unlink(&mut self, place: u32) {
        let Node { before, after, queue, .. } = self.nodes[place as usize];
        self.join(queue, before, after, (after, before));
    }

    /// Links the neighbours of a node, or the ends of the queue, to the nodes between them.
    fn join(&mut self, queue: Queue, before: u32, after: u32, (first, last): (u32, u32)) {
        let ends = &mut self.queues[queue.index()];
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.after = first,
            None => ends.first = first,
        }
        match self.nodes.get_mut(after as usize) {
            Some(node) => node.before = last,
            None => ends.last = last,
        }
    }

    fn take(&mut self, place: u32) -> Node {
        self.unlink(place);
        let hash = self.nodes[place as usize].hash;
        if let Ok(found) = self.table.find_entry(hash, |found| *found == place) {
            found.remove();
        }
        let node = self.nodes.swap_remove(place as usize);
        // The last node has moved into the gap.
        if let Some(&Node { hash, before, after, queue, .. }) = self.nodes.get(place as usize) {
            let moved_from = self.nodes.len();
            if let Some(found) = self.table.find_mut(hash, |found| *found as usize == moved_from) {
                *found = place;
            }
            self.join(queue, before, after, (place, place));
        }
        self.give_back();
        node
    }

    /// Frees memory when three quarters of it are unused: many small entries may have made room for a few large ones.
    fn give_back(&mut self) {
        let used = self.nodes.len();
        if self.nodes.capacity() > FEW && used < self.nodes.capacity() / 4 {
            let nodes = &mut self.nodes;
            nodes.shrink_to(used * 2);
            self.table.shrink_to(used * 2, |place| nodes[*place as usize].hash);
            self.ghosts.shrink_to(used * 2);
        }
    }
}
