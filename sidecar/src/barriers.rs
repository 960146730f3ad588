//! Barriers: the order of purges and fills.
//!
//! A purge raises a barrier on a name; an entry that bears the name and whose fill began before is stale. Nothing is
//! searched for or deleted, so a purge costs the same whatever it covers.
//!
//! # Guarantees
//! - A fill that began before a purge is never served after the purge was applied here, wherever the entry came from.
//! - The order of purges comes from Redis where there is one, never from a pod's clock.
//! - A Redis that lost its barriers makes everything older stale: the generation they were counted in is gone with them.
//! - Memory is bounded: when there are too many barriers, one that covers everything takes their place.
//! - Without proof that every purge until a moment was applied here, nothing is trusted that was asked for longer than the grace
//!   before now: neither does silence renew trust, nor a message that says nothing of those before it.
//!
//! # Assumptions
//! [`Barriers::heard`] is told of every purge, or [`Barriers::resync`] is called after a gap; [`Barriers::prove`] is called with
//! the time at which a question left whose reply came behind every purge that Redis had ordered until then.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use foldhash::fast::RandomState;
use larder_policy::PurgeName;
use parking_lot::RwLock;

use crate::clock::boot_ms;

mod unknown;

/// Number of barriers above which they are replaced by one that covers everything.
pub const MAX_BARRIERS: usize = 16_384;

/// The time of a fill in the order of purges, taken before the source is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The generation that `order` counts in, which changes when Redis loses its barriers; 0 without Redis.
    pub generation: u64,
    /// Number of the last purge before the fill, counted by Redis.
    pub order: u64,
    /// Number of the last purge before the fill that only this pod knows of.
    pub local: u64,
    /// Time of this pod's request, as [`boot_ms`]; 0 for another pod's. The response reflects every purge before that
    /// time, whichever pod knows of it.
    pub asked_at: u64,
}

/// A purge's position in both orders; 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Barrier {
    order: u64,
    local: u64,
}

#[derive(Debug, Default)]
struct Table {
    generation: u64,
    /// The last purge that this pod knows of.
    order: u64,
    /// The last purge up to which this pod knows of all.
    complete: u64,
    local: u64,
    /// The barrier on every name.
    floor: Barrier,
    /// Barriers on names. Names are hashes already, so that a quick hash of them does.
    raised: HashMap<PurgeName, Barrier, RandomState>,
    /// Revision in which the barrier on [`PurgeName::ANY_PREFIX`] changed last.
    prefixes_changed: u64,
}

/// The barriers that a pod knows of. Unrelated to `std::sync::Barrier`.
#[derive(Debug)]
pub struct Barriers {
    table: RwLock<Table>,
    /// Number of changes of the table, so that an entry that was checked need not be checked again.
    revision: AtomicU64,
    bus: Bus,
}

/// Proof that this pod hears of other pods' purges.
#[derive(Debug)]
struct Bus {
    /// Time before which every purge that Redis ordered is applied here, as [`boot_ms`]; 0 if unknown.
    proven_at: AtomicU64,
    /// Time in milliseconds for which older entries are trusted without proof; `None` without a bus.
    grace_ms: Option<u64>,
    /// Time of creation, as [`boot_ms`].
    began_at: u64,
    /// True during the first attempt to subscribe: no other pod waits for this one yet.
    is_joining: AtomicBool,
}

/// Position of a purge relative to those heard before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The purge applies, and so does every purge before it.
    InOrder,
    /// The purge applies; earlier purges are missing.
    AfterGap,
    /// The purge does not apply: it is counted in another generation.
    OtherGeneration,
}

/// The barriers as Redis holds them.
#[derive(Clone, Debug, Default)]
pub struct RedisBarriers {
    /// The generation that orders count in.
    pub generation: u64,
    /// The last purge.
    pub order: u64,
    /// The last purge that covers everything.
    pub floor: u64,
    /// The last purge of each name.
    pub raised: Vec<(PurgeName, u64)>,
}

impl Barriers {
    /// Creates the barriers of a pod that shares its cache with no other.
    pub fn alone() -> Self {
        Self::with_grace(None)
    }

