//! Purges that one Redis has ordered and another is to be told of.

use std::{collections::VecDeque, time::Duration};

use larder_policy::PurgeName;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::message::{Origin, PurgeMessage};

/// More names than this do not wait to be told: everything is purged instead.
const MAX_NAMES: usize = 4096;
/// Number of purges that are known to have been heard: more than come while one is on its way from another Redis.
const MAX_HEARD: usize = 1024;
/// Time that the pod that purged has to tell a Redis itself: it tries for a second.
const RELAY_DELAY: Duration = Duration::from_millis(1500);

/// A purge that one Redis has ordered and another is to be told of.
#[derive(Debug)]
pub(super) struct RelayedPurge {
    /// The version of the policy whose names these are, or are covered by its own.
    pub(super) version: PurgeName,
    pub(super) names: Vec<PurgeName>,
    /// Says that it was told to the Redis that ordered it.
    pub(super) elsewhere: PurgeName,
    pub(super) origin: Origin,
    /// Place of the barrier that this pod raised for it, in its own order.
    pub(super) up_to: u64,
}

impl RelayedPurge {
    /// A purge that was heard of at a Redis, under a version of the policy that covers its names.
    pub(super) fn new(message: &PurgeMessage, version: PurgeName, up_to: u64) -> Self {
        let (names, elsewhere) = (message.names.clone(), PurgeName::told(message.generation));
        Self { version, names, elsewhere, origin: message.origin(), up_to }
    }
}

/// Purges that a Redis is to be told of because another has ordered them.
#[derive(Debug, Default)]
pub(super) struct RelayQueue {
    lists: Mutex<Lists>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Lists {
    due: Vec<RelayedPurge>,
    /// Those that the pod that purged tells the Redis itself, the first first, with the time at which it has failed to.
    expected: VecDeque<(Instant, RelayedPurge)>,
    /// Numbers of purges that the Redis has ordered, the latest last.
    heard: VecDeque<u64>,
}

/// Reason why a purge does not wait to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotQueued {
    /// The Redis has ordered it, and it is applied here.
    Heard,
    /// There are too many: everything is to be purged.
    Full,
}

impl RelayQueue {
    /// Adds a purge that the Redis is told of at once.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn push(&self, purge: RelayedPurge) -> Result<(), NotQueued> {
        let mut lists = self.lists.lock();
        lists.make_room(&purge)?;
        lists.due.push(purge);
        self.changed.notify_one();
        Ok(())
    }

    /// Adds a purge that the pod that purged tells the Redis of, too: it is told if nothing is heard of that.
    ///
    /// # Errors
    /// If the Redis has ordered it already, or there are too many.
    pub(super) fn expect(&self, purge: RelayedPurge) -> Result<(), NotQueued> {
        let mut lists = self.lists.lock();
        if lists.heard.iter().any(|number| Origin::Pod(*number) == purge.origin) {
            return Err(NotQueued::Heard);
        }
        lists.make_room(&purge)?;
        lists.expected.push_back((Instant::now() + RELAY_DELAY, purge));
        self.changed.notify_one();
        Ok(())
    }

    /// The Redis has ordered the purge of this number, and it is applied here. Returns it if it was expected.
    pub(super) fn heard(&self, number: u64) -> Option<RelayedPurge> {
        let mut lists = self.lists.lock();
        if lists.heard.len() == MAX_HEARD {
            lists.heard.pop_front();
        }
        lists.heard.push_back(number);
        let at = lists.expected.iter().position(|(_, purge)| purge.origin == Origin::Pod(number))?;
        lists.expected.remove(at).map(|(_, purge)| purge)
    }

    /// Waits for purges that the Redis is to be told of now, and takes them.
    pub(super) async fn next(&self) -> Vec<RelayedPurge> {
        loop {
            let (due, next_at) = self.lists.lock().take_due(Instant::now());
            if !due.is_empty() {
                return due;
            }
            match next_at {
                Some(at) => drop(timeout_at(at, self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }
}

impl Lists {
    fn make_room(&mut self, purge: &RelayedPurge) -> Result<(), NotQueued> {
        let waiting = self.due.iter().chain(self.expected.iter().map(|(_, purge)| purge));
        if waiting.map(|purge| purge.names.len()).sum::<usize>() + purge.names.len() <= MAX_NAMES {
            return Ok(());
        }
        self.due.clear();
        self.expected.clear();
        Err(NotQueued::Full)
    }

    /// Takes those that are due, and says when the next one is.
    fn take_due(&mut self, now: Instant) -> (Vec<RelayedPurge>, Option<Instant>) {
        while let Some((_, purge)) = self.expected.pop_front_if(|(at, _)| *at <= now) {
            self.due.push(purge);
        }
        (std::mem::take(&mut self.due), self.expected.front().map(|(at, _)| *at))
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    fn purge(number: u64) -> RelayedPurge {
        let message = PurgeMessage {
            number: Some(number),
            names: vec![PurgeName::tag("a")],
            ..PurgeMessage::default()
        };
        RelayedPurge::new(&message, PurgeName::version("v"), 0)
    }

    async fn numbers(queue: &RelayQueue) -> Vec<Origin> {
        queue.next().await.iter().map(|purge| purge.origin).collect()
    }

    #[tokio::test]
    async fn purge_that_is_told_by_its_pod_is_relayed_only_if_nothing_is_heard_of_it() {
        let queue = RelayQueue::default();
        assert!(queue.heard(1).is_none());
        assert_eq!(queue.expect(purge(1)), Err(NotQueued::Heard));
        queue.expect(purge(2)).unwrap();
        queue.expect(purge(3)).unwrap();
        assert_eq!(queue.heard(2).unwrap().origin, Origin::Pod(2));
        let began_at = Instant::now();
        assert_eq!(numbers(&queue).await, [Origin::Pod(3)]);
        assert!(began_at.elapsed() >= RELAY_DELAY / 2);
        queue.expect(purge(4)).unwrap();
        queue.push(purge(5)).unwrap();
        assert_eq!(numbers(&queue).await, [Origin::Pod(5)], "at once");
        let next = std::pin::pin!(queue.next());
        assert!(poll!(next).is_pending());
    }

    #[test]
    fn too_many_purges_are_everything() {
        let queue = RelayQueue::default();
        for number in 0..MAX_NAMES as u64 {
            let queued =
                if number % 2 == 0 { queue.push(purge(number)) } else { queue.expect(purge(number)) };
            assert_eq!(queued, Ok(()));
        }
        assert_eq!(queue.push(purge(0)), Err(NotQueued::Full));
        assert_eq!(queue.push(purge(0)), Ok(()), "those before are covered");
    }

    #[test]
    fn numbers_that_were_heard_are_bounded() {
        let queue = RelayQueue::default();
        (1..=2 * MAX_HEARD as u64).for_each(|number| drop(queue.heard(number)));
        assert_eq!(queue.lists.lock().heard.len(), MAX_HEARD);
        assert_eq!(queue.expect(purge(1)), Ok(()));
    }
}
