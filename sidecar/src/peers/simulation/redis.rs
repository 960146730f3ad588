//! A Redis that orders purges, and tells those who are connected of them in their order.

use std::collections::HashSet;

use super::{
    super::log::{Effect, Purge},
    world::{Event, World},
};

/// Time that Redis takes for a purge that a pod is told of, at most, in milliseconds.
const SLOWEST: u64 = 20;

impl World {
    /// Has Redis order purges that it does not have yet, and tells the pods that are connected.
    pub(super) fn order(&mut self, purges: Vec<Purge>) {
        let known: HashSet<_> = self.redis.iter().map(|purge| purge.number).collect();
        for purge in purges.into_iter().filter(|purge| !known.contains(&purge.number)) {
            self.oracle.purges[index(&purge)].is_ordered = true;
            self.redis.push(purge);
        }
        for pod in 0..self.pods.len() {
            let after = self.rng.u64(1..SLOWEST);
            self.later(after, Event::Redis { pod, process: self.process(pod) });
        }
    }

    /// A pod hears what Redis has ordered since.
    pub(super) fn hear_redis(&mut self, pod: usize) {
        let now = self.now;
        let Some(link) = self.pods[pod].as_mut().and_then(|pod| pod.redis.as_mut()) else { return };
        if !link.is_connected {
            return;
        }
        link.proven_at = now;
        let new = self.redis[link.heard..].to_vec();
        link.heard = self.redis.len();
        for purge in new {
            self.apply(pod, &Effect::Purge(&purge));
        }
        self.tell_redis(pod);
    }

    /// A pod tells Redis of what it could not, if it is connected.
    pub(super) fn tell_redis(&mut self, pod: usize) {
        let Some(link) = self.pods[pod].as_mut().and_then(|pod| pod.redis.as_mut()) else { return };
        if link.is_connected && !link.pending.is_empty() {
            let purges = std::mem::take(&mut link.pending);
            self.order(purges);
        }
    }

    /// A pod that heard of a purge from another one has Redis told.
    pub(super) fn pass_on(&mut self, pod: usize, purge: &Purge) {
        if purge.generation != 0 {
            return;
        }
        if let Some(link) = self.pods[pod].as_mut().and_then(|pod| pod.redis.as_mut()) {
            link.pending.push(purge.clone());
        }
        self.tell_redis(pod);
    }
}

/// Returns the place of a purge in the oracle's list.
pub(super) fn index(purge: &Purge) -> usize {
    usize::try_from(purge.number).expect("there are few") - 1
}
