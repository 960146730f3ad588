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
mod unsent;

use self::{table::Table, unsent::UnsentPurges};
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
    unsent: UnsentPurges,
    /// Held while purges are sent to Postgres.
    sending: tokio::sync::Mutex<()>,
    /// Number of failed attempts.
    failures: AtomicU64,
    left_unsent: Notify,
    complained: AtomicBool,
}

impl LastKnownGood {
    /// Creates the table of a policy, such as `shop/shop`, in a database that several policies may share. The database
    /// tables are created on first use.
    pub fn new(source: Arc<PostgresSource>, policy: String, version: PurgeName) -> Self {
        let shared = Arc::new(Shared {
            table: Table::new(Arc::clone(&source), policy, version),
            source,
            unsent: UnsentPurges::default(),
            sending: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
            left_unsent: Notify::new(),
            complained: AtomicBool::new(false),
        });
        let teller = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).send_again()));
        Self { shared, _teller: teller }
    }

    /// Returns true if it belongs to this version of this policy in this source.
    pub fn is_of(&self, source: &Arc<PostgresSource>, policy: &str, version: PurgeName) -> bool {
        Arc::ptr_eq(&self.shared.source, source) && self.shared.table.is_of(policy, version)
    }

    /// Returns true if purges or writes are still to be sent to Postgres.
    pub fn has_unsent(&self) -> bool {
        !self.shared.unsent.is_empty()
    }

    /// Takes over the pending purges of a predecessor. If that belonged to another version of the policy, they cover
    /// everything.
    pub fn inherit(&self, predecessor: &Self) {
        if self.shared.table.is_of_version_of(&predecessor.shared.table) {
            self.shared.unsent.inherit(&predecessor.shared.unsent);
        } else if predecessor.has_unsent() {
            self.shared.unsent.add_everything();
        }
        self.shared.left_unsent.notify_one();
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
        self.shared.made_and_sent().await?;
        self.shared.noticing(self.shared.table.store(id, names, record, asked_at).await)
    }

    /// Loads the last known good response, if there is one.
    ///
    /// # Errors
    /// If Postgres fails, or does not know all purges yet.
    pub async fn load(&self, id: [u8; 32]) -> Result<Option<Bytes>, PostgresError> {
        self.shared.made_and_sent().await?;
        self.shared.noticing(self.shared.table.load(id).await)
    }

    /// Forgets the responses with one of these names: none of them is loaded from now on. The returned future informs
    /// Postgres.
    ///
    /// # Errors
    /// If Postgres can't be informed now. It is informed later.
    pub fn forget(&self, names: &[PurgeName]) -> impl Future<Output = Result<(), PostgresError>> + use<> {
        self.shared.unsent.add(names);
        Arc::clone(&self.shared).send()
    }

    /// Records a write for which this version of the policy names nothing. Postgres is informed soon, of many writes at
    /// once, and before this pod loads or stores anything.
    pub fn note_unnamed_write(&self) {
        self.shared.unsent.add(&[PurgeName::unnamed_write()]);
        self.shared.left_unsent.notify_one();
    }

    /// Forgets all responses of the policy: none of them is loaded from now on. The returned future informs Postgres.
    ///
    /// # Errors
    /// If Postgres can't be informed now. It is informed later.
    pub fn forget_everything(&self) -> impl Future<Output = Result<(), PostgresError>> + use<> {
        self.shared.unsent.add_everything();
        Arc::clone(&self.shared).send()
    }
}

impl Shared {
    async fn send_again(self: Arc<Self>) {
        loop {
            self.left_unsent.notified().await;
            while !self.unsent.is_empty() {
                sleep(RETRY_INTERVAL).await;
                if let Err(error) = self.made_and_sent().await {
                    tracing::debug!(%error, "postgres does not have all purges yet");
                }
            }
        }
    }

    async fn send(self: Arc<Self>) -> Result<(), PostgresError> {
        let outcome = self.made_and_sent().await;
        if outcome.is_err() {
            self.left_unsent.notify_one();
        }
        outcome
    }

    /// Ensures that the tables exist and Postgres knows all purges.
    async fn made_and_sent(&self) -> Result<(), PostgresError> {
        self.noticing(self.table.make().await)?;
        if self.unsent.is_empty() {
            return Ok(());
        }
        let failures = self.failures.load(Ordering::Acquire);
        let _sending = self.sending.lock().await;
        let Some(batch) = self.unsent.batch() else { return Ok(()) };
        // The previous holder of the lock has failed: waiting tasks must not each try for as long.
        if self.failures.load(Ordering::Acquire) != failures {
            return Err(PostgresError::UnsentPurges);
        }
        let outcome = self.table.forget(batch.names()).await;
        match &outcome {
            Ok(()) => self.unsent.remove(&batch),
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
