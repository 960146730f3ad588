//! Purges that Redis was told of late, or could not be told.

use std::sync::{MutexGuard, PoisonError};

use larder_policy::PurgeName;

use super::{super::pending::Pending, State};

impl State {
    /// Takes over what the policy before could not tell Redis, and what it told of late.
    pub(super) fn inherit(&self, previous: &Self) {
        let meant = |names: Vec<PurgeName>| match &names[..] {
            [] => names,
            some => self.meant(previous.version.name(), some),
        };
        let now = self.barriers.known_until();
        match previous.told.recent(previous.barriers.known_until()).map(meant) {
            Some(names) if names.is_empty() => {}
            Some(names) => self.told.add(&names, now),
            None => self.told.add_everything(now),
        }
        let untold = meant(previous.lock_pending().to_tell());
        self.make_up_for(Some(untold));
        if previous.barriers.local_floor() > 0 {
            self.make_up_for(None);
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

    pub(super) fn lock_pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
