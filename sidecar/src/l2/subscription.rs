//! A subscription to the bus: the connection that purges, acknowledgements, leases and probes come over.
//!
//! A subscription is a connection of its own, with RESP3: redis-rs hands each message to [`Inbox::take`] as it reads it. So there is no queue
//! in this process that could grow, be overtaken or wait: a purge is applied before the next message is read, and nothing is
//! awaited in between. What a pod does not read in time waits in the sockets, and then in Redis, which closes the connection
//! when that is too much (`client-output-buffer-limit pubsub`, by default 32 MB); whoever connects again reads all barriers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use parking_lot::{Mutex, MutexGuard};
use redis::{AsyncConnectionConfig, Client, Msg, PushInfo, PushKind, aio::MultiplexedConnection};
use tokio::{sync::Notify, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    bus::Bus,
    commands,
    connection::{CONNECT_DEADLINE, Connection, Vouched},
    former::Formers,
    link::State,
    message::{OwnMessage, PurgeMessage, read_own, read_purge},
};
use crate::resolver::Resolver;

/// Maximum time that Redis may take to pass acknowledgements on.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(1);

/// A subscription to the bus. It ends when it is dropped.
pub(super) struct Subscription {
    pub(super) inbox: Arc<Inbox>,
    connection: MultiplexedConnection,
    has_left: bool,
    _acknowledging: AbortOnDropHandle<()>,
}

/// Takes what comes over the bus.
#[derive(Debug)]
pub(super) struct Inbox {
    bus: Mutex<Bus>,
    link: Arc<State>,
    /// The Redis that were left for this one: what is heard here goes there, too.
    formers: Arc<Formers>,
    /// When the server was last known to be the one that counts purges: what it says proves nothing of later times.
    vouched: Vouched,
    /// The channel on which other pods acknowledge, and on which probes come back.
    own_channel: String,
    is_closed: AtomicBool,
    /// Something is to be done: all barriers are to be read, or the connection is gone.
    attention: Notify,
    /// Somebody is to be told that a purge holds here.
    acknowledgements_due: Notify,
}

impl Inbox {
    pub(super) fn new(link: &Arc<State>, formers: &Arc<Formers>, connection: &Connection) -> Arc<Self> {
        let asker = connection.asker();
        Arc::new(Self {
            bus: Mutex::new(Bus::new(asker)),
            link: Arc::clone(link),
            formers: Arc::clone(formers),
            vouched: connection.vouched().clone(),
            own_channel: commands::own_channel(&link.name, asker),
            is_closed: AtomicBool::new(false),
            attention: Notify::new(),
            acknowledgements_due: Notify::new(),
        })
    }

    /// Takes what the server sent of its own accord. It never waits.
    fn take(&self, push: PushInfo) {
        if push.kind == PushKind::Disconnection {
            self.is_closed.store(true, Ordering::Release);
            self.attention.notify_one();
        }
        let Some(message) = Msg::from_push_info(push) else { return };
        if message.get_channel_name() == self.own_channel {
            match read_own(message.get_payload_bytes()) {
                Some(OwnMessage::Probe(number)) => self.came_back(number),
                Some(OwnMessage::Held(orders)) => self.link.acknowledgements.count(self.bus().asker, &orders),
                // A malformed message counts for nobody.
                None => {}
            }
        } else if !self.link.leases.hear(message.get_payload_bytes()) {
            self.hear(message.get_payload_bytes());
        }
    }

    fn hear(&self, payload: &[u8]) {
        let mut bus = self.bus();
        let Some(message) = read_purge(payload) else {
            // The next heartbeat sees to it: whoever can write to the bus must not have all barriers read all the time.
            return bus.doubt();
        };
        if self.is_of_another_database(&message) {
            bus.hear_elsewhere(&message);
        } else {
            // Before it is acknowledged.
            self.pass_on(&message, message.asker == bus.asker);
            let doubts = bus.doubts();
            if let Some(order) = bus.hear(&self.link.barriers, &message) {
                self.link.acknowledgements.count(bus.asker, &[order]);
            }
            if message.generation == self.link.generation() {
                self.link.release(&message);
            }
            if bus.doubts() > doubts {
                self.attention.notify_one();
            }
        }
        if bus.has_acknowledgements() {
            self.acknowledgements_due.notify_one();
        }
    }

