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
//! A pod that has not asked another one for [`RETENTION_MS`] takes whatever that one has heard of for everything ([`Log::hear`]). So what was
//! dropped that long ago need not be told.

use std::collections::{BTreeMap, VecDeque};

use larder_api::admin::PeerKnown;
use larder_policy::PurgeName;

/// Maximum number of names. A message with all of them is within the admin API's limit.
pub(super) const MAX_NAMES: usize = 4096;
/// Maximum number of processes.
const MAX_ORIGINS: usize = 1024;
/// Time for which purges are kept, in milliseconds.
pub(super) const RETENTION_MS: u64 = 30 * 60_000;

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
    /// Time since the last purge, in milliseconds.
    pub(super) idle_ms: u64,
    /// Purges among them are not listed any more.
    pub(super) everything: bool,
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
}

#[derive(Debug, Default)]
struct History {
    last: u64,
    /// The last purge that is not listed any more although somebody may not have heard of it, and the time at which it was dropped.
    floor: u64,
    floor_at: u64,
    /// Purges up to `floor` were taken over from others, so that Redis can't be told of them.
    is_adopted: bool,
    /// Time of the last purge.
    changed_at: u64,
    /// With the time at which each was heard of.
    purges: VecDeque<(u64, Purge)>,
}

impl Log {
    /// Creates the log of a process.
    pub(super) fn new(own: u64) -> Self {
        Self { own, origins: BTreeMap::new(), names: 0 }
    }

    /// Returns the number of the last purge that is known of a process; 0 if none is.
    pub(super) fn last(&self, origin: u64) -> u64 {
        self.origins.get(&origin).map_or(0, |history| history.last)
    }

    /// Returns the number of the last purge of this process, if it is one that others are told of; 0 if not.
    pub(super) fn own_last(&self, now: u64) -> u64 {
        self.origins
            .get(&self.own)
            .filter(|history| history.is_offered(now))
            .map_or(0, |history| history.last)
    }

    /// Adds a purge of this process, which is applied here, and returns its number. The number in `purge` does not count.
    pub(super) fn append(&mut self, purge: Purge, now: u64) -> u64 {
        let history = self.origins.entry(self.own).or_default();
        let seq = history.last + 1;
        (history.last, history.changed_at) = (seq, now);
        if purge.names.len() > MAX_NAMES {
            self.drop_all_of(self.own, now);
        } else {
            self.names += purge.names.len();
            history.purges.push_back((now, Purge { seq, ..purge }));
        }
        self.bound(now);
        seq
    }

    /// Returns the last purge that is known of each process.
    pub(super) fn known(&self, now: u64) -> Known {
        let known = self.origins.iter().map(|(origin, history)| (*origin, history.known(now)));
        known.filter(|(_, known)| known.last > 0).collect()
    }

    /// Returns true if there is no purge that another process knows and this one does not.
    pub(super) fn has_all(&self, known: &Known) -> bool {
        known.iter().all(|(origin, known)| known.idle_ms > RETENTION_MS || known.last <= self.last(*origin))
    }

    /// Returns the purges that another process does not know of.
    pub(super) fn missing(&self, known: &Known, other: u64, now: u64) -> Vec<Segment> {
        let after = |origin| known.get(origin).map_or(0, |known: &PeerKnown| known.last);
        let others = self.offered(now).filter(|(origin, _)| **origin != other);
        others.filter_map(|(origin, history)| history.segment(*origin, after(origin), now)).collect()
    }

    /// Returns the purges of this process after a number, unless they are too old to be told.
    pub(super) fn own_after(&self, after: u64, now: u64) -> Option<Segment> {
        self.origins.get(&self.own).filter(|history| history.is_offered(now))?.segment(self.own, after, now)
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
        let Segment { origin, after, last, idle_ms, everything, purges } = segment;
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
        (history.last, history.changed_at) = (last, now.saturating_sub(idle_ms));
        if everything {
            self.drop_all_of(origin, now);
        } else {
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
                (history.last, history.changed_at) = (*last, now.saturating_sub(*idle_ms));
                history.is_adopted = true;
                self.drop_all_of(*origin, now);
            }
        }
        self.bound(now);
    }

    /// Forgets purges that every pod hears of by Redis, because it was told of all that were heard of until `until`.
    pub(super) fn settle(&mut self, until: u64) {
        for history in self.origins.values_mut() {
            self.names -= history.drop_until(until);
            if !history.is_adopted {
                history.forget_floor(until);
            }
        }
    }

    /// Forgets purges that are too old to be told.
    pub(super) fn forget_old(&mut self, now: u64) {
        let until = now.saturating_sub(RETENTION_MS);
        for history in self.origins.values_mut() {
            self.names -= history.drop_until(until);
            history.forget_floor(until);
        }
        let own = self.own;
        // Twice as long, so that nobody is told anew of one that is forgotten.
        let since = now.saturating_sub(2 * RETENTION_MS);
        self.origins.retain(|origin, history| *origin == own || history.changed_at >= since);
    }

    /// Returns the processes that have purged anything of late.
    fn offered(&self, now: u64) -> impl Iterator<Item = (&u64, &History)> {
        self.origins.iter().filter(move |(_, history)| history.is_offered(now))
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
            self.origins.iter().map(|(origin, history)| (history.changed_at, *origin)).collect();
        ages.sort_unstable();
        let mut is_offered = false;
        for (_, origin) in ages.into_iter().filter(|(_, origin)| *origin != self.own).take(MAX_ORIGINS / 2) {
            if let Some(mut history) = self.origins.remove(&origin) {
                is_offered |= history.is_offered(now);
                self.names -= history.drop_until(u64::MAX);
            }
        }
        if is_offered {
            let own = self.origins.entry(self.own).or_default();
            (own.last, own.changed_at) = (own.last + 1, now);
            self.drop_all_of(self.own, now);
        }
    }
}

