//! Purges that one Redis has ordered and another is to be told of.

use larder_policy::PurgeName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::message::PurgeMessage;

/// More names than this do not wait to be told: everything is purged instead.
const MAX_RELAYED_NAMES: usize = 4096;

/// A purge that one Redis has ordered and another is to be told of.
#[derive(Debug)]
pub(super) struct RelayedPurge {
    /// The version of the policy whose names these are, or are covered by its own.
    pub(super) version: PurgeName,
    pub(super) names: Vec<PurgeName>,
    /// Says that it was told to the Redis that ordered it.
    pub(super) told: PurgeName,
    /// Identity of the purge at that Redis.
    pub(super) origin: String,
}

impl RelayedPurge {
    /// A purge that was heard of at a Redis, under a version of the policy that covers its names.
    pub(super) fn heard(message: &PurgeMessage, version: PurgeName) -> Self {
        let PurgeMessage { generation, order, names, .. } = message;
        let (names, told) = (names.clone(), PurgeName::told(*generation));
        Self { version, names, told, origin: format!("{generation}:{order}") }
    }
}

/// Purges that a Redis is to be told of because another has ordered them.
#[derive(Debug, Default)]
pub(super) struct RelayQueue {
    waiting: Mutex<Vec<(RelayedPurge, u64)>>,
    due: Notify,
}

impl RelayQueue {
    /// Adds one whose barrier was raised with this number in the pod's own order. Returns whether there is room: if not, everything is
    /// to be purged.
    #[must_use]
    pub(super) fn push(&self, purge: RelayedPurge, up_to: u64) -> bool {
        let mut waiting = self.waiting.lock();
        let names = waiting.iter().map(|(purge, _)| purge.names.len()).sum::<usize>() + purge.names.len();
        let has_room = names <= MAX_RELAYED_NAMES;
        if has_room {
            waiting.push((purge, up_to));
            self.due.notify_one();
        } else {
            waiting.clear();
        }
        has_room
    }

    /// Waits for some, and takes them.
    pub(super) async fn next(&self) -> Vec<(RelayedPurge, u64)> {
        self.due.notified().await;
        std::mem::take(&mut *self.waiting.lock())
    }
}
