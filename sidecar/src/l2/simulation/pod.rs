//! A pod: what the link and the proxy do with the sidecar's own barriers, bus and catching up, as events.

use std::{collections::HashMap, time::Duration};

use fastrand::Rng;
use larder_policy::PurgeName;

use super::{
    super::{
        acknowledgements::Counts,
        bus::Bus,
        catch_up::{CatchUp, CatchingUp, Step},
        commands::Message,
        generation::Mark,
        pending::Pending,
        told::Told,
    },
    Broken,
    oracle::Read,
    server::{Record, Reply, ServerId, Subscriber},
    world::{Command, GRACE, KEYS, Over, World},
};
use crate::barriers::{Barriers, RedisBarriers, Stamp};

pub(super) type PodId = usize;

const HEARTBEAT: u64 = GRACE / 3;
/// As long as the link waits for a reply, and for a probe.
const REPLY_TIMEOUT: u64 = 1_000;
const PROBE_TIMEOUT: u64 = 2_000;
const PURGE_TIMEOUT: u64 = 1_000;
const PATIENCE: u64 = 100;
const LOOKUP_TIMEOUT: u64 = 200;

/// A pod.
pub(super) struct Pod {
    /// Nothing happens in it until then.
    pub(super) stopped_until: u64,
    pub(super) session: Option<Session>,
    /// The pod's clock began then, and is so many thousandths slow or fast.
    clock: (u64, i64),
    barriers: Barriers,
    pending: Pending,
    told: Told,
    counts: Counts,
    was_connected: bool,
    l1: HashMap<usize, Entry>,
    /// Fetches by key and version of the barriers.
    flights: HashMap<(usize, u64), u64>,
    fetches: HashMap<u64, Fetch>,
    writes: HashMap<u64, Write>,
}

/// A connection, with a subscription.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) server: ServerId,
    bus: Bus,
    mark: Option<Mark>,
    is_ready: bool,
    catching_up: Option<(CatchUp, u64, u64)>,
    is_acknowledging: bool,
    /// When the Sentinels last named the server.
    vouched_at: u64,
    replied_to: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    version: u64,
    stamp: Stamp,
}

#[derive(Debug)]
struct Fetch {
    key: usize,
    flight: u64,
    stamp: Stamp,
    /// The leader first.
    reads: Vec<u64>,
    /// Redis has not replied yet.
    is_looked_up: bool,
}

#[derive(Debug)]
struct Write {
    key: usize,
    version: u64,
    ordered: Option<Ordered>,
}

/// A purge that a server has counted.
#[derive(Debug)]
struct Ordered {
    asker: u64,
    order: u64,
    reached: Vec<PodId>,
    server: ServerId,
    /// By the pod's clock.
    at: u64,
}

/// Event in a pod.
#[derive(Debug)]
pub(super) enum PodEvent {
    Connect,
    Beat(u64),
    ReplyTimeout(u64, u64),
    Bus(u64, OverBus),
    Reply(u64, Replied),
    Closed(u64),
    Sentinels { asked_at: u64, master: ServerId },
    Read { key: usize, began_at: u64 },
    Write { key: usize },
    Written { key: usize, version: u64 },
    PurgeTimeout(u64),
    Impatience(u64),
    LookupTimeout(u64),
    Fetched { fetch: u64, version: u64 },
    Applied(Message),
    Crash,
}

/// Message on the bus.
#[derive(Clone, Debug)]
pub(super) enum OverBus {
    Subscribed,
    Purge(Message),
    Probe(u64),
    Held(Vec<u64>),
}

/// Reply of a server.
#[derive(Debug)]
pub(super) enum Replied {
    Hello(Mark),
    Touched { probe: u64, lost: bool, mark: Mark },
    Snapshot(RedisBarriers),
    Purged { request: Option<u64>, generation: u64, order: u64, reached: Vec<PodId> },
    Acknowledged,
    Looked { fetch: u64, reply: Reply, asked_at: u64 },
}

