//! State of a pod, around the sidecar's own barriers, bus and catching up.

use std::{collections::HashMap, time::Duration};

use fastrand::Rng;
use larder_policy::PurgeName;

use super::{
    super::{
        acknowledgements::Counts, bus::Bus, catch_up::CatchUp, generation::Mark, pending::PendingPurges,
        recent::RecentPurges,
    },
    protocol::{GRACE, PodId, ServerId, Subscriber},
};
use crate::barriers::{Barriers, Covered, Stamp};

/// A pod.
pub(super) struct Pod {
    /// Nothing happens in it until then.
    pub(super) stopped_until: u64,
    pub(super) session: Option<Session>,
    /// The pod's clock began then, and is so many thousandths slow or fast.
    pub(super) clock: (u64, i64),
    pub(super) barriers: Barriers,
    pub(super) pending: PendingPurges,
    pub(super) recent: RecentPurges,
    pub(super) counts: Counts,
    pub(super) was_connected: bool,
    pub(super) l1: HashMap<usize, Entry>,
    /// Fetches by key and version of the barriers.
    pub(super) flights: HashMap<(usize, u64), u64>,
    pub(super) fetches: HashMap<u64, Fetch>,
    pub(super) writes: HashMap<u64, Write>,
}

/// A connection, with a subscription.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) server: ServerId,
    pub(super) bus: Bus,
    pub(super) mark: Option<Mark>,
    pub(super) is_ready: bool,
    pub(super) catching_up: Option<(CatchUp, u64, u64)>,
    pub(super) is_acknowledging: bool,
    /// When the Sentinels last named the server.
    pub(super) vouched_at: u64,
    /// When the server was last asked to take a write, and did.
    pub(super) took_write_at: u64,
    pub(super) replied_to: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) stamp: Stamp,
    /// Revision of the barriers in which no purge of it was known.
    pub(super) checked: u64,
}

impl Entry {
    pub(super) const fn new(version: u64, stamp: Stamp) -> Self {
        Self { version, stamp, checked: 0 }
    }

    /// Returns true if the entry may be served ([`crate::entry::Entry::is_purged`]).
    pub(super) fn may_be_served(&mut self, barriers: &Barriers, key: usize, now: u64) -> bool {
        let revision = barriers.revision();
        let covered = barriers.coverage(self.checked, names(key), &path(key), self.stamp);
        if covered == Covered::No {
            self.checked = revision;
        }
        covered == Covered::No && barriers.trusts_at(self.stamp.asked_at, now)
    }
}

#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) key: usize,
    pub(super) flight: u64,
    pub(super) stamp: Stamp,
    /// The leader first.
    pub(super) reads: Vec<u64>,
    /// Redis has not replied yet.
    pub(super) is_looked_up: bool,
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) key: usize,
    pub(super) version: u64,
    pub(super) ordered: Option<Ordered>,
}

/// A purge that a server has counted.
#[derive(Debug)]
pub(super) struct Ordered {
    pub(super) asker: u64,
    pub(super) order: u64,
    pub(super) reached: Vec<PodId>,
    pub(super) server: ServerId,
    /// By the pod's clock.
    pub(super) at: u64,
}

impl Pod {
    pub(super) fn new(_id: PodId, rng: &mut Rng) -> Self {
        Self {
            stopped_until: 0,
            session: None,
            clock: (rng.u64(10_000..10_000_000), rng.i64(-5..=5)),
            barriers: Barriers::shared(Duration::from_millis(GRACE)),
            pending: PendingPurges::default(),
            recent: RecentPurges::default(),
            counts: Counts::default(),
            was_connected: false,
            l1: HashMap::new(),
            flights: HashMap::new(),
            fetches: HashMap::new(),
            writes: HashMap::new(),
        }
    }

    pub(super) fn clock(&self, now: u64) -> u64 {
        let (began, off) = self.clock;
        began + now.saturating_add_signed(i64::try_from(now).expect("it is short") * off / 1000)
    }
}

impl Session {
    pub(super) fn subscriber(&self, pod: PodId) -> Subscriber {
        Subscriber { pod, session: self.id, asker: self.bus.asker }
    }
}

/// Names of a key: its own, and one that all share.
pub(super) fn names(key: usize) -> Vec<PurgeName> {
    vec![PurgeName::tag(&key.to_string()), PurgeName::tag("all")]
}

/// Path of a key.
pub(super) fn path(key: usize) -> String {
    format!("/{key}/response")
}

/// Names that a write of a key purges: its own, or the prefix of its path.
pub(super) fn purged(key: usize) -> Vec<PurgeName> {
    match key % 2 {
        0 => names(key)[..1].to_vec(),
        _ => PurgeName::prefixes(&format!("/{key}")).collect(),
    }
}
