//! The Redis that a pod has left for another, or for none, while other pods may still be there.
//!
//! A policy or a Secret that names another Redis reaches the pods one after another. Until the last has it, purges are told at both
//! and heard at both.
//!
//! # Guarantees
//! - A purge of this pod holds in each pod at a Redis that was left when it is acknowledged, as in those at its own.
//! - A purge that is heard at a Redis that was left holds in this pod before it is acknowledged there. This pod's own Redis is told
//!   of it soon. A purge by a pod that has never been at the former Redis is told there soon, too.
//! - Where a purge may have been missed at a Redis that was left, everything in this pod and its Redis is stale.
//! - A purge is ordered once at each Redis, however many pods hear of it: it says where it is told ([`PurgeName::told`]), and what is
//!   passed on is known there by its [`Origin`].
//! - Where it says so and the other Redis does not order it, this pod has it ordered there ([`super::relay`]). Until then it holds here by
//!   this pod's own barrier.
//! - A purge at this pod's own Redis that it missed, and reads there, is passed on as one that it hears.
//! - A write for which a version names nothing is told at both, whatever versions pods serve by.
//! - A Redis that was left and can't be reached holds up nothing longer than a purge waits for its own.
//!
//! # When it ends
//! A former ends when every pod that hears of purges there is connected with another Redis, too, for as long as one that was cut off
//! meanwhile trusts what it has; when it has been out of reach for longer than pods there trust what they have; when it is found to be
//! this pod's own Redis under another name; and after [`MAX_AGE`].

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::future::join_all;
use larder_policy::{PurgeName, spec};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::Server,
    link::{Link, Successor},
    message::{Origin, PurgeMessage},
    versions::Version,
};
use crate::{
    barriers::{Barriers, RedisBarriers},
    clock::boot_ms,
    secret::Secrets,
};

/// Maximum time for which purges are told to a Redis that was left. A change reaches a pod within minutes; one that has not heard of it
/// since then does not hear of much.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// More than these are not kept: the oldest ends.
const MAX_FORMERS: usize = 4;
/// Time between two looks at who is left there.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time beyond `busGrace` that every pod has to have left: one that lost its connection meanwhile is back by then.
const LEFT_MARGIN: Duration = Duration::from_secs(3);
/// Time beyond `busGrace` that it has to be out of reach: it may only be starting anew.
const UNREACHABLE_MARGIN: Duration = Duration::from_secs(5);
/// Time between two looks at whether a version is listed: a fraction of a round trip.
const LISTING_PAUSE: Duration = Duration::from_millis(2);

/// Every Redis that this pod has left, and where other pods may be.
#[derive(Debug, Default)]
pub struct Formers(Mutex<Vec<Arc<Former>>>);

impl Formers {
    /// Those of an order of purges that follows another one, whose Redis is one of them unless it goes on to be used.
    pub(super) fn following(
        previous: Option<(&Self, Option<&Arc<Link>>)>,
        spec: Option<&spec::Redis>,
    ) -> Arc<Self> {
        let Some((formers, link)) = previous else { return Arc::default() };
        let server = spec.and_then(|spec| {
            Some(Server::new(Secrets::read(&spec.url_from, spec.ca_from.as_ref()).ok()?, spec))
        });
        let mut list = formers.live();
        if let Some(link) = link
            && link.state().successor().is_none()
            && link.state().server().is_some_and(|left| Some(left) != server)
        {
            list.push(Former::start(Arc::clone(link)));
        }
        let following = Self(Mutex::new(list));
        following.bound();
        if let Some(server) = server {
            following.end_at(&server);
        }
        Arc::new(following)
    }

    /// Applies the purges that are heard there in a pod that has no Redis now, under this version of the policy.
    pub fn lead_alone(&self, barriers: &Arc<Barriers>, version: PurgeName) {
        self.lead_to(&Successor::Alone(Arc::clone(barriers), version), version);
    }

    /// Applies the purges that are heard there here, under this version of the policy.
    pub(super) fn lead_to(&self, successor: &Successor, version: PurgeName) {
        for former in self.live() {
            former.lead_to(successor, version);
        }
    }

    /// Waits until purges by pods there cover all that this pod stores, wherever it is connected.
    pub(super) async fn are_listed(&self) {
        while !self.live().iter().all(|former| former.is_listed()) {
            sleep(LISTING_PAUSE).await;
        }
    }

    /// A Redis is left.
    pub(super) fn add(&self, link: Arc<Link>, successor: &Successor, version: PurgeName) {
        let former = Former::start(link);
        former.lead_to(successor, version);
        self.0.lock().push(former);
        self.bound();
    }

