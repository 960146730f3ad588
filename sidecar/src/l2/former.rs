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
//! - A purge is ordered once at each Redis, however many pods hear of it: it says where it was told ([`PurgeName::told`]), and what is
//!   passed on is known there by its number at the Redis from which it comes.
//! - A Redis that was left and can't be reached holds up nothing longer than a purge waits for its own.
//!
//! # When it ends
//! When every pod that hears of purges there is connected with another Redis, too, for as long as one that was cut off meanwhile trusts what it has; when it
//! has been out of reach for longer than pods there trust what they have; when it is found to be this pod's own Redis under another
//! name; and after [`MAX_AGE`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::future::join_all;
use larder_policy::{PurgeName, spec};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    L2,
    commands::Message,
    connection::{Secrets, Server},
    link::{Link, State},
    versions::Version,
};
use crate::{barriers::Barriers, clock::boot_ms};

/// Maximum time for which purges are told to a Redis that was left. A change reaches a pod within minutes; one that has not heard of it
/// since then does not hear of much.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// More than these are not kept: the oldest ends.
const MAX_FORMERS: usize = 4;
/// Time between two looks at who is left there.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time beyond `busGrace` that every pod has to have left: one that lost its connection meanwhile is back by then.
const LEFT_MARGIN: Duration = Duration::from_secs(3);
/// Time beyond `busGrace` that it has to be out of reach: it may only be starting anew.
const UNREACHABLE_MARGIN: Duration = Duration::from_secs(5);
/// Time between two looks at whether a version is listed: a fraction of a round trip.
const LISTING_PAUSE: Duration = Duration::from_millis(2);
/// More names than this do not wait to be told: everything is purged instead.
const MAX_HANDED_OVER: usize = 4096;

/// The order of purges that took the place of another in this pod.
#[derive(Clone, Debug)]
pub(super) enum Heir {
    /// There is no Redis any more.
    Alone(Arc<Barriers>, PurgeName),
    /// Another Redis.
    Link(Weak<State>),
}

/// A purge that one Redis has ordered and another is to be told of.
#[derive(Debug)]
pub(super) struct HandedOver {
    /// The version of the policy whose names these are, or are covered by its own.
    pub(super) version: PurgeName,
    pub(super) names: Vec<PurgeName>,
    /// Says that it was told to the Redis that ordered it.
    pub(super) told: PurgeName,
    /// Identity of the purge at that Redis.
    pub(super) origin: String,
}

impl HandedOver {
    fn new(message: &Message, version: PurgeName) -> Self {
        let Message { generation, order, names, .. } = message;
        let (names, told) = (names.clone(), PurgeName::told(*generation));
        Self { version, names, told, origin: format!("{generation}:{order}") }
    }
}

/// Purges that a Redis is to be told of because another has ordered them.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Vec<(HandedOver, u64)>>,
    due: Notify,
}

impl Outbox {
    /// Adds one whose barrier was raised with this number in the pod's own order. Returns whether there is room: if not, everything is
    /// to be purged.
    #[must_use]
    pub(super) fn push(&self, handed: HandedOver, up_to: u64) -> bool {
        let mut waiting = self.lock();
        let has_room = waiting.iter().map(|(handed, _)| handed.names.len()).sum::<usize>()
            + handed.names.len()
            <= MAX_HANDED_OVER;
        if has_room {
            waiting.push((handed, up_to));
            self.due.notify_one();
        } else {
            waiting.clear();
        }
        has_room
    }

