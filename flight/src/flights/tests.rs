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

fn key(text: &str) -> FlightKey<'_> {
    // Few hashes, so that keys share them.
    FlightKey { text, hash: text.len() as u64, epoch: 0 }
}

#[test]
fn keys_of_other_texts_and_epochs_have_flights_of_their_own() {
    let flights = Flights::<u8>::new();
    let _own = lead(flights.join(key("a")));
    let _other = lead(flights.join(key("b")));
    let _later = lead(flights.join(FlightKey { epoch: 1, ..key("a") }));
    assert_eq!(flights.len(), 3);
    drop(wait(flights.join(key("a"))));
}

#[test]
fn waiters_get_the_result_of_the_lead() {
    let flights = Flights::new();
    let leader = lead(flights.join(key("a")));
    let other = lead(flights.join(key("b")));
    let mut before = wait(flights.join(key("a")));
    let late = wait(flights.join(key("a")));
    assert!((&mut before).now_or_never().is_none());
    let landed = leader.land(7);
    assert_eq!(block_on(&mut before), Some(7));
    assert_eq!(block_on(wait(flights.join(key("a")))), Some(7), "while it is held");
    drop(landed);
    assert_eq!(block_on(late), Some(7), "joined before, polled after");
    let next = lead(flights.join(key("a")));
    assert_eq!(flights.len(), 2);
    drop((next, other));
    assert!(flights.is_empty());
}

#[test]
fn a_lead_that_vanishes_frees_the_key_first() {
    let flights = Flights::<u8>::new();
    let leader = lead(flights.join(key("a")));
    let (first, second) = (wait(flights.join(key("a"))), wait(flights.join(key("a"))));
    drop(leader);
    assert_eq!(block_on(first), None);
    let leader = lead(flights.join(key("a")));
    assert_eq!(block_on(second), None);
    let landed = wait(flights.join(key("a")));
    let _landed = leader.land(1);
    assert_eq!(block_on(landed), Some(1));
}

#[test]
fn a_guard_frees_only_its_own_flight() {
    let flights = Flights::new();
    let old = lead(flights.join(key("a"))).land(1);
    let table = Arc::clone(&flights.table);
    table.shard(key("a").hash).lock().clear();
    let _new = lead(flights.join(key("a")));
    drop(old);
    assert_eq!(flights.len(), 1);
}

#[test]
fn a_wait_that_is_dropped_leaves_nothing_behind() {
    let flights = Flights::<u8>::new();
    let leader = lead(flights.join(key("a")));
    let mut gone = wait(flights.join(key("a")));
    assert!((&mut gone).now_or_never().is_none());
    drop(gone);
    let shared = leader.0.flight.shared.lock();
    let State::Flying(waiters) = &shared.state else { panic!("it has landed") };
    assert!(waiters.is_empty());
    assert_eq!(shared.waits, 0);
}

#[test]
fn a_flight_that_is_overtaken_sends_its_waiters_to_the_new_lead() {
    let flights = Flights::new();
    let hung = lead(flights.join(key("a")));
    let (first, mut second) = (wait(flights.join(key("a"))), wait(flights.join(key("a"))));
    assert!((&mut second).now_or_never().is_none());
    let next = lead(flights.overtake(first));
    assert_eq!(block_on(&mut second), None, "it is to join again");
    let second = wait(flights.overtake(second));
    let _landed = next.land(2);
    assert_eq!(block_on(second), Some(2));
    drop(hung.land(1));
    assert_eq!(block_on(wait(flights.join(key("a")))), Some(2), "nobody hears of the one that was overtaken");
}

#[test]
fn one_of_several_overtakers_leads() {
    let flights = Flights::<u8>::new();
    let hung = lead(flights.join(key("a")));
    let waits: Vec<_> = (0..5).map(|_| wait(flights.join(key("a")))).collect();
    let joined: Vec<_> = waits.into_iter().map(|wait| flights.overtake(wait)).collect();
    assert_eq!(joined.iter().filter(|joined| matches!(joined, Joined::Lead(_))).count(), 1);
    assert_eq!(flights.len(), 1);
    drop((hung, joined));
    assert!(flights.is_empty());
}

#[test]
fn landed_flight_may_be_overtaken_and_stays_with_its_joiners() {
    let flights = Flights::new();
    let stalled = lead(flights.join(key("a"))).land(1);
    let (before, overdue) = (wait(flights.join(key("a"))), wait(flights.join(key("a"))));
    let next = lead(flights.overtake(overdue));
    assert_eq!(block_on(before), Some(1));
    let after = wait(flights.join(key("a")));
    drop(stalled);
    assert_eq!(block_on(after), None, "what it left behind is to be looked at");
    let after = wait(flights.join(key("a")));
    drop(next.land(2));
    assert_eq!(block_on(after), Some(2));
    assert!(flights.is_empty());
}

#[test]
fn a_lead_that_goes_on_is_as_one_that_began() {
    let flights = Flights::<u8>::new();
    let leader = lead(flights.join(key("a")));
    let waiting = wait(flights.join(key("a")));
    let began = waiting.since();
    while Instant::now() == began {}
    leader.goes_on();
    assert!(waiting.since() > began);
}

#[test]
fn audience_is_the_waiters() {
    let flights = Flights::<u8>::new();
    let leader = lead(flights.join(key("a")));
    let audience = leader.audience();
    assert!(audience.is_empty());
    let one = wait(flights.join(key("a")));
    assert!(!audience.is_empty());
    drop(one);
    assert!(audience.is_empty());
}