impl Pod {
    pub(super) fn new(_id: PodId, rng: &mut Rng) -> Self {
        Self {
            stopped_until: 0,
            session: None,
            clock: (rng.u64(10_000..10_000_000), rng.i64(-5..=5)),
            barriers: Barriers::shared(Duration::from_millis(GRACE)),
            pending: Pending::default(),
            told: Told::default(),
            counts: Counts::default(),
            was_connected: false,
            l1: HashMap::new(),
            flights: HashMap::new(),
            fetches: HashMap::new(),
            writes: HashMap::new(),
        }
    }

    fn clock(&self, now: u64) -> u64 {
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
fn names(key: usize) -> Vec<PurgeName> {
    vec![PurgeName::tag(&key.to_string()), PurgeName::tag("all")]
}

impl World {
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
                    self.remember(pod, &names(key)[..1]);
                }
            }
            PodEvent::Impatience(write) => self.acknowledge_write(pod, write, false),
            PodEvent::LookupTimeout(fetch) => self.go_on_to_application(pod, fetch),
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

    fn is_current(&self, pod: PodId, session: u64) -> bool {
        self.pods[pod].session.as_ref().is_some_and(|current| current.id == session)
    }

    fn clock(&self, pod: PodId) -> u64 {
        self.pods[pod].clock(self.now)
    }

    fn crash(&mut self, pod: PodId) {
        self.disconnect(pod);
        let clock = self.pods[pod].clock;
        self.pods[pod] = Pod { clock, ..Pod::new(pod, &mut self.rng) };
        self.later(pod, 50, PodEvent::Connect);
    }

    fn connect(&mut self, pod: PodId) {
        if self.pods[pod].session.is_none() {
            self.ask_sentinels(pod, self.clock(pod));
            self.later(pod, 300, PodEvent::Connect);
        }
    }

    fn hear_sentinels(&mut self, pod: PodId, asked_at: u64, master: ServerId) {
        let (id, asker) = (self.number(), self.number());
        match &mut self.pods[pod].session {
            Some(session) if session.server == master => {
                session.vouched_at = session.vouched_at.max(asked_at);
                self.acknowledge_writes(pod);
            }
            Some(_) if self.broken == Broken::SentinelsIgnored => {}
            Some(_) => self.close(pod),
            none => {
                *none = Some(Session {
                    id,
                    server: master,
                    bus: Bus::new(asker),
                    mark: None,
                    is_ready: false,
                    catching_up: None,
                    is_acknowledging: false,
                    vouched_at: asked_at,
                    replied_to: 0,
                });
                self.later(pod, REPLY_TIMEOUT * 2, PodEvent::ReplyTimeout(id, 0));
                self.say(pod, Over::Commands, Command::Hello);
            }
        }
    }

    fn close(&mut self, pod: PodId) {
        self.pods[pod].session = None;
        self.disconnect(pod);
        let after = self.rng.u64(20..200);
        self.later(pod, after, PodEvent::Connect);
    }

    fn session(&mut self, pod: PodId) -> &mut Session {
        self.pods[pod].session.as_mut().expect("its event is of the current one")
    }

    fn prove(&mut self, pod: PodId, proven: Option<u64>) {
        let Some(mut asked_at) = proven else { return };
        if self.broken == Broken::TrustDatedByReceipt {
            asked_at = self.clock(pod);
        }
        if self.broken != Broken::SentinelsIgnored {
            asked_at = asked_at.min(self.session(pod).vouched_at);
        }
        self.pods[pod].barriers.prove(asked_at);
    }

    fn beat(&mut self, pod: PodId) {
        let now = self.clock(pod);
        let session = self.session(pod);
        if session.bus.awaited_since().is_some_and(|since| now - since > PROBE_TIMEOUT) {
            return self.close(pod);
        }
        let (id, probe) = (session.id, session.bus.probe(now));
        self.say(pod, Over::Commands, Command::Touch { probe });
        self.later(pod, REPLY_TIMEOUT, PodEvent::ReplyTimeout(id, probe));
        self.later(pod, HEARTBEAT, PodEvent::Beat(id));
        self.ask_sentinels(pod, now);
        self.settle(pod);
    }

