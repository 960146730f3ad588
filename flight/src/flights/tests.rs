use crate::testing::block_on;
use futures::FutureExt;

use super::*;

fn lead<T: Clone + Send>(joined: Joined<T>) -> Lead<T> {
    match joined {
        Joined::Lead(lead) => lead,
        Joined::Wait(_) => panic!("somebody else leads"),
    }
}

fn wait<T: Clone + Send>(joined: Joined<T>) -> Wait<T> {
    match joined {
        Joined::Wait(wait) => wait,
        Joined::Lead(_) => panic!("nobody leads"),
    }
}

#[test]
fn those_who_wait_get_what_the_lead_found() {
    let flights = Flights::new();
    let leader = lead(flights.join("a"));
    let other = lead(flights.join("b"));
    let mut before = wait(flights.join("a"));
    let late = wait(flights.join("a"));
    assert!((&mut before).now_or_never().is_none());
    let landed = leader.land(7);
    assert_eq!(block_on(&mut before), Some(7));
    assert_eq!(block_on(wait(flights.join("a"))), Some(7), "while it is held");
    drop(landed);
    assert_eq!(block_on(late), Some(7), "joined before, polled after");
    let next = lead(flights.join("a"));
    assert_eq!(flights.len(), 2);
    drop((next, other));
    assert!(flights.is_empty());
}

#[test]
fn a_lead_that_vanishes_frees_the_key_first() {
    let flights = Flights::<u8>::new();
    let leader = lead(flights.join("a"));
    let (first, second) = (wait(flights.join("a")), wait(flights.join("a")));
    drop(leader);
    assert_eq!(block_on(first), None);
    let leader = lead(flights.join("a"));
    assert_eq!(block_on(second), None);
    let landed = wait(flights.join("a"));
    let _landed = leader.land(1);
    assert_eq!(block_on(landed), Some(1));
}

#[test]
fn a_guard_frees_only_its_own_flight() {
    let flights = Flights::new();
    let old = lead(flights.join("a")).land(1);
    let table = Arc::clone(&flights.table);
    table.shard("a").lock().clear();
    let _new = lead(flights.join("a"));
    drop(old);
    assert_eq!(flights.len(), 1);
}

#[test]
fn a_wait_that_is_dropped_leaves_nothing_behind() {
    let flights = Flights::<u8>::new();
    let leader = lead(flights.join("a"));
    let mut gone = wait(flights.join("a"));
    assert!((&mut gone).now_or_never().is_none());
    drop(gone);
    let State::Flying(waiters) = &*leader.0.flight.state.lock() else { panic!("it has landed") };
    assert!(waiters.is_empty());
}
