//! Requests for the same key, of which one leads.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use larder_flight::{FlightKey, Flights, Joined};
use shuttle::future;
use shuttle::rand::{Rng as _, thread_rng};

use super::check;

fn key(text: &str) -> FlightKey<'_> {
    FlightKey { text, hash: text.len() as u64, epoch: 0 }
}

/// Actions of those who joined a key.
#[derive(Default)]
struct Log {
    leading: usize,
    leads: usize,
    vanished: usize,
}

/// Joins until there is an outcome. Some leads vanish, and some waiters leave.
async fn ask(
    flights: Flights<u8>,
    log: Arc<Mutex<Log>>,
    vanishes: bool,
    leaves: bool,
) -> Option<Box<dyn Send>> {
    loop {
        match flights.join(key("key")) {
            Joined::Wait(mut wait) => {
                if leaves {
                    let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut wait).poll(cx))).await;
                    future::yield_now().await;
                    return None;
                }
                if let Some(outcome) = wait.await {
                    assert_eq!(outcome, 7);
                    return None;
                }
            }
            Joined::Lead(lead) => {
                {
                    let mut log = log.lock().unwrap();
                    log.leads += 1;
                    log.leading += 1;
                    assert_eq!(log.leading, 1, "one leads at a time");
                }
                future::yield_now().await;
                log.lock().unwrap().leading -= 1;
                if vanishes {
                    log.lock().unwrap().vanished += 1;
                    drop(lead);
                    return None;
                }
                return Some(Box::new(lead.land(7)));
            }
        }
    }
}

#[test]
fn one_waiter_leads_and_every_waiter_ends() {
    check(|| {
        let flights = Flights::new();
        let log = Arc::new(Mutex::new(Log::default()));
        let mut tasks = Vec::new();
        for n in 0..4 {
            let (vanishes, leaves) =
                (n == 0 || thread_rng().gen_bool(0.2), n != 3 && thread_rng().gen_bool(0.2));
            tasks.push(future::spawn(ask(flights.clone(), Arc::clone(&log), vanishes, leaves)));
        }
        // Held to the end, so that whoever leads does so because the one before vanished.
        let landed: Vec<_> = tasks.into_iter().map(|task| future::block_on(task).unwrap()).collect();
        let log = log.lock().unwrap();
        let held = landed.iter().flatten().count();
        assert!(held <= 1);
        assert_eq!(log.leads, log.vanished + held, "each that vanished hands over to one at most");
        assert_eq!(flights.len(), held);
        drop(landed);
        assert!(flights.is_empty());
    });
}

/// Joins until there is an outcome, and overtakes, once, another's flight.
async fn ask_in_haste(flights: Flights<u8>, log: Arc<Mutex<Log>>, hangs: bool) {
    let mut may_overtake = true;
    let mut joined = flights.join(key("key"));
    loop {
        match joined {
            Joined::Lead(lead) => {
                {
                    let mut log = log.lock().unwrap();
                    log.leads += 1;
                    log.leading += 1;
                }
                let outcome = if hangs { 6 } else { 7 };
                // One that hangs comes back to life in the end, before or after it is overtaken.
                for _ in 0..if hangs { 8 } else { 1 } {
                    future::yield_now().await;
                }
                log.lock().unwrap().leading -= 1;
                let landed = lead.land(outcome);
                future::yield_now().await;
                return drop(landed);
            }
            Joined::Wait(mut wait) if may_overtake && thread_rng().gen_bool(0.7) => {
                let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut wait).poll(cx))).await;
                match polled {
                    Poll::Ready(Some(_)) => return,
                    Poll::Ready(None) => joined = flights.join(key("key")),
                    Poll::Pending => {
                        may_overtake = false;
                        joined = flights.overtake(wait);
                        if matches!(joined, Joined::Lead(_)) {
                            log.lock().unwrap().vanished += 1;
                        }
                    }
                }
            }
            Joined::Wait(wait) => match wait.await {
                Some(_) => return,
                None => joined = flights.join(key("key")),
            },
        }
    }
}

#[test]
fn a_flight_that_is_overtaken_strands_nobody_and_has_one_successor() {
    check(|| {
        let flights = Flights::new();
        let log = Arc::new(Mutex::new(Log::default()));
        let tasks: Vec<_> =
            (0..4).map(|n| future::spawn(ask_in_haste(flights.clone(), Arc::clone(&log), n == 0))).collect();
        for task in tasks {
            future::block_on(task).unwrap();
        }
        assert_eq!(log.lock().unwrap().leading, 0);
        assert!(flights.is_empty(), "whoever ends last leaves nothing");
    });
}

#[test]
fn one_of_several_overtakers_of_a_flight_leads() {
    check(|| {
        let flights = Flights::<u8>::new();
        let Joined::Lead(hung) = flights.join(key("key")) else { panic!("nobody leads") };
        let waits: Vec<_> = (0..3)
            .map(|_| match flights.join(key("key")) {
                Joined::Wait(wait) => wait,
                Joined::Lead(_) => panic!("somebody leads"),
            })
            .collect();
        let tasks: Vec<_> = waits
            .into_iter()
            .map(|wait| {
                let flights = flights.clone();
                future::spawn(async move {
                    match flights.overtake(wait) {
                        Joined::Lead(lead) => {
                            future::yield_now().await;
                            Some(lead.land(7))
                        }
                        Joined::Wait(wait) => {
                            assert_eq!(wait.await, Some(7), "the hung one comes back only after");
                            None
                        }
                    }
                })
            })
            .collect();
        let landed: Vec<_> = tasks.into_iter().filter_map(|task| future::block_on(task).unwrap()).collect();
        assert_eq!(landed.len(), 1);
        drop(hung.land(6));
        drop(landed);
        assert!(flights.is_empty());
    });
}
