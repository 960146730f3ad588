//! The purges that a pod has made, and those that it heard of from other pods.
//!
//! Like [`crate::l2`]'s bus, this does no I/O and has no clock.
//!
//! # Guarantees
//! - Whoever brings its knowledge up to that of a log ([`Log::missing`]) has heard of every purge in it. Where purges are not listed any
//!   more, it hears that everything was purged.
//! - A purge is applied before the log says that it is known.
//! - Memory is bounded: of more than [`MAX_NAMES`] names the oldest are dropped.
//!
//! # Assumptions
//! A pod that has not asked another one for [`GAP_MS`](super::contacts::GAP_MS) takes whatever that one has heard of for everything
//! ([`Log::hear`]). So what that one **heard of** longer ago than [`RETENTION_MS`] need not be told, however old it was by then. With Redis
//! nothing is taken for everything: what Redis was not told of is kept until it is ([`Log::forget_old`]).

use std::collections::{BTreeMap, VecDeque};

use larder_api::admin::PeerKnown;
use larder_policy::PurgeName;

#[cfg(test)]
mod tests;

/// Maximum number of names. A message with all of them is within the admin API's limit.
pub(super) const MAX_NAMES: usize = 4096;
/// Maximum number of processes.
const MAX_ORIGINS: usize = 1024;
/// Time for which purges are kept after they were heard of, in milliseconds.
pub(super) const RETENTION_MS: u64 = 30 * 60_000;
/// Time in which a purge that was taken over may be on its way to those that lack it, in milliseconds.
const ON_ITS_WAY_MS: u64 = 5_000;

/// The last purge that is known of each process.
pub(super) type Known = BTreeMap<u64, PeerKnown>;

/// A purge through a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// Number of the purge, in the order of its process.
    pub(super) seq: u64,
    /// The version of the policy whose names these are.
    pub version: PurgeName,
    /// The purged names.
    pub names: Vec<PurgeName>,
    /// Number of the purge in messages of Redis; 0 if it has none.
    pub number: u64,
    /// Generation in which the Redis counts that has ordered the purge; 0 if none has.
    pub generation: u64,
}

/// All purges through a process from one number to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) origin: u64,
    /// Number before that of the first purge.
    pub(super) after: u64,
    pub(super) last: u64,
    /// Purges among them are not listed any more.
    pub(super) everything: bool,
    /// The last purge that is not listed because nobody has to hear of it from this process. All after it are listed.
    pub(super) settled: u64,
    pub(super) purges: Vec<Purge>,
}

/// Effect of purges that are heard of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect<'a> {
    /// Purges its names.
    Purge(&'a Purge),
    /// Purges everything: more than is known was purged.
    Everything,
}

/// The purges that a pod knows of, by process.
#[derive(Debug)]
pub(super) struct Log {
    own: u64,
    origins: BTreeMap<u64, History>,
    names: usize,
    /// Redis was not told of some of them.
    is_held: bool,
}

#[derive(Debug, Default)]
struct History {
    last: u64,
    /// The last purge that is not listed any more although somebody may not have heard of it, and the time at which it was dropped.
    floor: u64,
    floor_at: u64,
    /// Purges up to `floor` were taken over from others, so that Redis can't be told of them.
    is_adopted: bool,
    /// Time at which the last purge was made or heard of. One that was taken over: as for whoever knew it.
    heard_at: u64,
    /// The last purges, without a gap, with the time at which each was heard of.
    purges: VecDeque<(u64, Purge)>,
}

impl Log {
    /// Creates the log of a process.
    pub(super) fn new(own: u64) -> Self {
        Self { own, origins: BTreeMap::new(), names: 0, is_held: false }
    }

    /// Returns the number of the last purge that is known of a process; 0 if none is.
    pub(super) fn last(&self, origin: u64) -> u64 {
        self.origins.get(&origin).map_or(0, |history| history.last)
    }

    /// Returns the number of the last purge of this process, if it is one that others are told of; 0 if not.
    pub(super) fn own_last(&self, now: u64) -> u64 {
        self.origins
            .get(&self.own)
            .filter(|history| self.is_offered(history, now))
            .map_or(0, |history| history.last)
    }

