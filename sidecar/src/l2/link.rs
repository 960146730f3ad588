//! The connection to Redis, and the bus on which pods tell each other of purges.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwapOption;
use futures::{StreamExt, future::BoxFuture};
use larder_policy::{PurgeName, spec};
use redis::aio::{PubSubSink, PubSubStream};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    acknowledgements::Acknowledgements,
    commands::{self, Message},
    connection::{CONNECT_DEADLINE, Connection, Opened, Opener, Secrets},
    generation::{Mark, random},
    lease::Leases,
    reload::{Newest, Reload},
    told::Told,
};
use crate::barriers::{Barriers, Heard};

/// How often the connection is tried, and how long an answer may take.
const HEARTBEAT: Duration = Duration::from_secs(1);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(20);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the barriers are read afresh without a reason; it also keeps them from expiring.
const RESYNC: Duration = Duration::from_secs(3600);
/// More purged names than this are not remembered one by one while Redis is away: everything is purged instead.
const MOST_REMEMBERED: usize = 4096;

/// Keeps a connection to Redis and listens for purges.
///
/// Expected flow: connect, subscribe, tell Redis what was purged while it was away, read all barriers, and only then let
/// requests use the connection; from then on hear of each purge. Any doubt (a lost connection, a missed number, another
/// generation) leads back to reading all barriers. If another server counts than the one on which the generation was begun,
/// everything is stale: it may have lost purges.
///
/// A changed URL or CA is tried beside the connection that there is, which goes on until the other is up to date.
#[derive(Debug)]
pub(super) struct Link {
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct State {
    /// Often enough that one that is late does not use up the grace.
    heartbeat: Duration,
    spec: spec::Redis,
    /// The hash of the barriers and the channel of the bus.
    name: String,
    barriers: Arc<Barriers>,
    connection: ArcSwapOption<Connection>,
    reload: Reload,
    remembered: Mutex<Remembered>,
    told: Told,
    resync: Notify,
    acknowledgements: Acknowledgements,
    leases: Arc<Leases>,
}

/// Which connection catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CatchingUp {
    /// The one that is in use.
    InUse,
    /// A new one.
    New,
    /// A new one, to another Redis than before, it may be.
    Moved,
}

/// A connection, with the bus at the same server.
struct Session {
    connection: Connection,
    bus: PubSubSink,
    messages: PubSubStream,
    /// Ends when another server has become the master.
    superseded: BoxFuture<'static, ()>,
}

/// Purges that Redis has not heard of.
#[derive(Clone, Debug, Default)]
struct Remembered {
    names: Vec<PurgeName>,
    /// The last of them, in this pod's own order.
    up_to: u64,
}

impl Link {
    pub(super) fn start(
        spec: spec::Redis,
        name: String,
        barriers: Arc<Barriers>,
        grace: Duration,
    ) -> Arc<Self> {
        let state = Arc::new(State {
            heartbeat: (grace / 3).clamp(SHORTEST_HEARTBEAT, HEARTBEAT),
            spec,
            name,
            barriers,
            connection: ArcSwapOption::empty(),
            reload: Reload::default(),
            remembered: Mutex::default(),
            told: Told::default(),
            resync: Notify::new(),
            acknowledgements: Acknowledgements::new(random()),
            leases: Arc::default(),
        });
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&state).keep_connected()));
        Arc::new(Self { state, _task: task })
    }

    /// The connection, if it is up to date with the barriers.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.state.connection.load().as_deref().cloned()
    }

    /// Why there is no connection, or not with the URL and CA that are given now. It has no password in it.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.reload.trouble()
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

    /// These names are about to be purged in Redis.
    pub(super) fn will_tell(&self, names: &[PurgeName]) {
        self.state.told.add(names);
    }

    /// Raises barriers in this pod and tells Redis of them when it is there.
    pub(super) fn raise_and_remember(&self, names: &[PurgeName]) {
        self.state.told.add(names);
        self.state.raise_and_remember(names);
    }

    /// Raises a barrier on everything, here now and in Redis when it is there.
    pub(super) fn raise_on_everything(&self) {
        self.state.told.add_everything();
        self.state.raise_on_everything();
    }

    /// What Redis has not heard of.
    pub(super) fn untold(&self) -> Vec<PurgeName> {
        self.state.lock_remembered().names.clone()
    }
}