    /// Waits for some, and takes them.
    pub(super) async fn next(&self) -> Vec<(HandedOver, u64)> {
        self.due.notified().await;
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(HandedOver, u64)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heir {
    /// Applies a purge that was heard of at the Redis that was left.
    fn hear(&self, message: &Message) {
        if message.names.is_empty() {
            return;
        }
        match self {
            Self::Alone(barriers, version) => raise(barriers, *version, &message.names),
            Self::Link(state) => {
                let Some(state) = state.upgrade() else { return };
                // The purge comes over the bus here, too.
                if !message.names.contains(&PurgeName::told(state.generation())) {
                    state.hand_over(HandedOver::new(message, state.version()));
                }
            }
        }
    }

    /// Applies purges that may have been missed there; `None`: everything.
    fn make_up_for(&self, missed: Option<Vec<PurgeName>>) {
        match (self, missed) {
            (Self::Alone(barriers, version), Some(names)) => raise(barriers, *version, &names),
            (Self::Alone(barriers, _), None) => barriers.raise_on_everything(),
            (Self::Link(state), missed) => {
                let _ = state.upgrade().inspect(|state| state.make_up_for(missed));
            }
        }
    }
}

/// Raises barriers in a pod that has no Redis. What is stored there does not bear the name of its version.
fn raise(barriers: &Barriers, version: PurgeName, names: &[PurgeName]) {
    if names.contains(&version) {
        barriers.raise_on_everything();
    } else if !names.is_empty() {
        barriers.raise_locally(names);
    }
}

/// Links to which and from which purges are passed on.
#[derive(Debug)]
pub(super) struct Succession {
    /// Where what is heard here is applied too, if this Redis was left.
    heir: ArcSwapOption<Heir>,
    /// The Redis that were left for this one.
    pub(super) formers: Arc<Formers>,
}

impl Succession {
    pub(super) fn new(formers: Arc<Formers>) -> Self {
        Self { heir: ArcSwapOption::empty(), formers }
    }

    pub(super) fn lead_to(&self, heir: Heir) {
        self.heir.store(Some(Arc::new(heir)));
    }

    pub(super) fn heir(&self) -> Option<Arc<Heir>> {
        self.heir.load_full()
    }

    /// Returns true if the Redis was left, and this pod is connected with the one for which it was.
    pub(super) fn has_arrived(&self) -> bool {
        match self.heir.load().as_deref() {
            None => false,
            Some(Heir::Alone(..)) => true,
            Some(Heir::Link(state)) => state.upgrade().is_some_and(|state| state.mark().is_some()),
        }
    }

    /// A purge was heard of, one of this pod's own under the name `asker`. It is not acknowledged yet.
    pub(super) fn hear(&self, message: &Message, asker: u64) {
        match &*self.heir.load() {
            Some(heir) => heir.hear(message),
            // This pod's own purges are told there already.
            None if message.asker != asker => self.formers.hand_back(message),
            None => {}
        }
    }

    /// Purges are read that may have been missed; `None`: everything.
    pub(super) fn make_up_for(&self, missed: impl FnOnce() -> Option<Vec<PurgeName>>) {
        if let Some(heir) = &*self.heir.load() {
            heir.make_up_for(missed());
        }
    }
}

/// Every Redis that this pod has left, and where other pods may be.
#[derive(Debug, Default)]
pub struct Formers(Mutex<Vec<Arc<Former>>>);

impl Formers {
    /// Those of an order of purges that follows another one, whose Redis is one of them unless it goes on to be used.
    pub fn following(previous: Option<(&Self, Option<&L2>)>, spec: Option<&spec::Redis>) -> Arc<Self> {
        let Some((formers, l2)) = previous else { return Arc::default() };
        let server = spec.and_then(|spec| Some(Server::new(Secrets::read(spec).ok()?, spec)));
        let mut list = formers.live();
        if let Some(link) = l2.map(L2::link)
            && link.heir().is_none()
            && link.server().is_some_and(|left| Some(left) != server)
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
        self.lead_to(&Heir::Alone(Arc::clone(barriers), version), version);
    }

    /// Applies the purges that are heard there here, under this version of the policy.
    pub(super) fn lead_to(&self, heir: &Heir, version: PurgeName) {
        for former in self.live() {
            former.lead_to(heir, version);
        }
    }

    /// Waits until purges by pods there cover all that this pod stores, wherever it is connected.
    pub(super) async fn are_listed(&self) {
        while !self.live().iter().all(|former| former.is_listed()) {
            sleep(LISTING_PAUSE).await;
        }
    }

    /// A Redis is left.
    pub(super) fn add(&self, link: Arc<Link>, heir: &Heir, version: PurgeName) {
        let former = Former::start(link);
        former.lead_to(heir, version);
        self.lock().push(former);
        self.bound();
    }

    /// This one is used again.
    pub(super) fn end_at(&self, server: &Server) {
        for former in self.live() {
            if former.link.load().as_ref().and_then(|link| link.server()).as_ref() == Some(server) {
                former.end();
            }
        }
    }

    /// Returns the names that say which of them are told of a purge now. The others are told when they are connected, and by other pods
    /// that are.
    pub(super) fn told(&self) -> Vec<PurgeName> {
        let connected = self.links().into_iter().filter(|link| link.connection().is_some());
        let generations = connected.map(|link| link.generation());
        generations.filter(|generation| *generation != 0).map(PurgeName::told).collect()
    }

    /// Tells each of a purge, and waits until the pods there have it; without names, of a write for which this version of the policy names
    /// nothing. It is also told to a Redis that counts in the generation `also`.
    pub async fn tell(&self, names: &[PurgeName], version: PurgeName, also: Option<u64>) {
        let links = self.links();
        if links.is_empty() {
            return;
        }
        let told: Vec<_> = also.filter(|also| *also != 0).map(PurgeName::told).into_iter().collect();
        join_all(links.iter().map(|link| link.tell(version, names, &told))).await;
    }

    /// A purge was heard of at this pod's own Redis: those that were not told are told soon.
    fn hand_back(&self, message: &Message) {
        if message.names.is_empty() {
            return;
        }
        for link in self.links() {
            if !message.names.contains(&PurgeName::told(link.generation()))
                && let Some(Heir::Link(state)) = link.heir().as_deref()
                && let Some(state) = state.upgrade()
            {
                link.hand_over(HandedOver::new(message, state.version()));
            }
        }
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.lock().iter().filter_map(|former| former.link.load_full()).collect()
    }

    fn live(&self) -> Vec<Arc<Former>> {
        self.lock().iter().filter(|former| former.link.load().is_some()).cloned().collect()
    }

    fn bound(&self) {
        let mut list = self.lock();
        list.retain(|former| former.link.load().is_some());
        while list.len() > MAX_FORMERS {
            list.remove(0).end();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Former>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
            left_at: boot_ms(),
        });
        tracing::info!(
            "another redis was left; purges are passed on from there and to there as long as pods may be there"
        );
        tokio::spawn(watch(Arc::downgrade(&former)));
        former
    }

    fn lead_to(&self, heir: &Heir, version: PurgeName) {
        // Under the lock: one that ends meanwhile keeps no listing.
        let mut listings = self.lock_listings();
        let Some(link) = self.link.load_full() else { return };
        link.lead_to(heir.clone());
        let mut versions = vec![link.version()];
        if version != versions[0].name() {
            versions.push(link.another_version(version));
        }
        let keep = |version: Arc<Version>| {
            let listing = Arc::clone(&version).keep_listed(Arc::clone(&link));
            (version, listing)
        };
        *listings = versions.into_iter().map(keep).collect();
    }

    /// Returns true if purges by pods there cover all that this pod stores, or nothing can be heard from there.
    fn is_listed(&self) -> bool {
        let is_connected = self.link.load().as_ref().is_some_and(|link| link.mark().is_some());
        !is_connected || self.lock_listings().iter().all(|(version, _)| version.is_listed())
    }

    /// Lets go of the Redis.
    fn end(&self) {
        let mut listings = self.lock_listings();
        self.link.store(None);
        listings.clear();
    }

    fn lock_listings(&self) -> MutexGuard<'_, Vec<(Arc<Version>, AbortOnDropHandle<()>)>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a former when nobody needs it any more.
async fn watch(former: Weak<Former>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut unreachable_for, mut needless_for) = (Duration::ZERO, Duration::ZERO);
    loop {
        ticks.tick().await;
        let Some(former) = former.upgrade() else { return };
        let Some(link) = former.link.load_full() else { return };
        let mark = link.mark();
        unreachable_for = if mark.is_some() { Duration::ZERO } else { unreachable_for + INTERVAL };
        needless_for = match link.have_all_left().await {
            Some(true) => needless_for + INTERVAL,
            Some(false) => Duration::ZERO,
            None => needless_for,
        };
        let is_same = match link.heir().as_deref() {
            Some(Heir::Link(state)) => match state.upgrade() {
                // Several databases of a server have the same mark, and generations of their own. As long as the pod is about to leave,
                // it is connected to the same server.
                Some(state) => {
                    let is_same = state.mark() == mark && state.generation() == link.generation();
                    mark.is_some() && is_same && state.server() != link.server()
                }
                None => return,
            },
            _ => false,
        };
        let ending = if is_same {
            Ending::SameRedis
        } else if needless_for > link.grace() + LEFT_MARGIN {
            Ending::EveryPodLeft
        } else if unreachable_for > link.grace() + UNREACHABLE_MARGIN {
            Ending::Unreachable
        } else if boot_ms().saturating_sub(former.left_at) > MAX_AGE.as_millis() as u64 {
            Ending::TooOld
        } else {
            continue;
        };
        if ending == Ending::Unreachable {
            // Other pods may have reached it, and purged there.
            link.heir().inspect(|heir| heir.make_up_for(None));
        }
        former.end();
        tracing::info!(reason = ending.as_str(), "the redis that was left is let go of");
        return;
    }
}