    /// Creates the barriers of a pod that hears of purges over a bus, and trusts stored responses for `grace` without
    /// it.
    pub fn shared(grace: Duration) -> Self {
        Self::with_grace(Some(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)))
    }

    fn with_grace(grace_ms: Option<u64>) -> Self {
        Self {
            table: RwLock::default(),
            revision: AtomicU64::new(1),
            bus: Bus {
                proven_at: AtomicU64::new(0),
                grace_ms,
                began_at: boot_ms(),
                is_joining: AtomicBool::new(false),
            },
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&self.table.read())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.table.write();
        let of_prefixes = table.barrier(PurgeName::ANY_PREFIX);
        let result = change(&mut table);
        table.bound();
        if table.barrier(PurgeName::ANY_PREFIX) != of_prefixes {
            table.prefixes_changed = self.revision() + 1;
        }
        self.revision.fetch_add(1, Ordering::Release);
        result
    }

    /// Returns the stamp of a fill that begins now without a query to Redis. Purges that only Redis knows of count as
    /// later.
    pub fn stamp(&self) -> Stamp {
        self.stamp_of(boot_ms())
    }

    /// Returns the stamp of a fill that begins at `now` without a query to Redis.
    pub fn stamp_of(&self, now: u64) -> Stamp {
        self.read(|table| Stamp {
            generation: table.generation,
            order: table.order,
            local: table.local,
            asked_at: now,
        })
    }

    /// Returns the stamp of a fill that begins now, from the position that Redis reported to a query at `asked_at`
    /// ([`boot_ms`]).
    ///
    /// This pod may not have heard of all purges up to `order` yet. They were ordered before the source is asked, so
    /// the response reflects them.
    pub fn stamp_at(&self, generation: u64, order: u64, asked_at: u64) -> Stamp {
        Stamp { generation, order, local: self.read(|table| table.local), asked_at }
    }

    /// Continues from the position of another pod's table, or of an earlier one of this pod's. Nothing becomes trusted
    /// or complete by that, and fills from now on are stale if Redis has ordered a purge of them since.
    pub fn count_on_from(&self, Stamp { generation, order, .. }: Stamp) {
        self.change(|table| (table.generation, table.order) = (generation, order));
    }

    /// Returns the revision of the table, to remember with an entry that [`Barriers::covers`] returned false for.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Returns true if a purge made entries stale that bear these names, are of this path and were filled at `stamp`.
    pub fn covers(&self, names: impl IntoIterator<Item = PurgeName>, path: &str, stamp: Stamp) -> bool {
        self.covers_since(0, names, path, stamp)
    }

    /// Returns the result of [`Barriers::covers`], where that was false in the revision `checked`.
    pub fn covers_since(
        &self,
        checked: u64,
        names: impl IntoIterator<Item = PurgeName>,
        path: &str,
        stamp: Stamp,
    ) -> bool {
        let (is_covered, has_later_prefixes) = self.read(|table| {
            let is_covered = stamp.generation != table.generation
                || table.floor.is_after(stamp)
                || names.into_iter().any(|name| table.barrier(name).is_after(stamp));
            let last_prefix = table.barrier(PurgeName::ANY_PREFIX);
            (is_covered, last_prefix.is_after(stamp) && table.prefixes_changed > checked)
        });
        if is_covered || !has_later_prefixes {
            return is_covered;
        }
        // Their names are hashed without the lock, and only once for each purge of a prefix.
        let prefixes = PurgeName::prefixes_of(path);
        self.read(|table| prefixes.into_iter().any(|name| table.barrier(name).is_after(stamp)))
    }

    /// Returns true if every purge up to one that Redis has ordered is applied here.
    pub fn know_all_until(&self, generation: u64, order: u64) -> bool {
        self.read(|table| table.generation == generation && table.complete >= order)
    }

    /// Returns true if the response to a request of this pod at `asked_at` ([`boot_ms`]) may be served: without proof
    /// that purges until then are known, only if it is younger than the grace.
    pub fn trusts(&self, asked_at: u64) -> bool {
        self.bus.grace_ms.is_none() || self.trusts_at(asked_at, boot_ms())
    }

    /// Returns the result of [`Barriers::trusts`] at a given time.
    pub fn trusts_at(&self, asked_at: u64, now: u64) -> bool {
        let Some(grace) = self.bus.grace_ms else { return true };
        let least = now.saturating_sub(grace);
        asked_at >= least && !self.bus.is_joining.load(Ordering::Acquire)
            || self.bus.proven_at.load(Ordering::Acquire) >= least
    }

    /// Sets whether the first attempt to subscribe is in progress. Meanwhile nothing is trusted without proof, however
    /// young, because other pods' purges do not wait for this pod yet.
    pub fn set_joining(&self, is_joining: bool) {
        self.bus.is_joining.store(is_joining, Ordering::Release);
    }

    /// Returns true if other pods' purges are known to be heard; always without a bus.
    pub fn are_current(&self) -> bool {
        self.is_recent(self.bus.proven_at.load(Ordering::Acquire))
    }

    /// Returns true if a time ([`boot_ms`]) is within the grace; always without a bus.
    pub fn is_recent(&self, at: u64) -> bool {
        self.bus.grace_ms.is_none_or(|grace| at.saturating_add(grace) >= boot_ms())
    }

    /// Records that every purge that Redis ordered before `asked_at` ([`boot_ms`]) is applied here.
    pub fn prove(&self, asked_at: u64) {
        self.bus.proven_at.fetch_max(asked_at, Ordering::AcqRel);
    }

    /// Returns the time ([`boot_ms`]) until which every purge is known to be applied here; the time of creation, if
    /// none is proven.
    pub fn known_until(&self) -> u64 {
        self.bus.proven_at.load(Ordering::Acquire).max(self.bus.began_at)
    }

    /// Returns the time since all purges were known to be applied here; `None` without a bus.
    pub fn lag(&self) -> Option<Duration> {
        self.bus.grace_ms?;
        Some(Duration::from_millis(boot_ms().saturating_sub(self.known_until())))
    }

    /// Raises barriers that only this pod knows of, and returns their position in its own order.
    pub fn raise_locally(&self, names: &[PurgeName]) -> u64 {
        self.change(|table| {
            table.local += 1;
            let local = table.local;
            for name in names {
                table.raised.entry(*name).or_default().local = local;
            }
            local
        })
    }

    /// Raises a barrier on everything that is stored now.
    pub fn raise_on_everything(&self) {
        self.change(|table| {
            table.local += 1;
            table.floor.local = table.local;
        });
    }

    /// Applies a purge that Redis has ordered and the bus delivered.
    ///
    /// Unless this returns [`Heard::InOrder`], [`Barriers::resync`] is due.
    #[must_use]
    pub fn heard(&self, generation: u64, order: u64, names: &[PurgeName]) -> Heard {
        self.change(|table| {
            if table.generation != generation {
                return Heard::OtherGeneration;
            }
            let in_order = order <= table.complete.saturating_add(1);
            table.raise(order, names);
            table.complete = table.complete.max(order);
            if in_order { Heard::InOrder } else { Heard::AfterGap }
        })
    }

    /// Applies a purge of this pod that Redis has ordered, possibly before the bus delivers earlier ones. Returns false
    /// if it is counted in another generation and does not apply.
    #[must_use]
    pub fn ordered(&self, generation: u64, order: u64, names: &[PurgeName]) -> bool {
        self.change(|table| {
            let is_counted = table.generation == generation;
            if is_counted {
                table.raise(order, names);
            }
            is_counted
        })
    }

    /// Takes over the barriers in Redis. Barriers that only this pod knows of stay.
    pub fn resync(&self, redis: &RedisBarriers) {
        self.change(|table| {
            if table.generation != redis.generation {
                for barrier in table.raised.values_mut().chain([&mut table.floor]) {
                    barrier.order = 0;
                }
                (table.order, table.complete) = (0, 0);
            }
            table.generation = redis.generation;
            table.order = table.order.max(redis.order);
            table.complete = table.complete.max(redis.order);
            table.floor.order = table.floor.order.max(redis.floor);
            for (name, order) in &redis.raised {
                let barrier = table.raised.entry(*name).or_default();
                barrier.order = barrier.order.max(*order);
            }
        });
    }

    /// Records that Redis has ordered these barriers, too, so that other pods' later fills are not stale because of
    /// this pod's own.
    pub fn settle(&self, names: &[PurgeName], up_to: u64) {
        self.change(|table| {
            for name in names {
                if let Some(barrier) = table.raised.get_mut(name).filter(|barrier| barrier.local <= up_to) {
                    barrier.local = 0;
                }
            }
        });
    }

    /// Records that Redis counts in a new generation, which makes everything older stale, so that this pod's own
    /// barriers are obsolete.
    pub fn settle_everything(&self, up_to: u64) {
        self.change(|table| {
            for barrier in
                table.raised.values_mut().chain([&mut table.floor]).filter(|barrier| barrier.local <= up_to)
            {
                barrier.local = 0;
            }
        });
    }

    /// Returns this pod's own barrier on everything; 0 if there is none. Only [`Barriers::settle_everything`] settles
    /// it.
    pub fn local_floor(&self) -> u64 {
        self.read(|table| table.floor.local)
    }
}