    fn hear(&mut self, pod: PodId, message: OverBus) {
        if self.broken == Broken::TrustByAnyMessage {
            let now = self.clock(pod);
            self.pods[pod].barriers.prove(now);
        }
        match message {
            OverBus::Subscribed => self.catch_up(pod),
            OverBus::Probe(probe) => {
                let proven = self.session(pod).bus.came_back(probe);
                self.prove(pod, proven);
            }
            OverBus::Held(orders) => {
                let asker = self.session(pod).bus.asker;
                self.count(pod, asker, &orders);
            }
            OverBus::Purge(message) if self.broken == Broken::AcknowledgedBeforeApplied => {
                let Message { asker, order, .. } = message;
                if asker == self.session(pod).bus.asker {
                    self.count(pod, asker, &[order]);
                } else if asker != 0 {
                    self.say(pod, Over::Commands, Command::Acknowledge([(asker, vec![order])].into()));
                }
                let after = self.rng.u64(0..60);
                self.later(pod, after, PodEvent::Applied(Message { asker: 0, ..message }));
            }
            OverBus::Purge(message) => self.apply(pod, &message),
        }
    }

    fn apply(&mut self, pod: PodId, message: &Message) {
        let Pod { session: Some(session), barriers, .. } = &mut self.pods[pod] else { return };
        let own = session.bus.hear(barriers, message);
        let asker = session.bus.asker;
        if let Some(order) = own {
            self.count(pod, asker, &[order]);
        }
        self.settle(pod);
        self.send_acknowledgements(pod);
    }

    fn send_acknowledgements(&mut self, pod: PodId) {
        let session = self.session(pod);
        if !session.is_acknowledging && session.bus.has_acknowledgements() {
            session.is_acknowledging = true;
            let held = session.bus.take_acknowledgements();
            self.say(pod, Over::Commands, Command::Acknowledge(held));
        }
    }

    fn settle(&mut self, pod: PodId) {
        let session = self.session(pod);
        if session.is_ready && session.bus.is_in_doubt() {
            self.catch_up(pod);
        }
    }

    /// Begins to catch up, unless it is under way.
    fn catch_up(&mut self, pod: PodId) {
        let now = self.clock(pod);
        let Pod { session: Some(session), barriers, pending, was_connected, .. } = &mut self.pods[pod] else {
            return;
        };
        let Some(mark) = session.mark.filter(|_| session.catching_up.is_none()) else { return };
        let which = match (session.is_ready, *was_connected) {
            (true, _) => CatchingUp::InUse,
            (false, _) => CatchingUp::New,
        };
        let catch_up = CatchUp::new(barriers, pending.clone(), mark, which);
        session.catching_up = Some((catch_up, session.bus.doubts(), now));
        self.say(pod, Over::Commands, Command::Snapshot);
    }

    fn step(&mut self, pod: PodId, snapshot: &RedisBarriers) {
        let now = self.clock(pod);
        let Pod { session: Some(session), barriers, .. } = &mut self.pods[pod] else { return };
        let Some((catch_up, doubts, asked_at)) = &mut session.catching_up else { return };
        if self.broken == Broken::BarriersNotRead && !session.is_ready {
            let (doubts, asked_at) = (*doubts, *asked_at);
            barriers.resync(&RedisBarriers { raised: vec![], ..snapshot.clone() });
            return self.caught_up(pod, doubts, asked_at, false);
        }
        match catch_up.read(barriers, snapshot) {
            Err(_) => self.close(pod),
            Ok(Step::Done { has_changed }) => {
                let (doubts, asked_at) = (*doubts, *asked_at);
                self.caught_up(pod, doubts, asked_at, has_changed);
            }
            Ok(step) => {
                *asked_at = now;
                let command = match step {
                    Step::PurgeEverything(generation) => Command::PurgeEverything(generation),
                    Step::Purge(names) => Command::Purge { request: None, names },
                    Step::Read | Step::Done { .. } => Command::Snapshot,
                };
                self.say(pod, Over::Commands, command);
            }
        }
    }

