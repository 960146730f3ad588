//! Changes of tables, streamed by logical replication.
//!
//! # Guarantees
//! - A transaction is purged when others see it, and not before: Postgres streams it when it is in the log, which may be earlier, by long where
//!   commits wait for a standby. A fill in between would store what was before it.
//! - The slot exists before what may have changed earlier is purged, so that no change falls in between.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use anyhow::{Context, ensure};
use larder_policy::{PurgeName, spec::Changes};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{CHECK_INTERVAL, Follower};
use crate::sources::postgres::{
    pgoutput::Message,
    publication,
    replication::{Event, Replication},
    session::Session,
};

mod transaction;

use transaction::{Purged, Transactions};

/// Number of checks after which the publication is looked at again.
const PUBLICATION_CHECKS: u32 = 10;

/// Maximum time without a sign of life. A server that reads through a long transaction gives none.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Time after which it is said that the slot waits for transactions.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);

/// First and longest wait before a transaction that others do not see is looked for again.
const UNSEEN: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

impl Follower {
    /// Reads changes until that fails.
    pub(super) async fn replicate(&self, spec: &Changes) -> anyhow::Result<Infallible> {
        let session = self.lead().await?;
        let advice = publication::check(&session, spec).await?;
        let mut replication = self.open_slot(spec, &session).await?;
        // What was changed before nobody read.
        let mut transactions = Transactions::new(spec);
        let all = transactions.all();
        self.purge(|_| all.clone()).await?;
        self.feed.follows(advice);
        tracing::info!(feed = self.feed.name(), publication = spec.publication, "reading changes");

        let mut unseen = Unseen::default();
        let Err(error) = self.read(spec, &session, &mut replication, &mut transactions, &mut unseen).await;
        // Until reading begins again nothing else would be purged: what has come is, whether others see it or not.
        while let Ok(Some(event)) = replication.arrived() {
            if let Event::Message(message) = event
                && let Ok(message) = Message::decode(message)
            {
                unseen.add(transactions.take(message));
            }
        }
        let names: BTreeSet<_> = unseen.purged.into_iter().flat_map(|purged| purged.names).collect();
        if !names.is_empty() {
            let names: Vec<_> = names.into_iter().collect();
            // What Redis could not be told is told later.
            drop(self.purge(|_| names.clone()).await);
        }
        Err(error)
    }

    async fn read(
        &self,
        spec: &Changes,
        session: &Session,
        replication: &mut Replication,
        transactions: &mut Transactions<'_>,
        unseen: &mut Unseen,
    ) -> anyhow::Result<Infallible> {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut checks, mut heard) = (0_u32, Instant::now());
        loop {
            tokio::select! {
                event = replication.next() => {
                    heard = Instant::now();
                    let mut event = Some(event?);
                    while let Some(next) = event {
                        match next {
                            Event::Message(message) => unseen.add(transactions.take(Message::decode(message)?)),
                            Event::KeepAlive { wants_reply: true } => replication.confirm(false).await?,
                            Event::KeepAlive { wants_reply: false } => {}
                        }
                        event = if unseen.names < MAX_TOGETHER { replication.arrived()? } else { None };
                    }
                    self.purge_seen(session, unseen).await?;
                }
                () = sleep_until(unseen.again), if !unseen.purged.is_empty() => {
                    self.purge_seen(session, unseen).await?;
                }
                _ = ticks.tick() => {
                    self.ensure_current(session)?;
                    ensure!(heard.elapsed() < SILENCE_LIMIT, "postgres has sent no changes and no sign of life for {SILENCE_LIMIT:?}");
                    checks += 1;
                    if checks.is_multiple_of(PUBLICATION_CHECKS) {
                        self.feed.follows(publication::check(session, spec).await?);
                    } else {
                        session.probe().await?;
                    }
                    replication.confirm(true).await?;
                }
            }
        }
    }

    /// Creates a slot that ends with its connection, and begins to read.
    async fn open_slot(&self, spec: &Changes, session: &Session) -> anyhow::Result<Replication> {
        let mut replication = self.feed.source().replication().await.map_err(publication::with_remedy)?;
        let slot = format!("larder_{:016x}", fastrand::u64(..));
        let command =
            format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
        {
            let mut created = std::pin::pin!(replication.query(&command));
            let mut ticks = interval(CHECK_INTERVAL);
            let asked = Instant::now();
            let created = loop {
                tokio::select! {
                    created = &mut created => break created,
                    _ = ticks.tick() => {
                        if asked.elapsed() >= SLOT_PATIENCE {
                            self.feed.is_down("the replication slot waits for transactions that were open when it was asked for: end those that pg_stat_activity shows with an old xact_start".to_owned());
                        }
                        self.ensure_current(session)?;
                        session.probe().await?;
                    }
                }
            };
            created.map_err(publication::with_remedy)?;
        }
        let started = replication.start(&slot, &spec.publication).await;
        started.map_err(publication::with_remedy)?;
        Ok(replication)
    }

    /// Purges for the transactions that others see.
    async fn purge_seen(&self, session: &Session, unseen: &mut Unseen) -> anyhow::Result<()> {
        if unseen.purged.is_empty() {
            return Ok(());
        }
        let numbers: Vec<_> = unseen.purged.iter().map(|purged| i64::from(purged.transaction)).collect();
        let rows = session.query(VISIBLE, &[&numbers]).await?;
        let visible: BTreeSet<i64> =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().context("a number")?;
        let is_seen = |purged: &Purged| visible.contains(&i64::from(purged.transaction));
        let (seen, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut unseen.purged).into_iter().partition(is_seen);
        unseen.purged = rest;
        unseen.names = unseen.purged.iter().map(|purged| purged.names.len()).sum();
        ensure!(
            unseen.names < MAX_UNSEEN,
            "too many transactions are committed and not visible: is a synchronous standby missing?"
        );
        let [first, longest] = UNSEEN;
        unseen.wait = if seen.is_empty() { (unseen.wait * 2).clamp(first, longest) } else { first };
        unseen.again = Instant::now() + unseen.wait;
        let names: BTreeSet<PurgeName> = seen.into_iter().flat_map(|purged| purged.names).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = names.into_iter().collect();
        self.purge(|_| names.clone()).await
    }
}

/// Number of names that are purged together, besides those of the last transaction.
const MAX_TOGETHER: usize = 10_000;

/// Maximum number of names of transactions that others do not see yet. The next slot is created when they do.
const MAX_UNSEEN: usize = 200_000;

/// Numbers among these, each the lower half of one, that belong to transactions which others see. These functions are in every version.
const VISIBLE: &str = "
with now as (select txid_current_snapshot() as snapshot),
last as (select snapshot, txid_snapshot_xmax(snapshot) as xmax from now),
asked as (select half, ((xmax >> 32) << 32) + half as number, xmax, snapshot from last, unnest($1::bigint[]) as half)
select half from asked
where txid_visible_in_snapshot(case when number > xmax then number - 4294967296 else number end, snapshot)";

/// Transactions that were read, and that others may not see yet.
#[derive(Debug)]
struct Unseen {
    purged: Vec<Purged>,
    /// Number of names of all.
    names: usize,
    wait: Duration,
    again: Instant,
}

impl Unseen {
    fn add(&mut self, purged: Option<Purged>) {
        self.names += purged.as_ref().map_or(0, |purged| purged.names.len());
        self.purged.extend(purged);
    }
}

impl Default for Unseen {
    fn default() -> Self {
        Self { purged: vec![], names: 0, wait: UNSEEN[0], again: Instant::now() }
    }
}
