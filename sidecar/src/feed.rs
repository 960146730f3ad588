//! A feed: Postgres tells what changes, and the cache purges it.

use std::sync::Arc;

use larder_policy::{Metadata, Policy, spec};
use parking_lot::Mutex;

use crate::sources::{Source, postgres::PostgresSource};

/// A feed of a policy, and its state. [`crate::follow`] follows it.
#[derive(Debug)]
pub struct Feed {
    name: String,
    kind: Kind,
    source: Arc<PostgresSource>,
    owner: String,
    redis: Option<spec::Redis>,
    state: Mutex<State>,
}

/// Kind of a feed.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Notifications on a channel.
    Notifications(spec::Notifications),
    /// Changes of tables.
    Changes(spec::Changes),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Nothing is heard, for this reason.
    Down(String),
    /// Another pod that shares the cache follows.
    Waiting,
    /// Every change from now on is heard. There may be advice on how it costs less.
    Following(Option<String>),
}

impl Feed {
    /// Returns the feeds of a policy: those of its predecessor that are the same, and new ones.
    pub fn of_policy(
        policy: &Policy,
        metadata: &Metadata,
        sources: &[(String, Source)],
        previous: &[Arc<Self>],
    ) -> Vec<Arc<Self>> {
        let notifications = policy.notifications.iter();
        let notifications =
            notifications.map(|spec| ("notifications", &spec.source, Kind::Notifications(spec.clone())));
        let changes =
            policy.changes.iter().map(|spec| ("changes", &spec.source, Kind::Changes(spec.clone())));
        let feed = |(label, name, kind): (&str, &String, Kind)| {
            let source = sources.iter().find(|(known, _)| known == name);
            let Some((_, Source::Postgres(source))) = source else { return None };
            let feed = Self {
                name: format!("{label}/{name}"),
                kind,
                source: Arc::clone(source),
                owner: format!("{}/{}", metadata.namespace, metadata.name),
                redis: policy.redis.clone(),
                state: Mutex::new(State::Down("starting".to_owned())),
            };
            let same = previous.iter().find(|known| known.is_same(&feed));
            Some(same.map_or_else(|| Arc::new(feed), Arc::clone))
        };
        notifications.chain(changes).filter_map(feed).collect()
    }

    fn is_same(&self, other: &Self) -> bool {
        let Self { name, kind, source, owner, redis, state: _ } = self;
        (name, kind, owner, redis) == (&other.name, &other.kind, &other.owner, &other.redis)
            && Arc::ptr_eq(source, &other.source)
    }

    /// Returns the name of the feed as a tier: its kind and its source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the kind of the feed.
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Returns the server.
    pub const fn source(&self) -> &Arc<PostgresSource> {
        &self.source
    }

    /// Returns the key of the lock that one of the pods holds which share the order of purges of a generation.
    pub fn lock_key(&self, generation: u64) -> i64 {
        let Self { kind, owner, .. } = self;
        let hash = blake3::hash(format!("larder feed {owner} {generation} {kind:?}").as_bytes());
        let (eight, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        i64::from_ne_bytes(*eight)
    }

    /// Returns true if changes are heard, by this pod or by another one that shares the cache.
    pub fn is_up(&self) -> bool {
        !matches!(*self.state.lock(), State::Down(_))
    }

    /// Returns the reason that nothing is heard, or advice.
    pub fn last_error(&self) -> Option<String> {
        match &*self.state.lock() {
            State::Down(reason) => Some(reason.clone()),
            State::Waiting => None,
            State::Following(advice) => advice.clone(),
        }
    }

    /// Records that nothing is heard. Returns true if the reason is new.
    pub fn is_down(&self, reason: String) -> bool {
        let down = State::Down(reason);
        let mut state = self.state.lock();
        let is_news = *state != down;
        *state = down;
        is_news
    }

    /// Records that another pod follows.
    pub fn waits(&self) {
        *self.state.lock() = State::Waiting;
    }

    /// Records that every change from now on is heard, and advice on how it costs less.
    pub fn follows(&self, advice: Option<String>) {
        let following = State::Following(advice);
        let mut state = self.state.lock();
        if let (State::Following(Some(advice)), false) = (&following, *state == following) {
            tracing::warn!(feed = self.name, advice, "changes in postgres purge more than they must");
        }
        *state = following;
    }
}
