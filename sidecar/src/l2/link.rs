//! The connection to Redis, and the bus on which pods tell each other of purges.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use arc_swap::ArcSwapOption;
use futures::StreamExt;
use larder_policy::{PurgeName, spec::UrlFrom};
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    acknowledgements::Acknowledgements,
    commands::{self, Message},
};
use crate::{
    barriers::{Barriers, Heard},
    secret::read_url,
};

/// How often the connection is tried, and how long an answer may take.
const HEARTBEAT: Duration = Duration::from_secs(1);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(20);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
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
/// generation) leads back to reading all barriers.
#[derive(Debug)]
pub(super) struct Link {
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct State {
    /// Often enough that one that is late does not use up the grace.
    heartbeat: Duration,
    url_from: UrlFrom,
    /// The hash of the barriers and the channel of the bus.
    name: String,
    barriers: Arc<Barriers>,
    connection: ArcSwapOption<MultiplexedConnection>,
    remembered: Mutex<Remembered>,
    resync: Notify,
    acknowledgements: Acknowledgements,
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
        url_from: UrlFrom,
        name: String,
        barriers: Arc<Barriers>,
        grace: Duration,
    ) -> Arc<Self> {
        let state = Arc::new(State {
            heartbeat: (grace / 3).clamp(SHORTEST_HEARTBEAT, HEARTBEAT),
            url_from,
            name,
            barriers,
            connection: ArcSwapOption::empty(),
            remembered: Mutex::default(),
            resync: Notify::new(),
            acknowledgements: Acknowledgements::new(commands::random()),
        });
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&state).keep_connected()));
        Arc::new(Self { state, _task: task })
    }

    /// The connection, if it is up to date with the barriers.
    pub(super) fn connection(&self) -> Option<MultiplexedConnection> {
        self.state.connection.load().as_deref().cloned()
    }

    /// Purges that others acknowledge to this pod.
    pub(super) fn acknowledgements(&self) -> &Acknowledgements {
        &self.state.acknowledgements
    }

    /// Reads all barriers again, soon.
    pub(super) fn request_resync(&self) {
        self.state.resync.notify_one();
    }

    /// Raises barriers in this pod and tells Redis of them when it is there.
    pub(super) fn raise_and_remember(&self, names: &[PurgeName]) {
        if names.is_empty() {
            return;
        }
        let mut remembered = self.state.lock_remembered();
        remembered.up_to = self.state.barriers.raise_locally(names);
        if remembered.names.len() + names.len() > MOST_REMEMBERED {
            remembered.names.clear();
            self.state.barriers.raise_on_everything();
        } else {
            remembered.names.extend_from_slice(names);
        }
        self.state.resync.notify_one();
    }

    /// Raises a barrier on everything, here now and in Redis when it is there.
    pub(super) fn raise_on_everything(&self) {
        self.state.barriers.raise_on_everything();
        self.state.resync.notify_one();
    }

    /// What Redis has not heard of.
    pub(super) fn untold(&self) -> Vec<PurgeName> {
        self.state.lock_remembered().names.clone()
    }
}

