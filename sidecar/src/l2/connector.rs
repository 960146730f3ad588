//! The tasks that keep a link connected, and listen on the bus on which pods tell each other of purges.

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use futures::future::BoxFuture;
use larder_policy::spec;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::session::{Replacement, Session};
use super::{
    catch_up::{CatchUp, CatchingUp, Step},
    commands::{self, HeartbeatReply, PurgeCommand},
    connection::{CONNECT_DEADLINE, Connection, OpenConnection, Opener, Server},
    former::Formers,
    generation::Mark,
    link::{Link, State, Successor},
    message::Origin,
    subscription::{Inbox, Subscription},
    versions::Version,
};
use crate::{barriers::Barriers, clock::boot_ms, resolver::Resolver, secret::Secrets};

mod leaving;
mod session;

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
pub(super) struct Connector {
    state: Arc<State>,
    /// The Redis that were left for this one.
    formers: Arc<Formers>,
    /// The server that the policy before was connected with last.
    came_from: Option<Server>,
    /// Interval of the heartbeat: often enough that one that is late does not use up the grace.
    heartbeat: Duration,
}

impl Connector {
    /// Begins to connect. What `previous` could not tell Redis, or told a Redis that may have been replaced, is told by this one, and
    /// what is heard of at `formers`.
    pub(super) fn start(
        (spec, resolver): (spec::Redis, Resolver),
        name: String,
        version: Arc<Version>,
        barriers: Arc<Barriers>,
        grace: Duration,
        previous: Option<&Link>,
        formers: Arc<Formers>,
    ) -> Arc<Link> {
        let previous = previous.map(Link::state);
        if let Some(previous) = previous {
            barriers.count_on_from(previous.barriers.stamp());
        }
        barriers.set_joining(true);
        let came_from = previous.and_then(|previous| previous.server());
        let state = Arc::new(State::new((spec, resolver), name, version, barriers, grace));
        if let Some(previous) = previous {
            state.inherit(previous);
        }
        let connector = Self::new(state, formers, came_from);
        connector.formers.lead_to(&connector.as_successor(), connector.state.version.name());
        connector.run()
    }

    fn new(state: Arc<State>, formers: Arc<Formers>, came_from: Option<Server>) -> Self {
        let heartbeat = (state.grace / 3).clamp(SHORTEST_HEARTBEAT, HEARTBEAT);
        Self { state, formers, came_from, heartbeat }
    }

    fn run(self) -> Arc<Link> {
        let state = Arc::clone(&self.state);
        let tasks = [tokio::spawn(self.keep_connected()), tokio::spawn(Arc::clone(&state).keep_relaying())];
        Link::new(state, tasks.map(AbortOnDropHandle::new))
    }

    fn as_successor(&self) -> Successor {
        Successor::Link(Arc::downgrade(&self.state))
    }

