//! Sentinels: the master that they name, and when they last did.

use std::{
    collections::HashMap,
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use futures::{StreamExt, stream::FuturesUnordered};
use redis::{Client, ConnectionInfo, RedisConnectionInfo, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{CONNECT_DEADLINE, address::Servers, connect};
use crate::{clock::boot_ms, resolver::Resolver};

/// Time for which a purge waits for the Sentinels to say that it was told to the master.
const NAMING_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for which Sentinels that are still silent are waited for when a majority has responded, and somebody waits.
const STRAGGLER_TIMEOUT: Duration = Duration::from_millis(20);

/// When it was last known that no other server counts purges in the place of this one. Clones are one.
#[derive(Clone, Debug)]
pub(in crate::l2) struct Vouched(Option<Arc<SentinelsWord>>);

/// The word of the Sentinels.
#[derive(Debug, Default)]
struct SentinelsWord {
    /// When they were asked for it, in [`boot_ms`].
    asked_at: AtomicU64,
    /// Number of times that the Sentinels have been asked.
    asked: AtomicU64,
    /// Number of the last time at which the Sentinels named the server.
    named: AtomicU64,
    changed: Notify,
    wanted: Notify,
}

impl Vouched {
    /// For a server that nothing can take the place of, or that knows by itself when another has.
    pub(super) const fn always() -> Self {
        Self(None)
    }

    /// For a server that Sentinels may replace; they have not been asked yet.
    fn by_sentinels() -> Self {
        Self(Some(Arc::default()))
    }

    /// The Sentinels are about to be asked. Returns which time that is.
    fn begin(&self) -> u64 {
        self.0.as_ref().map_or(0, |word| word.asked.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Notes that the Sentinels named the server when they were asked for that time, at `asked_at`.
    fn named(&self, number: u64, asked_at: u64) {
        if let Self(Some(word)) = self {
            word.asked_at.fetch_max(asked_at, Ordering::AcqRel);
            word.named.fetch_max(number, Ordering::AcqRel);
            word.changed.notify_waiters();
        }
    }

    /// Somebody wants them to be asked.
    fn want(&self) {
        if let Self(Some(word)) = self {
            word.wanted.notify_one();
        }
    }

    /// Waits until somebody wants them to be asked.
    async fn wanted(&self) {
        match self {
            Self(None) => never().await,
            Self(Some(word)) => word.wanted.notified().await,
        }
    }

    /// Has the Sentinels asked, and returns whether they name the server: what it ordered before now was ordered by the master.
    pub(in crate::l2) async fn is_named(&self) -> bool {
        let Self(Some(word)) = self else { return true };
        let before = word.asked.load(Ordering::Acquire);
        let named = async {
            loop {
                let mut changed = pin!(word.changed.notified());
                changed.as_mut().enable();
                if word.named.load(Ordering::Acquire) > before {
                    return;
                }
                self.want();
                changed.await;
            }
        };
        timeout(NAMING_TIMEOUT, named).await.is_ok()
    }

    /// A time at which something was asked of the server, or the earlier one until which it was certainly the one to ask.
    pub(in crate::l2) fn limit(&self, asked_at: u64) -> u64 {
        match self {
            Self(None) => asked_at,
            Self(Some(word)) => asked_at.min(word.asked_at.load(Ordering::Acquire)),
        }
    }
}

/// The Sentinels that a URL names.
pub(super) struct Sentinels {
    name: String,
    sentinels: Vec<Sentinel>,
    pub(super) vouched: Vouched,
}

struct Sentinel {
    client: Client,
    resolver: Resolver,
    connection: Option<MultiplexedConnection>,
}

/// Report of a Sentinel on the master.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnMessage {
    /// `HOST:PORT`.
    address: String,
    /// Grows with each failover.
    epoch: u64,
    /// True if the Sentinel takes the master for dead, or is replacing it.
    is_doubtful: bool,
}

/// Joint verdict of the Sentinels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No other is the master, says a majority of all.
    Master,
    /// Another is the master, says the one with the latest failover.
    Superseded,
    /// Too few of them say anything.
    Unknown,
}

impl Sentinels {
    /// # Errors
    /// If the addresses can't be used.
    pub(super) fn new(servers: &Servers, name: &str, resolver: &Resolver) -> RedisResult<Self> {
        // The user and the password are those of the master.
        let bare = |node: &ConnectionInfo| node.clone().set_redis_settings(RedisConnectionInfo::default());
        let clients = servers.nodes.iter().map(|node| servers.client(bare(node)));
        let sentinels = clients
            .map(|client| Ok(Sentinel { client: client?, resolver: resolver.clone(), connection: None }))
            .collect::<RedisResult<_>>()?;
        Ok(Self { name: name.to_owned(), sentinels, vouched: Vouched::by_sentinels() })
    }

    /// Asks for the master's `HOST:PORT`.
    ///
    /// # Errors
    /// If no Sentinel names one that is alive.
    pub(super) async fn master(&mut self) -> anyhow::Result<String> {
        let (now, number) = (boot_ms(), self.vouched.begin());
        let said = self.ask(CONNECT_DEADLINE, None).await;
        let alive = said.iter().flatten().filter(|said| !said.is_doubtful);
        let Some(latest) = alive.max_by_key(|said| said.epoch) else {
            let is_down = said.iter().flatten().next().is_some();
            let errors = said.into_iter().filter_map(Result::err);
            let why = errors.last().filter(|_| !is_down).unwrap_or_else(|| anyhow!("the master is down"));
            return Err(why.context("asking the Sentinels"));
        };
        let address = latest.address.clone();
        if judge(&said, &address) == Verdict::Master {
            self.vouched.named(number, now);
        }
        Ok(address)
    }

    /// Asks every so often, and when somebody wants to know, until another server is the master.
    pub(super) async fn watch(mut self, master: String, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut last = Verdict::Master;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.vouched.wanted() => {}
            }
            let (now, number) = (boot_ms(), self.vouched.begin());
            let said = self.ask(every, Some((&master, now, number))).await;
            let verdict = judge(&said, &master);
            if verdict == Verdict::Master {
                self.vouched.named(number, now);
            }
            match verdict {
                Verdict::Superseded => return,
                Verdict::Unknown if last != Verdict::Unknown => {
                    tracing::warn!(
                        "no majority of the Sentinels names the master: what is stored is trusted for l1.busGrace"
                    );
                }
                Verdict::Master if last != Verdict::Master => {
                    tracing::info!("the Sentinels name the master again")
                }
                Verdict::Master | Verdict::Unknown => {}
            }
            last = verdict;
        }
    }

    /// Asks all of them. Where they are asked for the `number`th time, at a time, about a master that a majority names, those that have
    /// not answered soon are not waited for if somebody wants them to be asked again.
    async fn ask(
        &mut self,
        patience: Duration,
        about: Option<(&str, u64, u64)>,
    ) -> Vec<anyhow::Result<OwnMessage>> {
        let (name, vouched) = (&self.name, &self.vouched);
        let mut said: Vec<_> = self.sentinels.iter().map(|_| Err(anyhow!("a Sentinel is silent"))).collect();
        let asked = self.sentinels.iter_mut().enumerate();
        let mut asked: FuturesUnordered<_> =
            asked.map(|(place, one)| async move { (place, one.ask(name, patience).await) }).collect();
        let (mut enough_at, mut is_noted) = (None, false);
        loop {
            tokio::select! {
                next = asked.next() => {
                    let Some((place, one)) = next else { return said };
                    said[place] = one;
                    let is_enough = about.is_some_and(|(master, ..)| judge(&said, master) == Verdict::Master);
                    enough_at = is_enough.then(|| enough_at.unwrap_or_else(|| Instant::now() + STRAGGLER_TIMEOUT));
                }
                () = sleep_until(enough_at.unwrap_or_else(Instant::now)), if enough_at.is_some() && !is_noted => {
                    is_noted = true;
                    if let Some((_, now, number)) = about {
                        vouched.named(number, now);
                    }
                }
                () = vouched.wanted(), if is_noted && enough_at.is_some() => {
                    // Whoever it is finds it still wanted.
                    vouched.want();
                    return said;
                }
            }
        }
    }
}