    /// Returns true if a purge was ordered at another database of the server, where this pod has another subscription, which applies it:
    /// all databases have one bus.
    fn is_of_another_database(&self, message: &PurgeMessage) -> bool {
        let generation = message.generation;
        generation != self.link.generation()
            && match self.link.successor() {
                Some(successor) => successor.counts_in(generation),
                None => self.formers.count_in(generation),
            }
    }

    /// Passes a purge on to the Redis that took the place of this one, or to those that were left for it.
    fn pass_on(&self, message: &PurgeMessage, is_own: bool) {
        match self.link.successor() {
            // This pod tells both of its own.
            Some(_) if is_own && !message.elsewhere.is_empty() => {}
            Some(successor) => successor.hear(message),
            None if is_own => {}
            None => self.formers.relay(message),
        }
    }

    fn came_back(&self, number: u64) {
        let proven = self.bus().came_back(number);
        self.prove(proven);
    }

    /// The server that a probe was sent to takes purges, and is the one that it was.
    pub(super) fn vouch(&self, number: u64) {
        let proven = self.bus().vouched(number);
        self.prove(proven);
    }

    fn prove(&self, proven: Option<u64>) {
        if let Some(asked_at) = proven {
            self.link.barriers.prove(self.vouched.limit(asked_at));
        }
    }

    /// All barriers have been read since there were so many doubts.
    pub(super) fn settle(&self, doubts: u64) {
        let mut bus = self.bus();
        bus.settle(doubts);
        if bus.has_acknowledgements() {
            self.acknowledgements_due.notify_one();
        }
    }

    /// Returns true if the connection is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Waits until the connection is gone, or all barriers are to be read.
    pub(super) async fn attention(&self) {
        self.attention.notified().await;
    }

    pub(super) fn own_channel(&self) -> &str {
        &self.own_channel
    }

    pub(super) fn bus(&self) -> MutexGuard<'_, Bus> {
        self.bus.lock()
    }

    async fn next_acknowledgements(&self) -> BTreeMap<u64, Vec<u64>> {
        self.acknowledgements_due.notified().await;
        self.bus().take_acknowledgements()
    }
}

impl Subscription {
    /// Subscribes at the server that `client` reaches. Purges are acknowledged over `connection`.
    ///
    /// # Errors
    /// If the server does not let it, or does not speak RESP3.
    pub(super) async fn open(
        (client, resolver): (&Client, &Resolver),
        name: &str,
        inbox: Arc<Inbox>,
        connection: Connection,
    ) -> anyhow::Result<Self> {
        let taker = Arc::clone(&inbox);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None)
            .set_dns_resolver(resolver.clone())
            .set_push_sender(move |push| {
                taker.take(push);
                Ok::<_, std::convert::Infallible>(())
            });
        let mut bus = timeout(CONNECT_DEADLINE, client.get_multiplexed_async_connection_with_config(&config))
            .await
            .context("connecting to the bus")?
            .context("connecting to the bus, which takes Redis 6 or later")?;
        timeout(CONNECT_DEADLINE, bus.subscribe(&[name, inbox.own_channel()]))
            .await
            .context("subscribing to the bus")??;
        let acknowledging = tokio::spawn(acknowledge(Arc::clone(&inbox), connection, name.to_owned()));
        let acknowledging = AbortOnDropHandle::new(acknowledging);
        Ok(Self { inbox, connection: bus, has_left: false, _acknowledging: acknowledging })
    }

    /// Says that this pod has left for another Redis, and hears of purges here all the same.
    ///
    /// # Errors
    /// If the server does not take it.
    pub(super) async fn leave(&mut self, name: &str) -> anyhow::Result<()> {
        if !self.has_left {
            let subscribed = self.connection.subscribe(commands::left_channel(name));
            timeout(CONNECT_DEADLINE, subscribed).await.context("leaving the bus")??;
            self.has_left = true;
        }
        Ok(())
    }
}

/// Tells others that their purges hold here: what came while it told of some goes out together.
async fn acknowledge(inbox: Arc<Inbox>, mut connection: Connection, name: String) {
    loop {
        let held = inbox.next_acknowledgements().await;
        if held.is_empty() {
            continue;
        }
        let told = commands::acknowledge(&mut connection, &name, &held);
        // Whoever is not told waits as for a pod that hangs; if the connection is gone, the heartbeat finds out.
        match timeout(ACKNOWLEDGE_TIMEOUT, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "purges were not acknowledged"),
            Err(_) => tracing::debug!("purges were not acknowledged in time"),
        }
    }
}
