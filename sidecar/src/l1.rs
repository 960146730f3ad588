//! The cache in this pod's memory.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::HeaderName;
use moka::{notification::RemovalCause, policy::EvictionPolicy, sync::Cache};

use crate::entry::Entry;

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

/// An LRU bounded by bytes. A read waits for no lock that another request holds: moka records it aside and brings its order
/// up to date in batches.
#[derive(Debug)]
pub struct L1 {
    cache: Cache<Box<str>, Stored>,
    evictions: Arc<AtomicU64>,
    max_bytes: u64,
}

impl L1 {
    /// A cache of at most `max_bytes` of keys, headers, bodies and their overhead. `evictions` counts what made room.
    pub fn new(max_bytes: u64, evictions: Arc<AtomicU64>) -> Self {
        let counter = Arc::clone(&evictions);
        let cache = Cache::<Box<str>, Stored>::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(max_bytes)
            .weigher(|key, stored| weight(key, stored))
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build();
        Self { cache, evictions, max_bytes }
    }

    /// What is stored under a key.
    pub fn get(&self, key: &str) -> Option<Stored> {
        self.cache.get(key)
    }

    /// Stores under a key, in place of what was there.
    pub fn insert(&self, key: &str, stored: Stored) {
        self.cache.insert(key.into(), stored);
    }

    /// Forgets a key: what is stored under it can't be served any more.
    pub fn remove(&self, key: &str) {
        self.cache.invalidate(key);
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.weighted_size()
    }

    /// How many bytes they may take.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// How many entries made room for others.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

fn weight(key: &str, stored: &Stored) -> u32 {
    const PER_VARY: usize = 128;
    let stored = match stored {
        Stored::Entry(entry) => entry.weight(),
        Stored::Unshared { .. } => PER_VARY,
        Stored::Vary(names) => PER_VARY + names.iter().map(|name| name.as_str().len()).sum::<usize>(),
    };
    u32::try_from(key.len() + stored).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::entry::{Content, tests::head};

    fn stored(size: usize) -> Stored {
        let head = head("max-age=60", Duration::ZERO);
        Stored::Entry(Arc::new(Entry::new(head, Content::Whole(Bytes::from(vec![0; size])))))
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let l1 = L1::new(10_000, Arc::default());
        for key in ["a", "b", "c"] {
            l1.insert(key, stored(2500));
        }
        assert_eq!(l1.entries(), 3);
        assert!(l1.get("a").is_some());
        l1.insert("d", stored(2500));
        assert_eq!(l1.entries(), 3);
        assert!(l1.get("b").is_none() && l1.get("a").is_some() && l1.get("d").is_some());
        assert_eq!(l1.evictions(), 1);
        assert!(l1.bytes() <= l1.max_bytes());
    }

    #[test]
    fn what_is_removed_is_gone() {
        let l1 = L1::new(10_000, Arc::default());
        l1.insert("a", stored(1));
        l1.remove("a");
        assert!(l1.get("a").is_none());
    }
}
