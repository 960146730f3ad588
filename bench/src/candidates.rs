//! Candidates for L1: caches with L1's contents, each limited to the same number of bytes.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use clap::ValueEnum;
use foyer_memory::{CacheBuilder, EvictionConfig, LruConfig, S3FifoConfig};
use larder_policy::spec::Eviction;
use larder_sidecar::l1::{Bounds, L1, Stored};
use lru::LruCache;
use moka::policy::EvictionPolicy;
use quick_cache::OptionsBuilder;

/// A cache.
pub trait Cache: Send + Sync {
    /// Returns the entry stored under a key.
    fn get(&self, key: &str) -> Option<Stored>;
    /// Stores under a key.
    fn insert(&self, key: &str, stored: Stored);
    /// Returns the number of entries that the cache reports.
    fn entries(&self) -> u64;
    /// Returns the number of bytes that the cache reports.
    fn bytes(&self) -> u64;
}

/// A library and its eviction policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "they are what `name` says")]
pub enum Candidate {
    LarderLru,
    LarderS3Fifo,
    MokaLru,
    MokaTinyLfu,
    QuickCache,
    FoyerLru,
    FoyerS3Fifo,
    Mutexes,
}

impl Candidate {
    /// All candidates.
    pub const ALL: [Self; 8] = [
        Self::LarderLru,
        Self::LarderS3Fifo,
        Self::MokaLru,
        Self::MokaTinyLfu,
        Self::QuickCache,
        Self::FoyerLru,
        Self::FoyerS3Fifo,
        Self::Mutexes,
    ];

    /// Returns the name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LarderLru => "Larder LRU",
            Self::LarderS3Fifo => "Larder S3-FIFO",
            Self::MokaLru => "moka LRU",
            Self::MokaTinyLfu => "moka TinyLFU",
            Self::QuickCache => "quick_cache S3-FIFO",
            Self::FoyerLru => "foyer LRU",
            Self::FoyerS3Fifo => "foyer S3-FIFO",
            Self::Mutexes => "lru in 32 mutexes",
        }
    }

    /// Creates a cache of `max_bytes`; some need the approximate number of entries.
    pub fn make(self, max_bytes: u64, about: usize) -> Box<dyn Cache> {
        match self {
            Self::LarderLru => larder(max_bytes, Eviction::Lru),
            Self::LarderS3Fifo => larder(max_bytes, Eviction::S3Fifo),
            Self::MokaLru => moka(max_bytes, EvictionPolicy::lru()),
            Self::MokaTinyLfu => moka(max_bytes, EvictionPolicy::tiny_lfu()),
            Self::QuickCache => {
                let options = OptionsBuilder::new()
                    .estimated_items_capacity(about)
                    .weight_capacity(max_bytes)
                    .build()
                    .expect("both are given");
                Box::new(Quick::with_options(options, Weigher, RandomState::new(), Default::default()))
            }
            Self::FoyerLru => foyer(max_bytes, LruConfig::default()),
            Self::FoyerS3Fifo => foyer(max_bytes, S3FifoConfig::default()),
            Self::Mutexes => Box::new(Mutexes::new(max_bytes)),
        }
    }
}

/// Returns the weight of an entry in each of them, equal to L1's.
fn weight(key: &str, stored: &Stored) -> u64 {
    const OVERHEAD: usize = 192;
    (OVERHEAD + key.len() + stored.weight()) as u64
}

fn larder(max_bytes: u64, eviction: Eviction) -> Box<dyn Cache> {
    Box::new(L1::new(Bounds { max_bytes, max_entries: None }, eviction, Arc::default()))
}

impl Cache for L1 {
    fn get(&self, key: &str) -> Option<Stored> {
        self.get(key)
    }

    fn insert(&self, key: &str, stored: Stored) {
        self.insert(key, stored);
    }

    fn entries(&self) -> u64 {
        self.entries()
    }

    fn bytes(&self) -> u64 {
        self.bytes()
    }
}

type Moka = moka::sync::Cache<Box<str>, Stored>;

fn moka(max_bytes: u64, policy: EvictionPolicy) -> Box<dyn Cache> {
    let cache = Moka::builder()
        .eviction_policy(policy)
        .max_capacity(max_bytes)
        .weigher(|key, stored| u32::try_from(weight(key, stored)).unwrap_or(u32::MAX))
        .build();
    Box::new(cache)
}

