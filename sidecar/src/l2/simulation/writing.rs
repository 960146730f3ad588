//! Writes through a pod, as [`L2::purge`](super::super::L2::purge) tells of them.

use super::{
    broken::Broken,
    pod::{Ordered, Pod, Write, purged},
    protocol::{Command, GRACE, Over, PodEvent, PodId},
    world::World,
};

const PURGE_TIMEOUT: u64 = 1_000;
const ACKNOWLEDGEMENT_TIMEOUT: u64 = 100;

impl World {
    pub(super) fn purge(&mut self, pod: PodId, key: usize, version: u64) {
        let (now, names) = (self.clock(pod), purged(key));
        self.pods[pod].recent.add(&names, now);
        if self.pods[pod].session.as_ref().is_none_or(|session| !session.is_ready) {
            return self.remember(pod, &names);
        }
        let write = self.number();
        self.pods[pod].writes.insert(write, Write { key, version, ordered: None });
        self.say(pod, Over::Commands, Command::Purge { request: Some(write), names });
        self.later(pod, PURGE_TIMEOUT, PodEvent::PurgeTimeout(write));
    }

    /// A server has counted the purge of a write.
    pub(super) fn ordered(
        &mut self,
        pod: PodId,
        write: u64,
        (generation, order): (u64, u64),
        reached: Vec<PodId>,
    ) {
        let server = self.session(pod).server;
        let asker = self.session(pod).bus.asker;
        let at = self.clock(pod);
        let Some(Write { key, ordered, .. }) = self.pods[pod].writes.get_mut(&write) else { return };
        *ordered = Some(Ordered { asker, order, reached, server, at });
        let names = purged(*key);
        if !self.pods[pod].barriers.ordered(generation, order, &names) {
            self.remember(pod, &names);
        }
        self.later(pod, ACKNOWLEDGEMENT_TIMEOUT, PodEvent::Impatience(write));
        self.ask_sentinels(pod, at);
        self.acknowledge_write(pod, write, true);
    }

    pub(super) fn count(&mut self, pod: PodId, asker: u64, orders: &[u64]) {
        self.pods[pod].counts.count(asker, orders);
        self.acknowledge_writes(pod);
    }

    pub(super) fn acknowledge_writes(&mut self, pod: PodId) {
        let mut waiting: Vec<_> = self.pods[pod].writes.keys().copied().collect();
        waiting.sort_unstable();
        for write in waiting {
            self.acknowledge_write(pod, write, true);
        }
    }

    pub(super) fn acknowledge_write(&mut self, pod: PodId, write: u64, waits: bool) {
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
}
