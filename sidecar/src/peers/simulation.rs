//! A deterministic simulation of pods that tell one another of purges, with Redis and without, for two properties:
//!
//! - **No read that begins after a purge was acknowledged returns what it removed, in a pod that is said to have acknowledged it**, nor,
//!   where Redis has ordered the purge, in another one later than `busGrace`. After a soft purge it may be returned as stale.
//! - **A purge that a pod has heard of holds in every pod** in the end: once all of them reach one another, whoever has ended meanwhile.
//!
//! The code that decides is the sidecar's own: [`Ledger`](super::ledger::Ledger) with its log and its contacts, the messages as they are sent and
//! read, [`State`](super::state::State), and the barriers under which responses are stored. Around it, a queue of events takes the place of
//! sockets, timers, Redis and the proxy. Messages are late, lost, and told again over a new connection; links fail in one direction; pods
//! begin, end, crash and are cut off from Redis. Half of the runs take seconds, the others hours, in which logs forget.
//!
//! A seed says all of what happens. Variants with one fault each, which is there by [`Broken`] alone, show that the simulation would notice.

mod broken;
mod oracle;
mod pod;
mod redis;
mod run;
mod scenarios;
mod telling;
mod world;

use broken::Broken;
use oracle::Seen;
use world::World;

/// Seeds that found a fault once, in the code or in the simulation.
const REGRESSIONS: &[u64] = &[];
/// Seeds that each run tries besides.
const SEEDS: std::ops::Range<u64> = 0..250;

fn first_violation(seeds: impl IntoIterator<Item = u64>, broken: Broken) -> Option<String> {
    seeds.into_iter().find_map(|seed| {
        let violation = World::new(seed, broken).run().err()?;
        Some(format!("seed {seed}: {violation}"))
    })
}

#[test]
fn no_acknowledged_purge_is_undone_and_none_is_lost() {
    let seeds = REGRESSIONS.iter().copied().chain(SEEDS);
    assert_eq!(first_violation(seeds, Broken::Nothing), None);
}

#[test]
fn simulation_reaches_every_kind_of_event() {
    let mut seen = Seen::default();
    for seed in 0..60 {
        let mut world = World::new(seed, Broken::Nothing);
        world.run().unwrap();
        seen += world.oracle.seen;
    }
    let Seen { hits, stale_hits, late_hits, acknowledged, missed, everything, joined, by_redis } = seen;
    assert!(hits > 1000 && stale_hits > 50 && late_hits > 20, "{seen:?}");
    assert!(acknowledged > 1000 && missed > 100 && by_redis > 100, "{seen:?}");
    assert!(everything > 20 && joined > 60, "{seen:?}");
}

macro_rules! caught {
    ($($name:ident: $broken:ident,)*) => {
        $(
            #[test]
            fn $name() {
                let found = first_violation(0..1000, Broken::$broken);
                assert!(found.is_some(), "{:?} goes unnoticed", Broken::$broken);
            }
        )*
    };
}

caught! {
    broken_variant_acknowledged_before_applied_is_caught: AcknowledgedBeforeApplied,
    broken_variant_acknowledgements_not_awaited_is_caught: AcknowledgementsNotAwaited,
    broken_variant_adopted_without_a_floor_is_caught: AdoptedWithoutFloor,
    broken_variant_forgotten_without_a_floor_is_caught: ForgottenWithoutFloor,
    broken_variant_reply_to_an_old_process_is_caught: ReplyToOldProcess,
    broken_variant_gap_ignored_is_caught: GapIgnored,
    broken_variant_others_not_told_on_is_caught: OthersNotToldOn,
    broken_variant_prefix_without_its_fact_is_caught: PrefixWithoutItsFact,
    broken_variant_soft_purge_without_its_fact_is_caught: SoftWithoutItsFact,
}
