//! Memory of stored responses, as the allocator counts it: it depends on the code's shape alone, so it is exact.

// Tests state an expectation by panicking.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use larder_policy::{
    PurgeName,
    response_meta::{ResponseMeta, Times},
    spec::Eviction,
};
use larder_sidecar::{
    barriers::Stamp,
    budget::Budget,
    entry::{Content, Entry, Head},
    headers::FieldLines,
    l1::{Bounds, L1, Stored},
};
use tikv_jemalloc_ctl::thread::{ThreadLocal, allocatedp, deallocatedp};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const ENTRIES: usize = 20_000;

/// Header fields of a response in JSON.
const USUAL: [(&str, &str); 5] = [
    ("date", "Fri, 27 Nov 2026 20:00:00 GMT"),
    ("content-type", "application/json"),
    ("content-length", "1024"),
    ("cache-control", "public, max-age=60"),
    ("etag", "W/\"400-z6ZLrTqVYvSqMaZkUvqfw3rW7HE\""),
];

/// Bytes that this thread has allocated and not freed, in the allocator's sizes.
struct Live(ThreadLocal<u64>, ThreadLocal<u64>, u64);

impl Live {
    /// Counts from now on.
    fn new() -> Self {
        let mut live = Self(allocatedp::read().unwrap(), deallocatedp::read().unwrap(), 0);
        live.2 = live.bytes();
        live
    }

    fn bytes(&self) -> u64 {
        self.0.get() - self.1.get() - self.2
    }
}

fn key(number: usize) -> String {
    format!("GET http shop.example /api/products/{number}?lang=en")
}

/// An entry as the request path stores it, with the names of a route without tags.
fn entry(budget: &Arc<Budget>, key: &str, lines: &[(&'static str, &'static str)], body: usize) -> Arc<Entry> {
    let fields: FieldLines = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let meta = ResponseMeta::read(StatusCode::OK, &fields, Times { requested_at: 0, received_at: 0 }, &[]);
    let names = ["key", "target", "path"].map(|kind| PurgeName::key(&format!("{kind} {key}")));
    let fields = Arc::new(fields);
    let head = Head { fields, is_to_head: false, meta, stamp: Stamp::default(), names: names.into() };
    let body = budget.counted(Bytes::from(vec![b'x'; body]));
    Arc::new(Entry::new(key, &head, Content::Whole(body)))
}

/// Returns the memory of an entry as the allocator and as L1 count it, of so many that `store` stores.
fn memory(eviction: Eviction, store: impl Fn(&L1, &Arc<Budget>, usize)) -> (f64, f64) {
    let budget = Arc::default();
    let l1 = L1::new(Bounds { max_bytes: u64::MAX, max_entries: None }, eviction, Arc::default());
    let live = Live::new();
    (0..ENTRIES).for_each(|number| store(&l1, &budget, number));
    let of_one = |bytes| bytes as f64 / ENTRIES as f64;
    (of_one(live.bytes()), of_one(l1.bytes()))
}

#[test]
fn stored_json_of_1_kib_takes_at_most_1_5_kib() {
    let (takes, _) = memory(Eviction::Lru, |l1, budget, number| {
        let key = key(number);
        l1.insert(&key, Stored::Entry(entry(budget, &key, &USUAL, 1024)));
    });
    assert!(takes <= 1536.0, "{takes}");
}

#[test]
fn counted_bytes_are_those_of_the_allocator() {
    let more =
        [&USUAL[..], &[("vary", "x-tenant"), ("x-request-id", "5f0c9a1e-8b4d-4f5a-9c3e-2a1b0c9d8e7f")]]
            .concat();
    for eviction in Eviction::ALL {
        let check = |what: &str, values: f64, (takes, counted): (f64, f64)| {
            // Without evictions there are no ghosts, and the room for one counts all the same.
            let ghosts = if eviction == Eviction::S3Fifo { values * 24.0 } else { 0.0 };
            let exact = counted - ghosts;
            assert!((0.97..1.03).contains(&(exact / takes)), "{what}: {takes} bytes, counted as {counted}");
        };
        for size in [0, 100, 1024, 3000, 5000, 20_000] {
            check(
                &format!("bodies of {size}"),
                1.0,
                memory(eviction, |l1, budget, number| {
                    let key = key(number);
                    l1.insert(&key, Stored::Entry(entry(budget, &key, &USUAL, size)));
                }),
            );
        }
        check(
            "variants",
            2.0,
            memory(eviction, |l1, budget, number| {
                let key = key(number);
                // Not a well-known name: it has an allocation, and its copies a counter.
                let vary = [HeaderName::from_bytes(b"x-tenant").unwrap()];
                l1.insert(&key, Stored::Vary(Arc::new(vary.to_vec())));
                let variant = format!("{key}\nx-tenant=one");
                l1.insert(&variant, Stored::Entry(entry(budget, &variant, &more, 1024)));
            }),
        );
        check(
            "entries under another key",
            1.0,
            memory(eviction, |l1, budget, number| {
                let key = key(number);
                l1.insert(&key, Stored::Entry(entry(budget, "another", &USUAL, 1024)));
            }),
        );
        check(
            "unshared",
            1.0,
            memory(eviction, |l1, _, number| {
                l1.insert(&key(number), Stored::Unshared { until: 1 });
            }),
        );
    }
}

#[test]
fn evicted_entries_leave_nothing() {
    for eviction in Eviction::ALL {
        let budget = Arc::default();
        let bounds = Bounds { max_bytes: 8 << 20, max_entries: None };
        let l1 = L1::new(bounds, eviction, Arc::default());
        let live = Live::new();
        for number in 0..10 * ENTRIES {
            let key = key(number);
            l1.insert(&key, Stored::Entry(entry(&budget, &key, &USUAL, number * 7919 % 10_000)));
        }
        let (takes, counted) = (live.bytes() as f64, l1.bytes() as f64);
        assert!(takes < 1.05 * counted, "{takes} bytes, counted as {counted}");
    }
}
