use std::{
    cell::Cell,
    collections::HashMap,
    pin::pin,
    task::{Context, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::entry::{Content, tests::head};

/// Stores a response with a body of this size.
fn put(l1: &L1, key: &str, size: usize) {
    l1.insert(key, stored(key, size));
}

fn stored(key: &str, size: usize) -> Stored {
    let head = head("max-age=60", Duration::ZERO);
    Stored::Entry(Arc::new(Entry::new(key, &head, Content::Whole(Bytes::from(vec![0; size])))))
}

fn l1(max_bytes: u64, max_entries: Option<u64>, eviction: Eviction) -> L1 {
    L1::new(Bounds { max_bytes, max_entries }, eviction, Arc::default())
}

/// Returns the number of bytes that an entry of this size counts under a key of one letter.
fn cost(eviction: Eviction, size: usize) -> u64 {
    let l1 = l1(u64::MAX, None, eviction);
    put(&l1, "a", size);
    l1.bytes()
}

fn show(l1: &L1, see: impl FnMut(Held<'_>)) {
    let mut walk = pin!(l1.for_each(see));
    while walk.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
}

fn keys(l1: &L1) -> Vec<String> {
    let mut keys = Vec::new();
    show(l1, |held| keys.push(held.key.to_owned()));
    keys.sort();
    keys
}

/// Returns the number of bytes and of entries, counted one by one.
fn sums(l1: &L1) -> (u64, u64) {
    let (mut bytes, mut entries) = (0, 0);
    show(l1, |held| {
        bytes += held.bytes;
        entries += 1;
    });
    (bytes, entries)
}

#[test]
fn the_least_recently_used_makes_room() {
    let l1 = l1(cost(Eviction::Lru, 2500) * 3, None, Eviction::Lru);
    for key in ["a", "b", "c"] {
        put(&l1, key, 2500);
    }
    assert!(l1.get("a").is_some());
    put(&l1, "d", 2500);
    assert_eq!(keys(&l1), ["a", "c", "d"]);
    put(&l1, "c", 2500);
    put(&l1, "e", 2500);
    assert_eq!(keys(&l1), ["c", "d", "e"]);
    assert_eq!((l1.entries(), l1.evictions(), l1.bytes()), (3, 2, l1.max_bytes()));
}

#[test]
fn a_large_one_takes_the_place_of_several_and_may_fill_the_cache() {
    for eviction in Eviction::ALL {
        let l1 = l1(cost(eviction, 10_000), None, eviction);
        for key in ["a", "b", "c"] {
            put(&l1, key, 1);
        }
        put(&l1, "d", 10_000);
        put(&l1, "d", 10_000);
        assert!(l1.bytes() <= l1.max_bytes());
        if eviction == Eviction::Lru {
            assert_eq!(keys(&l1), ["d"]);
        }
    }
}

#[test]
fn entry_larger_than_the_cache_is_not_stored_and_removes_its_predecessor() {
    for eviction in Eviction::ALL {
        let l1 = l1(cost(eviction, 100), None, eviction);
        put(&l1, "a", 100);
        assert!(l1.get("a").is_some());
        put(&l1, "a", 113);
        assert!(l1.get("a").is_none());
        assert_eq!((l1.bytes(), l1.entries(), l1.evictions()), (0, 0, 0));
    }
}

#[test]
fn removed_or_replaced_entry_gives_its_bytes_back() {
    for eviction in Eviction::ALL {
        let l1 = l1(1 << 20, None, eviction);
        put(&l1, "a", 100);
        put(&l1, "b", 100);
        let both = l1.bytes();
        put(&l1, "a", 150);
        assert_eq!((l1.bytes(), l1.entries()), (both + 48, 2));
        l1.insert("a", Stored::Unshared { until: 1 });
        assert!(matches!(l1.get("a"), Some(Stored::Unshared { until: 1 })));
        l1.remove("a");
        l1.remove("a");
        assert!(l1.get("a").is_none());
        assert_eq!((l1.bytes(), l1.entries()), (both / 2, 1));
        l1.remove("b");
        assert_eq!((l1.bytes(), l1.entries(), l1.evictions()), (0, 0, 0));
    }
}

#[test]
fn evicted_entry_is_freed_at_once() {
    for eviction in Eviction::ALL {
        let l1 = l1(cost(eviction, 100) * 2, None, eviction);
        let entry = Arc::new(Entry::new(
            "a",
            &head("max-age=60", Duration::ZERO),
            Content::Whole(Bytes::from(vec![0; 100])),
        ));
        let left = Arc::downgrade(&entry);
        l1.insert("a", Stored::Entry(entry));
        put(&l1, "b", 100);
        assert!(left.upgrade().is_some());
        put(&l1, "c", 100);
        put(&l1, "d", 100);
        assert!(left.upgrade().is_none());
    }
}

#[test]
fn entries_are_bounded_too() {
    for eviction in Eviction::ALL {
        let l1 = l1(1 << 20, Some(10), eviction);
        for number in 0..100 {
            put(&l1, &number.to_string(), number);
        }
        assert_eq!((l1.entries(), l1.evictions(), l1.max_entries()), (10, 90, Some(10)));
        assert_eq!(sums(&l1), (l1.bytes(), 10));
    }
    assert_eq!(sums(&l1(1 << 20, Some(0), Eviction::Lru)), (0, 0));
}

#[test]
fn a_scan_takes_the_hot_set_from_an_lru_only() {
    let hot: Vec<String> = (0..50).map(|number| format!("hot-{number}")).collect();
    let kept = |eviction| {
        let l1 = l1(cost(eviction, 100) * 100, Some(100), eviction);
        for key in hot.iter().chain(&hot) {
            if l1.get(key).is_none() {
                put(&l1, key, 90);
            }
        }
        for number in 0..1000 {
            put(&l1, &format!("scan-{number}"), 90);
        }
        hot.iter().filter(|key| l1.get(key).is_some()).count()
    };
    assert_eq!(kept(Eviction::Lru), 0);
    assert_eq!(kept(Eviction::S3Fifo), 50);
}

#[test]
fn entry_that_returns_soon_after_eviction_is_retained() {
    let l1 = l1(1 << 20, Some(100), Eviction::S3Fifo);
    let scan = |from: usize| {
        for number in from..from + 99 {
            put(&l1, &format!("scan-{number}"), 1);
        }
    };
    put(&l1, "a", 1);
    scan(0);
    put(&l1, "scan-99", 1);
    assert!(l1.get("a").is_none());
    put(&l1, "a", 1);
    scan(1000);
    scan(2000);
    assert!(l1.get("a").is_some());
}

#[test]
fn hot_entries_leave_once_they_are_not_requested() {
    // Enough for each of the shards, whose keys are told apart by a hash of another seed in each run.
    let l1 = l1(16 << 20, Some(1000), Eviction::S3Fifo);
    let ask = |key: String| {
        if l1.get(&key).is_none() {
            put(&l1, &key, 1);
        }
    };
    for round in 0..20 {
        for number in 0..800 {
            ask(format!("old-{number}"));
            ask(format!("once-{round}-{number}"));
        }
    }
    for _ in 0..20 {
        for number in 0..800 {
            ask(format!("new-{number}"));
        }
    }
    let old = keys(&l1).iter().filter(|key| key.starts_with("old")).count();
    let new = keys(&l1).iter().filter(|key| key.starts_with("new")).count();
    assert!(old <= 200 && new >= 800, "{old} old ones and {new} new ones");
}

#[test]
fn entries_are_shown_with_their_hits() {
    let l1 = l1(1 << 30, None, Eviction::Lru);
    let most = SHARDS * MAX_SHOWN * 3;
    for number in 0..most {
        l1.insert(&number.to_string(), Stored::Unshared { until: number as u64 });
    }
    l1.get("7");
    l1.get("7");
    let mut seen = HashMap::new();
    show(&l1, |held| {
        let Stored::Unshared { until } = held.stored else { panic!("{held:?}") };
        assert_eq!(held.key, until.to_string());
        assert!(seen.insert(*until, held.hits).is_none());
    });
    assert_eq!(seen.len(), most);
    assert_eq!(seen.values().sum::<u32>(), 2);
    assert_eq!(seen[&7], 2);
}

#[test]
fn other_tasks_run_while_entries_are_shown() {
    let l1 = l1(1 << 30, None, Eviction::Lru);
    for number in 0..SHARDS * MAX_SHOWN * 3 {
        l1.insert(&number.to_string(), Stored::Unshared { until: 0 });
    }
    let seen = Cell::new(0);
    let mut walk = pin!(l1.for_each(|_| seen.set(seen.get() + 1)));
    let mut context = Context::from_waker(Waker::noop());
    let mut before = 0;
    while walk.as_mut().poll(&mut context).is_pending() {
        assert!(seen.get() - before <= MAX_SHOWN, "{} at once", seen.get() - before);
        before = seen.get();
    }
    assert_eq!(seen.get(), SHARDS * MAX_SHOWN * 3);
}

#[test]
fn both_bounds_hold_while_many_insert_and_the_sums_are_right_after() {
    const THREADS: u64 = 4;
    for eviction in Eviction::ALL {
        let l1 = l1(200_000, Some(150), eviction);
        let largest = cost(eviction, 4000) + 10;
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let l1 = &l1;
                scope.spawn(move || {
                    let mut random = thread + 1;
                    for _ in 0..5000 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let key = format!("{}", (random >> 33) % 500);
                        match (random >> 50) % 8 {
                            0 => l1.remove(&key),
                            1..=3 => drop(l1.get(&key)),
                            _ => put(l1, &key, (random >> 40) as usize % 4000),
                        }
                        assert!(l1.bytes() <= l1.max_bytes() + THREADS * largest);
                        assert!(l1.entries() <= 150 + THREADS);
                    }
                });
            }
        });
        assert!(l1.bytes() <= 200_000 && l1.entries() <= 150);
        assert_eq!(sums(&l1), (l1.bytes(), l1.entries()));
        keys(&l1).iter().for_each(|key| l1.remove(key));
        assert_eq!((l1.bytes(), l1.entries(), l1.small_bytes.load(Ordering::Relaxed)), (0, 0, 0));
    }
}

