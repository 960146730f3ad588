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
//! A pod that has not asked another one for [`RETENTION_MS`] takes whatever that one has heard of for everything ([`Log::hear`]).

use std::collections::{BTreeMap, VecDeque};

use larder_policy::PurgeName;

/// Maximum number of names. A message with all of them is within the admin API's limit.
pub(super) const MAX_NAMES: usize = 4096;
/// Time for which purges are kept, in milliseconds.
pub(super) const RETENTION_MS: u64 = 30 * 60_000;

/// Number of the last purge that is known of each process.
pub(super) type Known = BTreeMap<u64, u64>;

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

    /// Returns the number of the last purge that is known of each process. Those that have long purged nothing are left out.
    pub(super) fn known(&self, now: u64) -> Known {
        self.offered(now).map(|(origin, history)| (*origin, history.last)).collect()
    }

    /// Returns the purges that another process does not know of.
    pub(super) fn missing(&self, known: &Known, other: u64, now: u64) -> Vec<Segment> {
        let after = |origin| known.get(origin).copied().unwrap_or(0);
        let others = self.offered(now).filter(|(origin, _)| **origin != other);
        others.filter_map(|(origin, history)| history.segment(*origin, after(origin), now)).collect()
    }

    /// Returns the purges of this process after a number.
    pub(super) fn own_after(&self, after: u64, now: u64) -> Option<Segment> {
        self.origins.get(&self.own)?.segment(self.own, after, now)
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

    /// Takes over what another process knows, where nothing is stored yet that a purge could be about.
    pub(super) fn adopt(&mut self, known: &Known, now: u64) {
        for (origin, last) in known.iter().filter(|(origin, _)| **origin != self.own) {
            let history = self.origins.entry(*origin).or_default();
            if *last > history.last {
                (history.last, history.changed_at) = (*last, now);
            }
        }
    }

    /// Forgets purges that every pod hears of by Redis, because it was told of all that were heard of until `until`.
    pub(super) fn settle(&mut self, until: u64) {
        for history in self.origins.values_mut() {
            self.names -= history.drop_until(until);
            if history.floor_at <= until {
                history.floor = 0;
            }
        }
    }

    /// Forgets purges that are too old to be told.
    pub(super) fn forget_old(&mut self, now: u64) {
        let until = now.saturating_sub(RETENTION_MS);
        for history in self.origins.values_mut() {
            self.names -= history.drop_until(until);
        }
        let own = self.own;
        // Twice as long, so that nobody is told anew of one that is forgotten.
        let since = now.saturating_sub(2 * RETENTION_MS);
        self.origins.retain(|origin, history| *origin == own || history.changed_at >= since);
    }

    /// Returns the processes that have purged anything of late.
    fn offered(&self, now: u64) -> impl Iterator<Item = (&u64, &History)> {
        let since = now.saturating_sub(RETENTION_MS);
        self.origins.iter().filter(move |(_, history)| history.changed_at >= since)
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
    }
}

impl History {
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
        assert_eq!(c.known(20), BTreeMap::from([(1, 1), (2, 1)]));
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
        assert_eq!((b.known(now).len(), a.missing(&Known::new(), 2, now).len()), (0, 0));
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
}