impl State {
    async fn keep_connected(self: Arc<Self>) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let error = match self.connect().await {
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
            if self.reload.is_down(error.clone()) {
                tracing::warn!(error, "redis is not connected; going on without");
            }
            sleep(pause).await;
        }
    }

    /// Connects with the secrets as they are now or, if that fails, with those that worked.
    async fn connect(&self) -> anyhow::Result<Session> {
        let newest = self.newest();
        let in_use = self.reload.instead_of(&newest);
        let error = match newest.clone() {
            Ok(secrets) => match self
                .arrive(secrets, if in_use.is_some() { CatchingUp::Moved } else { CatchingUp::New })
                .await
            {
                Ok(session) => return Ok(session),
                Err(error) => error,
            },
            Err(error) => anyhow::Error::msg(error),
        };
        let Some(in_use) = in_use else { return Err(error) };
        self.reload.refuse(newest.ok(), format!("{error:#}"));
        self.arrive(in_use, CatchingUp::New).await
    }

    fn newest(&self) -> Newest {
        Secrets::read(&self.spec).map_err(|error| format!("{error:#}"))
    }

    /// Connects, catches up, and lets requests use the connection.
    async fn arrive(&self, secrets: Secrets, which: CatchingUp) -> anyhow::Result<Session> {
        let mut session = self.open(&secrets).await?;
        self.catch_up(&mut session.connection, which).await?;
        self.accept(&session, secrets);
        Ok(session)
    }

    async fn open(&self, secrets: &Secrets) -> anyhow::Result<Session> {
        let opener = Opener::new(&self.spec, &self.name, secrets)?;
        let Opened { mut connection, bus, superseded } = opener.open(self.heartbeat * 2).await?;
        let (mut bus, messages) = bus.split();
        let channels = [&self.name, &self.acknowledgements_channel()];
        timeout(CONNECT_DEADLINE, bus.subscribe(&channels)).await.context("subscribing to the bus")??;
        timeout(CONNECT_DEADLINE, commands::prepare(&mut connection)).await.context("preparing")??;
        Ok(Session { connection, bus, messages, superseded })
    }

    fn accept(&self, session: &Session, secrets: Secrets) {
        self.connection.store(Some(Arc::new(session.connection.clone())));
        self.reload.take(secrets);
        tracing::info!("redis is connected");
    }

    fn acknowledgements_channel(&self) -> String {
        commands::acknowledgements(&self.name, self.acknowledgements.asker)
    }

    /// Hears of purges until the connection breaks; returns why it did.
    async fn stay_connected(&self, mut session: Session) -> anyhow::Result<std::convert::Infallible> {
        let acknowledgements = self.acknowledgements_channel();
        let mut heartbeat = interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut regular_resync = interval(RESYNC);
        regular_resync.reset();
        let mut is_in_doubt = false;
        // The connection that may take the place of this one.
        let mut next: Option<BoxFuture<'_, (Secrets, anyhow::Result<Session>)>> = None;
        loop {
            let connection = &mut session.connection;
            tokio::select! {
                message = session.messages.next() => {
                    let Some(message) = message else { bail!("the bus was closed") };
                    self.barriers.bus_works();
                    if message.get_channel_name() == acknowledgements {
                        // What can't be read counts for nobody.
                        message.get_payload().map(|order| self.acknowledgements.count(order)).ok();
                    } else if !self.leases.hear(message.get_payload_bytes()) {
                        is_in_doubt |= !self.hear(message.get_payload_bytes(), connection).await?;
                    }
                }
                _ = heartbeat.tick() => {
                    // Both connections: each can break without the other.
                    let (lost, info) = timeout(HEARTBEAT, commands::touch(connection, &self.name))
                        .await
                        .context("redis is silent")??;
                    ensure!(Mark::read(&info)? == connection.mark(), "the server has changed its role");
                    if lost || is_in_doubt {
                        self.catch_up(connection, CatchingUp::InUse).await?;
                        is_in_doubt = false;
                    }
                    timeout(HEARTBEAT, session.bus.ping::<()>()).await.context("the bus is silent")??;
                    self.barriers.bus_works();
                    if next.is_none() && let Some(secrets) = self.reload.candidate(self.newest()) {
                        next = Some(Box::pin(async move {
                            let opened = self.open(&secrets).await;
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
                _ = regular_resync.tick() => self.catch_up(connection, CatchingUp::InUse).await?,
                () = self.resync.notified() => self.catch_up(connection, CatchingUp::InUse).await?,
            }
        }
    }

    /// Catches up with what was opened beside the connection that there is.
    async fn exchange(&self, opened: anyhow::Result<Session>) -> anyhow::Result<Session> {
        let mut session = opened?;
        self.catch_up(&mut session.connection, CatchingUp::Moved).await?;
        Ok(session)
    }

    /// Applies a purge, and tells whoever asked for it that it holds here. Says whether it could be read.
    async fn hear(&self, payload: &[u8], connection: &mut Connection) -> anyhow::Result<bool> {
        let Some(Message { generation, order, asker, names }) = commands::read_message(payload) else {
            return Ok(false);
        };
        if self.barriers.heard(generation, order, &names) != Heard::InOrder {
            self.catch_up(connection, CatchingUp::InUse).await?;
        }
        if asker == self.acknowledgements.asker {
            self.acknowledgements.count(order);
        } else if asker != 0 {
            let told = commands::acknowledge(connection, &self.name, asker, order);
            timeout(HEARTBEAT, told).await.context("redis is silent")??;
        }
        Ok(true)
    }

    /// Tells Redis what it has not heard of and reads all barriers.
    async fn catch_up(&self, connection: &mut Connection, which: CatchingUp) -> anyhow::Result<()> {
        let untold = self.lock_remembered().clone();
        timeout(CONNECT_DEADLINE, self.tell_and_read(connection, &untold, which))
            .await
            .unwrap_or_else(|_| bail!("it took too long"))
            .context("reading the barriers")?;
        // What came meanwhile was added at the end, unless there was so much that everything is purged.
        let mut remembered = self.lock_remembered();
        let told = untold.names.len().min(remembered.names.len());
        remembered.names.drain(..told);
        Ok(())
    }

    async fn tell_and_read(
        &self,
        connection: &mut Connection,
        untold: &Remembered,
        which: CatchingUp,
    ) -> anyhow::Result<()> {
        let known = self.barriers.stamp();
        // Whoever begins a generation after this covers it.
        let local_floor = self.barriers.local_floor();
        let mut snapshot = commands::snapshot(connection, &self.name).await?;
        // A Redis that came back as it was earlier has lost purges, and gives their numbers away again.
        let went_back = snapshot.generation == known.generation && snapshot.order < known.order;
        // Another server took over, or the same one began anew: it may have gone back and counted on.
        let elsewhere = !connection.mark().began(snapshot.generation);
        ensure!(!elsewhere || which != CatchingUp::InUse, "the server has changed its role");
        // What this pod comes from may have been another Redis than this one, where others are and did not hear of it.
        let changed =
            which != CatchingUp::InUse && known.generation != 0 && snapshot.generation != known.generation;
        let everything = went_back || elsewhere || local_floor > 0 || (changed && which == CatchingUp::Moved);
        if everything {
            commands::purge_everything(connection, &self.name, snapshot.generation).await?;
        } else if !untold.names.is_empty() {
            commands::purge(connection, &self.name, 0, &untold.names).await?;
        }
        if everything || !untold.names.is_empty() {
            snapshot = commands::snapshot(connection, &self.name).await?;
            ensure!(connection.mark().began(snapshot.generation), "another server has begun to count");
        }
        self.barriers.resync(&snapshot);
        if everything {
            self.barriers.settle_everything(untold.up_to.max(local_floor));
        } else {
            self.barriers.settle(&untold.names, untold.up_to);
        }
        if changed {
            // After all is read: a purge that begins now learns that it was told to another Redis.
            match self.told.recent() {
                Some(names) => self.raise_and_remember(&names),
                None => self.raise_on_everything(),
            }
        }
        self.barriers.bus_works();
        Ok(())
    }

    fn raise_and_remember(&self, names: &[PurgeName]) {
        if names.is_empty() {
            return;
        }
        let mut remembered = self.lock_remembered();
        remembered.up_to = self.barriers.raise_locally(names);
        if remembered.names.len() + names.len() > MOST_REMEMBERED {
            remembered.names.clear();
            self.raise_on_everything();
        } else {
            remembered.names.extend_from_slice(names);
        }
        self.resync.notify_one();
    }

    fn raise_on_everything(&self) {
        self.barriers.raise_on_everything();
        self.resync.notify_one();
    }

    fn lock_remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
