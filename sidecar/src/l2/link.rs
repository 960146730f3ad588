//! A Redis as this pod keeps its purges with: the connection that there is, and the purges that it was told, is to be told, and hears of
//! for another.
//!
//! [`super::connector`] keeps it connected. Nothing here knows of the other Redis but the one that took its place.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use larder_policy::{PurgeName, spec};
use parking_lot::Mutex;
use redis::RedisResult;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    acknowledgements::Acknowledgements,
    commands::{self, PurgeCommand},
    connection::{Connection, Server},
    generation::Mark,
    leases::Leases,
    message::PurgeMessage,
    pending::PendingPurges,
    recent::RecentPurges,
    relay::{NotQueued, RelayQueue, RelayedPurge},
    versions::Version,
};
use crate::{
    barriers::Barriers,
    clock::boot_ms,
    reload::{Newest, Reload},
    resolver::Resolver,
    secret::Secrets,
};

mod relaying;
mod remembering;

/// Time limit of a purge: it must reach Redis before the writer's response leaves, so it is worth more patience than a lookup.
pub(super) const PURGE_DEADLINE: Duration = Duration::from_secs(1);

/// A Redis to which this pod is, or tries to be, connected as long as this is there.
#[derive(Debug)]
pub(super) struct Link {
    state: Arc<State>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// State of a link, shared with the tasks that keep it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) grace: Duration,
    pub(super) spec: spec::Redis,
    pub(super) resolver: Resolver,
    /// The hash of the barriers and the channel of the bus.
    pub(super) name: String,
    /// The version of the policy whose names this pod purges.
    pub(super) version: Arc<Version>,
    pub(super) barriers: Arc<Barriers>,
    pub(super) connection: ArcSwapOption<Connection>,
    /// The first attempt to connect has ended.
    pub(super) has_tried: watch::Sender<bool>,
    pub(super) reload: Reload<Secrets>,
    pub(super) resync: Notify,
    pub(super) acknowledgements: Acknowledgements,
    pub(super) leases: Arc<Leases>,
    pending: Mutex<PendingPurges>,
    recent: RecentPurges,
    /// Purges of another Redis that this one is to be told of.
    relay_queue: RelayQueue,
    /// Where what is heard here is applied too, if this Redis was left.
    successor: ArcSwapOption<Successor>,
    /// The Redis was left: secrets that change are those of another one.
    is_left: AtomicBool,
}

/// The order of purges that took the place of another in this pod.
#[derive(Clone, Debug)]
pub(super) enum Successor {
    /// There is no Redis any more.
    Alone(Arc<Barriers>, PurgeName),
    /// Another Redis.
    Link(Weak<State>),
}

/// A purge that Redis has ordered, or has been known to have ordered before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ordered {
    pub(super) order: u64,
    /// Number of pods that were told.
    pub(super) pods: usize,
    /// True if it holds here in that order. Otherwise it holds by this pod's own barrier, until Redis has been told again.
    pub(super) is_applied: bool,
}

impl Link {
    /// A link that these tasks keep.
    pub(super) fn new(state: Arc<State>, tasks: [AbortOnDropHandle<()>; 2]) -> Arc<Self> {
        Arc::new(Self { state, _tasks: tasks })
    }

    /// The state that outlives the link in what still uses it.
    pub(super) const fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The connection, if it is up to date with the barriers.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.state.connection()
    }

    /// The same connection, without a copy.
    pub(super) fn shared_connection(&self) -> Option<Arc<Connection>> {
        self.state.connection.load_full()
    }

    /// The connection, once the first attempt to connect has ended. A policy that has just changed connects anew, and what is
    /// purged meanwhile must be heard of elsewhere before the writer's response leaves.
    pub(super) async fn first_connection(&self) -> Option<Connection> {
        if let Some(connection) = self.connection() {
            return Some(connection);
        }
        let mut has_tried = self.state.has_tried.subscribe();
        has_tried.wait_for(|has_tried| *has_tried).await.ok()?;
        self.connection()
    }

    /// Why there is no connection, or not with the URL and CA that are given now, or why it is not trusted. It has no password in it.
    pub(super) fn last_error(&self) -> Option<String> {
        self.state.reload.last_error().or_else(|| self.state.doubt())
    }

    /// Purges that others acknowledge to this pod.
    pub(super) fn acknowledgements(&self) -> &Acknowledgements {
        &self.state.acknowledgements
    }

    /// Leases of others that are waited for here.
    pub(super) fn leases(&self) -> &Arc<Leases> {
        &self.state.leases
    }

    /// Reads all barriers again, soon.
    pub(super) fn request_resync(&self) {
        self.state.resync.notify_one();
    }

    /// Has Redis order a purge over this connection, and raises it here in that place; `None`: there was nothing to purge.
    ///
    /// # Errors
    /// If Redis is unwilling. Then nothing is raised here.
    pub(super) async fn order(
        &self,
        connection: &mut Connection,
        purge: PurgeCommand<'_>,
    ) -> RedisResult<Option<Ordered>> {
        self.state.order(connection, purge).await
    }

    /// The Redis is left for that of another link, or for none. It goes on with the secrets as they are.
    pub(super) fn lead_to(&self, successor: Successor) {
        self.state.mark_left();
        self.state.successor.store(Some(Arc::new(successor)));
    }

    /// Returns true if every pod that is there has left, too; `None`: it can't be asked, or does not say.
    pub(super) async fn have_all_left(&self) -> Option<bool> {
        let mut connection = self.connection()?;
        let asked = commands::have_all_left(&mut connection, &self.state.name);
        timeout(PURGE_DEADLINE, asked).await.ok()?.ok()
    }
}