    /// This one is used again.
    pub(super) fn end_at(&self, server: &Server) {
        for former in self.live() {
            if former.link.load().as_ref().and_then(|link| link.state().server()).as_ref() == Some(server) {
                former.end();
            }
        }
    }

    /// Returns the names that say which of them are told of a purge now. The others are told when they are connected, and by other pods
    /// that are.
    pub(super) fn reached(&self) -> Vec<PurgeName> {
        let connected = self.links().into_iter().filter(|link| link.connection().is_some());
        let generations = connected.map(|link| link.state().generation());
        generations.filter(|generation| *generation != 0).map(PurgeName::told).collect()
    }

    /// Tells each of a purge, and waits until the pods there have it; without names, of a write for which this version of the policy names
    /// nothing.
    pub async fn tell(&self, names: &[PurgeName], version: PurgeName) {
        self.tell_beside(names, version, None, None).await;
    }

    /// Tells each of a purge as [`Formers::tell`] does. It is also told to a Redis that counts in the generation `beside`.
    pub(super) async fn tell_beside(
        &self,
        names: &[PurgeName],
        version: PurgeName,
        beside: Option<u64>,
        origin: Option<Origin>,
    ) {
        let links = self.links();
        if links.is_empty() {
            return;
        }
        let elsewhere: Vec<_> =
            beside.filter(|beside| *beside != 0).map(PurgeName::told).into_iter().collect();
        join_all(links.iter().map(|link| link.tell(version, names, (&elsewhere, origin)))).await;
    }

    /// A purge was heard of at this pod's own Redis: those that were not told are told soon.
    pub(super) fn relay(&self, message: &PurgeMessage) {
        if message.names.is_empty() {
            return;
        }
        for link in self.links() {
            if let Some(Successor::Link(state)) = link.state().successor().as_deref()
                && let Some(state) = state.upgrade()
            {
                link.state().relay(message, state.version.name());
            }
        }
    }

    /// Passes on the purges that this pod's own Redis holds and that were not heard of there, if any: nobody else may have heard of them.
    pub(super) fn relay_missed(&self, known: &Barriers, order: u64, redis: &RedisBarriers) {
        if self.links().is_empty() {
            return;
        }
        match known.unknown(redis, order) {
            Some(names) => {
                let names: HashSet<_> = names.into_iter().collect();
                let mut missed: BTreeMap<u64, Vec<PurgeName>> = BTreeMap::new();
                for (name, order) in redis.raised.iter().filter(|(name, _)| names.contains(name)) {
                    missed.entry(*order).or_default().push(*name);
                }
                for (order, mut names) in missed {
                    let generation = redis.generation;
                    redis.add_indirect(&mut names);
                    self.relay(&PurgeMessage { generation, order, names, ..PurgeMessage::default() });
                }
            }
            // There were too many.
            None if redis.generation == known.stamp().generation && redis.order >= order => {
                self.links().iter().for_each(|link| link.state().make_up_for(None));
            }
            // Pods repeat what a Redis that counts anew may have lost.
            None => {}
        }
    }

    /// Returns true if purges are counted in this generation at one of them.
    pub(super) fn count_in(&self, generation: u64) -> bool {
        self.links().iter().any(|link| link.state().generation() == generation)
    }

    /// Returns true if there are any, which are told of purges that begin here.
    pub(super) fn are_told(&self) -> bool {
        !self.links().is_empty()
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.0.lock().iter().filter_map(|former| former.link.load_full()).collect()
    }

    fn live(&self) -> Vec<Arc<Former>> {
        self.0.lock().iter().filter(|former| former.link.load().is_some()).cloned().collect()
    }

    fn bound(&self) {
        let mut list = self.0.lock();
        list.retain(|former| former.link.load().is_some());
        while list.len() > MAX_FORMERS {
            list.remove(0).end();
        }
    }
}

/// A Redis that this pod has left.
#[derive(Debug)]
struct Former {
    /// `None`: it has ended.
    link: ArcSwapOption<Link>,
    /// Versions of the policy that are kept in the list there, which this pod served by then and serves by now: purges by pods there
    /// cover them.
    listings: Mutex<Vec<(Arc<Version>, AbortOnDropHandle<()>)>>,
    /// The name of an unnamed write in the list of the Redis that took the place of this one, so that such writes are told there.
    unnamed_writes: Mutex<Option<AbortOnDropHandle<()>>>,
    left_at: u64,
}

