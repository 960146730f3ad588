//! The last good answers, in a table in Postgres.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use larder_policy::PurgeName;
use tokio::{sync::Notify, time::sleep};
use tokio_util::task::AbortOnDropHandle;

mod table;
mod untold;

use self::{table::Table, untold::Untold};
use super::postgres::{PostgresError, PostgresSource};

/// How often purges that Postgres could not be told of are told again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The last good answers of a policy, in a table in Postgres: they outlive Redis and every pod.
///
/// Guarantees: what was purged is not loaded again. A purge that Postgres could not be told of is kept, in this pod, and told
/// before anything is loaded or stored; so long, loading fails. An answer that was asked for before a purge of one of its names is
/// not stored after it, by any pod. A purge under one version of the policy, and a write for which a version names nothing, covers all
/// that was kept under the others before: their names may be others.
///
/// Assumptions: the clock of Postgres is not set back, and a purge that Postgres was not told of before the pod ends is known
/// otherwise (Redis).
#[derive(Debug)]
pub struct LastKnownGood {
    shared: Arc<Shared>,
    _teller: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    source: Arc<PostgresSource>,
    table: Table,
    untold: Untold,
    /// Held while Postgres is told.
    telling: tokio::sync::Mutex<()>,
    /// How often it could not be told.
    failures: AtomicU64,
    left_untold: Notify,
    complained: AtomicBool,
}

impl LastKnownGood {
    /// The answers of a policy, such as `shop/shop`, in a database that several policies may share. The tables are made when they
    /// are first needed.
    pub fn new(source: Arc<PostgresSource>, policy: String, version: PurgeName) -> Self {
        let shared = Arc::new(Shared {
            table: Table::new(Arc::clone(&source), policy, version),
            source,
            untold: Untold::default(),
            telling: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
            left_untold: Notify::new(),
            complained: AtomicBool::new(false),
        });
        let teller = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).tell_again()));
        Self { shared, _teller: teller }
    }

    /// Whether it is of this version of this policy in this source.
    pub fn is_of(&self, source: &Arc<PostgresSource>, policy: &str, version: PurgeName) -> bool {
        Arc::ptr_eq(&self.shared.source, source) && self.shared.table.is_of(policy, version)
    }

    /// Whether there are purges, or writes, that Postgres could not be told of.
    pub fn has_untold(&self) -> bool {
        !self.shared.untold.is_empty()
    }

    /// Takes over the purges that the one before could not tell. Where that was for another version of the policy, whatever is kept
    /// may be meant.
    pub fn inherit(&self, predecessor: &Self) {
        if self.shared.table.is_of_version_of(&predecessor.shared.table) {
            self.shared.untold.inherit(&predecessor.shared.untold);
        } else if predecessor.has_untold() {
            self.shared.untold.add_everything();
        }
        self.shared.left_untold.notify_one();
    }

    /// Keeps an answer that its source was asked for at `asked_at`, in place of the one before. It is not kept if one of its names
    /// was purged since.
    ///
    /// # Errors
    /// If Postgres can't be told, or the tables can't be made.
    pub async fn store(
        &self,
        id: [u8; 32],
        names: &[PurgeName],
        record: Bytes,
        asked_at: Instant,
    ) -> Result<(), PostgresError> {
        self.shared.made_and_told().await?;
        self.shared.noticing(self.shared.table.store(id, names, record, asked_at).await)
    }

    /// The last good answer, if there is one.
    ///
    /// # Errors
    /// If Postgres can't be asked, or does not know of all purges yet.
    pub async fn load(&self, id: [u8; 32]) -> Result<Option<Bytes>, PostgresError> {
        self.shared.made_and_told().await?;
        self.shared.noticing(self.shared.table.load(id).await)
    }

    /// Forgets the answers that bear one of these names: from now on none of them is loaded. What it returns tells Postgres.
    ///
    /// # Errors
    /// If Postgres can't be told now. It will be.
    pub fn forget(&self, names: &[PurgeName]) -> impl Future<Output = Result<(), PostgresError>> + use<> {
        self.shared.untold.add(names);
        Arc::clone(&self.shared).tell()
    }

    /// A write passed for which this version of the policy names nothing. Postgres is told soon, of many at once, and before
    /// anything is loaded or stored by this pod.
    pub fn note_unnamed_write(&self) {
        self.shared.untold.add(&[PurgeName::unnamed_write()]);
        self.shared.left_untold.notify_one();
    }

    /// Forgets all answers of the policy: from now on none of them is loaded. What it returns tells Postgres.
    ///
    /// # Errors
    /// If Postgres can't be told now. It will be.
    pub fn forget_everything(&self) -> impl Future<Output = Result<(), PostgresError>> + use<> {
        self.shared.untold.add_everything();
        Arc::clone(&self.shared).tell()
    }
}

impl Shared {
    async fn tell_again(self: Arc<Self>) {
        loop {
            self.left_untold.notified().await;
            while !self.untold.is_empty() {
                sleep(RETRY_INTERVAL).await;
                if let Err(error) = self.made_and_told().await {
                    tracing::debug!(%error, "postgres does not know of all purges");
                }
            }
        }
    }

    async fn tell(self: Arc<Self>) -> Result<(), PostgresError> {
        let outcome = self.made_and_told().await;
        if outcome.is_err() {
            self.left_untold.notify_one();
        }
        outcome
    }

    /// Sees to it that the tables are there and Postgres knows of all purges.
    async fn made_and_told(&self) -> Result<(), PostgresError> {
        self.noticing(self.table.make().await)?;
        if self.untold.is_empty() {
            return Ok(());
        }
        let failures = self.failures.load(Ordering::Acquire);
        let _telling = self.telling.lock().await;
        let Some(told) = self.untold.snapshot() else { return Ok(()) };
        // Whoever told before us tried in vain: many who wait must not each wait as long.
        if self.failures.load(Ordering::Acquire) != failures {
            return Err(PostgresError::Untold);
        }
        let outcome = self.table.forget(told.names()).await;
        match &outcome {
            Ok(()) => self.untold.remove(&told),
            Err(_) => {
                self.failures.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.noticing(outcome)
    }

    /// Says once what an administrator must do.
    fn noticing<T>(&self, outcome: Result<T, PostgresError>) -> Result<T, PostgresError> {
        if let Err(error @ PostgresError::NoTable(_)) = &outcome
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "the last good answers can't be kept");
        }
        outcome
    }
}
