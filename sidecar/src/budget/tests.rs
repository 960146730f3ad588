use std::iter;

use super::*;
use crate::work::Work;

const MIB: u64 = 1 << 20;

fn budget(memory: u64, l1: u64, object: u64) -> Arc<Budget> {
    let budget = Budget::new(MemoryLimit { bytes: Some(memory), ..MemoryLimit::default() });
    budget.leave_room_for(l1, object);
    Arc::new(budget)
}

#[test]
fn no_kind_takes_the_share_of_the_others() {
    let budget = budget(134 * MIB, 64 * MIB, MIB);
    assert_eq!(budget.bytes(), 30 * MIB);
    let heads = budget.reserve(Kind::Heads, budget.bytes() / 4).unwrap();
    assert!(budget.reserve(Kind::Heads, 1).is_none());
    let mut responses = budget.reserve(Kind::Responses, budget.bytes() / 4 * 3).unwrap();
    assert!(!responses.grow(1));
    assert!(budget.reserve(Kind::Requests, 1).is_none(), "all of it is reserved");
    drop(heads);
    assert!(budget.reserve(Kind::Requests, 7 * MIB).is_some());
    assert!(responses.resize(MIB) && responses.bytes() == MIB);
    drop(responses);
    assert!(Kind::ALL.into_iter().all(|kind| budget.reserved(kind) == 0));
    assert_eq!(budget.refused(Kind::Heads), 1);
}

#[test]
fn smallest_memory_that_the_operator_accepts_leaves_a_budget() {
    assert_eq!(budget(98 * MIB, 64 * MIB, MIB).bytes(), MIN_BYTES);
    assert_eq!(budget(96 * MIB, 64 * MIB, MIB).bytes(), MIN_BYTES, "as little as the operator allows");
    assert_eq!(budget(32 * MIB, 64 * MIB, MIB).bytes(), MIN_BYTES, "less than L1 alone");
}

#[test]
fn l1_is_no_larger_than_memory_permits() {
    let within = |memory: Option<u64>, l1: u64| {
        Budget::new(MemoryLimit { bytes: memory, ..MemoryLimit::default() }).l1_within(l1)
    };
    assert_eq!(within(Some(256 * MIB), 900 * MIB), 224 * MIB);
    assert_eq!(within(Some(128 * MIB), 96 * MIB), 96 * MIB, "as much as the operator allows");
    assert_eq!(within(Some(16 * MIB), 64 * MIB), 0);
    assert_eq!(within(None, 900 * MIB), 900 * MIB, "no limit is known");
}

#[test]
fn one_object_always_has_room_if_there_is_any() {
    let budget = budget(134 * MIB, 64 * MIB, 16 * MIB);
    let _others = budget.reserve(Kind::Heads, 6 * MIB).unwrap();
    assert!(budget.reserve(Kind::Responses, 24 * MIB).is_some());
}

#[test]
fn bodies_that_are_read_after_l1_let_them_go_count() {
    let budget = budget(96 * MIB, 2 * MIB, MIB);
    let body = |length: u64| budget.counted(Bytes::from(vec![0; usize::try_from(length).unwrap()]));
    let held: Vec<_> = (0..4).map(|_| body(MIB)).collect();
    assert_eq!(budget.reserved(Kind::Responses), 2 * MIB);
    assert_eq!(&held[0].slice(..3)[..], [0, 0, 0]);
    drop(held);
    assert_eq!(budget.reserved(Kind::Responses), 0);
}

#[test]
fn the_cap_on_connections_follows_the_budget_and_the_files() {
    let few = Budget::new(MemoryLimit { bytes: Some(134 * MIB), files: 300 });
    assert_eq!(few.connections.max(), 150);
    let many = Budget::new(MemoryLimit { bytes: Some(134 * MIB), files: 1 << 20 });
    assert_eq!(many.connections.max(), 480);
}

#[test]
fn requests_in_progress_leave_less_for_responses() {
    let budget = budget(134 * MIB, 64 * MIB, MIB);
    assert_eq!(budget.places(), 480);
    let works: Vec<_> = (0..480).map(|_| Work::begin(&budget, &Arc::default()).unwrap()).collect();
    assert!(Work::begin(&budget, &Arc::default()).is_none());
    assert!(budget.reserve(Kind::Unread, 16 * MIB).is_none());
    assert!(budget.reserve(Kind::Unread, 15 * MIB).is_some());
    assert!(budget.reserve(Kind::Responses, 1).is_none(), "their clients may read slowly");
    drop(works);
    assert!(budget.reserve(Kind::Responses, 16 * MIB).is_some());
}

#[test]
fn memory_of_256_mib_lets_a_thousand_connections_have_a_request_each() {
    let budget = Budget::new(MemoryLimit { bytes: Some(256 * MIB), files: 1 << 20 });
    assert_eq!((budget.places(), budget.connections.max()), (1_651, 1_651));
}

#[test]
fn responses_to_store_leave_room_for_slow_readers() {
    let budget = budget(134 * MIB, 64 * MIB, 12 * MIB);
    let _works: Vec<_> = (0..60).map(|_| Work::begin(&budget, &Arc::default()).unwrap()).collect();
    let mut fills = Vec::new();
    fills.extend(iter::from_fn(|| budget.reserve(Kind::Responses, MIB)));
    assert!(fills.len() >= 15, "{}", fills.len());
    let unread: Vec<_> = (0..60).map_while(|_| budget.reserve(Kind::Unread, UNREAD)).collect();
    assert_eq!(unread.len(), 60);
}

#[test]
fn later_connections_of_http2_have_fewer_streams() {
    let budget = budget(134 * MIB, 64 * MIB, MIB);
    let granted: Vec<_> = (0..512).map(|_| budget.grant_streams(100)).collect();
    assert_eq!((granted[0].count(), granted[20].count(), granted[511].count()), (100, 100, MIN_STREAMS));
    let all: u64 = granted.iter().map(|streams| u64::from(streams.count())).sum();
    assert!(all * STREAM < 16 * MIB, "{all}");
    assert_eq!(budget.connection_bytes(), 512 * HTTP2_CONNECTION);
    drop(granted);
    assert_eq!(budget.connection_bytes(), 0);
    assert_eq!(budget.grant_streams(100).count(), 100);
}

#[test]
fn late_writes_have_a_quarter_of_the_places() {
    let budget = budget(134 * MIB, 64 * MIB, MIB);
    let writes: Vec<_> = iter::from_fn(|| budget.late_write()).collect();
    assert_eq!(writes.len(), budget.places() / 4);
    drop(writes);
    assert!(budget.late_write().is_some());
}
