//! Following of feeds: what Postgres tells of changes is purged.
//!
//! # Guarantees
//! - Nothing that a feed has told, or may have told in a gap, stays unpurged once the feed is followed again: listening begins first, and
//!   everything that it could name is purged then.
//! - Where pods share a Redis, one of them follows, the one with a lock in Postgres. It leaves the lock to others when it can't tell Redis.
//!
//! # Assumptions
//! - Nothing is purged while no pod follows. Its state says so ([`Feed::last_error`]), also where a stranger has the lock.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use larder_policy::{Policy, PurgeName, policy::Purges};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::ConfigWatcher,
    feed::{Feed, Kind},
    peers::Peers,
    purge::{Purged, Purging},
    sources::postgres::session::Session,
    stats::PurgeOrigin,
    telemetry::Telemetry,
};

mod changes;
mod notifications;

/// Interval at which the policy is looked at for other feeds, the server is probed, and a lock is tried.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Number of attempts to take a lock after which its holder is looked at again. That takes each partition of the server's table of locks.
const HOLDER_CHECKS: u32 = 10;

/// First and longest wait before a feed that failed is followed again.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Follows the feeds of the policy in force until the process ends.
pub async fn follow(config: Arc<ConfigWatcher>, peers: Option<Arc<Peers>>, telemetry: Arc<Telemetry>) {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running: Vec<(Arc<Feed>, AbortOnDropHandle<()>)> = Vec::new();
    loop {
        ticks.tick().await;
        let snapshot = config.snapshot();
        let is_wanted = |feed: &Arc<Feed>| snapshot.feeds.iter().any(|wanted| Arc::ptr_eq(wanted, feed));
        running.retain(|(feed, task)| is_wanted(feed) && !task.is_finished());
        for feed in &snapshot.feeds {
            if !running.iter().any(|(known, _)| Arc::ptr_eq(known, feed)) {
                let follower = Follower {
                    feed: Arc::clone(feed),
                    config: Arc::clone(&config),
                    peers: peers.clone(),
                    telemetry: Arc::clone(&telemetry),
                };
                let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
                running.push((Arc::clone(feed), task));
            }
        }
    }
}

/// A feed, and the cache that it purges.
struct Follower {
    feed: Arc<Feed>,
    config: Arc<ConfigWatcher>,
    peers: Option<Arc<Peers>>,
    telemetry: Arc<Telemetry>,
}

impl Follower {
    async fn run(self) {
        let [first, longest] = RETRY;
        let mut wait = first;
        loop {
            let began = Instant::now();
            let Err(error) = self.follow().await;
            let reason = format!("{error:#}");
            if self.feed.is_down(reason.clone()) {
                tracing::error!(
                    feed = self.feed.name(),
                    error = reason,
                    "changes in postgres are not heard; nothing is purged by them until they are"
                );
            }
            wait = if began.elapsed() > longest { first } else { (wait * 2).min(longest) };
            sleep(wait.mul_f32(0.5 + fastrand::f32() / 2.0)).await;
        }
    }

    async fn follow(&self) -> anyhow::Result<Infallible> {
        match self.feed.kind() {
            Kind::Notifications(spec) => self.listen(spec).await,
            Kind::Changes(spec) => self.replicate(spec).await,
        }
    }

    /// Opens a session with the server, and waits until this pod is the one that follows.
    async fn lead(&self) -> anyhow::Result<Session> {
        let session = self.feed.source().session().await?;
        let mut attempts = 0_u32;
        loop {
            let snapshot = self.config.snapshot();
            if snapshot.store.l2.is_none() {
                return Ok(session);
            }
            let generation = snapshot.store.barriers.stamp().generation;
            ensure!(generation != 0, "redis, which passes purges on to other pods, was not reached yet");
            let key = self.feed.lock_key(generation);
            if session.try_lock(key).await? {
                return Ok(session);
            }
            if attempts.is_multiple_of(HOLDER_CHECKS)
                && let Some(stranger) = session.stranger_with(key).await?
            {
                bail!(
                    "a session that belongs to no pod of this policy has the lock by which one of them is chosen: {stranger}; \
                     end it with pg_terminate_backend"
                );
            }
            attempts += 1;
            self.feed.waits();
            sleep(CHECK_INTERVAL).await;
            self.ensure_current(&session)?;
        }
    }

    fn ensure_current(&self, session: &Session) -> anyhow::Result<()> {
        ensure!(self.feed.source().is_current(session), "the URL or the CA has changed; connecting anew");
        Ok(())
    }

    /// Purges in every pod.
    ///
    /// # Errors
    /// If Redis could not be told. This pod tells it later; meanwhile another one, which can, purges what this one could name.
    async fn purge(&self, names: impl Fn(&Policy) -> Vec<PurgeName>) -> anyhow::Result<()> {
        let (peers, stats) = (self.peers.as_deref(), &*self.telemetry.stats);
        let purging = Purging { config: &self.config, peers, stats };
        match purging.on_request(names, PurgeOrigin::Postgres).await.progress {
            Purged::Everywhere(_) | Purged::Here(_) => Ok(()),
            Purged::Pending(error) => bail!("redis could not be told of a purge: {error}"),
        }
    }

    async fn purge_everything(&self) -> anyhow::Result<()> {
        let names = Purges { everything: true, ..Purges::default() }.names();
        self.purge(|_| names.clone()).await
    }
}