    /// Adds a purge of this process, which is applied here, and returns its number. The number in `purge` does not count.
    pub(super) fn append(&mut self, purge: Purge, now: u64) -> u64 {
        let history = self.origins.entry(self.own).or_default();
        let seq = history.last + 1;
        (history.last, history.heard_at) = (seq, now);
        if purge.names.len() > MAX_NAMES {
            self.drop_all_of(self.own, now);
        } else {
            self.names += purge.names.len();
            history.purges.push_back((now, Purge { seq, ..purge }));
        }
        self.bound(now);
        seq
    }

    /// Adds a purge of everything by this process.
    pub(super) fn append_everything(&mut self, now: u64) {
        let own = self.origins.entry(self.own).or_default();
        (own.last, own.heard_at) = (own.last + 1, now);
        self.drop_all_of(self.own, now);
    }

    /// Returns the last purge that is known of each process.
    pub(super) fn known(&self, now: u64) -> Known {
        let known = self.origins.iter().map(|(origin, history)| (*origin, history.known(now)));
        known.filter(|(_, known)| known.last > 0).collect()
    }

    /// Returns true if there is no purge that another process knows and this one does not.
    pub(super) fn has_all(&self, known: &Known) -> bool {
        known.iter().all(|(origin, known)| known.last <= self.last(*origin))
    }

    /// Returns the purges that another process does not know of.
    pub(super) fn missing(&self, known: &Known, other: u64, now: u64) -> Vec<Segment> {
        let after = |origin| known.get(origin).map_or(0, |known: &PeerKnown| known.last);
        let others = self.offered(now).filter(|(origin, _)| **origin != other);
        others.filter_map(|(origin, history)| history.segment(*origin, after(origin), now)).collect()
    }

    /// Returns the purges of this process after a number, unless they are too old to be told.
    pub(super) fn own_after(&self, after: u64, now: u64) -> Option<Segment> {
        let own = self.origins.get(&self.own).filter(|history| self.is_offered(history, now))?;
        own.segment(self.own, after, now)
    }

