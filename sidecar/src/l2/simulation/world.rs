//! Time, the network, the application, and what goes wrong.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use fastrand::Rng;
use larder_policy::PurgeName;

use super::{
    super::{commands::Message, generation::Mark},
    Broken,
    oracle::Oracle,
    pod::{OverBus, Pod, PodEvent, PodId, Replied},
    server::{Record, Server, ServerId, Subscriber},
};

/// The `busGrace` of the pods, in milliseconds as all times here.
pub(super) const GRACE: u64 = 1_000;
const END: u64 = 15_000;
const PODS: usize = 3;
pub(super) const KEYS: usize = 2;

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
    links: Vec<Link>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    next_mark: u64,
    next_number: u64,
}

/// The way between a pod and Redis.
#[derive(Clone, Debug, Default)]
struct Link {
    /// When the last message arrives, by connection and direction: none overtakes it.
    last: [[u64; 2]; 2],
    /// Additional delay of messages, by connection.
    late: [u64; 2],
    /// Nothing arrives until then, by connection.
    held_until: [u64; 2],
    /// No Sentinel is reached until then.
    sentinels_held_until: u64,
}

/// A connection of a pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Commands,
    Bus,
}

/// Event at a time.
#[derive(Debug)]
enum Event {
    Pod(PodId, PodEvent),
    Server(ServerId, Subscriber, Command),
    /// The application has a fetch of a pod's.
    Application(PodId, u64, usize),
    Fault,
}

