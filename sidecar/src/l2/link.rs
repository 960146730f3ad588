//! The connection to Redis, and the bus on which pods tell each other of purges.

use std::{
    pin::pin,
    sync::{Arc, Mutex, Weak, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use larder_policy::{PurgeName, spec};
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use self::leaving::Beside;
use super::{
    acknowledgements::Acknowledgements,
    catch_up::{CatchUp, CatchingUp, Step},
    commands::{self, Telling, Touched},
    connection::{CONNECT_DEADLINE, Connection, Opened, Opener, Secrets, Server},
    former::{Formers, Outbox, Succession},
    generation::Mark,
    lease::Leases,
    pending::Pending,
    reload::Reload,
    subscription::{Inbox, Subscription},
    told::Told,
    versions::Version,
};
use crate::{barriers::Barriers, clock::boot_ms};

mod leaving;
mod remembering;

/// Interval at which the connection is tested, and the time limit of each test.
const HEARTBEAT: Duration = Duration::from_secs(1);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(20);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Maximum time of the first attempt to connect in which nothing is trusted without proof: a pod that takes longer can't be reached.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which the barriers are read again without a reason, which also keeps them from expiring.
const RESYNC: Duration = Duration::from_secs(3600);
/// Maximum time until the bus returns a probe, in milliseconds: reading all barriers again is quicker than a bus that lags
/// further behind.
const PROBE_TIMEOUT_MS: u64 = 2_000;

/// Keeps a connection to Redis and listens for purges.
///
/// Expected flow: connect, subscribe, tell Redis what was purged while it was away, read all barriers, and only then let
/// requests use the connection; from then on hear of each purge, and prove with each heartbeat that this is so: a probe that was
/// published comes back over the bus. Any doubt (a lost connection, a missed number, another generation, a probe that does not
/// come back) leads back to reading all barriers. If another server counts than the one on which the generation was begun,
/// everything is stale: it may have lost purges.
///
/// A changed URL or CA is tried beside the connection that there is, which goes on until the other is up to date. If it leads to
/// another server, a link to the one that is left goes on ([`super::former`]).
#[derive(Debug)]
pub(super) struct Link {
    state: Arc<State>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

#[derive(Debug)]
pub(super) struct State {
    me: Weak<Self>,
    grace: Duration,
    /// Often enough that one that is late does not use up the grace.
    heartbeat: Duration,
    spec: spec::Redis,
    /// The server that the policy before was connected with last.
    came_from: Option<Server>,
    /// The hash of the barriers and the channel of the bus.
    name: String,
    /// The version of the policy whose names this pod purges.
    version: Arc<Version>,
    barriers: Arc<Barriers>,
    connection: ArcSwapOption<Connection>,
    /// The first attempt to connect has ended.
    has_tried: watch::Sender<bool>,
    reload: Reload,
    pending: Mutex<Pending>,
    told: Told,
    resync: Notify,
    acknowledgements: Arc<Acknowledgements>,
    leases: Arc<Leases>,
    succession: Arc<Succession>,
    /// Purges of another Redis that this one is to be told of.
    outbox: Outbox,
    /// The Redis was left: secrets that change are those of another one.
    is_left: AtomicBool,
}

/// A connection, with a subscription to the bus at the same server.
struct Session {
    connection: Connection,
    bus: Subscription,
    /// Ends when another server has become the master.
    superseded: BoxFuture<'static, ()>,
}

impl Link {
    /// Begins to connect. What `previous` could not tell Redis, or told a Redis that may have been replaced, is told by this one, and
    /// what is heard of at `formers`.
    pub(super) fn start(
        spec: spec::Redis,
        name: String,
        version: Arc<Version>,
        barriers: Arc<Barriers>,
        grace: Duration,
        previous: Option<&Self>,
        formers: Arc<Formers>,
    ) -> Arc<Self> {
        if let Some(previous) = previous {
            barriers.count_on_from(previous.state.barriers.stamp());
        }
        barriers.set_joining(true);
        let came_from = previous.and_then(|previous| previous.state.server());
        let state = State::new(spec, name, version, barriers, grace, came_from, formers);
        if let Some(previous) = previous {
            state.inherit(&previous.state);
        }
        state.succession.formers.lead_to(&state.as_heir(), state.version.name());
        Self::run(state)
    }

    fn run(state: Arc<State>) -> Arc<Self> {
        let tasks = [
            tokio::spawn(Arc::clone(&state).keep_connected()),
            tokio::spawn(Arc::clone(&state).tell_what_is_handed_over()),
        ];
        Arc::new(Self { state, _tasks: tasks.map(AbortOnDropHandle::new) })
    }

    /// The connection, if it is up to date with the barriers.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.state.connection.load().as_deref().cloned()
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
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.reload.trouble().or_else(|| self.state.doubt())
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

    /// These names are about to be purged in Redis; without any, what pods of other versions stored.
    pub(super) fn will_tell(&self, names: &[PurgeName]) {
        self.state.told.add(names, self.state.barriers.known_until());
    }

    /// Raises barriers in this pod and tells Redis of them when it is there. Without names, Redis is told of a write for which this
    /// version of the policy names nothing.
    pub(super) fn raise_and_remember(&self, names: &[PurgeName]) {
        self.state.told.add(names, self.state.barriers.known_until());
        self.state.raise_and_remember(names);
    }

    /// Raises a barrier on everything, here now and in Redis when it is there.
    pub(super) fn raise_on_everything(&self) {
        self.state.told.add_everything(self.state.barriers.known_until());
        self.state.raise_on_everything();
    }

    /// Returns true if there are purges, or writes, that Redis has not heard of, or that a server in its place may not have.
    pub(super) fn has_untold(&self) -> bool {
        let State { barriers, told, .. } = &*self.state;
        let is_proven = barriers.are_current();
        !self.state.lock_pending().is_empty()
            || barriers.local_floor() > 0
            || !is_proven && told.recent(barriers.known_until()).is_none_or(|names| !names.is_empty())
    }
}

impl State {
    fn new(
        spec: spec::Redis,
        name: String,
        version: Arc<Version>,
        barriers: Arc<Barriers>,
        grace: Duration,
        came_from: Option<Server>,
        formers: Arc<Formers>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            grace,
            heartbeat: (grace / 3).clamp(SHORTEST_HEARTBEAT, HEARTBEAT),
            came_from,
            spec,
            name,
            version,
            barriers,
            connection: ArcSwapOption::empty(),
            has_tried: watch::Sender::new(false),
            reload: Reload::default(),
            pending: Mutex::default(),
            told: Told::default(),
            resync: Notify::new(),
            acknowledgements: Arc::default(),
            leases: Arc::default(),
            succession: Arc::new(Succession::new(formers)),
            outbox: Outbox::default(),
            is_left: AtomicBool::new(false),
        })
    }

    async fn keep_connected(self: Arc<Self>) {
        // Nothing is trusted yet: what is stored from now on is covered by purges at those that were left.
        let _ = timeout(JOIN_TIMEOUT, self.succession.formers.are_listed()).await;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let connected = self.connect_while_joining().await;
            self.has_tried.send_replace(true);
            let error = match connected {
                Ok(session) => {
                    pause = SHORTEST_PAUSE;
                    match self.stay_connected(session).await {
                        Ok(never) => match never {},
                        Err(error) => error,
                    }
                }
                Err(error) => {
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    error
                }
            };
            self.connection.store(None);
            self.leases.abandon();
            let error = format!("{error:#}");
            if self.reload.is_down(error.clone()) && !self.is_left() {
                tracing::warn!(error, "redis is not connected; going on without");
            }
            sleep(pause).await;
        }
    }

    /// Connects. What was asked for meanwhile is not trusted without proof, if it is the first time: other pods purge without waiting
    /// for one that does not listen yet.
    async fn connect_while_joining(&self) -> anyhow::Result<Session> {
        let mut connecting = pin!(self.connect());
        let in_time = timeout(JOIN_TIMEOUT, &mut connecting).await;
        self.barriers.set_joining(false);
        match in_time {
            Ok(connected) => connected,
            Err(_) => connecting.await,
        }
    }

    /// Connects with the secrets as they are now or, if that fails, with those that worked.
    async fn connect(&self) -> anyhow::Result<Session> {
        let newest = self.newest();
        let in_use = self.reload.instead_of(&newest);
        let error = match newest.clone() {
            Ok(secrets) => {
                let has_moved = in_use.is_some() || self.is_elsewhere(&secrets);
                let which = if has_moved { CatchingUp::Moved } else { CatchingUp::New };
                let known = self.barriers.stamp().generation;
                match self.arrive(secrets, which).await {
                    Ok(session) => {
                        if let Some(in_use) = in_use.filter(|_| known != self.barriers.stamp().generation) {
                            self.leave(self.link_to_left(in_use));
                        }
                        return Ok(session);
                    }
                    Err(error) => error,
                }
            }
            Err(error) => anyhow::Error::msg(error),
        };
        let Some(in_use) = in_use else { return Err(error) };
        self.reload.refuse(newest.ok(), format!("{error:#}"));
        self.arrive(in_use, CatchingUp::New).await
    }

    /// Returns true if these secrets are the first of a policy under which Redis may be another one than under the policy before.
    fn is_elsewhere(&self, secrets: &Secrets) -> bool {
        let server = Server::new(secrets.clone(), &self.spec);
        self.reload.in_use().is_none() && self.came_from.as_ref().is_some_and(|from| *from != server)
    }

    /// Connects, catches up, and lets requests use the connection.
    async fn arrive(&self, secrets: Secrets, which: CatchingUp) -> anyhow::Result<Session> {
        let mut session = self.open(&secrets).await?;
        self.catch_up(&mut session, which).await?;
        self.accept(&session, secrets);
        Ok(session)
    }

    async fn open(&self, secrets: &Secrets) -> anyhow::Result<Session> {
        let opener = Opener::new(&self.spec, &self.name, secrets)?;
        let Opened { mut connection, bus, superseded } = opener.open(self.heartbeat).await?;
        let inbox = Inbox::new(
            &self.name,
            &connection,
            Arc::clone(&self.barriers),
            Arc::clone(&self.acknowledgements),
            Arc::clone(&self.leases),
            Arc::clone(&self.succession),
        );
        let bus = Subscription::open(&bus, &self.name, inbox, connection.clone()).await?;
        timeout(CONNECT_DEADLINE, commands::prepare(&mut connection)).await.context("preparing")??;
        Ok(Session { connection, bus, superseded })
    }

    fn accept(&self, session: &Session, secrets: Secrets) {
        self.connection.store(Some(Arc::new(session.connection.clone())));
        self.succession.formers.end_at(&Server::new(secrets.clone(), &self.spec));
        self.reload.take(secrets);
        if !self.is_left() {
            tracing::info!("redis is connected");
        }
    }

    /// Hears of purges until the connection breaks; returns why it did.
    async fn stay_connected(&self, mut session: Session) -> anyhow::Result<std::convert::Infallible> {
        let mut heartbeat = interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut regular_resync = interval(RESYNC);
        regular_resync.reset();
        // The connection that may take the place of this one.
        let mut next: Option<BoxFuture<'_, (Secrets, anyhow::Result<Beside>)>> = None;
        loop {
            tokio::select! {
                () = session.bus.inbox.attention() => {
                    ensure!(!session.bus.inbox.is_closed(), "the bus was closed");
                    self.settle(&mut session).await?;
                }
                _ = heartbeat.tick() => {
                    self.beat(&mut session).await?;
                    if next.is_none() && let Some(secrets) = self.reload.candidate(self.newest()) {
                        let mark = session.connection.mark();
                        next = Some(Box::pin(async move {
                            let opened = self.open_beside(&secrets, mark).await;
                            (secrets, opened)
                        }));
                    }
                }
                (secrets, opened) = async { next.as_mut().expect("it is there: that is asked first").await },
                    if next.is_some() =>
                {
                    next = None;
                    match self.exchange(opened).await {
                        Ok(opened) => {
                            session = opened;
                            self.accept(&session, secrets);
                        }
                        Err(error) => self.reload.refuse(Some(secrets), format!("{error:#}")),
                    }
                }
                () = &mut session.superseded => bail!("the Sentinels name another master"),
                _ = regular_resync.tick() => self.catch_up(&mut session, CatchingUp::InUse).await?,
                () = self.resync.notified() => self.catch_up(&mut session, CatchingUp::InUse).await?,
            }
        }
    }

    /// Tries both connections, each of which can break without the other: what is sent over the one comes back over the other.
    async fn beat(&self, session: &mut Session) -> anyhow::Result<()> {
        let Session { connection, bus: Subscription { inbox, .. }, .. } = session;
        let now = boot_ms();
        let (probe, awaited_since) = {
            let mut bus = inbox.bus();
            let awaited_since = bus.awaited_since();
            (bus.probe(now), awaited_since)
        };
        let is_silent = awaited_since.is_some_and(|since| now.saturating_sub(since) > PROBE_TIMEOUT_MS);
        ensure!(!is_silent, "the bus is silent");
        let version = self.version.name();
        let touching = commands::touch(connection, &self.name, inbox.own_channel(), version, probe);
        let Touched { is_lost, is_listed, info } =
            timeout(HEARTBEAT, touching).await.context("redis is silent")??;
        ensure!(Mark::read(&info)? == connection.mark(), "the server has changed its role");
        if is_lost || !is_listed {
            // Purges of other versions may not have covered what is stored under this one.
            inbox.bus().doubt();
        }
        inbox.vouch(probe);
        if self.succession.has_arrived() {
            session.bus.leave(&self.name).await?;
        }
        self.settle(session).await
    }

    /// Reads all barriers if a purge may have been missed.
    async fn settle(&self, session: &mut Session) -> anyhow::Result<()> {
        let is_in_doubt = session.bus.inbox.bus().is_in_doubt();
        if is_in_doubt {
            self.catch_up(session, CatchingUp::InUse).await?;
        }
        Ok(())
    }

    /// Tells Redis what it has not heard of and reads all barriers.
    async fn catch_up(&self, session: &mut Session, which: CatchingUp) -> anyhow::Result<()> {
        let Session { connection, bus, .. } = session;
        let doubts = bus.inbox.bus().doubts();
        let pending = self.lock_pending().clone();
        let mut catch_up = CatchUp::new(&self.barriers, pending, connection.mark(), which);
        let asked_at = timeout(CONNECT_DEADLINE, self.tell_and_read(connection, &mut catch_up))
            .await
            .unwrap_or_else(|_| bail!("it took too long"))
            .context("reading the barriers")?;
        bus.inbox.settle(doubts);
        self.barriers.prove(connection.vouched().limit(asked_at));
        self.lock_pending().forget(catch_up.pending());
        Ok(())
    }

    /// Returns when the barriers were asked for that are in force now.
    async fn tell_and_read(
        &self,
        connection: &mut Connection,
        catch_up: &mut CatchUp,
    ) -> anyhow::Result<u64> {
        let mut asked_at = boot_ms();
        let mut step = Step::Read;
        loop {
            step = match step {
                Step::Read => {
                    asked_at = boot_ms();
                    let snapshot = commands::snapshot(connection, &self.name).await?;
                    self.succession.make_up_for(|| self.barriers.unknown(&snapshot));
                    catch_up.read(&self.barriers, &snapshot)?
                }
                Step::PurgeEverything(generation) => {
                    commands::purge_everything(connection, &self.name, generation).await?;
                    Step::Read
                }
                Step::Purge(names) => {
                    let telling = Telling {
                        asker: 0,
                        version: self.version.name(),
                        names: &names,
                        told: &self.succession.formers.told(),
                        origin: "",
                    };
                    commands::purge(connection, &self.name, telling).await?;
                    Step::Read
                }
                Step::Done { has_changed } => {
                    // Before it is used: from now on purges of other versions cover what is stored under this one.
                    self.version.list(connection).await?;
                    if has_changed {
                        // After all is read: a purge that begins now learns that it was told to another Redis.
                        match self.told.recent(self.barriers.known_until()) {
                            Some(names) if names.is_empty() => {}
                            Some(names) => self.raise_and_remember(&names),
                            None => self.raise_on_everything(),
                        }
                    }
                    return Ok(asked_at);
                }
            }
        }
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