#[test]
fn churn_stays_near_the_bound() {
    for eviction in Eviction::ALL {
        let l1 = l1(1 << 20, None, eviction);
        let largest = 64 << 10;
        for number in 0..2000_usize {
            put(&l1, &number.to_string(), number * 7919 % largest);
            assert!(l1.bytes() <= l1.max_bytes());
            if number > 200 {
                assert!(l1.bytes() + 2 * largest as u64 > l1.max_bytes(), "{} bytes", l1.bytes());
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Get(u8),
    Insert(u8, usize),
    Remove(u8),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let key = 0..40_u8;
    let operation = prop_oneof![
        key.clone().prop_map(Operation::Get),
        (key.clone(), 0..3000_usize).prop_map(|(key, size)| Operation::Insert(key, size)),
        key.prop_map(Operation::Remove),
    ];
    prop::collection::vec(operation, 1..200)
}

/// A reference LRU, simple and correct: the last used entry is last.
#[derive(Default)]
struct Model(Vec<(String, u64)>);

impl Model {
    fn remove(&mut self, key: &str) -> Option<u64> {
        let place = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(place).1)
    }

    fn get(&mut self, key: &str) -> bool {
        let found = self.remove(key);
        self.0.extend(found.map(|bytes| (key.to_owned(), bytes)));
        found.is_some()
    }

    fn insert(&mut self, key: &str, bytes: u64, bounds: Bounds) {
        self.remove(key);
        self.0.push((key.to_owned(), bytes));
        while self.0.iter().map(|(_, bytes)| bytes).sum::<u64>() > bounds.max_bytes
            || bounds.max_entries.is_some_and(|most| self.0.len() as u64 > most)
        {
            self.0.remove(0);
        }
    }
}

proptest! {
    #[test]
    fn both_bounds_hold_and_nothing_is_lost_or_made_up(
        operations in operations(),
        max_bytes in 0..30_000_u64,
        max_entries in prop::option::of(0..20_u64),
        eviction in prop::sample::select(&Eviction::ALL),
    ) {
        let l1 = l1(max_bytes, max_entries, eviction);
        let mut last = HashMap::new();
        for operation in operations {
            match operation {
                Operation::Get(key) => {
                    if let Some(Stored::Entry(entry)) = l1.get(&key.to_string()) {
                        let Content::Whole(body) = &entry.content else { panic!("{entry:?}") };
                        prop_assert_eq!(Some(&body.len()), last.get(&key));
                    }
                }
                Operation::Insert(key, size) => {
                    put(&l1, &key.to_string(), size);
                    last.insert(key, size);
                }
                Operation::Remove(key) => {
                    l1.remove(&key.to_string());
                    last.remove(&key);
                    prop_assert!(l1.get(&key.to_string()).is_none());
                }
            }
            prop_assert!(l1.bytes() <= max_bytes);
            prop_assert!(l1.entries() <= max_entries.unwrap_or(u64::MAX));
            prop_assert_eq!(sums(&l1), (l1.bytes(), l1.entries()));
        }
    }

    /// Compares with the reference. An insert follows each read, because reads of several shards have no order without
    /// one.
    #[test]
    fn lru_retains_the_entries_of_a_plain_lru(
        operations in operations(),
        max_entries in prop::option::of(3..20_u64),
    ) {
        let bounds = Bounds { max_bytes: 30_000, max_entries };
        let l1 = L1::new(bounds, Eviction::Lru, Arc::default());
        let mut model = Model::default();
        let insert = |model: &mut Model, key: &str, size| {
            let entry = stored(key, size);
            let weight = Value::new(key, entry.clone()).weight();
            model.insert(key, shard::overhead(Eviction::Lru) + weight, bounds);
            l1.insert(key, entry);
        };
        for operation in operations {
            match operation {
                Operation::Get(key) => {
                    let key = key.to_string();
                    prop_assert_eq!(l1.get(&key).is_some(), model.get(&key));
                    insert(&mut model, "another", 1);
                }
                Operation::Insert(key, size) => insert(&mut model, &key.to_string(), size),
                Operation::Remove(key) => {
                    l1.remove(&key.to_string());
                    model.remove(&key.to_string());
                }
            }
            let mut expected: Vec<String> = model.0.iter().map(|(key, _)| key.clone()).collect();
            expected.sort();
            prop_assert_eq!(keys(&l1), expected);
        }
    }
}
