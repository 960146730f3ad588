//! Purges from pod to pod, over the admin port: without Redis, and where Redis can't be told.
//!
//! # Guarantees
//! - A purge is applied in a pod before that pod acknowledges it.
//! - Whoever tells other pods knows which of them have acknowledged, and waits [`ACKNOWLEDGEMENT_TIMEOUT`] at most, once for each pod that
//!   does not: from then on that pod is told beside, until it acknowledges.
//! - A purge that one pod has heard of reaches every pod that it can reach, whatever becomes of the pod through which it was made: pods
//!   compare what they know about each second ([`log`]).
//! - A pod that begins is known to the others before it stores anything ([`Peers::join`]). One that ends says so when it serves nothing any
//!   more ([`Peers::leave`]).
//! - Nobody is believed who does not know the policy's token, nor is the token sent to anybody ([`authentication`]).
//! - Nothing here is on the path of a request that is no write.
//!
//! # Assumptions
//! Names resolve to every pod of the policy. Pods of one policy have one token.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use larder_api::admin::{PeerReply, PeerRequest, PeersReport, PeersTold};
use larder_policy::PurgeName;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    clock::boot_ms,
    stats::{PeerOutcome, Stats},
};

pub mod authentication;
mod client;
mod contacts;
mod ledger;
mod log;
mod members;
mod message;
#[cfg(test)]
mod simulation;
mod state;
mod telling;

use authentication::{KeyFile, Keys};
use ledger::{Conditions, Ledger};
use log::Effect;
pub use log::Purge;
use members::Members;

/// Maximum time for which a purge waits for other pods, as for those that hear of it by Redis.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_millis(100);
/// Maximum time in which a pod that begins finds the others.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time in which a pod that ends tells what others have not acknowledged.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two comparisons with another pod.
const COMPARISON_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a purge is in Redis if none is pending, in milliseconds: longer than telling Redis takes.
const SETTLING_MS: u64 = 10_000;
/// Time for which addresses count as those of all pods, after they were found: one lookup of the names, each 5 s, may fail and be slow.
const FOUND_FOR: Duration = Duration::from_secs(30);

/// The stored responses of this pod, as far as purges of other pods concern them.
pub trait Purgeable: Send + Sync {
    /// Applies a purge of another pod.
    fn purge(&self, purge: &Purge);
    /// Makes everything stale that is stored.
    fn purge_everything(&self);
    /// Returns true if Redis has all purges of this pod and of others; `None` without Redis.
    fn has_told_redis(&self) -> Option<bool>;
}

/// Ways to other pods.
#[derive(Debug)]
pub struct Options {
    /// Hosts with ports, each of which stands for all of its addresses.
    pub names: Vec<String>,
    /// File with the token that the policy's pods share.
    pub token_file: PathBuf,
    /// Address of this pod's admin API, if other pods can reach it.
    pub address: Option<SocketAddr>,
}

