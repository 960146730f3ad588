//! Notifications, whose payloads name what to purge.

use std::convert::Infallible;

use larder_api::admin::PurgeRequest;
use larder_policy::spec::Notifications;
use tokio::time::{MissedTickBehavior, interval};

use super::{CHECK_INTERVAL, Follower};
use crate::{
    purge::document,
    sources::postgres::session::{Overflow, Session},
};

/// Maximum length of the part of a malformed payload that is logged, in characters.
const MAX_LOGGED: usize = 200;

impl Follower {
    /// Listens on a channel until that fails.
    pub(super) async fn listen(&self, spec: &Notifications) -> anyhow::Result<Infallible> {
        let mut session = self.lead().await?;
        session.listen(&spec.channel).await?;
        // What was notified before nobody heard.
        self.purge_everything().await?;
        self.feed.follows(None);
        tracing::info!(feed = self.feed.name(), channel = spec.channel, "listening for notifications");
        let Err(error) = self.hear_all(&mut session).await;
        self.hear_rest(&mut session).await;
        if error.is::<Overflow>() {
            self.purge_everything().await?;
        }
        Err(error)
    }

    async fn hear_all(&self, session: &mut Session) -> anyhow::Result<Infallible> {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                payloads = session.next() => self.hear(&payloads?).await?,
                _ = ticks.tick() => {
                    self.ensure_current(session)?;
                    session.probe().await?;
                }
            }
        }
    }

    /// Purges what had come before listening ended: until it begins again, nothing else would.
    async fn hear_rest(&self, session: &mut Session) {
        loop {
            match session.arrived() {
                Ok(payloads) if payloads.is_empty() => return,
                // What Redis could not be told is told later.
                Ok(payloads) => drop(self.hear(&payloads).await),
                Err(error) if error.is::<Overflow>() => return drop(self.purge_everything().await),
                Err(_) => return,
            }
        }
    }

    async fn hear(&self, payloads: &[String]) -> anyhow::Result<()> {
        let requests: Vec<_> = payloads.iter().map(|payload| self.request_of(payload)).collect();
        self.purge(|policy| {
            let mut names: Vec<_> =
                requests.iter().flat_map(|request| document::names_of(request, policy)).collect();
            names.sort();
            names.dedup();
            names
        })
        .await
    }

    /// Returns what a payload names: everything, if it can't be read, because something has changed.
    fn request_of(&self, payload: &str) -> PurgeRequest {
        document::parse(payload).unwrap_or_else(|error| {
            let payload: String = payload.chars().take(MAX_LOGGED).collect();
            let feed = self.feed.name();
            tracing::error!(
                feed,
                error,
                payload,
                "a notification names nothing that can be purged; purging everything"
            );
            self.telemetry.stats.malformed_notification();
            PurgeRequest { everything: true, ..PurgeRequest::default() }
        })
    }
}
