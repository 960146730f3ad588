//! A deterministic simulation of pods that share a Redis behind Sentinels, for the property that all of this is for:
//!
//! **No read that begins after a purge was acknowledged returns what it removed, except in a pod that the purge did not reach, and
//! there no later than `busGrace` after the acknowledgement.**
//!
//! The code that decides is the sidecar's own: [`Barriers`](crate::barriers::Barriers), [`Bus`](super::bus::Bus),
//! [`CatchUp`](super::catch_up::CatchUp), the pending and recent purges and the count of acknowledgements. Around it, a queue of events takes the
//! place of sockets, timers and the proxy. Messages are late, wait behind one another, overtake those of other connections, are
//! held and lost with their connection; pods stop, crash and have clocks that disagree; the master crashes, comes back as it was
//! earlier, and is replaced by one that lacks its last purges, also while it lives and some pods can't reach the Sentinels.
//!
//! A seed says all of what happens. Variants with one fault each, which is there by [`Broken`] alone, show that the simulation
//! would notice.

mod broken;
mod connecting;
mod oracle;
mod pod;
mod protocol;
mod reading;
mod run;
mod server;
mod world;
mod writing;

use broken::Broken;
use world::World;

/// Seeds that found a fault once, in the code or in the simulation.
const REGRESSIONS: &[u64] = &[];
/// Seeds that each run tries besides.
const SEEDS: std::ops::Range<u64> = 0..400;

fn first_violation(seeds: impl IntoIterator<Item = u64>, broken: Broken) -> Option<String> {
    seeds.into_iter().find_map(|seed| {
        let violation = World::new(seed, broken).run().err()?;
        Some(format!("seed {seed}: {violation}"))
    })
}

#[test]
fn no_acknowledged_purge_is_undone() {
    let seeds = REGRESSIONS.iter().copied().chain(SEEDS);
    assert_eq!(first_violation(seeds, Broken::Nothing), None);
}

#[test]
fn simulation_reaches_every_kind_of_event() {
    let mut seen = oracle::Seen::default();
    for seed in 0..50 {
        let mut world = World::new(seed, Broken::Nothing);
        world.run().unwrap();
        seen += world.oracle.seen;
    }
    let oracle::Seen { hits, late_hits, lookups, joined, acknowledged, failovers } = seen;
    assert!(hits > 1000 && lookups > 100 && joined > 50 && acknowledged > 200 && failovers > 10, "{seen:?}");
    assert!(late_hits > 0, "pods that are not reached serve what they have, for a while: {seen:?}");
}

macro_rules! caught {
    ($($name:ident: $broken:ident,)*) => {
        $(
            #[test]
            fn $name() {
                let found = first_violation(0..2000, Broken::$broken);
                assert!(found.is_some(), "{:?} goes unnoticed", Broken::$broken);
            }
        )*
    };
}

caught! {
    broken_variant_trust_by_any_message_is_caught: TrustByAnyMessage,
    broken_variant_trust_dated_by_receipt_is_caught: TrustDatedByReceipt,
    broken_variant_probe_that_overtakes_is_caught: ProbeOvertakes,
    broken_variant_entry_dated_by_store_is_caught: EntryDatedByStore,
    broken_variant_entry_stamped_by_store_is_caught: EntryStampedByStore,
    broken_variant_joiners_that_do_not_ask_are_caught: JoinersDoNotAsk,
    broken_variant_vouched_within_the_grace_is_caught: VouchedWithinGrace,
    broken_variant_acknowledged_before_applied_is_caught: AcknowledgedBeforeApplied,
    broken_variant_barriers_not_read_is_caught: BarriersNotRead,
    broken_variant_generation_ignored_is_caught: GenerationIgnored,
    broken_variant_sentinels_ignored_is_caught: SentinelsIgnored,
    broken_variant_unheard_prefixes_ignored_is_caught: UnheardPrefixesIgnored,
    broken_variant_acknowledgements_not_awaited_is_caught: AcknowledgementsNotAwaited,
}
