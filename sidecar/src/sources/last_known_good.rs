//! Last known good responses, in a table in Postgres.

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

/// Interval of attempts to forward pending purges to Postgres.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The last known good responses of a policy, in a table in Postgres that outlives Redis and every pod.
///
/// Guarantees: a purged response is not loaded again. A purge that could not be sent to Postgres is remembered by this
/// pod and sent before anything is loaded or stored; until then, loading fails. No pod stores a response that was
/// requested before a purge of one of its names. A purge under one version of the policy, and a write for which a
/// version names nothing, covers all responses that were stored under other versions, because their names may differ.
///
/// Assumptions: the clock of Postgres is not set back, and a purge that was not sent to Postgres before the pod ended
/// is known otherwise (Redis).
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
    /// Held while purges are sent to Postgres.
    telling: tokio::sync::Mutex<()>,
    /// Number of failed attempts.
    failures: AtomicU64,
    left_untold: Notify,
    complained: AtomicBool,
}

impl LastKnownGood {
    /// Creates the table of a policy, such as `shop/shop`, in a database that several policies may share. The database
    /// tables are created on first use.
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

    /// Returns true if it belongs to this version of this policy in this source.
    pub fn is_of(&self, source: &Arc<PostgresSource>, policy: &str, version: PurgeName) -> bool {
        Arc::ptr_eq(&self.shared.source, source) && self.shared.table.is_of(policy, version)
    }

    /// Returns true if purges or writes are still to be sent to Postgres.
    pub fn has_untold(&self) -> bool {
        !self.shared.untold.is_empty()
    }

    /// Takes over the pending purges of a predecessor. If that belonged to another version of the policy, they cover
    /// everything.
    pub fn inherit(&self, predecessor: &Self) {
        if self.shared.table.is_of_version_of(&predecessor.shared.table) {
            self.shared.untold.inherit(&predecessor.shared.untold);
        } else if predecessor.has_untold() {
            self.shared.untold.add_everything();
        }
        self.shared.left_untold.notify_one();
    }

    /// Stores a response that was requested at `asked_at`, replacing the previous one, unless one of its names was
    /// purged since.
    ///
    /// # Errors
    /// If Postgres fails, or the tables can't be created.
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

    /// Loads the last known good response, if there is one.
    ///
    /// # Errors
    /// If Postgres fails, or does not know all purges yet.
    pub async fn load(&self, id: [u8; 32]) -> Result<Option<Bytes>, PostgresError> {
        self.shared.made_and_told().await?;
        self.shared.noticing(self.shared.table.load(id).await)
    }

    /// Forgets the responses with one of these names: none of them is loaded from now on. The returned future informs
    /// Postgres.
    ///
    /// # Errors
    /// If Postgres can't be informed now. It is informed later.
    pub fn forget(&self, names: &[PurgeName]) -> impl Future<Output = Result<(), PostgresError>> + use<> {
        self.shared.untold.add(names);
        Arc::clone(&self.shared).tell()
    }

    /// Records a write for which this version of the policy names nothing. Postgres is informed soon, of many writes at
    /// once, and before this pod loads or stores anything.
    pub fn note_unnamed_write(&self) {
        self.shared.untold.add(&[PurgeName::unnamed_write()]);
        self.shared.left_untold.notify_one();
    }

    /// Forgets all responses of the policy: none of them is loaded from now on. The returned future informs Postgres.
    ///
    /// # Errors
    /// If Postgres can't be informed now. It is informed later.
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
                    tracing::debug!(%error, "postgres does not have all purges yet");
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

    /// Ensures that the tables exist and Postgres knows all purges.
    async fn made_and_told(&self) -> Result<(), PostgresError> {
        self.noticing(self.table.make().await)?;
        if self.untold.is_empty() {
            return Ok(());
        }
        let failures = self.failures.load(Ordering::Acquire);
        let _telling = self.telling.lock().await;
        let Some(told) = self.untold.snapshot() else { return Ok(()) };
        // The previous holder of the lock has failed: waiting tasks must not each try for as long.
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

    /// Logs once which action an administrator must take.
    fn noticing<T>(&self, outcome: Result<T, PostgresError>) -> Result<T, PostgresError> {
        if let Err(error @ PostgresError::NoTable(_)) = &outcome
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "could not store last known good responses");
        }
        outcome
    }
}