impl Cache for Moka {
    fn get(&self, key: &str) -> Option<Stored> {
        self.get(key)
    }

    fn insert(&self, key: &str, stored: Stored) {
        self.insert(key.into(), stored);
    }

    fn entries(&self) -> u64 {
        self.run_pending_tasks();
        self.entry_count()
    }

    fn bytes(&self) -> u64 {
        self.run_pending_tasks();
        self.weighted_size()
    }
}

type Quick = quick_cache::sync::Cache<Box<str>, Stored, Weigher, RandomState>;

#[derive(Clone)]
struct Weigher;

impl quick_cache::Weighter<Box<str>, Stored> for Weigher {
    fn weight(&self, key: &Box<str>, stored: &Stored) -> u64 {
        weight(key, stored)
    }
}

impl Cache for Quick {
    fn get(&self, key: &str) -> Option<Stored> {
        self.get(key)
    }

    fn insert(&self, key: &str, stored: Stored) {
        self.insert(key.into(), stored);
    }

    fn entries(&self) -> u64 {
        self.len() as u64
    }

    fn bytes(&self) -> u64 {
        self.weight()
    }
}

fn weight_in_foyer<K: Deref<Target = str>>(key: &K, stored: &Stored) -> usize {
    weight(key, stored) as usize
}

type Foyer = foyer_memory::Cache<Box<str>, Stored, RandomState>;

fn foyer(max_bytes: u64, policy: impl Into<EvictionConfig>) -> Box<dyn Cache> {
    let cache: Foyer = CacheBuilder::new(max_bytes as usize)
        .with_eviction_config(policy)
        .with_hash_builder(RandomState::new())
        .with_weighter(weight_in_foyer::<Box<str>>)
        .build();
    Box::new(cache)
}

impl Cache for Foyer {
    fn get(&self, key: &str) -> Option<Stored> {
        self.get(key).map(|found| found.value().clone())
    }

    fn insert(&self, key: &str, stored: Stored) {
        self.insert(key.into(), stored);
    }

    fn entries(&self) -> u64 {
        self.entries() as u64
    }

    fn bytes(&self) -> u64 {
        self.usage() as u64
    }
}

/// The simplest candidate: LRUs that each have a part of the bytes and a lock.
struct Mutexes {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    max_bytes_each: u64,
}

struct Shard {
    cache: LruCache<Box<str>, (Stored, u64), RandomState>,
    bytes: u64,
}

impl Mutexes {
    const SHARDS: usize = 32;

    fn new(max_bytes: u64) -> Self {
        let shard = || Shard { cache: LruCache::unbounded_with_hasher(RandomState::new()), bytes: 0 };
        Self {
            shards: (0..Self::SHARDS).map(|_| Mutex::new(shard())).collect(),
            hasher: RandomState::new(),
            max_bytes_each: max_bytes / Self::SHARDS as u64,
        }
    }

    fn with<R>(shard: &Mutex<Shard>, act: impl FnOnce(&mut Shard) -> R) -> R {
        act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn shard(&self, key: &str) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % Self::SHARDS]
    }

    fn sum(&self, value: impl Fn(&Shard) -> u64) -> u64 {
        self.shards.iter().map(|shard| Self::with(shard, |shard| value(shard))).sum()
    }
}

impl Cache for Mutexes {
    fn get(&self, key: &str) -> Option<Stored> {
        Self::with(self.shard(key), |shard| shard.cache.get(key).map(|(stored, _)| stored.clone()))
    }

    fn insert(&self, key: &str, stored: Stored) {
        let bytes = weight(key, &stored);
        if bytes > self.max_bytes_each {
            return;
        }
        let mut out = Vec::new();
        Self::with(self.shard(key), |shard| {
            shard.bytes += bytes;
            if let Some(replaced) = shard.cache.push(key.into(), (stored, bytes)) {
                shard.bytes -= replaced.1.1;
                out.push(replaced);
            }
            while shard.bytes > self.max_bytes_each
                && let Some(oldest) = shard.cache.pop_lru()
            {
                shard.bytes -= oldest.1.1;
                out.push(oldest);
            }
        });
    }

    fn entries(&self) -> u64 {
        self.sum(|shard| shard.cache.len() as u64)
    }

    fn bytes(&self) -> u64 {
        self.sum(|shard| shard.bytes)
    }
}