    /// Takes purges that another process told of, and has `apply` apply those that were not known. If it may have told of less than was
    /// missed (`is_after_gap`), they are everything.
    pub(super) fn hear(
        &mut self,
        segment: Segment,
        is_after_gap: bool,
        now: u64,
        mut apply: impl FnMut(Effect<'_>),
    ) {
        let Segment { origin, after, last, everything, settled, purges } = segment;
        let known = self.last(origin);
        if origin == self.own || last <= known {
            return;
        }
        let everything = everything || is_after_gap;
        if everything {
            apply(Effect::Everything);
        } else {
            purges.iter().filter(|purge| purge.seq > known).for_each(|purge| apply(Effect::Purge(purge)));
        }
        if after > known && !everything {
            // Those in between were not told: they stay unknown.
            return;
        }
        let history = self.origins.entry(origin).or_default();
        (history.last, history.heard_at) = (last, now);
        if everything {
            self.drop_all_of(origin, now);
        } else {
            if settled > known {
                // There would be a gap before what is listed next.
                self.names -= history.drop_until(u64::MAX);
            }
            let new = purges.into_iter().filter(|purge| purge.seq > known);
            for purge in new {
                self.names += purge.names.len();
                history.purges.push_back((now, purge));
            }
        }
        self.bound(now);
    }

    /// Takes over what another process knows, where nothing is stored yet that a purge could be about. Whoever lacks any of it hears
    /// that everything was purged, because this process does not know what was.
    pub(super) fn adopt(&mut self, known: &Known, now: u64) {
        let own = self.own;
        for (origin, PeerKnown { last, idle_ms }) in known.iter().filter(|(origin, _)| **origin != own) {
            if *last > self.last(*origin) {
                let history = self.origins.entry(*origin).or_default();
                (history.last, history.heard_at) = (*last, now.saturating_sub(*idle_ms));
                history.is_adopted = true;
                self.drop_all_of(*origin, now);
            }
        }
        self.bound(now);
    }

    /// Forgets purges that every pod hears of by Redis, because it was told of all that were heard of until `until`.
    pub(super) fn settle(&mut self, until: u64) {
        self.is_held = false;
        for history in self.origins.values_mut() {
            self.names -= history.drop_until(until);
            if !history.is_adopted {
                history.forget_floor(until);
            }
        }
    }

    /// Keeps all purges, and tells of them, until Redis has them ([`Self::settle`]): other pods rely on it for those that are forgotten.
    pub(super) const fn hold(&mut self) {
        self.is_held = true;
    }

    /// Forgets purges that are too old to be told.
    pub(super) fn forget_old(&mut self, now: u64) {
        // As long as they are offered.
        let until = now.saturating_sub(RETENTION_MS + 1);
        for history in self.origins.values_mut().filter(|_| !self.is_held) {
            self.names -= history.drop_until(until);
            history.forget_floor(until);
        }
        let (own, is_held) = (self.own, self.is_held);
        // Twice as long, so that nobody is told anew of one that is forgotten.
        let since = now.saturating_sub(2 * RETENTION_MS);
        self.origins.retain(|origin, history| {
            *origin == own || history.heard_at >= since || is_held && history.is_to_be_told()
        });
    }

    /// Returns the processes whose purges others are told of.
    fn offered(&self, now: u64) -> impl Iterator<Item = (&u64, &History)> {
        self.origins.iter().filter(move |(_, history)| self.is_offered(history, now))
    }

    fn is_offered(&self, history: &History, now: u64) -> bool {
        history.is_recent(now) || self.is_held && history.is_to_be_told()
    }

    fn drop_all_of(&mut self, origin: u64, now: u64) {
        if let Some(history) = self.origins.get_mut(&origin) {
            self.names -= history.drop_until(u64::MAX);
            (history.floor, history.floor_at) = (history.last, now);
        }
    }

    fn bound(&mut self, now: u64) {
        while self.names > MAX_NAMES {
            let longest = self.origins.values_mut().max_by_key(|history| history.purges.len());
            let Some((history, (_, purge))) =
                longest.and_then(|history| history.purges.pop_front().map(|purge| (history, purge)))
            else {
                return;
            };
            (history.floor, history.floor_at) = (purge.seq, now);
            self.names -= purge.names.len();
        }
        self.bound_origins(now);
    }

    /// Drops the half of the processes whose last purge is the oldest, if there are too many, and has everything purged where one of
    /// them may not have been heard of.
    fn bound_origins(&mut self, now: u64) {
        if self.origins.len() <= MAX_ORIGINS {
            return;
        }
        let mut ages: Vec<_> =
            self.origins.iter().map(|(origin, history)| (history.heard_at, *origin)).collect();
        ages.sort_unstable();
        let mut is_offered = false;
        for (_, origin) in ages.into_iter().filter(|(_, origin)| *origin != self.own).take(MAX_ORIGINS / 2) {
            if let Some(mut history) = self.origins.remove(&origin) {
                is_offered |= history.is_recent(now) || self.is_held && history.is_to_be_told();
                self.names -= history.drop_until(u64::MAX);
            }
        }
        if is_offered {
            self.append_everything(now);
        }
    }
}

impl History {
    /// Returns true if the last of its purges was heard of so late that others may not have heard of it from anybody.
    const fn is_recent(&self, now: u64) -> bool {
        self.heard_at >= now.saturating_sub(RETENTION_MS)
    }

    /// Returns true if it has purges that are not in Redis.
    fn is_to_be_told(&self) -> bool {
        self.floor > 0 || self.last > self.settled()
    }

    const fn known(&self, now: u64) -> PeerKnown {
        PeerKnown { last: self.last, idle_ms: now.saturating_sub(self.heard_at) }
    }

    /// Returns the number of the last purge that is not listed.
    fn settled(&self) -> u64 {
        self.last - self.purges.len() as u64
    }

    /// Forgets that purges were dropped, if that was until then.
    const fn forget_floor(&mut self, until: u64) {
        if self.floor_at <= until {
            self.floor = 0;
            self.is_adopted = false;
        }
    }

    fn segment(&self, origin: u64, after: u64, now: u64) -> Option<Segment> {
        if self.last <= after {
            return None;
        }
        let everything = after < self.floor;
        if everything && self.is_adopted && now.saturating_sub(self.heard_at) < ON_ITS_WAY_MS {
            // Whoever lacks it hears of it by its names, more likely than not.
            return None;
        }
        let purges = self.purges.iter().filter(|(_, purge)| purge.seq > after && !everything);
        Some(Segment {
            origin,
            after,
            last: self.last,
            everything,
            settled: self.settled(),
            purges: purges.map(|(_, purge)| purge.clone()).collect(),
        })
    }

    /// Drops purges that were heard of until then, and returns the number of their names.
    fn drop_until(&mut self, until: u64) -> usize {
        let count = self.purges.partition_point(|(at, _)| *at <= until);
        self.purges.drain(..count).map(|(_, purge)| purge.names.len()).sum()
    }
}
