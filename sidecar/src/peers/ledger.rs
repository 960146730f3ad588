//! The part of a pod that decides what it tells other pods, and what it believes of what they tell.
//!
//! There is no I/O and no clock in here: messages and times come in ([`boot_ms`](crate::clock::boot_ms)). The simulation
//! ([`super::simulation`]) runs the same code.

use larder_api::admin::{PeerReplied, PeerReply, PeerRequest};

use super::{
    contacts::{Contacts, GAP_MS},
    log::{Effect, Known, Log, Purge, Segment},
    message,
    state::State,
};

/// Purges that this pod has made and heard of, and the times at which it asked others.
#[derive(Debug)]
pub(super) struct Ledger {
    instance: u64,
    began_at: u64,
    /// Time before which nothing was stored that is served.
    emptied_at: u64,
    log: Log,
    pub(super) contacts: Contacts,
}

/// A request to another pod.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) message: PeerRequest,
    pub(super) asked_at: u64,
    /// The last number that the pod had acknowledged when the request was put together.
    acknowledged: u64,
    /// The last purge through this process that the request tells of, if it tells of any.
    told: Option<u64>,
}

/// Progress with another pod, as its reply says.
#[derive(Debug)]
pub(super) struct Progress {
    /// The last purge through this process up to which all hold there.
    pub(super) acknowledged: u64,
    pub(super) replied: PeerReplied,
    /// Number of the last purge of each process that the pod knows, if it lacks any that is known here.
    pub(super) lacks: Option<Known>,
    /// True if the pod must be asked again for what it knows.
    pub(super) is_to_be_compared: bool,
    /// True if the pod has acknowledged nothing of what it was told, and would not if it was told at once again.
    pub(super) takes_nothing: bool,
}

/// Outcome of a reply.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The other pod is this one.
    Own,
    /// Another pod replied.
    Other(Progress),
}

/// Conditions under which a message is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    /// Nothing is stored in this pod yet.
    pub(super) is_joining: bool,
    /// This pod serves nothing any more.
    pub(super) is_leaving: bool,
    /// Redis tells of what it was told, however long ago.
    pub(super) has_redis: bool,
    pub(super) now: u64,
}

impl Ledger {
    /// Creates that of a process which begins now.
    pub(super) fn new(instance: u64, now: u64) -> Self {
        let log = Log::new(instance);
        Self { instance, began_at: now, emptied_at: now, log, contacts: Contacts::default() }
    }

    pub(super) const fn instance(&self) -> u64 {
        self.instance
    }

    const fn age_ms(&self, now: u64) -> u64 {
        now.saturating_sub(self.began_at)
    }

    /// Adds a purge of this process, which is applied here, and returns its number.
    pub(super) fn append(&mut self, purge: Purge, now: u64) -> u64 {
        self.log.append(purge, now)
    }

    /// Returns the number of the last purge of this process, if it is one that others are told of; 0 if not.
    pub(super) fn own_last(&self, now: u64) -> u64 {
        self.log.own_last(now)
    }

    /// Forgets what nobody needs. `has_told_redis` as of [`Purgeable`](super::Purgeable): what was known until `settled_at` is in Redis.
    pub(super) fn forget(&mut self, has_told_redis: Option<bool>, settled_at: u64, now: u64) {
        match has_told_redis {
            Some(true) => self.log.settle(settled_at),
            Some(false) => self.log.hold(),
            None => {}
        }
        self.log.forget_old(now);
        self.contacts.forget_old(now);
    }

    /// Returns a request that tells a pod what it does not know: purges through this process, and others if it is known to lack them.
    /// `compares` asks for what it knows.
    pub(super) fn request(
        &self,
        to: &State,
        lacks: Option<&Known>,
        compares: bool,
        Conditions { is_joining, is_leaving, now, .. }: Conditions,
    ) -> Request {
        let purges: Vec<_> = match lacks {
            Some(known) => self.log.missing(known, 0, now),
            // What it knows is not known yet.
            None if to.has_never_replied() => vec![],
            None => self.log.own_after(to.acknowledged, now).into_iter().collect(),
        };
        let own = purges.iter().find(|segment| segment.origin == self.instance);
        let told = own.map(|segment| segment.last);
        let message = PeerRequest {
            instance: self.instance,
            age_ms: self.age_ms(now),
            address: None,
            begins: is_joining,
            leaves: is_leaving,
            known: compares.then(|| self.log.known(now)),
            replied: to.replied,
            purges: purges.into_iter().map(Into::into).collect(),
        };
        Request { message, asked_at: now, acknowledged: to.acknowledged, told }
    }

