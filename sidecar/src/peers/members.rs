//! The other pods of a policy, by address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use larder_api::admin::{PeerReplied, PeersReport};
use parking_lot::Mutex;
use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Peers,
    state::{LATE, Reach, State},
};

/// Time between two looks at the addresses of the names.
const RESOLUTION_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks while none was found.
const FIRST_RESOLUTION_INTERVAL: Duration = Duration::from_millis(200);
/// Time for which a pod counts that said its address and is not found by name.
const MET_FOR: Duration = Duration::from_secs(30);
/// Maximum number of pods that said their address. Addresses of names are not bounded by this.
const MAX_MET: usize = 1024;

/// Another pod, or this one.
#[derive(Debug)]
pub(super) struct Member {
    /// Address of its admin API.
    pub(super) address: SocketAddr,
    state: watch::Sender<State>,
    /// True if it is to be asked for what it knows.
    compares: AtomicBool,
    wake: Notify,
    /// Ends the pause before it is tried again.
    retry: Notify,
}

impl Member {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            state: watch::Sender::default(),
            compares: AtomicBool::new(true),
            wake: Notify::new(),
            retry: Notify::new(),
        }
    }

    /// Returns its state.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    fn is_reachable(&self) -> bool {
        self.state.borrow().reach == Reach::Reachable
    }

    /// Has it told what it has not acknowledged, and an address tried at which nobody was.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
        if self.state.borrow().reach == Reach::Absent {
            self.retry();
        }
    }

    /// Has it asked for what it knows.
    pub(super) fn compare(&self) {
        self.compares.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Has it tried again at once, if it could not be reached.
    pub(super) fn retry(&self) {
        self.retry.notify_one();
    }

    /// Waits before it is tried again, unless it has begun anew.
    pub(super) async fn rest(&self, pause: Duration) {
        let _ = timeout(pause, self.retry.notified()).await;
    }

    /// Records that a process said that this is its address. Purges wait for one that begins.
    fn is_announced(&self, instance: u64, begins: bool) {
        let is_lost = self.state.send_if_modified(|state| state.is_announced(instance, begins));
        if begins || is_lost {
            self.compare();
            self.retry();
        }
    }

    /// Returns true if it is to be asked for what it knows, once.
    pub(super) fn take_comparison(&self) -> bool {
        self.compares.swap(false, Ordering::AcqRel)
    }

    /// Returns true if it is to be asked for what it knows.
    pub(super) fn is_to_be_compared(&self) -> bool {
        self.compares.load(Ordering::Acquire)
    }

    /// Waits until it is to be told or asked.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Records a reply to a request that left at `asked_at`.
    pub(super) fn replied(&self, acknowledged: u64, reply: PeerReplied, asked_at: Instant) {
        self.state.send_modify(|state| {
            if let Some(reason) = state.replied(acknowledged, reply, asked_at, Instant::now()) {
                tracing::info!(peer = %self.address, was = reason, "another pod is told of purges again");
            }
        });
    }

    /// Records that it is this pod.
    pub(super) fn is_own(&self) {
        self.state.send_modify(|state| state.reach = Reach::Own);
    }

    /// Records that a request failed that left at `asked_at`, because the connection was refused or for another reason.
    pub(super) fn failed(&self, reason: &str, is_refused: bool, asked_at: Instant) {
        self.state.send_modify(|state| self.is_unreachable(state, reason, is_refused, asked_at));
    }

    fn is_unreachable(&self, state: &mut State, reason: &str, is_refused: bool, asked_at: Instant) {
        if state.fails(reason, is_refused, asked_at) {
            tracing::warn!(
                peer = %self.address,
                reason,
                "another pod can't be told of purges: responses in it may be stale until it can"
            );
        }
    }

    /// Waits until it has replied, or turns out to be this pod or nobody.
    pub(super) async fn joined(&self, deadline: Instant) {
        let mut state = self.state.subscribe();
        let _ = timeout_at(deadline, state.wait_for(State::is_joined)).await;
    }

    /// Waits until all purges through this process up to a number hold there, the last of which was made at `since`, or it can't be told;
    /// `None`: it is this pod, or nobody.
    pub(super) async fn acknowledges(&self, seq: u64, since: Instant, deadline: Instant) -> Option<bool> {
        self.wait(since, deadline, |state| state.acknowledged >= seq).await
    }

    /// Waits until it has replied to a request that left after `since`. Returns true if it did, and if it is this pod or nobody.
    pub(super) async fn responds(&self, since: Instant, deadline: Instant) -> bool {
        self.wait(since, deadline, |state| state.asked_at.is_some_and(|at| at >= since)).await.unwrap_or(true)
    }

    /// Waits until all purges through this process up to a number hold there, whether it can be reached or not. Returns true if they do,
    /// and if it is this pod or nobody.
    pub(super) async fn has_all(&self, seq: u64, deadline: Instant) -> bool {
        let has_all =
            |state: &State| state.acknowledged >= seq || matches!(state.reach, Reach::Absent | Reach::Own);
        let mut state = self.state.subscribe();
        timeout_at(deadline, state.wait_for(has_all)).await.is_ok_and(|state| state.is_ok())
    }

    async fn wait(
        &self,
        since: Instant,
        deadline: Instant,
        is_done: impl Fn(&State) -> bool,
    ) -> Option<bool> {
        let ends = |state: &State| {
            is_done(state) || state.needs_none(since) || matches!(state.reach, Reach::Unreachable(_))
        };
        let began = Instant::now();
        let mut state = self.state.subscribe();
        match timeout_at(deadline, state.wait_for(ends)).await {
            Ok(Ok(state)) => (!state.needs_none(since)).then(|| is_done(&state)),
            Ok(Err(_)) => Some(false),
            Err(_) => {
                self.state.send_if_modified(|state| {
                    let is_late = state.is_late(began);
                    if is_late {
                        self.is_unreachable(state, LATE, false, began);
                    }
                    is_late
                });
                Some(false)
            }
        }
    }
}

