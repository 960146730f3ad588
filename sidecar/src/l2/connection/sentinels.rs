//! Sentinels: the master that they name, and when they last did.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use futures::future::join_all;
use redis::{Client, ConnectionInfo, RedisConnectionInfo, RedisResult, aio::MultiplexedConnection};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{CONNECT_DEADLINE, address::Servers, connect};
use crate::clock::boot_ms;

/// When it was last known that no other server counts purges in the place of this one, in [`boot_ms`]. Clones are one.
#[derive(Clone, Debug)]
pub(in crate::l2) struct Vouched(Option<Arc<AtomicU64>>);

impl Vouched {
    /// For a server that nothing can take the place of, or that knows by itself when another has.
    pub(super) const fn always() -> Self {
        Self(None)
    }

    /// For a server that Sentinels may replace; they have not been asked yet.
    fn by_sentinels() -> Self {
        Self(Some(Arc::default()))
    }

    fn at(&self, now: u64) {
        if let Self(Some(at)) = self {
            at.fetch_max(now, Ordering::AcqRel);
        }
    }

    /// A time at which something was asked of the server, or the earlier one until which it was certainly the one to ask.
    pub(in crate::l2) fn limit(&self, asked_at: u64) -> u64 {
        match self {
            Self(None) => asked_at,
            Self(Some(at)) => asked_at.min(at.load(Ordering::Acquire)),
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
    connection: Option<MultiplexedConnection>,
}

/// What a Sentinel says of the master.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    /// `HOST:PORT`.
    address: String,
    /// Grows with each failover.
    epoch: u64,
    /// It takes the master for dead, or replaces it just now.
    is_doubtful: bool,
}

/// What Sentinels say together.
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
    pub(super) fn new(servers: &Servers, name: &str) -> RedisResult<Self> {
        // The user and the password are those of the master.
        let bare = |node: &ConnectionInfo| node.clone().set_redis_settings(RedisConnectionInfo::default());
        let clients = servers.nodes.iter().map(|node| servers.client(bare(node)));
        let sentinels = clients
            .map(|client| Ok(Sentinel { client: client?, connection: None }))
            .collect::<RedisResult<_>>()?;
        Ok(Self { name: name.to_owned(), sentinels, vouched: Vouched::by_sentinels() })
    }

    /// Asks for the master's `HOST:PORT`.
    ///
    /// # Errors
    /// If no Sentinel names one that is alive.
    pub(super) async fn master(&mut self) -> anyhow::Result<String> {
        let now = boot_ms();
        let said = self.ask(CONNECT_DEADLINE).await;
        let alive = said.iter().flatten().filter(|said| !said.is_doubtful);
        let Some(latest) = alive.max_by_key(|said| said.epoch) else {
            let is_down = said.iter().flatten().next().is_some();
            let errors = said.into_iter().filter_map(Result::err);
            let why = errors.last().filter(|_| !is_down).unwrap_or_else(|| anyhow!("the master is down"));
            return Err(why.context("asking the Sentinels"));
        };
        let address = latest.address.clone();
        self.note(&said, &address, now);
        Ok(address)
    }

    /// Asks every so often until another server is the master.
    pub(super) async fn watch(mut self, master: String, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut last = Verdict::Master;
        loop {
            ticks.tick().await;
            let now = boot_ms();
            let said = self.ask(every).await;
            let verdict = self.note(&said, &master, now);
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

    fn note(&self, said: &[anyhow::Result<Said>], master: &str, asked_at: u64) -> Verdict {
        let verdict = judge(said, master);
        if verdict == Verdict::Master {
            self.vouched.at(asked_at);
        }
        verdict
    }

    async fn ask(&mut self, patience: Duration) -> Vec<anyhow::Result<Said>> {
        let name = &self.name;
        join_all(self.sentinels.iter_mut().map(|sentinel| sentinel.ask(name, patience))).await
    }
}

impl Sentinel {
    async fn ask(&mut self, name: &str, patience: Duration) -> anyhow::Result<Said> {
        let said = timeout(patience.min(CONNECT_DEADLINE), self.ask_patiently(name)).await;
        let said = said.context("a Sentinel is silent").and_then(|said| said);
        if said.is_err() {
            self.connection = None;
        }
        said
    }

    async fn ask_patiently(&mut self, name: &str) -> anyhow::Result<Said> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client).await?),
        };
        let mut command = redis::cmd("SENTINEL");
        let said: HashMap<String, String> = command.arg("MASTER").arg(name).query_async(connection).await?;
        let field = |name: &str| said.get(name).with_context(|| format!("a Sentinel does not say {name}"));
        let flags = field("flags")?;
        Ok(Said {
            address: format!("{}:{}", field("ip")?, field("port")?),
            epoch: field("config-epoch")?.parse().context("a Sentinel's config-epoch is no number")?,
            is_doubtful: ["s_down", "o_down", "failover_in_progress"].iter().any(|flag| flags.contains(flag)),
        })
    }
}

fn judge(said: &[anyhow::Result<Said>], master: &str) -> Verdict {
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

    fn said(address: &str, epoch: u64) -> anyhow::Result<Said> {
        Ok(Said { address: address.to_owned(), epoch, is_doubtful: false })
    }

    fn silent() -> anyhow::Result<Said> {
        Err(anyhow!("silent"))
    }

    fn doubtful() -> anyhow::Result<Said> {
        Ok(Said { is_doubtful: true, ..said("a:1", 1).unwrap() })
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

    #[test]
    fn what_was_asked_of_a_server_counts_until_it_was_last_vouched_for() {
        let vouched = Vouched::by_sentinels();
        assert_eq!(vouched.limit(10), 0);
        vouched.at(7);
        assert_eq!((vouched.limit(10), vouched.limit(5)), (7, 5));
        assert_eq!(Vouched::always().limit(10), 10);
    }
}