impl Sentinel {
    async fn ask(&mut self, name: &str, patience: Duration) -> anyhow::Result<OwnMessage> {
        let said = timeout(patience.min(CONNECT_DEADLINE), self.ask_patiently(name)).await;
        let said = said.context("a Sentinel is silent").and_then(|said| said);
        if said.is_err() {
            self.connection = None;
        }
        said
    }

    async fn ask_patiently(&mut self, name: &str) -> anyhow::Result<OwnMessage> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client, &self.resolver).await?),
        };
        let mut command = redis::cmd("SENTINEL");
        let said: HashMap<String, String> = command.arg("MASTER").arg(name).query_async(connection).await?;
        let field = |name: &str| said.get(name).with_context(|| format!("a Sentinel does not say {name}"));
        let flags = field("flags")?;
        Ok(OwnMessage {
            address: format!("{}:{}", field("ip")?, field("port")?),
            epoch: field("config-epoch")?.parse().context("a Sentinel's config-epoch is no number")?,
            is_doubtful: ["s_down", "o_down", "failover_in_progress"].iter().any(|flag| flags.contains(flag)),
        })
    }
}

fn judge(said: &[anyhow::Result<OwnMessage>], master: &str) -> Verdict {
    let latest = said.iter().flatten().map(|said| said.epoch).max();
    let mut names = 0;
    for one in said.iter().flatten().filter(|one| Some(one.epoch) == latest) {
        if one.address != master {
            return Verdict::Superseded;
        }
        names += usize::from(!one.is_doubtful);
    }
    if names * 2 > said.len() { Verdict::Master } else { Verdict::Unknown }
}