/// The other pods.
#[derive(Debug, Default)]
pub(super) struct Members {
    list: Mutex<BTreeMap<SocketAddr, Entry>>,
    /// The time at which all names were resolved last, and the reason that they were not since.
    found: watch::Sender<Found>,
}

#[derive(Clone, Debug, Default)]
struct Found {
    at: Option<Instant>,
    error: Option<String>,
}

#[derive(Debug)]
struct Entry {
    member: Arc<Member>,
    /// Time at which it was found by name, or said its address.
    seen_at: Instant,
    is_named: bool,
    _telling: AbortOnDropHandle<()>,
}

impl Members {
    /// Returns all, this pod among them if it was found, by address.
    pub(super) fn all(&self) -> Vec<Arc<Member>> {
        self.list.lock().values().map(|entry| Arc::clone(&entry.member)).collect()
    }

    /// Waits until names were resolved for the first time.
    pub(super) async fn first_found(&self) {
        let _ = self.found.subscribe().wait_for(|found| found.at.is_some()).await;
    }

    /// Returns true if all names were resolved since then.
    pub(super) fn are_found_since(&self, since: Option<Instant>) -> bool {
        self.found.borrow().at.is_some_and(|at| since.is_none_or(|since| at >= since))
    }

    /// Returns the number of others that respond.
    pub(super) fn reachable(&self) -> usize {
        self.list.lock().values().filter(|entry| entry.member.is_reachable()).count()
    }

    /// Returns the state of all but this pod.
    pub(super) fn report(&self) -> PeersReport {
        let mut report = PeersReport { error: self.found.borrow().error.clone(), ..PeersReport::default() };
        for member in self.all() {
            match member.state().reach {
                Reach::Reachable => report.reachable += 1,
                Reach::Unreachable(reason) => {
                    report.unreachable.insert(member.address.to_string(), reason);
                }
                Reach::Unknown | Reach::Absent | Reach::Own => {}
            }
        }
        report
    }

    /// Adds a pod, unless it is there or there are too many.
    fn add(&self, address: SocketAddr, is_named: bool, peers: &Arc<Peers>) -> Option<Arc<Member>> {
        let seen_at = Instant::now();
        let mut list = self.list.lock();
        if let Some(entry) = list.get_mut(&address) {
            (entry.seen_at, entry.is_named) = (seen_at, entry.is_named || is_named);
            Some(Arc::clone(&entry.member))
        } else if is_named || list.values().filter(|entry| !entry.is_named).count() < MAX_MET {
            let member = Arc::new(Member::new(address));
            let telling = tokio::spawn(Arc::clone(peers).keep_told(Arc::clone(&member)));
            let telling = AbortOnDropHandle::new(telling);
            let entry = Entry { member: Arc::clone(&member), seen_at, is_named, _telling: telling };
            list.insert(address, entry);
            Some(member)
        } else {
            None
        }
    }

    /// Takes the addresses that the names have now. A pod without a name any more is gone if it does not reply.
    fn find(&self, addresses: &BTreeSet<SocketAddr>, peers: &Arc<Peers>) {
        for address in addresses {
            self.add(*address, true, peers);
        }
        let now = Instant::now();
        self.list.lock().retain(|address, entry| {
            entry.is_named = addresses.contains(address);
            let is_silent = matches!(entry.member.state().reach, Reach::Unreachable(_) | Reach::Absent);
            entry.is_named || !is_silent && now.duration_since(entry.seen_at) < MET_FOR
        });
        self.found.send_replace(Found { at: Some(now), error: None });
    }

    fn not_found(&self, error: String) {
        self.found.send_modify(|found| {
            if found.error.is_none() {
                tracing::warn!(error, "other pods can't be found: they may not be told of purges");
            }
            found.error = Some(error);
        });
    }
}

impl Peers {
    /// Takes note of a process that said its address, which may have just begun.
    pub(super) fn meet(self: &Arc<Self>, address: SocketAddr, instance: u64, begins: bool) {
        let member = self.members.add(address, false, self);
        let _ = member.inspect(|member| member.is_announced(instance, begins));
    }

    /// Takes note of a process that serves nothing any more: nobody waits for it, and no write is refused because of it.
    pub(super) fn part_from(&self, instance: u64) {
        for member in self.members.all() {
            member.state.send_if_modified(|state| state.has_gone(instance));
        }
    }

    /// Looks for other pods, again and again.
    pub(super) async fn keep_finding(self: Arc<Self>) {
        loop {
            let found = resolve(&self.options.names).await;
            let is_found = found.is_ok();
            match found {
                Ok(addresses) => self.members.find(&addresses, &self),
                Err(error) => self.members.not_found(error),
            }
            let is_first = !is_found && !self.members.are_found_since(None);
            sleep(if is_first { FIRST_RESOLUTION_INTERVAL } else { RESOLUTION_INTERVAL }).await;
        }
    }
}

/// Returns the addresses of all names.
async fn resolve(names: &[String]) -> Result<BTreeSet<SocketAddr>, String> {
    let mut addresses = BTreeSet::new();
    for name in names {
        addresses.extend(lookup_host(name).await.map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(addresses)
}