    /// Takes a request of another pod, has `apply` apply what was not known, and replies; `None`: it is malformed.
    pub(super) fn receive(
        &mut self,
        request: PeerRequest,
        conditions: Conditions,
        apply: &mut dyn FnMut(Effect<'_>),
    ) -> Option<PeerReply> {
        let PeerRequest { instance, age_ms, address: _, begins, leaves: _, known, replied, purges } = request;
        let Conditions { has_redis, now, .. } = conditions;
        let reply = PeerReply { instance: self.instance, age_ms: self.age_ms(now), ..PeerReply::default() };
        if instance == self.instance {
            return Some(reply);
        }
        let segments = purges.into_iter().map(message::segment).collect::<Option<Vec<_>>>()?;
        self.hear(segments, instance, age_ms, conditions, apply);
        let has_all = known.as_ref().is_some_and(|known| self.log.has_all(known));
        if let Some(replied) = replied.filter(|replied| has_all && replied.instance == self.instance) {
            // It was put together after that reply, so that this is as good as having asked then.
            let asked_at = self.began_at + replied.age_ms.min(self.age_ms(now));
            self.close_gap(instance, age_ms, asked_at, conditions, apply);
        }
        let acknowledged = self.log.last(instance);
        let Some(known) = known else { return Some(PeerReply { acknowledged, ..reply }) };
        // A pod that begins may find what was purged in Redis alone.
        let needs_none = begins && !has_redis;
        let missing = if needs_none { vec![] } else { self.log.missing(&known, instance, now) };
        let purges = missing.into_iter().map(Into::into).collect();
        Some(PeerReply { acknowledged, known: Some(self.log.known(now)), purges, ..reply })
    }

    /// Takes a reply to a request, and has `apply` apply what was not known; `None`: it is malformed.
    pub(super) fn take_reply(
        &mut self,
        to: &Request,
        reply: PeerReply,
        conditions: Conditions,
        apply: &mut dyn FnMut(Effect<'_>),
    ) -> Option<Outcome> {
        let PeerReply { instance, age_ms, acknowledged, known, purges } = reply;
        if instance == self.instance {
            return Some(Outcome::Own);
        }
        let Conditions { is_joining, now, .. } = conditions;
        let begins = to.message.begins;
        let segments = purges.into_iter().map(message::segment).collect::<Option<Vec<_>>>()?;
        self.hear(segments, instance, age_ms, conditions, apply);
        if known.is_some() && !begins {
            self.close_gap(instance, age_ms, to.asked_at, conditions, apply);
        }
        let (mut lacks, mut is_to_be_compared) = (None, false);
        if let Some(known) = known {
            if begins && is_joining {
                self.log.adopt(&known, now);
                self.contacts.record(instance, to.asked_at);
            } else if begins {
                // Something may be stored by now that a purge in between was about.
                is_to_be_compared = true;
            }
            lacks = Some(known).filter(|known| !self.log.missing(known, instance, now).is_empty());
        }
        let is_stuck = acknowledged == to.acknowledged && to.told.is_some_and(|told| told > acknowledged);
        Some(Outcome::Other(Progress {
            acknowledged,
            replied: PeerReplied { instance, age_ms },
            takes_nothing: is_stuck && lacks.is_none(),
            lacks,
            is_to_be_compared,
        }))
    }

    /// Applies purges that another pod told of.
    fn hear(
        &mut self,
        segments: Vec<Segment>,
        instance: u64,
        age_ms: u64,
        Conditions { has_redis, now, .. }: Conditions,
        apply: &mut dyn FnMut(Effect<'_>),
    ) {
        if segments.is_empty() {
            return;
        }
        // With Redis, what was forgotten there is in it.
        let is_after_gap =
            !has_redis && self.contacts.is_after_gap(instance, self.age_ms(now).min(age_ms), now);
        for segment in segments {
            self.log.hear(segment, is_after_gap, now, |effect| {
                if matches!(effect, Effect::Everything) {
                    self.emptied_at = now;
                }
                apply(effect);
            });
        }
    }

    /// Records that this pod had all that another one knew of at a time. What that one may have forgotten by then was everything.
    fn close_gap(
        &mut self,
        instance: u64,
        age_ms: u64,
        at: u64,
        Conditions { has_redis, now, .. }: Conditions,
        apply: &mut dyn FnMut(Effect<'_>),
    ) {
        let age_ms = age_ms.min(now.saturating_sub(self.emptied_at));
        let may_lack = age_ms > GAP_MS && self.contacts.is_after_gap(instance, age_ms, at);
        self.contacts.record(instance, at);
        if may_lack && !has_redis {
            self.emptied_at = now;
            apply(Effect::Everything);
            // Pods that this one alone reaches lack the same.
            self.log.append_everything(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const CONDITIONS: Conditions =
        Conditions { is_joining: false, is_leaving: false, has_redis: false, now: 0 };

    fn purge() -> Purge {
        let version = larder_policy::PurgeName::version("v");
        Purge { seq: 0, version, names: vec![], number: 0, generation: 0 }
    }

    /// Has one pod send a request to another, and take its reply. Returns true if everything was purged in either of the two, and the
    /// progress.
    fn exchange(from: &mut Ledger, to: &mut Ledger, state: &mut State, now: u64) -> ([bool; 2], Progress) {
        let (conditions, mut everything) = (Conditions { now, ..CONDITIONS }, [false; 2]);
        let request = from.request(state, None, true, conditions);
        let [in_sender, in_receiver] = &mut everything;
        let note = |in_pod: &mut bool, effect: Effect<'_>| *in_pod |= matches!(effect, Effect::Everything);
        let reply = to.receive(request.message.clone(), conditions, &mut |effect| note(in_receiver, effect));
        let outcome =
            from.take_reply(&request, reply.unwrap(), conditions, &mut |effect| note(in_sender, effect));
        let Some(Outcome::Other(progress)) = outcome else { panic!("it is another pod") };
        let _ = state.replied(progress.acknowledged, progress.replied, Instant::now(), Instant::now());
        (everything, progress)
    }

    #[test]
    fn pod_takes_nothing_only_if_it_was_told_something() {
        let (mut a, mut b, mut state) = (Ledger::new(1, 0), Ledger::new(2, 0), State::default());
        exchange(&mut a, &mut b, &mut state, 0);
        let take = |a: &mut Ledger, request: &Request, acknowledged| {
            let reply = PeerReply { instance: 2, acknowledged, ..PeerReply::default() };
            match a.take_reply(request, reply, CONDITIONS, &mut |_| {}) {
                Some(Outcome::Other(progress)) => progress.takes_nothing,
                outcome => panic!("{outcome:?}"),
            }
        };
        let nothing = a.request(&state, None, false, CONDITIONS);
        a.append(purge(), 0);
        assert!(!take(&mut a, &nothing, 0), "what came up meanwhile is told at once");
        let told = a.request(&state, None, false, CONDITIONS);
        a.append(purge(), 0);
        assert!(take(&mut a, &told, 0));
        assert!(!take(&mut a, &told, 1), "it has what it was told of");
        state.acknowledged = 2;
        let told = a.request(&state, None, false, CONDITIONS);
        assert!(!take(&mut a, &told, 0), "it is another process");
    }

    #[test]
    fn everything_that_is_purged_after_a_gap_is_told_to_those_that_only_this_pod_reaches() {
        let ends_at = GAP_MS + 1;
        let [mut a, mut b, mut c] = [1, 2, 3].map(|instance| Ledger::new(instance, 0));
        let (mut to_a, mut to_b) = (State::default(), State::default());
        for now in [0, ends_at - 1, ends_at] {
            assert_eq!(exchange(&mut c, &mut b, &mut to_b, now).0, [false; 2]);
        }
        // It has nothing to tell of, but may have forgotten something.
        assert_eq!(exchange(&mut b, &mut a, &mut to_a, ends_at).0, [true, false]);
        assert_eq!(exchange(&mut c, &mut b, &mut to_b, ends_at).0, [true, false]);
        assert_eq!(exchange(&mut c, &mut b, &mut to_b, ends_at).0, [false; 2], "once");
    }
}