impl Barrier {
    const fn is_after(self, stamp: Stamp) -> bool {
        self.order > stamp.order || self.local > stamp.local
    }
}

impl Table {
    /// Returns the barrier on a name, apart from the one on everything.
    fn barrier(&self, name: PurgeName) -> Barrier {
        self.raised.get(&name).copied().unwrap_or_default()
    }

    fn raise(&mut self, order: u64, names: &[PurgeName]) {
        self.order = self.order.max(order);
        for name in names {
            let barrier = self.raised.entry(*name).or_default();
            barrier.order = barrier.order.max(order);
        }
    }

    fn bound(&mut self) {
        if self.raised.len() > MAX_BARRIERS {
            // Barriers that only this pod knows of are rare: without any, entries of L2, which have no local stamp,
            // stay usable.
            let local =
                self.raised.values().map(|barrier| barrier.local).max().unwrap_or(0).max(self.floor.local);
            self.floor = Barrier { order: self.order, local };
            self.raised.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/a/b";

    fn tag(name: &str) -> PurgeName {
        PurgeName::tag(name)
    }

    #[test]
    fn table_that_counts_on_trusts_nothing_and_keeps_fills_until_a_purge_of_them() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.count_on_from(Stamp { generation: 7, order: 3, ..Stamp::default() });
        let filled = barriers.stamp();
        assert!(!barriers.are_current());
        barriers.resync(&RedisBarriers { generation: 7, order: 4, floor: 0, raised: vec![(tag("a"), 4)] });
        assert!(barriers.covers([tag("a")], PATH, filled) && !barriers.covers([tag("b")], PATH, filled));
        barriers.resync(&RedisBarriers { generation: 8, ..RedisBarriers::default() });
        assert!(barriers.covers([tag("b")], PATH, filled));
    }

    #[test]
    fn a_fill_that_began_before_a_purge_is_stale() {
        let barriers = Barriers::alone();
        let before = barriers.stamp();
        barriers.raise_locally(&[tag("a")]);
        assert!(barriers.covers([tag("x"), tag("a")], PATH, before));
        assert!(!barriers.covers([tag("x")], PATH, before));
        assert!(!barriers.covers([tag("a")], PATH, barriers.stamp()));
    }

    #[test]
    fn a_purge_of_a_prefix_covers_older_fills_of_its_paths() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
        let (before, names) = (barriers.stamp(), |prefix| PurgeName::prefixes(prefix).collect::<Vec<_>>());
        let checked = barriers.revision();
        assert!(!barriers.covers([], PATH, before));
        assert_eq!(barriers.heard(7, 4, &names("/a")), Heard::InOrder);
        assert!(barriers.covers([], PATH, before) && barriers.covers_since(checked, [], PATH, before));
        assert!(!barriers.covers([], "/ab", before) && !barriers.covers([], PATH, barriers.stamp()));
        let checked = barriers.revision();
        assert_eq!(barriers.heard(7, 5, &[tag("x")]), Heard::InOrder);
        assert!(!barriers.covers_since(checked, [], "/ab", before));
        barriers.raise_locally(&names("/"));
        assert!(barriers.covers_since(checked, [], "/ab", before));
        assert!(barriers.know_all_until(7, 5) && !barriers.know_all_until(7, 6));
        assert!(!barriers.know_all_until(8, 1));
        let redis = RedisBarriers {
            generation: 8,
            order: 2,
            floor: 0,
            raised: names("/a").into_iter().map(|name| (name, 2)).collect(),
        };
        let other = Barriers::shared(Duration::from_secs(5));
        other.resync(&redis);
        let stamp = Stamp { generation: 8, order: 1, ..Stamp::default() };
        assert!(other.covers([], PATH, stamp) && !other.covers([], "/b", stamp));
    }

