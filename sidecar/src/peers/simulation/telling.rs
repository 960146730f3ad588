//! Messages between pods, as [`keep_told`](super::super::Peers::keep_told) sends them and the admin API takes them.

use std::collections::BTreeMap;

use larder_api::admin::{PeerPurges, PeerReply, PeerRequest};
use larder_policy::PurgeName;

use super::{
    super::{
        ledger::{Outcome, Progress},
        log::{Effect, Purge},
        state::LATE,
    },
    broken::Broken,
    pod::{Other, instant},
    redis::index,
    world::{Event, PODS, World},
};

const REQUEST_TIMEOUT: u64 = 1_000;

/// Something to apply, once the lock on what is known is free.
#[derive(Debug)]
enum Heard {
    Purge(Purge),
    Everything,
}

impl World {
    /// Sends another pod what is to be sent, if nothing is on its way to it.
    pub(super) fn drive(&mut self, pod: usize, other: usize) {
        let (now, number) = (self.now, self.number());
        let Some(from) = self.pods[pod].as_mut().filter(|_| pod != other) else { return };
        let conditions = from.conditions(now);
        let Other { state, lacks, compares, asked, rests_until } = &mut from.others[other];
        let is_behind = !state.has_never_replied() && state.acknowledged < from.ledger.own_last(now);
        if asked.is_some() || *rests_until > now || !(is_behind || *compares || lacks.is_some()) {
            return;
        }
        let request = from.ledger.request(state, lacks.take().as_ref(), std::mem::take(compares), conditions);
        let (asker, mut message) = (from.process, request.message.clone());
        *asked = Some((number, request));
        self.distort(pod, &mut message.purges);
        let process = self.process(other);
        let is_refused = process == 0 && self.links[pod][other].is_cut_until <= now && self.rng.bool();
        let after = if is_refused { self.rng.u64(1..8) } else { REQUEST_TIMEOUT };
        self.later(after, Event::Timeout { pod, process: asker, other, number, is_refused });
        // Over a new connection, if the one that was open broke after the request had arrived.
        for _ in 0..if self.rng.u8(0..12) == 0 { 2 } else { 1 } {
            if let Some(after) = self.delay(pod, other) {
                let message = message.clone();
                self.later(after, Event::Request { from: pod, asker, pod: other, process, number, message });
            }
        }
    }

    pub(super) fn drive_all(&mut self, pod: usize) {
        (0..PODS).for_each(|other| self.drive(pod, other));
    }

    /// A request arrives.
    pub(super) fn receive(&mut self, from: usize, asker: u64, pod: usize, number: u64, message: PeerRequest) {
        let (now, broken) = (self.now, self.broken);
        let Some(to) = self.pods[pod].as_mut() else { return };
        let other = &mut to.others[from];
        if message.leaves {
            other.state.has_gone(message.instance);
        } else if other.state.is_announced(message.instance, message.begins) || message.begins {
            (other.compares, other.rests_until) = (true, 0);
        }
        if broken == Broken::GapIgnored {
            to.ledger.contacts.record(message.instance, now);
        }
        let (conditions, mut heard) = (to.conditions(now), vec![]);
        let reply = to.ledger.receive(message, conditions, &mut |effect| heard.push(Heard::of(effect)));
        let mut reply = reply.expect("what the sender sends is well-formed");
        self.apply_all(pod, heard);
        self.distort(pod, &mut reply.purges);
        self.drive(pod, from);
        if let Some(after) = self.delay(from, pod) {
            self.later(after, Event::Reply { pod: from, asker, from: pod, number, reply });
        }
    }

    /// A reply arrives at the process that asked.
    pub(super) fn take_reply(&mut self, pod: usize, asker: u64, from: usize, number: u64, reply: PeerReply) {
        let (now, base, pause) = (self.now, self.base, self.scale.pause);
        let broken = self.broken;
        let Some(to) = self.pods[pod].as_mut() else { return };
        if broken == Broken::GapIgnored {
            to.ledger.contacts.record(reply.instance, now);
        }
        let conditions = to.conditions(now);
        let other = &mut to.others[from];
        let Some((_, request)) = other.asked.take_if(|(asked, _)| *asked == number && to.process == asker)
        else {
            return;
        };
        if conditions.is_joining {
            for (origin, known) in reply.known.iter().flatten() {
                to.adopted.insert(*origin, known.last);
                self.oracle.adopted(asker, *origin, known.last);
            }
        }
        let mut heard = vec![];
        let outcome =
            to.ledger.take_reply(&request, reply, conditions, &mut |effect| heard.push(Heard::of(effect)));
        let Some(Outcome::Other(progress)) = outcome else { panic!("{outcome:?}, of another pod's reply") };
        let Progress { acknowledged, replied, lacks, is_to_be_compared, takes_nothing } = progress;
        let (asked_at, at) = (instant(base, request.asked_at), instant(base, now));
        let _ = other.state.replied(acknowledged, replied, asked_at, at);
        if broken == Broken::ReplyToOldProcess {
            let before = &mut self.acknowledged[pod][from];
            *before = acknowledged.max(*before);
            other.state.acknowledged = *before;
        }
        (other.lacks, other.compares) = (lacks, other.compares || is_to_be_compared);
        if takes_nothing {
            other.rests_until = now + pause;
            self.later(pause, Event::Drive { pod, process: asker, other: from });
        }
        self.apply_all(pod, heard);
        self.acknowledge(pod);
        self.join(pod);
        self.drive(pod, from);
    }