/// The other pods of the policy, and the purges that they are told.
pub struct Peers {
    options: Options,
    keys: KeyFile,
    caches: Arc<dyn Purgeable>,
    stats: Arc<Stats>,
    ledger: Mutex<Ledger>,
    members: Members,
    /// Nothing is stored in this pod yet.
    is_joining: AtomicBool,
    /// This pod is about to end.
    is_leaving: AtomicBool,
    /// True once it serves nothing any more.
    has_stopped: AtomicBool,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Peers {
    /// Begins to look for other pods, and to compare purges with them.
    pub fn start(options: Options, caches: Arc<dyn Purgeable>, stats: Arc<Stats>) -> Arc<Self> {
        let peers = Arc::new(Self {
            keys: KeyFile::new(options.token_file.clone()),
            options,
            caches,
            stats,
            ledger: Mutex::new(Ledger::new(fastrand::u64(1..), boot_ms())),
            members: Members::default(),
            is_joining: AtomicBool::new(true),
            is_leaving: AtomicBool::new(false),
            has_stopped: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        let tasks = [
            tokio::spawn(Arc::clone(&peers).keep_finding()),
            tokio::spawn(Arc::clone(&peers).keep_comparing()),
        ];
        *peers.tasks.lock() = tasks.map(AbortOnDropHandle::new).into();
        peers
    }

    /// Waits until the other pods know of this one, but not long. Nothing may be stored before this returns.
    pub async fn join(&self) {
        let deadline = Instant::now() + JOIN_TIMEOUT;
        if tokio::time::timeout_at(deadline, self.members.first_found()).await.is_ok() {
            join_all(self.members.all().iter().map(|member| member.joined(deadline))).await;
        }
        self.is_joining.store(false, Ordering::Release);
        let PeersReport { reachable, unreachable, error } = self.report();
        tracing::info!(reachable, unreachable = unreachable.len(), error, "other pods are told of purges");
    }

    /// Returns the address that this pod says of itself.
    pub fn address(&self) -> Option<SocketAddr> {
        self.options.address
    }

    /// Returns the keys of messages to and from other pods; `None` if the token can't be read.
    pub async fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().await
    }

    /// Returns a number by which a purge is known that Redis is told of, too.
    pub fn number(&self) -> u64 {
        fastrand::u64(1..)
    }

    /// Tells the other pods of a purge that is applied here, and waits until they have applied it, but not long. `redis` is its number in
    /// messages of Redis, and the generation in which Redis has ordered it; 0 if it has not.
    pub async fn tell(&self, version: PurgeName, names: &[PurgeName], redis: (u64, u64)) -> PeersTold {
        let (number, generation) = redis;
        let purge = Purge { seq: 0, version, names: names.to_vec(), number, generation };
        let seq = self.ledger.lock().append(purge, boot_ms());
        let told = self.until_acknowledged(seq, Instant::now()).await;
        self.stats.peers.count(PeerOutcome::Acknowledged, told.acknowledged);
        self.stats.peers.count(PeerOutcome::Missed, told.missing.len());
        told
    }

    async fn until_acknowledged(&self, seq: u64, made_at: Instant) -> PeersTold {
        let deadline = made_at + ACKNOWLEDGEMENT_TIMEOUT;
        let members = self.members.all();
        members.iter().for_each(|member| member.wake());
        let outcomes =
            join_all(members.iter().map(|member| member.acknowledges(seq, made_at, deadline))).await;
        let mut told = PeersTold::default();
        for (member, outcome) in members.iter().zip(outcomes) {
            match outcome {
                Some(true) => told.acknowledged += 1,
                Some(false) => told.missing.push(member.address.to_string()),
                // It is this pod itself, or nobody.
                None => {}
            }
        }
        told
    }

    /// Returns true if every pod of the policy is known and responds now. Addresses at which nothing can be stored do not count.
    pub async fn respond(&self) -> bool {
        let asked_at = Instant::now();
        if !self.members.are_found_since(asked_at.checked_sub(FOUND_FOR)) {
            return false;
        }
        let members = self.members.all();
        members.iter().for_each(|member| member.wake());
        let deadline = asked_at + ACKNOWLEDGEMENT_TIMEOUT;
        join_all(members.iter().map(|member| member.responds(asked_at, deadline)))
            .await
            .into_iter()
            .all(|is| is)
    }

    /// Hands on what the other pods may not know, before this one ends. `has_stopped`: it serves nothing any more, which they are told, too.
    pub async fn leave(&self, has_stopped: bool) {
        self.is_leaving.store(true, Ordering::Release);
        self.has_stopped.store(has_stopped, Ordering::Release);
        let asked_at = Instant::now();
        let deadline = asked_at + LEAVE_TIMEOUT;
        let members = self.members.all();
        for member in &members {
            member.compare();
            member.retry();
        }
        let last = self.ledger.lock().own_last(boot_ms());
        let told = members.iter().map(async |member| {
            let has_all = member.has_all(last, deadline).await;
            // What others told of, too, if it can be reached.
            member.responds(asked_at, deadline).await;
            has_all
        });
        let has_all = join_all(told).await;
        let missing = members.iter().zip(has_all).filter(|(_, has_all)| !has_all);
        let missing: Vec<_> = missing.map(|(member, _)| member.address.to_string()).collect();
        if !missing.is_empty() {
            tracing::warn!(missing = missing.join(", "), "some pods were not told of every purge");
        }
    }

    /// Takes what another pod tells; `None`: it is malformed.
    pub fn receive(self: &Arc<Self>, request: PeerRequest) -> Option<PeerReply> {
        let address = request.address.as_ref().map(|address| address.parse()).transpose().ok()?;
        let PeerRequest { instance, begins, leaves, .. } = request;
        if leaves {
            self.part_from(instance);
        } else if let Some(address) = address.filter(|_| instance != self.ledger.lock().instance()) {
            // Before it hears what is known: it is told of what comes up after that.
            self.meet(address, instance, begins);
        }
        self.ledger.lock().receive(request, self.conditions(), &mut self.applying())
    }

    fn conditions(&self) -> Conditions {
        let has_redis = self.caches.has_told_redis().is_some();
        let is_leaving = self.has_stopped.load(Ordering::Acquire);
        Conditions { is_joining: self.is_joining(), is_leaving, has_redis, now: boot_ms() }
    }

    /// Returns the way in which purges of others are applied.
    fn applying(&self) -> impl FnMut(Effect<'_>) {
        |effect| {
            self.stats.peers.count(PeerOutcome::Heard, 1);
            match effect {
                Effect::Purge(purge) => self.caches.purge(purge),
                Effect::Everything => {
                    tracing::warn!("purges of another pod were missed: everything is stale");
                    self.caches.purge_everything();
                }
            }
        }
    }

    fn is_joining(&self) -> bool {
        self.is_joining.load(Ordering::Acquire)
    }

    /// Returns the number of other pods that are told.
    pub fn reachable(&self) -> usize {
        self.members.reachable()
    }

    /// Returns the pods that are told, and those that can't be.
    pub fn report(&self) -> PeersReport {
        self.members.report()
    }

    /// Has one pod after another compared, and forgets what nobody needs.
    async fn keep_comparing(self: Arc<Self>) {
        let mut last = None;
        loop {
            sleep(COMPARISON_INTERVAL.mul_f64(0.5 + fastrand::f64())).await;
            let members = self.members.all();
            let next = members.iter().find(|member| last.is_none_or(|last| member.address > last));
            let next = next.or(members.first());
            last = next.map(|member| member.address);
            let _ = next.inspect(|member| member.compare());
            let (now, has_told_redis) = (boot_ms(), self.caches.has_told_redis());
            self.ledger.lock().forget(has_told_redis, now.saturating_sub(SETTLING_MS), now);
            let PeersReport { reachable, unreachable, .. } = self.report();
            self.stats.peers.set_pods(reachable, unreachable.len());
        }
    }
}