    fn caught_up(&mut self, pod: PodId, doubts: u64, asked_at: u64, has_changed: bool) {
        let now = self.clock(pod);
        if has_changed {
            match self.pods[pod].told.recent(now) {
                Some(names) => self.remember(pod, &names),
                None => self.pods[pod].barriers.raise_on_everything(),
            }
        }
        let Pod { session: Some(session), pending, was_connected, .. } = &mut self.pods[pod] else { return };
        session.bus.settle(doubts);
        if let Some((catch_up, ..)) = session.catching_up.take() {
            pending.forget(catch_up.pending());
        }
        *was_connected = true;
        let (id, is_new) = (session.id, !session.is_ready);
        session.is_ready = true;
        let is_behind = !pending.names.is_empty();
        self.prove(pod, Some(asked_at));
        self.send_acknowledgements(pod);
        if is_new {
            self.later(pod, 0, PodEvent::Beat(id));
        }
        if is_behind {
            self.catch_up(pod);
        }
        self.settle(pod);
    }

    fn remember(&mut self, pod: PodId, names: &[PurgeName]) {
        let Pod { barriers, pending, session, .. } = &mut self.pods[pod];
        let up_to = barriers.raise_locally(names);
        assert!(pending.add(names, up_to), "there are few");
        if session.as_ref().is_some_and(|session| session.is_ready) {
            self.catch_up(pod);
        }
    }

    fn replied(&mut self, pod: PodId, reply: Replied) -> Result<(), String> {
        match reply {
            Replied::Hello(mark) => {
                self.session(pod).mark = Some(mark);
                self.say(pod, Over::Bus, Command::Subscribe);
            }
            Replied::Touched { probe, lost, mark } => {
                let overtakes = self.broken == Broken::ProbeOvertakes;
                let session = self.session(pod);
                session.replied_to = session.replied_to.max(probe);
                if session.mark != Some(mark) {
                    self.close(pod);
                    return Ok(());
                }
                if lost {
                    session.bus.doubt();
                }
                let before = overtakes.then(|| session.bus.came_back(probe)).flatten();
                let proven = session.bus.vouched(probe).or(before);
                self.prove(pod, proven);
                self.settle(pod);
            }
            Replied::Snapshot(snapshot) => self.step(pod, &snapshot),
            Replied::Purged { request: None, .. } => {
                let now = self.clock(pod);
                if let Some((_, _, asked_at)) = &mut self.session(pod).catching_up {
                    *asked_at = now;
                    self.say(pod, Over::Commands, Command::Snapshot);
                }
            }
            Replied::Purged { request: Some(write), generation, order, reached } => {
                let server = self.session(pod).server;
                let asker = self.session(pod).bus.asker;
                let at = self.clock(pod);
                let Some(Write { key, ordered, .. }) = self.pods[pod].writes.get_mut(&write) else {
                    return Ok(());
                };
                *ordered = Some(Ordered { asker, order, reached, server, at });
                let names = names(*key);
                if !self.pods[pod].barriers.ordered(generation, order, &names[..1]) {
                    self.remember(pod, &names[..1]);
                }
                self.later(pod, PATIENCE, PodEvent::Impatience(write));
                self.ask_sentinels(pod, at);
                self.acknowledge_write(pod, write, true);
            }
            Replied::Acknowledged => {
                self.session(pod).is_acknowledging = false;
                self.send_acknowledgements(pod);
            }
            Replied::Looked { fetch, reply, asked_at } => self.looked(pod, fetch, &reply, asked_at)?,
        }
        Ok(())
    }

