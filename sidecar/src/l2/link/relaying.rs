//! Purges that cross between a Redis and the one that took its place.

use std::sync::Arc;

use larder_policy::PurgeName;
use tokio::time::timeout;

use super::{
    super::message::Origin, Link, NotQueued, PURGE_DEADLINE, PurgeCommand, PurgeMessage, RelayedPurge, State,
    Successor,
};
use crate::barriers::Barriers;

impl Link {
    /// Raises barriers at a Redis that was left, and waits until each pod there has them, as for a purge of its own. What it can't be told
    /// now it is told as soon as it is there.
    ///
    /// `version` is that of the policy whose names these are, `elsewhere` the Redis that is told of them too, under `origin`.
    pub(in crate::l2) async fn tell(
        &self,
        version: PurgeName,
        names: &[PurgeName],
        (elsewhere, origin): (&[PurgeName], Option<Origin>),
    ) {
        let meant = self.state.meant(version, names);
        self.will_tell(&meant);
        let telling = async {
            let mut connection = self.connection()?;
            let asker = connection.asker();
            let purge = PurgeCommand { asker, version, names, elsewhere, origin, is_relayed: true };
            if let Some(ordered) = self.order(&mut connection, purge).await.ok()? {
                let _ = self.acknowledgements().wait_for(asker, ordered.order, ordered.pods).await;
            }
            Some(())
        };
        if timeout(PURGE_DEADLINE, telling).await.ok().flatten().is_none() {
            self.state.raise_and_remember(&meant);
        }
    }
}

impl Link {
    /// Applies a purge that another pod told of directly, and tells Redis of it soon, unless that pod had it ordered in `generation` and it
    /// is heard of here. `version` is that of the policy whose names these are.
    pub(in crate::l2) fn hear(
        &self,
        version: PurgeName,
        names: &[PurgeName],
        (number, generation): (u64, u64),
    ) {
        let elsewhere = if generation == 0 { vec![] } else { vec![PurgeName::told(generation)] };
        let (names, number) = (names.to_vec(), Some(number));
        self.state.relay(&PurgeMessage { names, number, elsewhere, ..PurgeMessage::default() }, version);
    }
}

impl Successor {
    /// Applies a purge that was heard of at the Redis that was left.
    pub(in crate::l2) fn hear(&self, message: &PurgeMessage) {
        if message.names.is_empty() {
            return;
        }
        match self {
            Self::Alone(barriers, version) => raise(barriers, *version, &message.names),
            Self::Link(state) => {
                let Some(state) = state.upgrade() else { return };
                state.relay(message, state.version.name());
            }
        }
    }

    /// Returns true if purges are counted in this generation there.
    pub(in crate::l2) fn counts_in(&self, generation: u64) -> bool {
        match self {
            Self::Alone(..) => false,
            Self::Link(state) => state.upgrade().is_some_and(|state| state.generation() == generation),
        }
    }

    /// Applies purges that may have been missed there; `None`: everything.
    pub(in crate::l2) fn make_up_for(&self, missed: Option<Vec<PurgeName>>) {
        match (self, missed) {
            (Self::Alone(barriers, version), Some(names)) => raise(barriers, *version, &names),
            (Self::Alone(barriers, _), None) => barriers.raise_on_everything(),
            (Self::Link(state), missed) => {
                let _ = state.upgrade().inspect(|state| state.make_up_for(missed));
            }
        }
    }
}

/// Raises barriers in a pod that has no Redis. What is stored there does not bear the name of its version.
fn raise(barriers: &Barriers, version: PurgeName, names: &[PurgeName]) {
    if names.contains(&version) {
        barriers.raise_on_everything();
    } else if !names.is_empty() {
        barriers.raise_locally(names);
    }
}

impl State {
    /// Names of another version as they may be meant under that of this link: whatever is stored under it.
    pub(super) fn meant(&self, version: PurgeName, names: &[PurgeName]) -> Vec<PurgeName> {
        let own = (version != self.version.name()).then(|| self.version.name());
        names.iter().copied().chain(own).collect()
    }

    /// Raises barriers that another Redis has ordered, and tells this one of them soon; if the pod that purged tells it, as soon as nothing
    /// has been heard of that. `version` is that of the policy whose names these are, or by whose own they are covered.
    pub(in crate::l2) fn relay(&self, message: &PurgeMessage, version: PurgeName) {
        let is_told = message.is_told_to(self.generation());
        if is_told && message.number.is_none() {
            return;
        }
        let names = self.meant(version, &message.names);
        self.recent.add(&names, self.barriers.known_until());
        let up_to = self.barriers.raise_locally(&names);
        let purge = RelayedPurge::new(message, version, up_to);
        let queued = if is_told { self.relay_queue.expect(purge) } else { self.relay_queue.push(purge) };
        match queued {
            Ok(()) => {}
            Err(NotQueued::Heard) => self.barriers.settle(&names, up_to),
            Err(NotQueued::Full) => self.make_up_for(None),
        }
    }

    /// A purge was heard of here, and is applied: this pod's own barrier, if another Redis had ordered it before, is not needed any more.
    pub(in crate::l2) fn release(&self, message: &PurgeMessage) {
        if let Some(RelayedPurge { version, names, up_to, .. }) =
            message.number.and_then(|number| self.relay_queue.heard(number))
        {
            // A name that this Redis has not ordered is one of a version that it does not list.
            let ordered = |name: &PurgeName| message.names.contains(name);
            let names: Vec<_> = self.meant(version, &names).into_iter().filter(ordered).collect();
            self.barriers.settle(&names, up_to);
        }
    }

    /// Raises barriers of purges that this Redis may not know, and tells it of them; `None`: on everything.
    pub(in crate::l2) fn make_up_for(&self, missed: Option<Vec<PurgeName>>) {
        let now = self.barriers.known_until();
        match missed {
            Some(names) if names.is_empty() => {}
            Some(names) => {
                self.recent.add(&names, now);
                self.raise_and_remember(&names);
            }
            None => {
                self.recent.add_everything(now);
                self.raise_on_everything();
            }
        }
    }

    /// Tells this Redis of the purges that another has ordered, as they come.
    pub(in crate::l2) async fn keep_relaying(self: Arc<Self>) {
        loop {
            let due = self.relay_queue.next().await;
            let told = due.iter().map(|purge| self.tell_relayed(purge));
            futures::future::join_all(told).await;
        }
    }

    async fn tell_relayed(&self, purge: &RelayedPurge) {
        let RelayedPurge { version, names, elsewhere, origin, up_to } = purge;
        let meant = self.meant(*version, names);
        let telling = async {
            let mut connection = self.connection()?;
            let (elsewhere, origin) = (&[*elsewhere], Some(*origin));
            let version = *version;
            let purge = PurgeCommand { asker: 0, version, names, elsewhere, origin, is_relayed: true };
            self.order(&mut connection, purge).await.ok()?
        };
        match timeout(PURGE_DEADLINE, telling).await.ok().flatten() {
            Some(ordered) if ordered.is_applied => self.barriers.settle(&meant, *up_to),
            // Its own barrier was raised anew.
            Some(_) => {}
            None => self.raise_and_remember(&meant),
        }
    }
}
