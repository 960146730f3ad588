//! Barriers: the order of purges and fills.
//!
//! A purge raises a barrier on a name; an entry that bears the name and whose fill began before is stale. Nothing is
//! searched for or deleted, so a purge costs the same whatever it covers.
//!
//! # Guarantees
//! - A fill that began before a purge is never served after the purge was applied here, wherever the entry came from; after a soft purge
//!   it is stale.
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

#[cfg(test)]
mod tests;
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
#[derive(Clone, Copy, Debug, Default)]
struct Barrier {
    order: u64,
    local: u64,
}

#[derive(Debug, Default)]
struct Table {
    generation: u64,
    /// The last purge that this pod knows of.
    order: u64,
    /// The last purge that was heard in order, or after a gap that is to be filled by reading all barriers.
    complete: u64,
    /// The last purge up to which all are applied here.
    contiguous: u64,
    local: u64,
    /// The barrier on every name.
    floor: Barrier,
    /// Barriers on names. Names are hashes already, so that a quick hash of them does.
    raised: HashMap<PurgeName, Barrier, RandomState>,
    /// Revision in which a prefix was purged last, whatever its place in the order; `u64::MAX` until there is that revision.
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

/// Purges of a stored response since its fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// None.
    No,
    /// A soft one: the response is stale.
    Softly,
    /// One that makes the response unusable.
    Wholly,
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

impl RedisBarriers {
    /// Adds the names among them that stand for others: a purge that is passed on later than others may need them.
    pub fn add_indirect(&self, names: &mut Vec<PurgeName>) {
        let is_raised = |any: &PurgeName| self.raised.iter().any(|(name, _)| name == any);
        for any in PurgeName::indirect().into_iter().filter(is_raised) {
            if !names.contains(&any) {
                names.push(any);
            }
        }
    }
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
        let result = change(&mut table);
        table.bound();
        if table.prefixes_changed == u64::MAX {
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

    /// Returns the revision of the table, to remember with an entry of which no purge is known ([`Barriers::coverage`]).
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Returns true if a purge made entries unusable that bear these names, are of this path and were filled at `stamp`.
    pub fn covers<N>(&self, names: N, path: &str, stamp: Stamp) -> bool
    where
        N: IntoIterator<Item = PurgeName, IntoIter: Clone>,
    {
        self.coverage(0, names, path, stamp) == Covered::Wholly
    }

    /// Returns the purges of entries that bear these names, are of this path and were filled at `stamp`, where there were none in the
    /// revision `checked`.
    pub fn coverage<N>(&self, checked: u64, names: N, path: &str, stamp: Stamp) -> Covered
    where
        N: IntoIterator<Item = PurgeName, IntoIter: Clone>,
    {
        let names = names.into_iter();
        let (covered, has_later_prefixes) = self.read(|table| {
            let has_later_prefixes = table.prefixes_changed > checked
                && table.on_prefixes().iter().any(|barrier| barrier.is_after(stamp));
            (table.coverage(names, stamp), has_later_prefixes)
        });
        if covered == Covered::Wholly || !has_later_prefixes {
            return covered;
        }
        // Their names are hashed without the lock, and only once for each purge of a prefix.
        let prefixes = PurgeName::prefixes_of(path);
        match self.read(|table| table.coverage(prefixes.into_iter(), stamp)) {
            Covered::No => covered,
            by_prefix => by_prefix,
        }
    }

    /// Returns true if every purge up to one that Redis has ordered is applied here.
    pub fn know_all_until(&self, generation: u64, order: u64) -> bool {
        self.read(|table| table.generation == generation && table.contiguous >= order)
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
            table.note_prefixes(names);
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
            if order <= table.contiguous.saturating_add(1) {
                table.contiguous = table.contiguous.max(order);
            }
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
                (table.order, table.complete, table.contiguous) = (0, 0, 0);
            }
            table.generation = redis.generation;
            table.order = table.order.max(redis.order);
            table.complete = table.complete.max(redis.order);
            table.contiguous = table.contiguous.max(redis.order);
            // There may be prefixes among them that were missed, under a later purge of another.
            table.prefixes_changed = u64::MAX;
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
            // What stands for other names may stand for some that Redis does not have.
            for name in names.iter().filter(|name| !PurgeName::indirect().contains(name)) {
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

    /// Returns the barriers on the fact that a prefix was purged.
    fn on_prefixes(&self) -> [Barrier; 2] {
        [PurgeName::ANY_PREFIX, PurgeName::ANY_PREFIX.soft()].map(|name| self.barrier(name))
    }

    /// Returns the purges of everything and by these names since a fill.
    fn coverage(&self, names: impl Iterator<Item = PurgeName> + Clone, stamp: Stamp) -> Covered {
        let is_after = |name| self.barrier(name).is_after(stamp);
        let is_over = stamp.generation != self.generation || self.floor.is_after(stamp);
        if is_over || names.clone().any(is_after) {
            Covered::Wholly
        } else if is_after(PurgeName::ANY_SOFT) && names.map(PurgeName::soft).any(is_after) {
            Covered::Softly
        } else {
            Covered::No
        }
    }

    fn raise(&mut self, order: u64, names: &[PurgeName]) {
        self.order = self.order.max(order);
        for name in names {
            let barrier = self.raised.entry(*name).or_default();
            barrier.order = barrier.order.max(order);
        }
        self.note_prefixes(names);
    }

    /// Notes that prefixes are purged now, if there are any among these names.
    fn note_prefixes(&mut self, names: &[PurgeName]) {
        if [PurgeName::ANY_PREFIX, PurgeName::ANY_PREFIX.soft()].iter().any(|any| names.contains(any)) {
            self.prefixes_changed = u64::MAX;
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