    fn purge(&mut self, pod: PodId, key: usize, version: u64) {
        let (now, names) = (self.clock(pod), &names(key)[..1]);
        self.pods[pod].told.add(names, now);
        if self.pods[pod].session.as_ref().is_none_or(|session| !session.is_ready) {
            return self.remember(pod, names);
        }
        let write = self.number();
        self.pods[pod].writes.insert(write, Write { key, version, ordered: None });
        self.say(pod, Over::Commands, Command::Purge { request: Some(write), names: names.to_vec() });
        self.later(pod, PURGE_TIMEOUT, PodEvent::PurgeTimeout(write));
    }

    fn count(&mut self, pod: PodId, asker: u64, orders: &[u64]) {
        self.pods[pod].counts.count(asker, orders);
        self.acknowledge_writes(pod);
    }

    fn acknowledge_writes(&mut self, pod: PodId) {
        let mut waiting: Vec<_> = self.pods[pod].writes.keys().copied().collect();
        waiting.sort_unstable();
        for write in waiting {
            self.acknowledge_write(pod, write, true);
        }
    }

    /// Lets the writer go, if all pods have acknowledged the purge and the Sentinels were asked after it was ordered, or it has waited
    /// for long enough. It is told that the purge holds only if the Sentinels have named the server.
    fn acknowledge_write(&mut self, pod: PodId, write: u64, waits: bool) {
        let not_awaited = self.broken == Broken::AcknowledgementsNotAwaited;
        let now = self.clock(pod);
        let Pod { writes, counts, session, .. } = &mut self.pods[pod];
        let Some(Write { ordered: Some(Ordered { asker, order, reached, server, at }), .. }) =
            writes.get(&write)
        else {
            return;
        };
        let is_everywhere = not_awaited || counts.has_reached(*asker, *order, reached.len());
        let since = if self.broken == Broken::VouchedWithinGrace { now.saturating_sub(GRACE) } else { *at };
        let is_vouched =
            session.as_ref().is_some_and(|session| session.server == *server && session.vouched_at >= since);
        if waits && !(is_everywhere && is_vouched) {
            return;
        }
        counts.forget(*asker, *order);
        let Some(Write { key, version, ordered: Some(Ordered { reached, .. }) }) = writes.remove(&write)
        else {
            return;
        };
        if !is_vouched {
            return;
        }
        let reached = if is_everywhere { reached } else { vec![] };
        self.oracle.acknowledged((key, version, self.now), reached);
    }

    fn read(&mut self, pod: PodId, key: usize, began_at: u64) -> Result<(), String> {
        let now = self.clock(pod);
        let Pod { barriers, l1, flights, fetches, .. } = &mut self.pods[pod];
        if let Some(entry) = l1.get(&key)
            && may_serve(barriers, key, entry.stamp, now)
        {
            let version = entry.version;
            self.oracle.seen.hits += 1;
            return self.answer(pod, key, began_at, version);
        }
        let flight = barriers.revision();
        if let Some(fetch) = flights.get(&(key, flight)) {
            let fetch = fetches.get_mut(fetch).expect("a flight is a fetch");
            fetch.reads.push(began_at);
            return Ok(());
        }
        let stamp = barriers.stamp_of(now);
        self.fetch(pod, Fetch { key, flight, stamp, reads: vec![began_at], is_looked_up: false });
        Ok(())
    }

    fn fetch(&mut self, pod: PodId, fetch: Fetch) {
        let (number, now, key) = (self.number(), self.clock(pod), fetch.key);
        let is_ready = self.pods[pod].session.as_ref().is_some_and(|session| session.is_ready);
        self.pods[pod].flights.insert((key, fetch.flight), number);
        self.pods[pod].fetches.insert(number, fetch);
        if is_ready {
            let lookup = Command::Lookup { fetch: number, key, names: names(key), asked_at: now };
            self.say(pod, Over::Commands, lookup);
            self.later(pod, LOOKUP_TIMEOUT, PodEvent::LookupTimeout(number));
        } else {
            self.go_on_to_application(pod, number);
        }
    }

