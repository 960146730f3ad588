//! A part of the cache: a table of its entries, and the order in which they leave.

use std::ops::Range;

use hashbrown::HashTable;
use larder_policy::spec::Eviction;

use super::{Held, Stored, ghosts::Ghosts};

/// What an entry costs here beside its key and what it stores: a node, its slot in the table, its ghost, and what vectors and
/// tables keep free to grow.
pub(super) const OVERHEAD: u64 = 192;

/// Memory of fewer nodes is not given back.
const FEW: usize = 64;

/// Whoever is hit this often while in the main queue stays for that many more rounds.
const MAX_HEAT: u8 = 3;

/// No node.
const NONE: u32 = u32::MAX;

/// The queues of entries; who is first leaves first. An LRU has only the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Those that came a short while ago.
    Small,
    /// Those that were asked for again.
    Main,
}

impl Queue {
    /// Its place among the queues.
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// An entry, and its place in a queue.
#[derive(Debug)]
pub(super) struct Node {
    key: Box<str>,
    stored: Stored,
    hash: u64,
    /// How many bytes it counts.
    pub(super) bytes: u64,
    /// When it came to its place.
    turn: u64,
    before: u32,
    after: u32,
    hits: u32,
    /// Hits that still count for it, up to [`MAX_HEAT`].
    heat: u8,
    /// The queue that it is in.
    pub(super) queue: Queue,
}

/// What became of the first one in a queue.
#[derive(Debug)]
pub(super) enum Step {
    /// It left.
    Evicted(Node),
    /// It was asked for again, and is in the main queue now.
    Promoted {
        /// The bytes that it counts.
        bytes: u64,
    },
    /// It stays, or there is none.
    Stayed,
}

/// The ends of a queue.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

/// A part of the cache.
#[derive(Debug)]
pub(super) struct Shard {
    eviction: Eviction,
    /// Places in `nodes`.
    table: HashTable<u32>,
    nodes: Vec<Node>,
    queues: [Ends; 2],
    ghosts: Ghosts,
}

impl Shard {
    /// An empty one.
    pub(super) fn new(eviction: Eviction) -> Self {
        Self {
            eviction,
            table: HashTable::new(),
            nodes: Vec::new(),
            queues: [Ends { first: NONE, last: NONE }; 2],
            ghosts: Ghosts::default(),
        }
    }

    /// What is stored under a key.
    pub(super) fn get(&mut self, hash: u64, key: &str, turn: u64) -> Option<Stored> {
        let place = self.find(hash, key)?;
        self.touch(place, turn);
        let node = &mut self.nodes[place as usize];
        node.hits = node.hits.saturating_add(1);
        Some(node.stored.clone())
    }

    /// Stores under a key. The queue that it is in, and what was stored there before with the bytes that it counted.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: &str,
        stored: Stored,
        bytes: u64,
        turn: u64,
    ) -> (Queue, Option<(Stored, u64)>) {
        if let Some(place) = self.find(hash, key) {
            self.touch(place, turn);
            let node = &mut self.nodes[place as usize];
            let replaced = (std::mem::replace(&mut node.stored, stored), node.bytes);
            node.bytes = bytes;
            return (node.queue, Some(replaced));
        }
        let queue = match self.eviction {
            Eviction::S3Fifo if !self.ghosts.forget(hash) => Queue::Small,
            Eviction::S3Fifo | Eviction::Lru => Queue::Main,
        };
        let place =
            u32::try_from(self.nodes.len()).expect("billions of entries need more memory than there is");
        self.nodes.push(Node {
            key: key.into(),
            stored,
            hash,
            bytes,
            turn,
            before: NONE,
            after: NONE,
            hits: 0,
            heat: 0,
            queue,
        });
        let nodes = &self.nodes;
        self.table.insert_unique(hash, place, |place| nodes[*place as usize].hash);
        self.link_last(place, queue, turn);
        (queue, None)
    }

    /// Takes out what is stored under a key.
    pub(super) fn remove(&mut self, hash: u64, key: &str) -> Option<Node> {
        let place = self.find(hash, key)?;
        Some(self.take(place))
    }

    /// Takes the first one of a queue, and lets it go or gives it another chance.
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
        let bytes = node.bytes;
        node.heat = if queue == Queue::Small { 0 } else { node.heat - 1 };
        self.unlink(place);
        self.link_last(place, Queue::Main, turn());
        if queue == Queue::Small { Step::Promoted { bytes } } else { Step::Stayed }
    }

    /// The turn of the first one of a queue; `u64::MAX` without one.
    pub(super) fn first_turn(&self, queue: Queue) -> u64 {
        self.nodes.get(self.queues[queue.index()].first as usize).map_or(u64::MAX, |node| node.turn)
    }

    /// Shows the entries at these places, and says whether there are more behind them.
    pub(super) fn show(&self, places: Range<usize>, see: &mut impl FnMut(Held<'_>)) -> bool {
        let end = places.end.min(self.nodes.len());
        for Node { key, stored, bytes, hits, .. } in self.nodes.get(places.start..end).unwrap_or_default() {
            see(Held { key, stored, bytes: *bytes, hits: *hits });
        }
        end < self.nodes.len()
    }

    fn find(&self, hash: u64, key: &str) -> Option<u32> {
        self.table.find(hash, |place| *self.nodes[*place as usize].key == *key).copied()
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

    /// Points the neighbours of a node, or the ends of the queue, at what is between them now.
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
        // The last one has moved to where it was.
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

    /// Gives memory back when three quarters of it are not used: many small entries may have made room for a few large ones.
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
