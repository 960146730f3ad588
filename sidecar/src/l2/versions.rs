//! The versions of a policy that pods serve by, one after another and at the same time.
//!
//! Names of purges mean something under one version of a policy alone: tags are renamed, rules of `onWrite` come and go. So every
//! stored response bears the name of the version that it was stored under ([`PurgeName::version`]), and Redis lists the
//! versions that pods serve by now.
//!
//! # Guarantees
//! - A purge that is ordered by a pod of one version covers all that was stored before under the others: the script that orders it
//!   raises a barrier on each version in the list.
//! - A write for which a version names nothing does the same, as long as other versions are in the list.
//! - A version that begins to be served by, or does so again after it had left the list, begins with nothing: a barrier on
//!   its own name covers what is left from before. So no response outlives a time in which nobody cared for it.
//! - A version that joins others is heard of by their pods within [`INTERVAL`]. Writes in between for which they name nothing are
//!   covered by a second barrier, [`OVERLAP`] after it began.
//!
//! # Assumptions
//! A pod that is connected to Redis says within [`PRESENCE`] that it is there, or finds out that its version has left the list: each
//! lookup sees the list. Whenever it has read all barriers it lists its version, before requests use the connection.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use larder_policy::PurgeName;
use redis::RedisResult;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    commands::{self, Listed},
    connection::Connection,
    link::Link,
};

/// How often a pod says which version it serves by, and hears of others.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a version stays in the list without a pod.
const PRESENCE: Duration = Duration::from_secs(30);
/// How long after it joined others a version begins once more: by then their pods know of it.
const OVERLAP: Duration = Duration::from_secs(3);
/// How long Redis may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The version of a policy that a pod serves by, and what the pod knows of others.
#[derive(Debug)]
pub(super) struct Version {
    name: PurgeName,
    /// The key of the barriers.
    barriers: String,
    is_listed: AtomicBool,
    /// Pods serve by other versions, or may do so.
    has_others: AtomicBool,
    /// When it begins once more.
    again_at: Mutex<Option<Instant>>,
    /// How many writes pods of other versions are to be told of.
    owed: AtomicU64,
    wake: Notify,
}

impl Version {
    /// A version of the policy whose barriers are under that key. Nothing is known of others yet.
    pub(super) fn new(name: PurgeName, barriers: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            barriers,
            is_listed: AtomicBool::new(false),
            has_others: AtomicBool::new(true),
            again_at: Mutex::default(),
            owed: AtomicU64::new(0),
            wake: Notify::new(),
        })
    }

    /// The name that everything bears which is stored under it.
    pub(super) const fn name(&self) -> PurgeName {
        self.name
    }

    /// Whether Redis lists it, as far as is known.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    /// Redis does not list it.
    pub(super) fn is_missing(&self) {
        self.is_listed.store(false, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether pods serve by other versions, or may do so.
    pub(super) fn has_others(&self) -> bool {
        self.has_others.load(Ordering::Acquire)
    }

    /// Pods of other versions could not be told of a write. They will be.
    pub(super) fn owe(&self) {
        self.owed.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// Whether there are writes that pods of other versions could not be told of.
    pub(super) fn owes(&self) -> bool {
        self.owed.load(Ordering::Acquire) > 0
    }

    /// Puts it into the list, and keeps it there as long as the handle lives.
    pub(super) fn keep_listed(self: Arc<Self>, link: Arc<Link>) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let listing = timeout(TIMEOUT, async {
                    let Some(mut connection) = link.connection() else { return false };
                    let listed = self.list(&mut connection).await;
                    let told = self.pay(&mut connection).await;
                    listed
                        .and(told)
                        .inspect_err(|error| tracing::debug!(%error, "no version is listed"))
                        .is_ok()
                });
                if !listing.await.unwrap_or(false) {
                    // Who can't be asked may have others.
                    self.has_others.store(true, Ordering::Release);
                }
                tokio::select! {
                    () = sleep(INTERVAL) => {}
                    () = self.wake.notified() => {}
                }
            }
        }))
    }

    /// Puts it into the list, and hears of others.
    ///
    /// # Errors
    /// If Redis is unwilling.
    pub(super) async fn list(&self, connection: &mut Connection) -> RedisResult<()> {
        let again_at = *self.again_at.lock().unwrap_or_else(PoisonError::into_inner);
        let again = again_at.is_some_and(|at| Instant::now() >= at);
        let Listed { begins, others } =
            commands::list(connection, &self.barriers, self.name, PRESENCE, again).await?;
        if begins || again {
            let next = (begins && others > 0).then(|| Instant::now() + OVERLAP);
            *self.again_at.lock().unwrap_or_else(PoisonError::into_inner) = next;
        }
        self.has_others.store(others > 0, Ordering::Release);
        self.is_listed.store(true, Ordering::Release);
        Ok(())
    }

    /// Tells pods of other versions of the writes that they could not be told of.
    async fn pay(&self, connection: &mut Connection) -> RedisResult<()> {
        let owed = self.owed.load(Ordering::Acquire);
        if owed > 0 {
            commands::purge(connection, &self.barriers, 0, self.name, &[]).await?;
            self.owed.fetch_sub(owed, Ordering::AcqRel);
        }
        Ok(())
    }
}