    async fn keep_connected(self) {
        // Nothing is trusted yet: what is stored from now on is covered by purges at those that were left.
        let _ = timeout(JOIN_TIMEOUT, self.formers.are_listed()).await;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let connected = self.connect_while_joining().await;
            self.state.has_tried.send_replace(true);
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
            self.state.connection.store(None);
            self.state.leases.abandon();
            let error = format!("{error:#}");
            if self.state.reload.is_down(error.clone()) && !self.state.is_left() {
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
        self.state.barriers.set_joining(false);
        match in_time {
            Ok(connected) => connected,
            Err(_) => connecting.await,
        }
    }

    /// Connects with the secrets as they are now or, if that fails, with those that worked.
    async fn connect(&self) -> anyhow::Result<Session> {
        let newest = self.state.newest();
        let in_use = self.state.reload.instead_of(&newest);
        let error = match newest.clone() {
            Ok(secrets) => {
                let has_moved = in_use.is_some() || self.is_elsewhere(&secrets);
                let which = if has_moved { CatchingUp::Moved } else { CatchingUp::New };
                let known = self.state.barriers.stamp().generation;
                match self.arrive(secrets, which).await {
                    Ok(session) => {
                        if let Some(in_use) =
                            in_use.filter(|_| known != self.state.barriers.stamp().generation)
                        {
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
        self.state.reload.refuse(newest.ok(), format!("{error:#}"));
        self.arrive(in_use, CatchingUp::New).await
    }

    /// Returns true if these secrets are the first of a policy under which Redis may be another one than under the policy before.
    fn is_elsewhere(&self, secrets: &Secrets) -> bool {
        let server = Server::new(secrets.clone(), &self.state.spec);
        self.state.reload.in_use().is_none() && self.came_from.as_ref().is_some_and(|from| *from != server)
    }

    /// Connects, catches up, and lets requests use the connection.
    async fn arrive(&self, secrets: Secrets, which: CatchingUp) -> anyhow::Result<Session> {
        let mut session = self.open(&secrets).await?;
        self.catch_up(&mut session, which).await?;
        self.accept(&session, secrets);
        Ok(session)
    }

    async fn open(&self, secrets: &Secrets) -> anyhow::Result<Session> {
        let opener = Opener::new(&self.state.spec, &self.state.name, secrets, &self.state.resolver)?;
        let OpenConnection { mut connection, bus, superseded } = opener.open(self.heartbeat).await?;
        let inbox = Inbox::new(&self.state, &self.formers, &connection);

        let bus =
            Subscription::open((&bus, &self.state.resolver), &self.state.name, inbox, connection.clone())
                .await?;
        timeout(CONNECT_DEADLINE, commands::prepare(&mut connection)).await.context("preparing")??;
        Ok(Session { connection, bus, superseded })
    }

    fn accept(&self, session: &Session, secrets: Secrets) {
        self.state.connection.store(Some(Arc::new(session.connection.clone())));
        self.formers.end_at(&Server::new(secrets.clone(), &self.state.spec));
        self.state.reload.take(secrets);
        if !self.state.is_left() {
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
        let mut next: Option<BoxFuture<'_, (Secrets, anyhow::Result<Replacement>)>> = None;
        loop {
            tokio::select! {
                () = session.bus.inbox.attention() => {
                    ensure!(!session.bus.inbox.is_closed(), "the bus was closed");
                    self.settle(&mut session).await?;
                }
                _ = heartbeat.tick() => {
                    self.beat(&mut session).await?;
                    if next.is_none() && let Some(secrets) = self.state.reload.candidate(self.state.newest()) {
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
                        Err(error) => self.state.reload.refuse(Some(secrets), format!("{error:#}")),
                    }
                }
                () = &mut session.superseded => bail!("the Sentinels name another master"),
                _ = regular_resync.tick() => self.catch_up(&mut session, CatchingUp::InUse).await?,
                () = self.state.resync.notified() => self.catch_up(&mut session, CatchingUp::InUse).await?,
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
        let version = self.state.version.name();
        let touching = commands::touch(connection, &self.state.name, inbox.own_channel(), version, probe);
        let HeartbeatReply { is_lost, is_listed, info } =
            timeout(HEARTBEAT, touching).await.context("redis is silent")??;
        ensure!(Mark::read(&info)? == connection.mark(), "the server has changed its role");
        if is_lost || !is_listed {
            // Purges of other versions may not have covered what is stored under this one.
            inbox.bus().doubt();
        }
        connection.took_write(now);
        inbox.vouch(probe);
        if self.state.has_arrived() {
            session.bus.leave(&self.state.name).await?;
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
        let pending = self.state.lock_pending().clone();
        let mut catch_up = CatchUp::new(&self.state.barriers, pending, connection.mark(), which);
        let asked_at = timeout(CONNECT_DEADLINE, self.tell_and_read(connection, &mut catch_up))
            .await
            .unwrap_or_else(|_| bail!("it took too long"))
            .context("reading the barriers")?;
        connection.took_write(asked_at);
        bus.inbox.settle(doubts);
        self.state.barriers.prove(connection.vouched().limit(asked_at));
        self.state.lock_pending().forget(catch_up.pending());
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
        let mut is_first = true;
        loop {
            step = match step {
                Step::Read => {
                    asked_at = boot_ms();
                    let snapshot = commands::snapshot(connection, &self.state.name).await?;
                    let (barriers, order) = (&self.state.barriers, catch_up.known_order());
                    match self.state.successor() {
                        Some(successor) => successor.make_up_for(barriers.unknown(&snapshot, order)),
                        // What is read later is what was told meanwhile.
                        None if is_first => self.formers.relay_missed(barriers, order, &snapshot),
                        None => {}
                    }
                    is_first = false;
                    catch_up.read(&self.state.barriers, &snapshot)?
                }
                Step::PurgeEverything(generation) => {
                    commands::purge_everything(connection, &self.state.name, generation).await?;
                    Step::Read
                }
                Step::Purge(names) => {
                    let is_relayed = self.formers.are_told();
                    let purge = PurgeCommand {
                        asker: 0,
                        version: self.state.version.name(),
                        names: &names,
                        elsewhere: &self.formers.reached(),
                        origin: is_relayed.then(Origin::new),
                        is_relayed,
                    };
                    commands::purge(connection, &self.state.name, purge).await?;
                    Step::Read
                }
                Step::Done { has_changed } => {
                    // Before it is used: from now on purges of other versions cover what is stored under this one.
                    self.state.version.list(connection).await?;
                    if has_changed {
                        // After all is read: a purge that begins now learns that it was told to another Redis.
                        self.state.repeat_recent();
                    }
                    return Ok(asked_at);
                }
            }
        }
    }
}
