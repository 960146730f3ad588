//! Connections of a pod, as [`Connector`](super::super::connector) keeps them.

use larder_policy::PurgeName;

use super::{
    super::{
        bus::Bus,
        catch_up::{CatchUp, CatchingUp, Step},
        message::PurgeMessage,
    },
    broken::Broken,
    pod::{Pod, Session},
    protocol::{Command, GRACE, Over, OverBus, PodEvent, PodId, Replied, ServerId},
    world::World,
};
use crate::barriers::RedisBarriers;

const HEARTBEAT: u64 = GRACE / 3;
/// As long as the link waits for a reply, and for a probe.
const REPLY_TIMEOUT: u64 = 1_000;
const PROBE_TIMEOUT: u64 = 2_000;

impl World {
    pub(super) fn is_current(&self, pod: PodId, session: u64) -> bool {
        self.pods[pod].session.as_ref().is_some_and(|current| current.id == session)
    }

    pub(super) fn clock(&self, pod: PodId) -> u64 {
        self.pods[pod].clock(self.now)
    }

    pub(super) fn crash(&mut self, pod: PodId) {
        self.disconnect(pod);
        let clock = self.pods[pod].clock;
        self.pods[pod] = Pod { clock, ..Pod::new(pod, &mut self.rng) };
        self.later(pod, 50, PodEvent::Connect);
    }

    pub(super) fn connect(&mut self, pod: PodId) {
        if self.pods[pod].session.is_none() {
            self.ask_sentinels(pod, self.clock(pod));
            self.later(pod, 300, PodEvent::Connect);
        }
    }

    pub(super) fn hear_sentinels(&mut self, pod: PodId, asked_at: u64, master: ServerId) {
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
                    took_write_at: 0,
                    replied_to: 0,
                });
                self.later(pod, REPLY_TIMEOUT * 2, PodEvent::ReplyTimeout(id, 0));
                self.say(pod, Over::Commands, Command::Hello);
            }
        }
    }

    pub(super) fn close(&mut self, pod: PodId) {
        self.pods[pod].session = None;
        self.disconnect(pod);
        let after = self.rng.u64(20..200);
        self.later(pod, after, PodEvent::Connect);
    }

    pub(super) fn session(&mut self, pod: PodId) -> &mut Session {
        self.pods[pod].session.as_mut().expect("its event is of the current one")
    }

    pub(super) fn prove(&mut self, pod: PodId, proven: Option<u64>) {
        let Some(mut asked_at) = proven else { return };
        if self.broken == Broken::TrustDatedByReceipt {
            asked_at = self.clock(pod);
        }
        if self.broken != Broken::SentinelsIgnored {
            asked_at = asked_at.min(self.session(pod).vouched_at);
        }
        self.pods[pod].barriers.prove(asked_at);
    }

    pub(super) fn beat(&mut self, pod: PodId) {
        let now = self.clock(pod);
        let session = self.session(pod);
        if session.bus.awaited_since().is_some_and(|since| now - since > PROBE_TIMEOUT) {
            return self.close(pod);
        }
        let (id, probe) = (session.id, session.bus.probe(now));
        self.say(pod, Over::Commands, Command::Touch { probe, asked_at: now });
        self.later(pod, REPLY_TIMEOUT, PodEvent::ReplyTimeout(id, probe));
        self.later(pod, HEARTBEAT, PodEvent::Beat(id));
        self.ask_sentinels(pod, now);
        self.settle(pod);
    }

    pub(super) fn hear(&mut self, pod: PodId, message: OverBus) {
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
                let PurgeMessage { asker, order, .. } = message;
                if asker == self.session(pod).bus.asker {
                    self.count(pod, asker, &[order]);
                } else if asker != 0 {
                    self.say(pod, Over::Commands, Command::Acknowledge([(asker, vec![order])].into()));
                }
                let after = self.rng.u64(0..60);
                self.later(pod, after, PodEvent::Applied(PurgeMessage { asker: 0, ..message }));
            }
            OverBus::Purge(message) => self.apply(pod, &message),
        }
    }

    pub(super) fn apply(&mut self, pod: PodId, message: &PurgeMessage) {
        let Pod { session: Some(session), barriers, .. } = &mut self.pods[pod] else { return };
        let own = session.bus.hear(barriers, message);
        let asker = session.bus.asker;
        if let Some(order) = own {
            self.count(pod, asker, &[order]);
        }
        self.settle(pod);
        self.send_acknowledgements(pod);
    }

    pub(super) fn send_acknowledgements(&mut self, pod: PodId) {
        let session = self.session(pod);
        if !session.is_acknowledging && session.bus.has_acknowledgements() {
            session.is_acknowledging = true;
            let held = session.bus.take_acknowledgements();
            self.say(pod, Over::Commands, Command::Acknowledge(held));
        }
    }

    pub(super) fn settle(&mut self, pod: PodId) {
        let session = self.session(pod);
        if session.is_ready && session.bus.is_in_doubt() {
            self.catch_up(pod);
        }
    }

    pub(super) fn catch_up(&mut self, pod: PodId) {
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

    pub(super) fn step(&mut self, pod: PodId, snapshot: &RedisBarriers) {
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

    pub(super) fn caught_up(&mut self, pod: PodId, doubts: u64, asked_at: u64, has_changed: bool) {
        let now = self.clock(pod);
        if has_changed {
            match self.pods[pod].recent.names(now) {
                Some(names) => self.remember(pod, &names),
                None => self.pods[pod].barriers.raise_on_everything(),
            }
        }
        let Pod { session: Some(session), pending, was_connected, .. } = &mut self.pods[pod] else { return };
        session.bus.settle(doubts);
        session.took_write_at = session.took_write_at.max(asked_at);
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

    pub(super) fn remember(&mut self, pod: PodId, names: &[PurgeName]) {
        let Pod { barriers, pending, session, .. } = &mut self.pods[pod];
        let up_to = barriers.raise_locally(names);
        assert!(pending.add(names, up_to), "there are few");
        if session.as_ref().is_some_and(|session| session.is_ready) {
            self.catch_up(pod);
        }
    }

    pub(super) fn replied(&mut self, pod: PodId, reply: Replied) -> Result<(), String> {
        match reply {
            Replied::Hello(mark) => {
                self.session(pod).mark = Some(mark);
                self.say(pod, Over::Bus, Command::Subscribe);
            }
            Replied::Touched { probe, asked_at, lost, mark } => {
                let overtakes = self.broken == Broken::ProbeOvertakes;
                let session = self.session(pod);
                session.replied_to = session.replied_to.max(probe);
                if session.mark != Some(mark) {
                    self.close(pod);
                    return Ok(());
                }
                session.took_write_at = session.took_write_at.max(asked_at);
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
                self.ordered(pod, write, (generation, order), reached);
            }
            Replied::Acknowledged => {
                self.session(pod).is_acknowledging = false;
                self.send_acknowledgements(pod);
            }
            Replied::Looked { fetch, reply, asked_at } => self.looked(pod, fetch, &reply, asked_at)?,
        }
        Ok(())
    }
}