    fn go_on_to_application(&mut self, pod: PodId, number: u64) {
        let Some(fetch) = self.pods[pod].fetches.get_mut(&number).filter(|fetch| !fetch.is_looked_up) else {
            return;
        };
        fetch.is_looked_up = true;
        let key = fetch.key;
        self.ask_application(pod, number, key);
    }

    fn looked(&mut self, pod: PodId, number: u64, reply: &Reply, asked_at: u64) -> Result<(), String> {
        let now = self.clock(pod);
        let ignored = self.broken == Broken::SentinelsIgnored;
        let said_at = if ignored { asked_at } else { asked_at.min(self.session(pod).vouched_at) };
        let Pod { barriers, fetches, l1, .. } = &mut self.pods[pod];
        let Some(fetch) = fetches.get_mut(&number).filter(|fetch| !fetch.is_looked_up) else { return Ok(()) };
        fetch.stamp = barriers.stamp_at(reply.generation, reply.order, asked_at);
        if let Some(Record { version, generation, order }) = reply.record {
            let stamp = Stamp { generation, order, local: 0, asked_at: said_at };
            let is_purged = generation != reply.generation || order < reply.barrier;
            if !is_purged && may_serve(barriers, fetch.key, stamp, now) {
                l1.insert(fetch.key, Entry { version, stamp });
                self.oracle.seen.lookups += 1;
                return self.land(pod, number, Entry { version, stamp });
            }
        }
        self.go_on_to_application(pod, number);
        Ok(())
    }

    fn fetched(&mut self, pod: PodId, number: u64, version: u64) -> Result<(), String> {
        let now = self.clock(pod);
        let broken = self.broken;
        let Pod { barriers, fetches, l1, .. } = &mut self.pods[pod];
        let Some(Fetch { key, stamp, .. }) = fetches.get(&number) else { return Ok(()) };
        let (key, mut stamp) = (*key, *stamp);
        if broken == Broken::EntryDatedByStore {
            stamp.asked_at = now;
        }
        if broken == Broken::EntryStampedByStore {
            stamp = barriers.stamp_of(stamp.asked_at);
        }
        if !barriers.covers(&names(key), stamp) {
            l1.insert(key, Entry { version, stamp });
            let Stamp { generation, order, .. } = stamp;
            self.say(pod, Over::Commands, Command::Store(key, Record { version, generation, order }));
        }
        self.land(pod, number, Entry { version, stamp })
    }

    /// Answers those who wait for a fetch: the one who asked in any case, the others if they may have it.
    fn land(&mut self, pod: PodId, number: u64, entry: Entry) -> Result<(), String> {
        let now = self.clock(pod);
        let Pod { barriers, fetches, flights, .. } = &mut self.pods[pod];
        let Some(Fetch { key, flight, reads, .. }) = fetches.remove(&number) else { return Ok(()) };
        if flights.get(&(key, flight)) == Some(&number) {
            flights.remove(&(key, flight));
        }
        let may_join = may_serve(barriers, key, entry.stamp, now) || self.broken == Broken::JoinersDoNotAsk;
        for (place, began_at) in reads.into_iter().enumerate() {
            if place == 0 || may_join {
                self.oracle.seen.joined += usize::from(place > 0);
                self.answer(pod, key, began_at, entry.version)?;
            } else {
                let stamp = self.pods[pod].barriers.stamp_of(now);
                // Each by itself, and nobody joins it.
                let fetch =
                    Fetch { key, flight: u64::MAX, stamp, reads: vec![began_at], is_looked_up: false };
                self.fetch(pod, fetch);
            }
        }
        Ok(())
    }

    fn answer(&mut self, pod: PodId, key: usize, began_at: u64, version: u64) -> Result<(), String> {
        debug_assert!(key < KEYS);
        self.oracle.check(Read { pod, key, began_at, version })
    }
}

/// Returns true if an entry may be served ([`crate::entry::Entry::is_purged`]).
fn may_serve(barriers: &Barriers, key: usize, stamp: Stamp, now: u64) -> bool {
    barriers.trusts_at(stamp.asked_at, now) && !barriers.covers(&names(key), stamp)
}