impl State {
    pub(super) fn new(
        (spec, resolver): (spec::Redis, Resolver),
        name: String,
        version: Arc<Version>,
        barriers: Arc<Barriers>,
        grace: Duration,
    ) -> Self {
        Self {
            grace,
            spec,
            resolver,
            name,
            version,
            barriers,
            connection: ArcSwapOption::empty(),
            has_tried: watch::Sender::new(false),
            reload: Reload::new("URL or CA of redis"),
            resync: Notify::new(),
            acknowledgements: Acknowledgements::default(),
            leases: Arc::default(),
            pending: Mutex::default(),
            recent: RecentPurges::default(),
            relay_queue: RelayQueue::default(),
            successor: ArcSwapOption::empty(),
            is_left: AtomicBool::new(false),
        }
    }

    /// The connection, if it is up to date with the barriers.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.connection.load().as_deref().cloned()
    }

    /// Another version of the policy in the list of those that pods serve by here.
    pub(super) fn another_version(&self, name: PurgeName) -> Arc<Version> {
        Version::new(name, self.name.clone(), Arc::clone(&self.barriers))
    }

    /// Returns the server that this is, or was last, connected with.
    pub(super) fn server(&self) -> Option<Server> {
        self.reload.in_use().map(|secrets| Server::new(secrets, &self.spec))
    }

    /// The generation in which purges are counted here; 0: it is not known.
    pub(super) fn generation(&self) -> u64 {
        self.barriers.stamp().generation
    }

    /// The server that counts purges, while it is connected.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.connection.load().as_deref().map(Connection::mark)
    }

    pub(super) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }

    /// The Redis is about to be left: it goes on with the secrets as they are.
    pub(super) fn mark_left(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    /// The order of purges that took the place of this one.
    pub(super) fn successor(&self) -> Option<Arc<Successor>> {
        self.successor.load_full()
    }

    /// Returns true if the Redis was left, and this pod is connected with the one for which it was.
    pub(super) fn has_arrived(&self) -> bool {
        match self.successor.load().as_deref() {
            None => false,
            Some(Successor::Alone(..)) => true,
            Some(Successor::Link(state)) => state.upgrade().is_some_and(|state| state.mark().is_some()),
        }
    }

    /// The secrets that are to be used: of a Redis that was left, those that are.
    pub(super) fn newest(&self) -> Newest<Secrets> {
        match self.reload.in_use().filter(|_| self.is_left()) {
            Some(in_use) => Ok(in_use),
            None => Secrets::read(&self.spec.url_from, self.spec.ca_from.as_ref())
                .map_err(|error| format!("{error:#}")),
        }
    }

    /// Has Redis order a purge over this connection, and raises it here in that place; `None`: there was nothing to purge.
    ///
    /// # Errors
    /// If Redis is unwilling. Then nothing is raised here.
    async fn order(
        &self,
        connection: &mut Connection,
        purge: PurgeCommand<'_>,
    ) -> RedisResult<Option<Ordered>> {
        let Some((generation, order, pods)) = commands::purge(connection, &self.name, purge).await? else {
            return Ok(None);
        };
        let names = self.meant(purge.version, purge.names);
        let is_applied = self.barriers.ordered(generation, order, &names);
        if !is_applied {
            // Until the table is Redis' again, this pod's own barrier holds.
            self.raise_and_remember(&names);
        }
        Ok(Some(Ordered { order, pods, is_applied }))
    }

    /// Why purges of other pods may have been missed although there is a connection.
    fn doubt(&self) -> Option<String> {
        let connection = self.connection.load_full().filter(|_| !self.barriers.are_current())?;
        let is_vouched = self.barriers.is_recent(connection.vouched().limit(boot_ms()));
        let why =
            if is_vouched { "the bus is behind" } else { "no majority of the Sentinels names the master" };
        Some(format!("{why}: only what was asked for within l1.busGrace is served from memory"))
    }
}