    #[test]
    fn order_of_redis_counts_for_purges_of_any_pod() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.resync(&RedisBarriers { generation: 7, order: 3, floor: 1, raised: vec![(tag("a"), 3)] });
        let stamp = |order| Stamp { generation: 7, order, ..Stamp::default() };
        assert!(barriers.covers([tag("a")], PATH, stamp(2)));
        assert!(!barriers.covers([tag("a")], PATH, stamp(3)));
        assert!(barriers.covers([tag("b")], PATH, stamp(0)), "below the floor");
        assert_eq!(barriers.heard(7, 4, &[tag("b")]), Heard::InOrder);
        assert!(barriers.covers([tag("b")], PATH, stamp(3)));
        assert_eq!(barriers.heard(7, 6, &[tag("c")]), Heard::AfterGap, "5 was missed");
        assert!(barriers.covers([tag("c")], PATH, stamp(5)));
        assert_eq!(barriers.heard(8, 1, &[]), Heard::OtherGeneration);
    }

    #[test]
    fn barriers_that_were_lost_make_everything_older_stale() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.resync(&RedisBarriers { generation: 7, order: 9, ..RedisBarriers::default() });
        let old = barriers.stamp();
        barriers.resync(&RedisBarriers { generation: 8, ..RedisBarriers::default() });
        assert!(barriers.covers([tag("a")], PATH, old));
        assert!(!barriers.covers([tag("a")], PATH, barriers.stamp()));
    }

    #[test]
    fn purge_while_redis_is_away_holds_until_redis_has_it() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.resync(&RedisBarriers { generation: 7, order: 1, ..RedisBarriers::default() });
        let in_redis = Stamp { generation: 7, order: 1, ..Stamp::default() };
        let local = barriers.raise_locally(&[tag("a")]);
        assert!(barriers.covers([tag("a")], PATH, in_redis));
        assert_eq!(barriers.heard(7, 2, &[tag("a")]), Heard::InOrder);
        barriers.settle(&[tag("a")], local);
        assert!(barriers.covers([tag("a")], PATH, in_redis));
        assert!(
            !barriers.covers([tag("a")], PATH, Stamp { generation: 7, order: 2, ..Stamp::default() }),
            "filled by another pod since"
        );
    }

    #[test]
    fn too_many_barriers_become_one() {
        let barriers = Barriers::alone();
        let before = barriers.stamp();
        for number in 0..=MAX_BARRIERS {
            barriers.raise_locally(&[tag(&number.to_string())]);
        }
        assert!(barriers.read(|table| table.raised.len()) <= MAX_BARRIERS);
        assert!(barriers.covers([tag("never purged")], PATH, before));
        assert!(!barriers.covers([tag("0")], PATH, barriers.stamp()));
    }

    #[test]
    fn a_purge_of_this_pods_own_hides_no_gap() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
        assert!(barriers.ordered(7, 6, &[tag("own")]), "4 and 5 are on their way");
        assert!(barriers.covers([tag("own")], PATH, Stamp { generation: 7, order: 5, ..Stamp::default() }));
        assert_eq!(barriers.heard(7, 4, &[]), Heard::InOrder);
        assert_eq!(barriers.heard(7, 6, &[]), Heard::AfterGap, "5 was missed all the same");
        assert!(!barriers.ordered(8, 1, &[]));
    }

    #[test]
    fn nothing_is_trusted_without_proof_while_the_first_attempt_to_hear_of_purges_is_under_way() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.set_joining(true);
        assert!(!barriers.trusts_at(10_000, 10_000));
        barriers.prove(9_000);
        assert!(barriers.trusts_at(8_000, 10_000));
        barriers.set_joining(false);
        assert!(barriers.trusts_at(20_000, 20_000));
    }

    #[test]
    fn without_proof_only_requests_within_the_grace_are_trusted() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        assert!(barriers.trusts_at(5_000, 10_000));
        assert!(!barriers.trusts_at(4_999, 10_000));
        barriers.prove(6_000);
        assert!(barriers.trusts_at(0, 11_000));
        assert!(!barriers.trusts_at(0, 11_001), "it is dated by when it was asked for");
        barriers.prove(5_000);
        assert!(barriers.trusts_at(0, 11_000), "an older proof takes nothing away");
        assert!(Barriers::alone().trusts_at(0, u64::MAX));
    }
}