    /// No reply has come.
    pub(super) fn give_up(&mut self, pod: usize, other: usize, number: u64, is_refused: bool) {
        let (now, pause, base) = (self.now, self.scale.pause, self.base);
        let Some(from) = self.pods[pod].as_mut() else { return };
        let (process, to) = (from.process, &mut from.others[other]);
        let Some((_, request)) = to.asked.take_if(|(asked, _)| *asked == number) else { return };
        to.state.fails(LATE, is_refused, instant(base, request.asked_at));
        (to.compares, to.rests_until) = (true, now + pause);
        self.later(pause, Event::Drive { pod, process, other });
        self.acknowledge(pod);
        self.join(pod);
    }

    fn apply_all(&mut self, pod: usize, heard: Vec<Heard>) {
        for heard in heard {
            if self.broken == Broken::AcknowledgedBeforeApplied {
                let (process, after) = (self.process(pod), self.rng.u64(0..80));
                let purge = if let Heard::Purge(purge) = heard { Some(purge) } else { None };
                self.later(after, Event::Applied { pod, process, purge });
                continue;
            }
            match heard {
                Heard::Purge(purge) => {
                    self.apply(pod, &Effect::Purge(&purge));
                    self.pass_on(pod, &purge);
                }
                Heard::Everything => self.apply(pod, &Effect::Everything),
            }
        }
    }

    /// Applies a purge in a pod.
    pub(super) fn apply(&mut self, pod: usize, effect: &Effect<'_>) {
        let Some(pod) = &self.pods[pod] else { return };
        match effect {
            Effect::Purge(purge) => {
                pod.barriers.raise_locally(&purge.names);
                self.oracle.purges[index(purge)].heard_by.insert(pod.process);
            }
            Effect::Everything => {
                pod.barriers.raise_on_everything();
                self.oracle.seen.everything += 1;
            }
        }
    }

    /// Changes what a pod tells, as a fault has it.
    fn distort(&self, pod: usize, purges: &mut Vec<PeerPurges>) {
        let adopted: BTreeMap<u64, u64> =
            self.pods[pod].as_ref().map(|pod| pod.adopted.clone()).unwrap_or_default();
        let without = |names: &mut String, fact: PurgeName| {
            let fact: String = fact.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            *names = names.replace(&fact, "");
        };
        if self.broken == Broken::OthersNotToldOn {
            purges.retain(|segment| segment.origin == self.process(pod));
        }
        for segment in purges {
            let is_adopted = adopted.get(&segment.origin).is_some_and(|last| segment.after < *last);
            match self.broken {
                Broken::AdoptedWithoutFloor if is_adopted => {
                    (segment.everything, segment.settled) = (false, segment.last);
                    segment.purges.clear();
                }
                Broken::ForgottenWithoutFloor if !is_adopted && segment.everything => {
                    (segment.everything, segment.settled) = (false, segment.last);
                }
                Broken::PrefixWithoutItsFact => segment.purges.iter_mut().for_each(|purge| {
                    without(&mut purge.names, PurgeName::ANY_PREFIX);
                    without(&mut purge.names, PurgeName::ANY_PREFIX.soft());
                }),
                Broken::SoftWithoutItsFact => {
                    segment
                        .purges
                        .iter_mut()
                        .for_each(|purge| without(&mut purge.names, PurgeName::ANY_SOFT));
                }
                _ => {}
            }
        }
    }
}

impl Heard {
    fn of(effect: Effect<'_>) -> Self {
        match effect {
            Effect::Purge(purge) => Self::Purge(purge.clone()),
            Effect::Everything => Self::Everything,
        }
    }
}
