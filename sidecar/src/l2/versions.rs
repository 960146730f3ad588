//! The versions of a policy that pods serve by, one after another and at the same time.
//!
//! Names of purges mean something under one version of a policy alone: tags are renamed, rules of `onWrite` come and go. So every
//! stored response bears the name of the version that it was stored under ([`PurgeName::version`]), and Redis lists the
//! versions that pods serve by now.
//!
//! # Guarantees
//! - A purge that is ordered by a pod of one version covers all that was stored before under the others: the script that orders it
//!   raises a barrier on each version in the list.
//! - A write for which a version names nothing does the same: each asks Redis for the list, and orders a purge without names if
//!   other versions are in it. A version that is not in it yet begins after the write.
//! - A version that begins to be served by, or does so again after no pod was heard of for [`PRESENCE`], begins with nothing: a
//!   barrier on its own name covers what is left from before. So no response outlives a time in which no pod cared for it. A pod that
//!   was cut off from Redis for so long goes on with what is stored: it tells Redis of its purges since.
//! - No proof of trust in the bus is taken over a time in which the version was not in the list: each probe asks for that too.
//!
//! # Assumptions
//! A pod that is connected to Redis says within [`PRESENCE`] that it is there, or finds out that its version has left the list: each
//! lookup sees the list. Whenever it has read all barriers it lists its version, before requests use the connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use larder_policy::PurgeName;
use redis::RedisResult;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{commands, connection::Connection};
use crate::barriers::Barriers;

/// Time between two announcements of the version that a pod serves by.
const ANNOUNCEMENT_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a version stays in the list without a pod.
const PRESENCE: Duration = Duration::from_secs(30);
/// Time limit of Redis.
const LIST_TIMEOUT: Duration = Duration::from_secs(1);

/// The version of a policy that a pod serves by.
#[derive(Debug)]
pub(super) struct Version {
    name: PurgeName,
    /// The key of the barriers.
    key: String,
    barriers: Arc<Barriers>,
    is_listed: AtomicBool,
    /// This pod has had it in the list, and remembers its purges since.
    was_listed: AtomicBool,
    wake: Notify,
}

impl Version {
    /// A version of the policy whose barriers are under that key.
    pub(super) fn new(name: PurgeName, key: String, barriers: Arc<Barriers>) -> Arc<Self> {
        let (is_listed, was_listed) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { name, key, barriers, is_listed, was_listed, wake: Notify::new() })
    }

    /// The name that everything bears which is stored under it.
    pub(super) const fn name(&self) -> PurgeName {
        self.name
    }

    /// Returns true if Redis lists the version, as far as this pod knows.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    /// Redis does not list it.
    pub(super) fn is_missing(&self) {
        self.is_listed.store(false, Ordering::Release);
        self.wake.notify_one();
    }

    /// Puts it into the list over the connection that there is, and keeps it there as long as the handle lives.
    pub(super) fn keep_listed(
        self: Arc<Self>,
        connection: impl Fn() -> Option<Connection> + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                if let Some(mut connection) = connection() {
                    match timeout(LIST_TIMEOUT, self.list(&mut connection)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "the version is not listed"),
                        Err(_) => tracing::debug!("the version is not listed in time"),
                    }
                }
                tokio::select! {
                    () = sleep(ANNOUNCEMENT_INTERVAL) => {}
                    () = self.wake.notified() => {}
                }
            }
        }))
    }

    /// Puts it into the list. If it was not there, what was stored under it before is stale here when this returns.
    ///
    /// # Errors
    /// If Redis is unwilling.
    pub(super) async fn list(&self, connection: &mut Connection) -> RedisResult<()> {
        let was_listed = self.was_listed.load(Ordering::Acquire);
        let began = commands::list(connection, &self.key, self.name, PRESENCE, was_listed).await?;
        if let Some((generation, order)) = began {
            // Counted in another generation, it is read with all barriers.
            let _ = self.barriers.ordered(generation, order, &[self.name]);
        }
        self.is_listed.store(true, Ordering::Release);
        self.was_listed.store(true, Ordering::Release);
        Ok(())
    }
}
