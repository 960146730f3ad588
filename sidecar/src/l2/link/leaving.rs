//! A link whose Redis is left for another, and one to which purges come that were heard of at a Redis that was left.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use larder_policy::PurgeName;
use tokio::time::timeout;

use super::{
    super::{
        PURGE_DEADLINE,
        catch_up::CatchingUp,
        commands::{self, Telling},
        connection::{Secrets, Server},
        former::{Formers, HandedOver, Heir},
        generation::Mark,
        reload::Newest,
        versions::Version,
    },
    JOIN_TIMEOUT, Link, Session, State,
};
use crate::barriers::Barriers;

/// A session that was opened beside the one that there is.
pub(super) struct Beside {
    session: Session,
    /// A link to the server that would be left by taking it.
    left: Option<Arc<Link>>,
}

impl Link {
    /// Returns the server that this is, or was last, connected with.
    pub(in crate::l2) fn server(&self) -> Option<Server> {
        self.state.server()
    }

    /// The Redis is left for that of another link, or for none. It goes on with the secrets as they are.
    pub(in crate::l2) fn lead_to(&self, heir: Heir) {
        self.state.is_left.store(true, Ordering::Release);
        self.state.succession.lead_to(heir);
    }

    /// The order of purges that took the place of this one.
    pub(in crate::l2) fn heir(&self) -> Option<Arc<Heir>> {
        self.state.succession.heir()
    }

    /// The version of the policy that this pod served by there.
    pub(in crate::l2) fn version(&self) -> Arc<Version> {
        Arc::clone(&self.state.version)
    }

    /// Another version of the policy in the list of those that pods serve by there.
    pub(in crate::l2) fn another_version(&self, name: PurgeName) -> Arc<Version> {
        Version::new(name, self.state.name.clone(), Arc::clone(&self.state.barriers))
    }

    /// The generation in which purges are counted there; 0: it is not known.
    pub(in crate::l2) fn generation(&self) -> u64 {
        self.state.barriers.stamp().generation
    }

    /// Returns how long what is in memory is trusted without proof.
    pub(in crate::l2) fn grace(&self) -> Duration {
        self.state.grace
    }

    /// The server that counts purges, while it is connected.
    pub(in crate::l2) fn mark(&self) -> Option<Mark> {
        self.state.mark()
    }

    /// Returns true if every pod that is there has left, too; `None`: it can't be asked, or does not say.
    pub(in crate::l2) async fn have_all_left(&self) -> Option<bool> {
        let mut connection = self.connection()?;
        let asked = commands::have_all_left(&mut connection, &self.state.name);
        timeout(PURGE_DEADLINE, asked).await.ok()?.ok()
    }

    /// Raises barriers at a Redis that was left, and waits until each pod there has them, as for a purge of its own. What it can't be told
    /// now it is told as soon as it is there.
    ///
    /// `version` is that of the policy whose names these are, `told` the Redis that is told of them too.
    pub(in crate::l2) async fn tell(&self, version: PurgeName, names: &[PurgeName], told: &[PurgeName]) {
        let meant = self.state.meant(version, names);
        self.will_tell(&meant);
        let telling = async {
            let mut connection = self.connection()?;
            let asker = connection.asker();
            let telling = Telling { asker, version, names, told, origin: "" };
            let ordered = commands::purge(&mut connection, &self.state.name, telling).await.ok()?;
            if let Some((generation, order, pods)) = ordered {
                if !self.state.barriers.ordered(generation, order, names) {
                    self.state.raise_and_remember(&meant);
                }
                self.acknowledgements().wait_for(asker, order, pods).await;
            }
            Some(())
        };
        if timeout(PURGE_DEADLINE, telling).await.ok().flatten().is_none() {
            self.state.raise_and_remember(&meant);
        }
    }

    /// Tells this Redis soon of a purge that another has ordered.
    pub(in crate::l2) fn hand_over(&self, handed: HandedOver) {
        self.state.hand_over(handed);
    }
}

