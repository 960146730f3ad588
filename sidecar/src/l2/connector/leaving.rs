//! A connection that is exchanged for another, to another Redis, it may be.

use std::sync::Arc;

use anyhow::Context;
use tokio::time::timeout;

use super::{
    super::generation::Mark, Barriers, CONNECT_DEADLINE, CatchingUp, Connector, JOIN_TIMEOUT, Link,
    Replacement, Secrets, Session, State, Version, commands,
};

impl Connector {
    /// A link of its own to the server that these secrets lead to, which is about to be left.
    pub(super) fn link_to_left(&self, secrets: Secrets) -> Arc<Link> {
        let State { grace, spec, resolver, name, version, .. } = &*self.state;
        let barriers = Arc::new(Barriers::shared(*grace));
        let version = Version::new(version.name(), name.clone(), Arc::clone(&barriers));
        let state =
            Arc::new(State::new((spec.clone(), resolver.clone()), name.clone(), version, barriers, *grace));
        state.reload.take(secrets);
        state.mark_left();
        // Purges that this link could not tell there go to the other Redis now, and are to be told there all the same.
        state.inherit(&self.state);
        Self::new(state, Arc::default(), None).run()
    }

    /// Goes on with a link to a server that is left.
    pub(super) fn leave(&self, left: Arc<Link>) {
        self.formers.add(left, &self.as_successor(), self.state.version.name());
    }

    /// Opens a session beside the one that there is with the server of this mark. If it is with another server, or another database of it,
    /// there is a link to the first before it is left: no purge is missed in between.
    pub(super) async fn open_beside(&self, secrets: &Secrets, mark: Mark) -> anyhow::Result<Replacement> {
        let mut session = self.open(secrets).await?;
        let is_same = session.connection.mark() == mark
            && timeout(CONNECT_DEADLINE, commands::generation(&mut session.connection, &self.state.name))
                .await
                .context("reading the generation")??
                == Some(self.state.generation());
        let in_use = self.state.reload.in_use().filter(|_| !is_same);
        let left = in_use.map(|in_use| self.link_to_left(in_use));
        if let Some(left) = &left {
            // Without it goes on, too: then everything is stale when it is there.
            let _ = timeout(JOIN_TIMEOUT, left.first_connection()).await;
        }
        Ok(Replacement { session, left })
    }

    /// Catches up with what was opened beside the connection that there is.
    pub(super) async fn exchange(&self, opened: anyhow::Result<Replacement>) -> anyhow::Result<Session> {
        let Replacement { mut session, left } = opened?;
        anyhow::ensure!(!self.state.is_left(), "this Redis was left for another");
        // From now on, until it has caught up, both hear of what is purged at the server that is left.
        left.inspect(|left| self.leave(Arc::clone(left)));
        if let Err(error) = self.catch_up(&mut session, CatchingUp::Moved).await {
            // The server goes on being used: its second link is not a former one.
            if let Some(server) = self.state.server() {
                self.formers.end_at(&server);
            }
            return Err(error);
        }
        Ok(session)
    }
}