impl History {
    /// Returns true if others are told of its purges.
    const fn is_offered(&self, now: u64) -> bool {
        self.changed_at >= now.saturating_sub(RETENTION_MS)
    }

    const fn known(&self, now: u64) -> PeerKnown {
        PeerKnown { last: self.last, idle_ms: now.saturating_sub(self.changed_at) }
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
        let purges = self.purges.iter().filter(|(_, purge)| purge.seq > after && !everything);
        Some(Segment {
            origin,
            after,
            last: self.last,
            idle_ms: now.saturating_sub(self.changed_at),
            everything,
            purges: purges.map(|(_, purge)| purge.clone()).collect(),
        })
    }

    /// Drops purges that were heard of until then, and returns the number of their names.
    fn drop_until(&mut self, until: u64) -> usize {
        let count = self.purges.partition_point(|(at, _)| *at <= until);
        self.purges.drain(..count).map(|(_, purge)| purge.names.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(name: &str) -> Purge {
        let names = vec![PurgeName::tag(name)];
        Purge { seq: 0, version: PurgeName::version("v"), names, number: 0, generation: 0 }
    }

    /// Brings the second log up to the first, and returns the names that were purged by that; `None` means everything.
    fn sync(from: &Log, to: &mut Log, now: u64) -> Option<Vec<PurgeName>> {
        let mut names = Some(vec![]);
        for segment in from.missing(&to.known(now), to.own, now) {
            to.hear(segment, false, now, |effect| match effect {
                Effect::Purge(purge) => {
                    names.iter_mut().for_each(|names| names.extend_from_slice(&purge.names));
                }
                Effect::Everything => names = None,
            });
        }
        names
    }

    #[test]
    fn purge_reaches_a_third_pod_through_a_second_one() {
        let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
        a.append(purge("a"), 10);
        assert_eq!(sync(&a, &mut b, 10), Some(purge("a").names));
        b.append(purge("b"), 20);
        drop(a);
        assert_eq!(sync(&b, &mut c, 20), Some([purge("a").names, purge("b").names].concat()));
        assert_eq!(sync(&b, &mut c, 20), Some(vec![]), "once");
        let known = |idle_ms| PeerKnown { last: 1, idle_ms };
        assert_eq!(c.known(20), BTreeMap::from([(1, known(10)), (2, known(0))]));
        assert_eq!(sync(&c, &mut b, 20), Some(vec![]), "its own are not told to a pod");
    }

    #[test]
    fn pod_that_missed_more_than_is_listed_purges_everything() {
        let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
        a.append(purge("first"), 1);
        assert!(sync(&a, &mut b, 1).is_some());
        for number in 0..MAX_NAMES {
            a.append(purge(&number.to_string()), 2);
        }
        assert_eq!(a.names, MAX_NAMES);
        assert_eq!(sync(&a, &mut b, 2).map(|names| names.len()), Some(MAX_NAMES), "it missed none");
        assert_eq!(sync(&a, &mut c, 2), None);
        assert_eq!((c.last(1), c.names), (a.last(1), 0));
        assert_eq!(sync(&c, &mut Log::new(4), 2), None, "and has others do so");
        a.append(Purge { names: vec![PurgeName::tag("x"); MAX_NAMES + 1], ..purge("") }, 3);
        assert_eq!((a.names, sync(&a, &mut b, 3)), (0, None), "more than fits");
    }

    #[test]
    fn purges_that_were_not_told_stay_unknown() {
        let (mut a, mut b) = (Log::new(1), Log::new(2));
        a.append(purge("a"), 1);
        a.append(purge("b"), 1);
        let mut heard = vec![];
        let later = a.own_after(1, 1).unwrap();
        b.hear(later, false, 1, |effect| match effect {
            Effect::Purge(purge) => heard.extend_from_slice(&purge.names),
            Effect::Everything => panic!("b is new"),
        });
        assert_eq!((heard, b.last(1)), (purge("b").names, 0), "applied, and not taken for all");
        assert_eq!(sync(&a, &mut b, 1), Some([purge("a").names, purge("b").names].concat()));
    }

    #[test]
    fn after_a_gap_everything_is_purged_and_told_so_to_others() {
        let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
        a.append(purge("a"), 1);
        let now = RETENTION_MS + 2;
        a.forget_old(now);
        a.append(purge("b"), now);
        let mut is_everything = false;
        let segment = a.missing(&b.known(now), 2, now).remove(0);
        b.hear(segment, true, now, |effect| is_everything |= matches!(effect, Effect::Everything));
        assert!(is_everything);
        assert_eq!(sync(&b, &mut c, now), None);
    }

    #[test]
    fn old_purges_are_forgotten_and_processes_not_before_nobody_tells_of_them() {
        let (mut a, mut b) = (Log::new(1), Log::new(2));
        a.append(purge("a"), 1);
        assert!(sync(&a, &mut b, 1).is_some());
        let now = RETENTION_MS + 2;
        b.forget_old(now);
        assert_eq!((b.names, b.last(1)), (0, 1));
        assert_eq!(a.missing(&Known::new(), 2, now), [], "nobody is told");
        assert_eq!((a.own_after(0, now), a.own_last(now)), (None, 0), "not even by the process itself");
        b.forget_old(2 * RETENTION_MS + 2);
        assert_eq!(b.last(1), 0);
    }

    #[test]
    fn purges_that_redis_has_are_neither_kept_nor_taken_for_missed() {
        let mut a = Log::new(1);
        a.append(Purge { names: vec![PurgeName::tag("x"); MAX_NAMES + 1], ..purge("") }, 1);
        a.append(purge("a"), 5);
        a.settle(4);
        assert_eq!(sync(&a, &mut Log::new(2), 6), Some(purge("a").names));
        a.settle(5);
        assert_eq!((a.names, sync(&a, &mut Log::new(3), 6)), (0, Some(vec![])));
    }

    #[test]
    fn pod_that_begins_takes_over_the_knowledge_of_others() {
        let (mut a, mut b) = (Log::new(1), Log::new(2));
        a.append(purge("a"), 1);
        b.adopt(&a.known(1), 1);
        assert_eq!(sync(&a, &mut b, 1), Some(vec![]));
        a.append(purge("b"), 2);
        assert_eq!(sync(&a, &mut b, 2), Some(purge("b").names));
    }
    #[test]
    fn adopted_purges_are_everything_to_processes_without_them() {
        let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
        a.append(purge("a"), 1);
        b.adopt(&a.known(1), 1);
        b.settle(5);
        assert_eq!(sync(&b, &mut c, 5), None, "redis was not told of it by the one that took it over");
        assert_eq!(sync(&a, &mut b, 5), Some(vec![]));
    }

    #[test]
    fn process_that_purges_no_more_leaves_logs_that_took_it_over() {
        let (mut a, mut b) = (Log::new(1), Log::new(2));
        a.append(purge("a"), 1);
        assert!(sync(&a, &mut b, 1).is_some());
        for number in 3..7 {
            let (mut next, now) = (Log::new(number), (number - 2) * RETENTION_MS / 2);
            next.adopt(&b.known(now), now);
            next.forget_old(now);
            b = next;
        }
        let now = 2 * RETENTION_MS + 2;
        b.forget_old(now);
        assert_eq!(b.known(now), Known::new());
    }

    #[test]
    fn burst_of_purges_is_forgotten_after_a_while() {
        let (mut a, mut b) = (Log::new(1), Log::new(2));
        for number in 0..=MAX_NAMES {
            a.append(purge(&number.to_string()), 1);
        }
        assert!(sync(&a, &mut b, 1).is_none());
        let later = 3 * RETENTION_MS;
        a.forget_old(later);
        b.forget_old(later);
        assert_eq!(b.last(1), 0);
        a.append(purge("later"), later);
        assert_eq!(sync(&a, &mut b, later), Some(purge("later").names), "and not everything");
    }

    #[test]
    fn processes_are_bounded_and_those_that_lack_a_dropped_one_hear_of_everything() {
        let (mut a, mut b) = (Log::new(1), Log::new(2));
        for number in 0..=MAX_ORIGINS as u64 {
            let mut other = Log::new(10 + number);
            other.append(purge(&number.to_string()), number);
            assert!(sync(&other, &mut a, number).is_some());
        }
        assert!(a.origins.len() <= MAX_ORIGINS / 2 + 2, "{}", a.origins.len());
        assert_eq!(sync(&a, &mut b, 2 * MAX_ORIGINS as u64), None);
        assert_eq!(sync(&a, &mut b, 2 * MAX_ORIGINS as u64), Some(vec![]), "once");
    }
}
