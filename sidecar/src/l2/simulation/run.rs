//! A run: events in their order, and what goes wrong.

use std::cmp::Reverse;

use super::{
    super::{generation::Mark, message::PurgeMessage},
    broken::Broken,
    pod::{Write, purged},
    protocol::{Command, Over, OverBus, PodEvent, PodId, Replied, ServerId, Subscriber},
    server::{Data, Server},
    world::{END, Event, PODS, World},
};

impl World {
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

    pub(super) fn server(&mut self, id: ServerId, from: Subscriber, command: Command) {
        if !self.servers[id].is_alive {
            return;
        }
        match command {
            Command::Hello => self.reply(from, Replied::Hello(self.servers[id].mark)),
            Command::Subscribe => {
                self.servers[id].subscribers.push(from);
                self.push(from, OverBus::Subscribed);
            }
            Command::Touch { probe, asked_at } => {
                let lost = self.servers[id].touch();
                let mark = self.servers[id].mark;
                self.publish_to(id, from.asker, OverBus::Probe(probe));
                self.reply(from, Replied::Touched { probe, asked_at, lost, mark });
            }
            Command::Snapshot => {
                let snapshot = self.servers[id].snapshot();
                self.reply(from, Replied::Snapshot(snapshot));
            }
            Command::Purge { request, names } => {
                let asker = if request.is_some() { from.asker } else { 0 };
                let message = self.servers[id].purge(asker, &names);
                let reached = self.publish(id, &message);
                let PurgeMessage { generation, order, .. } = message;
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

    pub(super) fn pod(&mut self, pod: PodId, event: PodEvent) -> Result<(), String> {
        match event {
            PodEvent::Connect => self.connect(pod),
            PodEvent::Crash => self.crash(pod),
            PodEvent::Sentinels { asked_at, master } => self.hear_sentinels(pod, asked_at, master),
            PodEvent::Read { key, began_at } => self.read(pod, key, began_at)?,
            PodEvent::Write { key } => {
                self.versions[key] += 1;
                let (version, after) = (self.versions[key], self.rng.u64(1..10));
                self.later(pod, after, PodEvent::Written { key, version });
            }
            PodEvent::Written { key, version } => self.purge(pod, key, version),
            PodEvent::PurgeTimeout(write) => {
                let is_silent =
                    self.pods[pod].writes.get(&write).is_some_and(|write| write.ordered.is_none());
                if is_silent && let Some(Write { key, .. }) = self.pods[pod].writes.remove(&write) {
                    self.remember(pod, &purged(key));
                }
            }
            PodEvent::Impatience(write) => self.acknowledge_write(pod, write, false),
            PodEvent::LookupTimeout(fetch) => self.fetch_from_application(pod, fetch),
            PodEvent::Fetched { fetch, version } => self.fetched(pod, fetch, version)?,
            PodEvent::Applied(message) => self.apply(pod, &message),
            PodEvent::Beat(session) if self.is_current(pod, session) => self.beat(pod),
            PodEvent::ReplyTimeout(session, probe) if self.is_current(pod, session) => {
                let session = self.pods[pod].session.as_ref().expect("it is current");
                if session.replied_to < probe || !session.is_ready {
                    self.close(pod);
                }
            }
            PodEvent::Closed(session) if self.is_current(pod, session) => self.close(pod),
            PodEvent::Bus(session, message) if self.is_current(pod, session) => self.hear(pod, message),
            PodEvent::Reply(session, reply) if self.is_current(pod, session) => self.replied(pod, reply)?,
            PodEvent::Reply(..)
            | PodEvent::Beat(_)
            | PodEvent::ReplyTimeout(..)
            | PodEvent::Closed(_)
            | PodEvent::Bus(..) => {}
        }
        Ok(())
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

    fn restart(&mut self) {
        let lost = self.lossy();
        let mark = self.new_mark();
        let server = self.master;
        let all: Vec<_> = (0..PODS).filter(|pod| self.is_with(*pod, server)).collect();
        all.into_iter().for_each(|pod| self.cut(pod));
        self.servers[server] = Server::new(mark, lost);
    }

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

    fn lossy(&mut self) -> Data {
        let lost = self.rng.u64(0..4);
        self.servers[self.master].data().without_the_last(lost)
    }
}
