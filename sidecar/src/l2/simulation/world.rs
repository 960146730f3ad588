//! Time, the network and the application.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use fastrand::Rng;

use super::{
    super::{generation::Mark, message::PurgeMessage},
    broken::Broken,
    oracle::Oracle,
    pod::Pod,
    protocol::{Command, KEYS, Over, OverBus, PodEvent, PodId, Replied, ServerId, Subscriber},
    server::Server,
};

pub(super) const END: u64 = 15_000;
pub(super) const PODS: usize = 3;

/// Everything there is.
pub(super) struct World {
    pub(super) broken: Broken,
    pub(super) now: u64,
    pub(super) rng: Rng,
    pub(super) pods: Vec<Pod>,
    pub(super) servers: Vec<Server>,
    /// The master according to the Sentinels.
    pub(super) master: ServerId,
    /// Value of each key in the application: its number of writes.
    pub(super) versions: [u64; KEYS],
    pub(super) oracle: Oracle,
    pub(super) links: Vec<Link>,
    pub(super) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) next_event: u64,
    pub(super) next_mark: u64,
    pub(super) next_number: u64,
}

/// The way between a pod and Redis.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    /// When the last message arrives, by connection and direction: none overtakes it.
    pub(super) last: [[u64; 2]; 2],
    /// Additional delay of messages, by connection.
    pub(super) late: [u64; 2],
    /// Nothing arrives until then, by connection.
    pub(super) held_until: [u64; 2],
    /// No Sentinel is reached until then.
    pub(super) sentinels_held_until: u64,
}

/// Event at a time.
#[derive(Debug)]
pub(super) enum Event {
    Pod(PodId, PodEvent),
    Server(ServerId, Subscriber, Command),
    /// The application has a fetch of a pod's.
    Application(PodId, u64, usize),
    Fault,
}

impl World {
    pub(super) fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = Rng::with_seed(seed);
        let pods = (0..PODS).map(|id| Pod::new(id, &mut rng)).collect();
        let mut world = Self {
            broken,
            now: 1,
            rng,
            pods,
            servers: vec![Server::new(Mark::numbered(1), Default::default())],
            master: 0,
            versions: [0; KEYS],
            oracle: Oracle::default(),
            links: vec![Link::default(); PODS],
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            next_mark: 1,
            next_number: 0,
        };
        for pod in 0..PODS {
            world.at(1, Event::Pod(pod, PodEvent::Connect));
        }
        for _ in 0..400 {
            let (pod, key, began_at) = (world.any_pod(), world.any_key(), world.rng.u64(500..END));
            world.at(began_at, Event::Pod(pod, PodEvent::Read { key, began_at }));
        }
        for _ in 0..40 {
            let (pod, key, at) = (world.any_pod(), world.any_key(), world.rng.u64(500..END));
            world.at(at, Event::Pod(pod, PodEvent::Write { key }));
        }
        for _ in 0..world.rng.usize(1..8) {
            let at = world.rng.u64(1_000..END - 2_000);
            world.at(at, Event::Fault);
        }
        world
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.next_event += 1;
        self.events.insert(self.next_event, event);
        self.queue.push(Reverse((at, self.next_event)));
    }

    pub(super) fn later(&mut self, pod: PodId, after: u64, event: PodEvent) {
        self.at(self.now + after, Event::Pod(pod, event));
    }

    pub(super) fn ask_application(&mut self, pod: PodId, fetch: u64, key: usize) {
        let at = self.now + self.rng.u64(1..5);
        self.at(at, Event::Application(pod, fetch, key));
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn any_pod(&mut self) -> PodId {
        self.rng.usize(0..PODS)
    }

    pub(super) fn any_key(&mut self) -> usize {
        self.rng.usize(0..KEYS)
    }

    pub(super) fn arrival(&mut self, pod: PodId, over: Over, direction: usize) -> u64 {
        let takes = self.rng.u64(1..12);
        let link = &mut self.links[pod];
        let over = over as usize;
        let at = (self.now + takes + link.late[over]).max(link.held_until[over]);
        let last = &mut link.last[over][direction];
        *last = at.max(*last);
        *last
    }

    pub(super) fn say(&mut self, pod: PodId, over: Over, command: Command) {
        let Some(session) = &self.pods[pod].session else { return };
        let (server, from) = (session.server, session.subscriber(pod));
        let at = self.arrival(pod, over, 0);
        self.at(at, Event::Server(server, from, command));
    }

    pub(super) fn reply(&mut self, to: Subscriber, reply: Replied) {
        let at = self.arrival(to.pod, Over::Commands, 1);
        self.at(at, Event::Pod(to.pod, PodEvent::Reply(to.session, reply)));
    }

    pub(super) fn push(&mut self, to: Subscriber, message: OverBus) {
        let at = self.arrival(to.pod, Over::Bus, 1);
        self.at(at, Event::Pod(to.pod, PodEvent::Bus(to.session, message)));
    }

    pub(super) fn publish(&mut self, server: ServerId, message: &PurgeMessage) -> Vec<PodId> {
        let subscribers = self.servers[server].subscribers.clone();
        for to in &subscribers {
            self.push(*to, OverBus::Purge(message.clone()));
        }
        subscribers.iter().map(|to| to.pod).collect()
    }

    pub(super) fn publish_to(&mut self, server: ServerId, asker: u64, message: OverBus) {
        let to = self.servers[server].subscribers.iter().find(|to| to.asker == asker).copied();
        if let Some(to) = to {
            self.push(to, message);
        }
    }

    pub(super) fn ask_sentinels(&mut self, pod: PodId, asked_at: u64) {
        let (there, back) = (self.rng.u64(1..10), self.rng.u64(1..10));
        if self.links[pod].sentinels_held_until <= self.now + there {
            self.later(pod, there + back, PodEvent::Sentinels { asked_at, master: self.master });
        }
    }

    pub(super) fn disconnect(&mut self, pod: PodId) {
        for server in &mut self.servers {
            server.subscribers.retain(|subscriber| subscriber.pod != pod);
        }
        self.links[pod].last = Default::default();
    }
}