/// Reason why purges are not told to a Redis any more that was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    EveryPodLeft,
    Unreachable,
    SameRedis,
    TooOld,
}

impl Ending {
    const fn as_str(self) -> &'static str {
        match self {
            Self::EveryPodLeft => "every pod has left it",
            Self::Unreachable => "it can't be reached",
            Self::SameRedis => "it is the one that is used, by another name",
            Self::TooOld => "pods are still there, but it was left long ago",
        }
    }
}

impl Former {
    fn start(link: Arc<Link>) -> Arc<Self> {
        let former = Arc::new(Self {
            link: ArcSwapOption::from(Some(link)),
            listings: Mutex::default(),
            unnamed_writes: Mutex::default(),
            left_at: boot_ms(),
        });
        tracing::info!(
            "another redis was left; purges are passed on from there and to there as long as pods may be there"
        );
        tokio::spawn(watch(Arc::downgrade(&former)));
        former
    }

    fn lead_to(&self, successor: &Successor, version: PurgeName) {
        // Under the lock: one that ends meanwhile keeps no listing.
        let mut listings = self.listings.lock();
        let Some(link) = self.link.load_full() else { return };
        link.lead_to(successor.clone());
        let mut versions = vec![Arc::clone(&link.state().version)];
        if version != versions[0].name() {
            versions.push(link.state().another_version(version));
        }
        let mut there = None;
        if let Successor::Link(state) = successor {
            // A write for which a version names nothing is told only where others are listed, and pods at the other Redis may serve by any.
            versions.push(link.state().another_version(PurgeName::unnamed_write()));
            there = state.upgrade().map(|state| state.another_version(PurgeName::unnamed_write())).map(
                |version| {
                    let state = Weak::clone(state);
                    version.keep_listed(move || state.upgrade()?.connection())
                },
            );
        }
        *self.unnamed_writes.lock() = there;
        let keep = |version: Arc<Version>| {
            let state = Arc::clone(link.state());
            let listing = Arc::clone(&version).keep_listed(move || state.connection());
            (version, listing)
        };
        *listings = versions.into_iter().map(keep).collect();
    }

    /// Returns true if purges by pods there cover all that this pod stores, or nothing can be heard from there.
    fn is_listed(&self) -> bool {
        let is_connected = self.link.load().as_ref().is_some_and(|link| link.state().mark().is_some());
        !is_connected || self.listings.lock().iter().all(|(version, _)| version.is_listed())
    }

    /// Lets go of the Redis.
    fn end(&self) {
        let mut listings = self.listings.lock();
        self.link.store(None);
        listings.clear();
        *self.unnamed_writes.lock() = None;
    }
}

/// Ends a former when nobody needs it any more.
async fn watch(former: Weak<Former>) {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut unreachable_for, mut needless_for) = (Duration::ZERO, Duration::ZERO);
    loop {
        ticks.tick().await;
        let Some(former) = former.upgrade() else { return };
        let Some(link) = former.link.load_full() else { return };
        let mark = link.state().mark();
        unreachable_for = if mark.is_some() { Duration::ZERO } else { unreachable_for + CHECK_INTERVAL };
        needless_for = match link.have_all_left().await {
            Some(true) => needless_for + CHECK_INTERVAL,
            Some(false) => Duration::ZERO,
            None => needless_for,
        };
        let is_same = match link.state().successor().as_deref() {
            Some(Successor::Link(state)) => match state.upgrade() {
                // Several databases of a server have the same mark, and generations of their own. As long as the pod is about to leave,
                // it is connected to the same server.
                Some(state) => {
                    let is_same = state.mark() == mark && state.generation() == link.state().generation();
                    mark.is_some() && is_same && state.server() != link.state().server()
                }
                None => return,
            },
            _ => false,
        };
        let ending = if is_same {
            Ending::SameRedis
        } else if needless_for > link.state().grace + LEFT_MARGIN {
            Ending::EveryPodLeft
        } else if unreachable_for > link.state().grace + UNREACHABLE_MARGIN {
            Ending::Unreachable
        } else if boot_ms().saturating_sub(former.left_at) > MAX_AGE.as_millis() as u64 {
            Ending::TooOld
        } else {
            continue;
        };
        if ending == Ending::Unreachable {
            // Other pods may have reached it, and purged there.
            link.state().successor().inspect(|successor| successor.make_up_for(None));
        }
        former.end();
        tracing::info!(reason = ending.as_str(), "the redis that was left is let go of");
        return;
    }
}