impl State {
    pub(super) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }

    /// Returns the server that this is, or was last, connected with.
    pub(in crate::l2) fn server(&self) -> Option<Server> {
        self.reload.in_use().map(|secrets| Server::new(secrets, &self.spec))
    }

    pub(super) fn newest(&self) -> Newest {
        match self.reload.in_use().filter(|_| self.is_left()) {
            Some(in_use) => Ok(in_use),
            None => Secrets::read(&self.spec).map_err(|error| format!("{error:#}")),
        }
    }

    pub(super) fn as_heir(&self) -> Heir {
        Heir::Link(self.me.clone())
    }

    /// The generation in which purges are counted here; 0: it is not known.
    pub(in crate::l2) fn generation(&self) -> u64 {
        self.barriers.stamp().generation
    }

    /// The server that counts purges, while it is connected.
    pub(in crate::l2) fn mark(&self) -> Option<Mark> {
        self.connection.load().as_deref().map(|connection| connection.mark())
    }

    /// The version of the policy whose names this pod purges.
    pub(in crate::l2) fn version(&self) -> PurgeName {
        self.version.name()
    }

    /// Names of another version as they may be meant under that of this link: whatever is stored under it.
    pub(super) fn meant(&self, version: PurgeName, names: &[PurgeName]) -> Vec<PurgeName> {
        let own = (version != self.version.name()).then(|| self.version.name());
        names.iter().copied().chain(own).collect()
    }

    /// A link of its own to the server that these secrets lead to, which is about to be left.
    pub(super) fn link_to_left(&self, secrets: Secrets) -> Arc<Link> {
        let barriers = Arc::new(Barriers::shared(self.grace));
        let version = Version::new(self.version.name(), self.name.clone(), Arc::clone(&barriers));
        let formers = Arc::new(Formers::default());
        let state =
            Self::new(self.spec.clone(), self.name.clone(), version, barriers, self.grace, None, formers);
        state.reload.take(secrets);
        state.is_left.store(true, Ordering::Release);
        // Purges that this link could not tell there go to the other Redis now, and are to be told there all the same.
        state.inherit(self);
        Link::run(state)
    }

    /// Goes on with a link to a server that is left.
    pub(super) fn leave(&self, left: Arc<Link>) {
        self.succession.formers.add(left, &self.as_heir(), self.version.name());
    }

    /// Opens a session beside the one that there is with the server of this mark. If it is another server, there is a link to the first
    /// before it is left: no purge is missed in between.
    pub(super) async fn open_beside(&self, secrets: &Secrets, mark: Mark) -> anyhow::Result<Beside> {
        let session = self.open(secrets).await?;
        let in_use = self.reload.in_use().filter(|_| session.connection.mark() != mark);
        let left = in_use.map(|in_use| self.link_to_left(in_use));
        if let Some(left) = &left {
            // Without it goes on, too: then everything is stale when it is there.
            let _ = timeout(JOIN_TIMEOUT, left.first_connection()).await;
        }
        Ok(Beside { session, left })
    }

    /// Catches up with what was opened beside the connection that there is.
    pub(super) async fn exchange(&self, opened: anyhow::Result<Beside>) -> anyhow::Result<Session> {
        let Beside { mut session, left } = opened?;
        anyhow::ensure!(!self.is_left(), "this Redis was left for another");
        // From now on, until it has caught up, both hear of what is purged at the server that is left.
        left.inspect(|left| self.leave(Arc::clone(left)));
        if let Err(error) = self.catch_up(&mut session, CatchingUp::Moved).await {
            // The server goes on being used: its second link is not a former one.
            if let Some(server) = self.server() {
                self.succession.formers.end_at(&server);
            }
            return Err(error);
        }
        Ok(session)
    }

    /// Raises barriers that another Redis has ordered, and tells this one of them soon.
    pub(in crate::l2) fn hand_over(&self, handed: HandedOver) {
        let names = self.meant(handed.version, &handed.names);
        self.told.add(&names, self.barriers.known_until());
        let up_to = self.barriers.raise_locally(&names);
        if !self.outbox.push(handed, up_to) {
            self.make_up_for(None);
        }
    }

    /// Raises barriers of purges that this Redis may not know, and tells it of them; `None`: on everything.
    pub(in crate::l2) fn make_up_for(&self, missed: Option<Vec<PurgeName>>) {
        let now = self.barriers.known_until();
        match missed {
            Some(names) if names.is_empty() => {}
            Some(names) => {
                self.told.add(&names, now);
                self.raise_and_remember(&names);
            }
            None => {
                self.told.add_everything(now);
                self.raise_on_everything();
            }
        }
    }

    pub(super) async fn tell_what_is_handed_over(self: Arc<Self>) {
        loop {
            let handed = self.outbox.next().await;
            let told = handed.iter().map(|(handed, up_to)| self.pass_on(handed, *up_to));
            futures::future::join_all(told).await;
        }
    }

    async fn pass_on(&self, handed: &HandedOver, up_to: u64) {
        let HandedOver { version, names, told, origin } = handed;
        let telling = async {
            let mut connection = self.connection.load().as_deref().cloned()?;
            let telling = Telling { asker: 0, version: *version, names, told: &[*told], origin };
            let ordered = commands::purge(&mut connection, &self.name, telling).await.ok()?;
            let (generation, order, _) = ordered?;
            self.barriers.ordered(generation, order, names).then_some(())
        };
        let meant = self.meant(*version, names);
        match timeout(PURGE_DEADLINE, telling).await.ok().flatten() {
            Some(()) => self.barriers.settle(&meant, up_to),
            None => self.raise_and_remember(&meant),
        }
    }
}
