//! Time, the network and the application.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use fastrand::Rng;
use larder_api::admin::{PeerReply, PeerRequest};
use tokio::time::Instant;

use super::{
    super::log::Purge,
    broken::Broken,
    oracle::Oracle,
    pod::{Entry, KEYS, Pod},
};

pub(super) const PODS: usize = 4;

/// Durations in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) end: u64,
    /// Time at the end without faults.
    pub(super) calm: u64,
    pub(super) comparison: u64,
    /// Time until a pod that does not reply is tried again.
    pub(super) pause: u64,
    pub(super) longest_fault: u64,
}

/// Seconds.
pub(super) const SHORT: Scale =
    Scale { end: 40_000, calm: 15_000, comparison: 1_000, pause: 300, longest_fault: 6_000 };
/// Hours, in which pods compare less often, but often enough.
pub(super) const LONG: Scale = Scale {
    end: 4 * 3_600_000,
    calm: 3_600_000,
    comparison: 90_000,
    pause: 60_000,
    longest_fault: 50 * 60_000,
};

/// Everything there is.
pub(super) struct World {
    pub(super) broken: Broken,
    pub(super) scale: Scale,
    pub(super) now: u64,
    pub(super) base: Instant,
    pub(super) rng: Rng,
    pub(super) has_redis: bool,
    pub(super) pods: Vec<Option<Pod>>,
    /// Purges that Redis has ordered.
    pub(super) redis: Vec<Purge>,
    /// Value of each key in the application: its number of writes.
    pub(super) versions: [u64; KEYS],
    pub(super) oracle: Oracle,
    pub(super) links: [[Way; PODS]; PODS],
    pub(super) next: u64,
    /// The last numbers that pods have acknowledged to others, whatever the process, for [`Broken::ReplyToOldProcess`].
    pub(super) acknowledged: [[u64; PODS]; PODS],
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
}

/// The way of connections from one pod to another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    pub(super) is_cut_until: u64,
    pub(super) is_late_until: u64,
}

/// Event at a time. One of a process that has ended does not happen.
#[derive(Debug)]
pub(super) enum Event {
    Read {
        pod: usize,
        key: usize,
    },
    Write {
        pod: usize,
        key: usize,
    },
    Fetched {
        pod: usize,
        process: u64,
        key: usize,
        entry: Entry,
    },
    /// A request arrives, over a connection with `process`.
    Request {
        from: usize,
        asker: u64,
        pod: usize,
        process: u64,
        number: u64,
        message: PeerRequest,
    },
    Reply {
        pod: usize,
        asker: u64,
        from: usize,
        number: u64,
        reply: PeerReply,
    },
    Timeout {
        pod: usize,
        process: u64,
        other: usize,
        number: u64,
        is_refused: bool,
    },
    Drive {
        pod: usize,
        process: u64,
        other: usize,
    },
    Compare {
        pod: usize,
        process: u64,
    },
    Joined {
        pod: usize,
        process: u64,
    },
    Purge {
        pod: usize,
        process: u64,
        number: usize,
        key: usize,
    },
    /// Redis has ordered a purge, and these processes listened to it.
    Ordered {
        pod: usize,
        process: u64,
        purge: Purge,
        listeners: Vec<(usize, u64)>,
    },
    Impatience {
        pod: usize,
        process: u64,
        number: usize,
    },
    Applied {
        pod: usize,
        process: u64,
        purge: Option<Purge>,
    },
    Redis {
        pod: usize,
        process: u64,
    },
    Reconnect {
        pod: usize,
    },
    Begin {
        pod: usize,
    },
    End {
        pod: usize,
        process: u64,
    },
    Fault,
}

impl World {
    /// Creates one in which a seed says what happens.
    pub(super) fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (scale, has_redis) = (if seed.is_multiple_of(2) { SHORT } else { LONG }, rng.u8(0..3) == 0);
        let mut world = Self { rng, broken, ..Self::quiet(scale, has_redis) };
        let (busy, end) = (scale.end - scale.calm, scale.end);
        for _ in 0..400 {
            let (pod, key, at) = (world.any_pod(), world.rng.usize(0..KEYS), world.rng.u64(500..end));
            world.at(at, Event::Read { pod, key });
        }
        for _ in 0..30 {
            let (pod, key, at) = (world.any_pod(), world.rng.usize(0..KEYS), world.rng.u64(500..busy));
            // What was stored shortly before is what a purge is for.
            (0..PODS).for_each(|pod| world.at(at - 100, Event::Read { pod, key }));
            world.at(at, Event::Write { pod, key });
            for after in [60, 150, 400] {
                (0..PODS).for_each(|pod| world.at(at + after, Event::Read { pod, key }));
            }
        }
        for _ in 0..world.rng.usize(2..14) {
            let at = world.rng.u64(1_000..busy);
            world.at(at, Event::Fault);
        }
        world
    }

    /// Creates one in which pods begin, and nothing else happens by itself.
    pub(super) fn quiet(scale: Scale, has_redis: bool) -> Self {
        let mut world = Self {
            broken: Broken::Nothing,
            scale,
            now: 1,
            base: Instant::now(),
            rng: Rng::with_seed(0),
            has_redis,
            pods: (0..PODS).map(|_| None).collect(),
            redis: vec![],
            versions: [0; KEYS],
            oracle: Oracle::default(),
            links: Default::default(),
            next: 0,
            acknowledged: Default::default(),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
        };
        for pod in 0..PODS {
            world.at(1, Event::Begin { pod });
        }
        world
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        let number = self.number();
        self.events.insert(number, event);
        self.queue.push(Reverse((at, number)));
    }

    pub(super) fn later(&mut self, after: u64, event: Event) {
        self.at(self.now + after, event);
    }

    /// Returns the next event until a time.
    pub(super) fn pop(&mut self, until: u64) -> Option<Event> {
        let Reverse((at, number)) = *self.queue.peek().filter(|Reverse((at, _))| *at <= until)?;
        self.queue.pop();
        self.now = at;
        Some(self.events.remove(&number).expect("each number is in the queue once"))
    }

    /// Cuts two pods off from each other until a time; 0 connects them.
    pub(super) fn cut(&mut self, one: usize, other: usize, until: u64) {
        self.links[one][other].is_cut_until = until;
        self.links[other][one].is_cut_until = until;
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn any_pod(&mut self) -> usize {
        self.rng.usize(0..PODS)
    }

    /// Returns the process of a pod; 0 if there is none.
    pub(super) fn process(&self, pod: usize) -> u64 {
        self.pods[pod].as_ref().map_or(0, |pod| pod.process)
    }

    /// Returns the pod if this process is still there.
    pub(super) fn living(&mut self, pod: usize, process: u64) -> Option<&mut Pod> {
        self.pods[pod].as_mut().filter(|pod| pod.process == process)
    }

    /// Returns the time that a message between two pods takes, over a connection that the first has opened; `None`: it is lost.
    pub(super) fn delay(&mut self, from: usize, to: usize) -> Option<u64> {
        let way = self.links[from][to];
        let takes = self.rng.u64(1..8);
        let late = if way.is_late_until > self.now { self.rng.u64(20..1_500) } else { 0 };
        (way.is_cut_until <= self.now).then_some(takes + late)
    }
}
