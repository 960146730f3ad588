//! Purges that Redis was told of late, or could not be told.

use larder_policy::PurgeName;
use parking_lot::MutexGuard;

use super::{Link, PendingPurges, State};

impl Link {
    /// These names are about to be purged in Redis; without any, what pods of other versions stored.
    pub(in crate::l2) fn will_tell(&self, names: &[PurgeName]) {
        self.state.recent.add(names, self.state.barriers.known_until());
    }

    /// Raises barriers in this pod and tells Redis of them when it is there. Without names, Redis is told of a write for which this
    /// version of the policy names nothing.
    pub(in crate::l2) fn raise_and_remember(&self, names: &[PurgeName]) {
        self.will_tell(names);
        self.state.raise_and_remember(names);
    }

    /// Raises a barrier on everything, here now and in Redis when it is there.
    pub(in crate::l2) fn raise_on_everything(&self) {
        self.state.make_up_for(None);
    }

    /// Returns true if there are purges, or writes, that Redis has not heard of, or that a server in its place may not have.
    pub(in crate::l2) fn has_pending_purges(&self) -> bool {
        let State { barriers, recent, .. } = &*self.state;
        let is_proven = barriers.are_current();
        !self.state.lock_pending().is_empty()
            || barriers.local_floor() > 0
            || !is_proven && recent.names(barriers.known_until()).is_none_or(|names| !names.is_empty())
    }
}

impl State {
    /// Takes over what the policy before could not tell Redis, and what it told of late.
    pub(in crate::l2) fn inherit(&self, previous: &Self) {
        let meant = |names: Vec<PurgeName>| match &names[..] {
            [] => names,
            some => self.meant(previous.version.name(), some),
        };
        let now = self.barriers.known_until();
        match previous.recent.names(previous.barriers.known_until()).map(meant) {
            Some(names) if names.is_empty() => {}
            Some(names) => self.recent.add(&names, now),
            None => self.recent.add_everything(now),
        }
        let pending = meant(previous.lock_pending().to_tell());
        self.make_up_for(Some(pending));
        if previous.barriers.local_floor() > 0 {
            self.make_up_for(None);
        }
    }

    /// Remembers again what was told of late: another server may not know of it.
    pub(in crate::l2) fn repeat_recent(&self) {
        match self.recent.names(self.barriers.known_until()) {
            Some(names) if names.is_empty() => {}
            Some(names) => self.raise_and_remember(&names),
            None => self.raise_on_everything(),
        }
    }

    pub(super) fn raise_and_remember(&self, names: &[PurgeName]) {
        if names.is_empty() {
            self.lock_pending().unnamed_writes += 1;
            return self.resync.notify_one();
        }
        let has_room = {
            let mut pending = self.lock_pending();
            let up_to = self.barriers.raise_locally(names);
            pending.add(names, up_to)
        };
        if has_room {
            self.resync.notify_one();
        } else {
            self.raise_on_everything();
        }
    }

    pub(super) fn raise_on_everything(&self) {
        self.barriers.raise_on_everything();
        self.resync.notify_one();
    }

    pub(in crate::l2) fn lock_pending(&self) -> MutexGuard<'_, PendingPurges> {
        self.pending.lock()
    }
}