/// Never ends: nothing can take the place of the server.
pub(super) async fn never() {
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(address: &str, epoch: u64) -> anyhow::Result<OwnMessage> {
        Ok(OwnMessage { address: address.to_owned(), epoch, is_doubtful: false })
    }

    fn silent() -> anyhow::Result<OwnMessage> {
        Err(anyhow!("silent"))
    }

    fn doubtful() -> anyhow::Result<OwnMessage> {
        Ok(OwnMessage { is_doubtful: true, ..said("a:1", 1).unwrap() })
    }

    #[test]
    fn a_master_is_one_that_a_majority_of_all_sentinels_names() {
        for (said, verdict) in [
            (vec![said("a:1", 1)], Verdict::Master),
            (vec![said("a:1", 1), said("a:1", 1), silent()], Verdict::Master),
            (vec![said("a:1", 1), silent(), silent()], Verdict::Unknown),
            (vec![silent(), silent(), silent()], Verdict::Unknown),
            (vec![said("a:1", 1), said("a:1", 1), doubtful()], Verdict::Master),
            (vec![said("a:1", 1), doubtful(), doubtful()], Verdict::Unknown),
            (vec![said("a:1", 1), said("a:1", 1), said("b:1", 2)], Verdict::Superseded),
            (vec![said("a:1", 2), said("a:1", 2), said("b:1", 1)], Verdict::Master),
            (vec![said("a:1", 2), said("b:1", 1), said("b:1", 1)], Verdict::Unknown),
        ] {
            assert_eq!(judge(&said, "a:1"), verdict, "{said:?}");
        }
    }

    #[tokio::test]
    async fn sentinels_word_counts_only_for_later_than_it_was_requested() {
        let vouched = Vouched::by_sentinels();
        let before = vouched.begin();
        let mut is_named = pin!(vouched.is_named());
        assert!(futures::poll!(is_named.as_mut()).is_pending());
        vouched.wanted().await;
        vouched.named(before, 10);
        assert!(futures::poll!(is_named.as_mut()).is_pending(), "they were asked before");
        vouched.wanted().await;
        let after = vouched.begin();
        vouched.named(after, 10);
        assert!(is_named.await);
        assert!(Vouched::always().is_named().await);
    }

    #[test]
    fn commands_to_a_server_count_until_it_was_last_vouched_for() {
        let vouched = Vouched::by_sentinels();
        assert_eq!(vouched.limit(10), 0);
        let number = vouched.begin();
        vouched.named(number, 7);
        assert_eq!((vouched.limit(10), vouched.limit(5)), (7, 5));
        assert_eq!(Vouched::always().limit(10), 10);
    }
}