/// Request of a pod to a server.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Hello,
    Subscribe,
    Touch { probe: u64 },
    Snapshot,
    Purge { request: Option<u64>, names: Vec<PurgeName> },
    PurgeEverything(u64),
    Acknowledge(BTreeMap<u64, Vec<u64>>),
    Lookup { fetch: u64, key: usize, names: Vec<PurgeName>, asked_at: u64 },
    Store(usize, Record),
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

    /// Runs to the end.
    ///
    /// # Errors
    /// Runs until the end, or until a removed response is read.
    pub(super) fn run(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > END {
                break;
            }
            self.now = at;
            let event = self.events.remove(&number).expect("each number is in the queue once");
            if let Event::Pod(pod, _) = &event
                && self.pods[*pod].stopped_until > at
            {
                // A pod that continues finds all messages at once, its sockets in any order.
                let again = self.pods[*pod].stopped_until;
                self.events.insert(number, event);
                self.queue.push(Reverse((again, number)));
                continue;
            }
            match event {
                Event::Pod(pod, event) => self.pod(pod, event)?,
                Event::Server(server, from, command) => self.server(server, from, command),
                Event::Application(pod, fetch, key) => {
                    let takes =
                        if self.rng.u8(0..4) == 0 { self.rng.u64(100..2_500) } else { self.rng.u64(1..40) };
                    let version = self.versions[key];
                    self.later(pod, takes, PodEvent::Fetched { fetch, version });
                }
                Event::Fault => self.fault(),
            }
        }
        Ok(())
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next_event += 1;
        self.events.insert(self.next_event, event);
        self.queue.push(Reverse((at, self.next_event)));
    }

    /// Something happens in a pod after a while.
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

    fn any_pod(&mut self) -> PodId {
        self.rng.usize(0..PODS)
    }

    fn any_key(&mut self) -> usize {
        self.rng.usize(0..KEYS)
    }

    fn arrival(&mut self, pod: PodId, over: Over, direction: usize) -> u64 {
        let takes = self.rng.u64(1..12);
        let link = &mut self.links[pod];
        let over = over as usize;
        let at = (self.now + takes + link.late[over]).max(link.held_until[over]);
        let last = &mut link.last[over][direction];
        *last = at.max(*last);
        *last
    }

    /// A pod says something to the server that its session is with.
    pub(super) fn say(&mut self, pod: PodId, over: Over, command: Command) {
        let Some(session) = &self.pods[pod].session else { return };
        let (server, from) = (session.server, session.subscriber(pod));
        let at = self.arrival(pod, over, 0);
        self.at(at, Event::Server(server, from, command));
    }

    fn reply(&mut self, to: Subscriber, reply: Replied) {
        let at = self.arrival(to.pod, Over::Commands, 1);
        self.at(at, Event::Pod(to.pod, PodEvent::Reply(to.session, reply)));
    }

    fn push(&mut self, to: Subscriber, message: OverBus) {
        let at = self.arrival(to.pod, Over::Bus, 1);
        self.at(at, Event::Pod(to.pod, PodEvent::Bus(to.session, message)));
    }

    fn publish(&mut self, server: ServerId, message: &Message) -> Vec<PodId> {
        let subscribers = self.servers[server].subscribers.clone();
        for to in &subscribers {
            self.push(*to, OverBus::Purge(message.clone()));
        }
        subscribers.iter().map(|to| to.pod).collect()
    }

    fn publish_to(&mut self, server: ServerId, asker: u64, message: OverBus) {
        let to = self.servers[server].subscribers.iter().find(|to| to.asker == asker).copied();
        if let Some(to) = to {
            self.push(to, message);
        }
    }

    fn server(&mut self, id: ServerId, from: Subscriber, command: Command) {
        if !self.servers[id].is_alive {
            return;
        }
        match command {
            Command::Hello => self.reply(from, Replied::Hello(self.servers[id].mark)),
            Command::Subscribe => {
                self.servers[id].subscribers.push(from);
                self.push(from, OverBus::Subscribed);
            }
            Command::Touch { probe } => {
                let lost = self.servers[id].touch();
                let mark = self.servers[id].mark;
                self.publish_to(id, from.asker, OverBus::Probe(probe));
                self.reply(from, Replied::Touched { probe, lost, mark });
            }
            Command::Snapshot => {
                let snapshot = self.servers[id].snapshot();
                self.reply(from, Replied::Snapshot(snapshot));
            }
            Command::Purge { request, names } => {
                let asker = if request.is_some() { from.asker } else { 0 };
                let message = self.servers[id].purge(asker, &names);
                let reached = self.publish(id, &message);
                let Message { generation, order, .. } = message;
                self.reply(from, Replied::Purged { request, generation, order, reached });
            }
            Command::PurgeEverything(follows) => {
                if let Some(message) = self.servers[id].purge_everything(follows) {
                    self.publish(id, &message);
                }
                self.reply(from, Replied::Purged { request: None, generation: 0, order: 0, reached: vec![] });
            }
            Command::Acknowledge(held) => {
                for (asker, orders) in held {
                    self.publish_to(id, asker, OverBus::Held(orders));
                }
                self.reply(from, Replied::Acknowledged);
            }
            Command::Lookup { fetch, key, names, asked_at } => {
                let reply = self.servers[id].lookup(key, &names);
                self.reply(from, Replied::Looked { fetch, reply, asked_at });
            }
            Command::Store(key, record) => self.servers[id].store(key, record),
        }
    }

    /// Asks the Sentinels for the master, if they can be reached.
    pub(super) fn ask_sentinels(&mut self, pod: PodId, asked_at: u64) {
        let (there, back) = (self.rng.u64(1..10), self.rng.u64(1..10));
        if self.links[pod].sentinels_held_until <= self.now + there {
            self.later(pod, there + back, PodEvent::Sentinels { asked_at, master: self.master });
        }
    }

    /// The connections of a pod end: neither side hears what is under way.
    pub(super) fn disconnect(&mut self, pod: PodId) {
        for server in &mut self.servers {
            server.subscribers.retain(|subscriber| subscriber.pod != pod);
        }
        self.links[pod].last = Default::default();
    }

    fn fault(&mut self) {
        let pod = self.any_pod();
        let long = self.now + self.rng.u64(100..4_000);
        match self.rng.u8(0..10) {
            0 | 1 => self.pods[pod].stopped_until = long,
            2 => self.links[pod].held_until[Over::Bus as usize] = long,
            3 => self.links[pod].held_until = [long; 2],
            4 => {
                let late = self.rng.u64(0..3_000);
                self.links[pod].late[Over::Bus as usize] = late;
            }
            5 => {
                let late = self.rng.u64(0..300);
                self.links[pod].late = [late; 2];
            }
            6 => self.later(pod, 0, PodEvent::Crash),
            7 => self.cut(pod),
            8 => self.restart(),
            _ => self.fail_over(),
        }
    }

    fn cut(&mut self, pod: PodId) {
        self.disconnect(pod);
        if let Some(session) = self.pods[pod].session.as_ref().map(|session| session.id) {
            self.later(pod, 1, PodEvent::Closed(session));
        }
    }

    fn new_mark(&mut self) -> Mark {
        if self.broken != Broken::GenerationIgnored {
            self.next_mark += 1;
        }
        Mark::numbered(self.next_mark)
    }

    /// The master dies, and comes back without its last purges.
    fn restart(&mut self) {
        let lost = self.lossy();
        let mark = self.new_mark();
        let server = self.master;
        let all: Vec<_> = (0..PODS).filter(|pod| self.is_with(*pod, server)).collect();
        all.into_iter().for_each(|pod| self.cut(pod));
        self.servers[server] = Server::new(mark, lost);
    }

    /// A replica that lacks the last purges becomes the master. The one before dies, or lives on unknown to some.
    fn fail_over(&mut self) {
        self.oracle.seen.failovers += 1;
        let (mark, data) = (self.new_mark(), self.lossy());
        let before = self.master;
        let lives = self.rng.bool();
        // A Sentinel stops to vouch for a master before another is made one.
        for pod in 0..PODS {
            if self.rng.bool() {
                self.links[pod].sentinels_held_until = self.now + self.rng.u64(100..5_000);
            }
        }
        self.servers.push(Server::new(mark, data));
        self.master = self.servers.len() - 1;
        if !lives {
            self.servers[before].is_alive = false;
            let all: Vec<_> = (0..PODS).filter(|pod| self.is_with(*pod, before)).collect();
            all.into_iter().for_each(|pod| self.cut(pod));
        }
    }

    fn is_with(&self, pod: PodId, server: ServerId) -> bool {
        self.pods[pod].session.as_ref().is_some_and(|session| session.server == server)
    }

    /// Returns the master's data of a moment ago, without later changes.
    fn lossy(&mut self) -> super::server::Data {
        let lost = self.rng.u64(0..4);
        self.servers[self.master].data().without_the_last(lost)
    }
}