impl State {
    async fn keep_connected(self: Arc<Self>) {
        let mut pause = SHORTEST_PAUSE;
        let mut last_said = String::new();
        loop {
            let was_up = match self.session().await {
                Ok(never) => match never {},
                Err((was_up, error)) => {
                    let error = format!("{error:#}");
                    if was_up || error != last_said {
                        tracing::warn!(error, "redis is not connected; going on without");
                        last_said = error;
                    }
                    was_up
                }
            };
            self.connection.store(None);
            pause = if was_up { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            sleep(pause).await;
        }
    }

    /// Connects and stays connected; returns why it could not, and whether it was connected before.
    async fn session(&self) -> Result<std::convert::Infallible, (bool, anyhow::Error)> {
        let mut was_up = false;
        self.connected(&mut was_up).await.map_err(|error| (was_up, error))
    }

    async fn connected(&self, was_up: &mut bool) -> anyhow::Result<std::convert::Infallible> {
        let url = read_url(&self.url_from)?;
        let client = Client::open(url.as_str()).context("the redis URL can't be used")?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None);
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let pubsub =
            timeout(CONNECT_DEADLINE, client.get_async_pubsub()).await.context("connecting to the bus")??;
        let (mut bus, mut messages) = pubsub.split();
        let acknowledgements = commands::acknowledgements(&self.name, self.acknowledgements.asker);
        let channels = [&self.name, &acknowledgements];
        timeout(CONNECT_DEADLINE, bus.subscribe(&channels)).await.context("subscribing to the bus")??;
        timeout(CONNECT_DEADLINE, commands::prepare(&mut connection)).await.context("preparing")??;
        self.catch_up(&mut connection).await?;
        self.connection.store(Some(Arc::new(connection.clone())));
        *was_up = true;
        tracing::info!("redis is connected");

        let mut heartbeat = interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut regular_resync = interval(RESYNC);
        regular_resync.reset();
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { bail!("the bus was closed") };
                    self.barriers.bus_works();
                    if message.get_channel_name() == acknowledgements {
                        self.acknowledgements.count(message.get_payload()?);
                    } else {
                        self.hear(message.get_payload_bytes(), &mut connection).await?;
                    }
                }
                _ = heartbeat.tick() => {
                    // Both connections: each can break without the other.
                    let lost = timeout(HEARTBEAT, commands::touch(&mut connection, &self.name))
                        .await
                        .context("redis is silent")??;
                    if lost {
                        self.catch_up(&mut connection).await?;
                    }
                    timeout(HEARTBEAT, bus.ping::<()>()).await.context("the bus is silent")??;
                    self.barriers.bus_works();
                    if read_url(&self.url_from)? != url {
                        bail!("the URL has changed");
                    }
                }
                _ = regular_resync.tick() => self.catch_up(&mut connection).await?,
                () = self.resync.notified() => self.catch_up(&mut connection).await?,
            }
        }
    }

    /// Applies a purge, and tells whoever asked for it that it holds here.
    async fn hear(&self, payload: &[u8], connection: &mut MultiplexedConnection) -> anyhow::Result<()> {
        let Some(Message { generation, order, asker, names }) = commands::read_message(payload) else {
            return self.catch_up(connection).await;
        };
        if self.barriers.heard(generation, order, &names) != Heard::InOrder {
            self.catch_up(connection).await?;
        }
        if asker == self.acknowledgements.asker {
            self.acknowledgements.count(order);
        } else if asker != 0 {
            let told = commands::acknowledge(connection, &self.name, asker, order);
            timeout(HEARTBEAT, told).await.context("redis is silent")??;
        }
        Ok(())
    }

    /// Tells Redis what it has not heard of and reads all barriers.
    async fn catch_up(&self, connection: &mut MultiplexedConnection) -> anyhow::Result<()> {
        let untold = self.lock_remembered().clone();
        timeout(CONNECT_DEADLINE, self.tell_and_read(connection, &untold))
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
        connection: &mut MultiplexedConnection,
        untold: &Remembered,
    ) -> anyhow::Result<()> {
        let known = self.barriers.stamp();
        let mut snapshot = commands::snapshot(connection, &self.name).await?;
        // A Redis that came back as it was earlier has lost purges, and gives their numbers away again.
        let went_back = snapshot.generation == known.generation && snapshot.order < known.order;
        let local_floor = self.barriers.local_floor();
        let everything = went_back || local_floor > 0;
        if everything {
            commands::purge_everything(connection, &self.name).await?;
        } else if !untold.names.is_empty() {
            commands::purge(connection, &self.name, 0, &untold.names).await?;
        }
        if everything || !untold.names.is_empty() {
            snapshot = commands::snapshot(connection, &self.name).await?;
        }
        self.barriers.resync(&snapshot);
        if everything {
            self.barriers.settle_everything(untold.up_to.max(local_floor));
        } else {
            self.barriers.settle(&untold.names, untold.up_to);
        }
        self.barriers.bus_works();
        Ok(())
    }

    fn lock_remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
