//! What has been counted since the process began. Metrics and the admin API both read it.

use std::{
    array,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use larder_policy::storing::NotStored;

use crate::{
    barriers::Barriers, budget::Budget, cache_status::Tier, http1_guard::RequestError, l1::L1, mode::Mode,
    upstream::UpstreamReason,
};
use parking_lot::Mutex;

larder_api::labelled! {
    /// What became of a request, as far as the cache is concerned.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Outcome {
        /// Answered from what was stored.
        Hit = "hit",
        /// Looked up, not found, answered by a source or the application.
        Miss = "miss",
        /// Answered from what another request was already asking for.
        Collapsed = "collapsed",
        /// Answered from what was stored, after the application said that it still holds.
        Revalidated = "revalidated",
        /// Answered from what was stored and too old, because nobody could say better.
        Stale = "stale",
        /// A route matched, but the request was not for the cache.
        Bypass = "bypass",
        /// No route was asked: none matched, the policy is suspended or missing, or it was a write.
        Pass = "pass",
        /// Nobody could answer.
        Error = "error",
    }
}

larder_api::labelled! {
    /// Who asked for a purge.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum PurgeOrigin {
        /// The admin API.
        Api = "api",
        /// A write that passed through.
        Write = "write",
    }
}

larder_api::labelled! {
    /// Why a record in Redis was refused.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum RecordError {
        /// Its MAC is not that of this record under this key.
        Unauthentic = "unauthentic",
        /// It is no response that a sidecar stores.
        Malformed = "malformed",
        /// It is larger than any record that this policy stores.
        TooLarge = "too-large",
    }
}

/// What has been counted of one route.
#[derive(Debug, Default)]
pub struct RouteStats {
    requests: PerThread<[[AtomicU64; Tier::ALL.len()]; Outcome::ALL.len()]>,
    not_stored: [AtomicU64; NotStored::ALL.len()],
}

/// Counters of which each thread has its own, so that threads that count do not wait for one another's caches.
#[derive(Debug, Default)]
struct PerThread<T>([Padded<T>; THREADS]);

/// More threads than this share.
const THREADS: usize = 8;

/// Two cache lines: some processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T> PerThread<T> {
    fn own(&self) -> &T {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static PLACE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % THREADS;
        }
        &self.0[PLACE.with(|place| *place)].0
    }

    fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}

impl RouteStats {
    /// A request has been answered.
    pub fn answered(&self, outcome: Outcome, tier: Tier) {
        self.requests.own()[outcome as usize][tier.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// An answer was not stored. Returns true the first time for this reason.
    pub fn not_stored(&self, reason: NotStored) -> bool {
        self.not_stored[reason as usize].fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Answered requests.
    pub fn requests(&self, outcome: Outcome, tier: Tier) -> u64 {
        let of_thread = |counters: &[[AtomicU64; Tier::ALL.len()]; Outcome::ALL.len()]| {
            counters[outcome as usize][tier.index()].load(Ordering::Relaxed)
        };
        self.requests.all().map(of_thread).sum()
    }

    /// Answers that were not stored.
    pub fn count_not_stored(&self, reason: NotStored) -> u64 {
        self.not_stored[reason as usize].load(Ordering::Relaxed)
    }
}

/// What has been counted since the process began.
#[derive(Debug, Default)]
pub struct Stats {
    routes: Mutex<BTreeMap<String, Arc<RouteStats>>>,
    purges: [AtomicU64; PurgeOrigin::ALL.len()],
    tier_errors: [AtomicU64; Tier::ALL.len()],
    mode: Mutex<Option<Mode>>,
    tiers_up: Mutex<Vec<(String, bool)>>,
    degraded: Mutex<Vec<(String, bool)>>,
    leases: [AtomicU64; 2],
    reloads: [AtomicU64; 2],
    refused: [AtomicU64; RequestError::ALL.len()],
    refused_records: [AtomicU64; RecordError::ALL.len()],
    upstream_errors: [AtomicU64; UpstreamReason::ALL.len()],
    /// Connections that did not speak HTTP and were passed on as they are.
    pub spliced: AtomicU64,
    /// Entries that made room for others in L1.
    pub evictions: Arc<AtomicU64>,
    /// The cache in memory that is in use.
    pub l1: ArcSwapOption<L1>,
    /// The barriers that are in use.
    pub barriers: ArcSwapOption<Barriers>,
    /// The memory of everything else.
    pub budget: Arc<Budget>,
}

impl Stats {
    /// Of a process with a budget.
    pub fn within(budget: Arc<Budget>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// The counters of a route, whatever policies come and go.
    pub fn route(&self, name: &str) -> Arc<RouteStats> {
        let mut routes = self.routes.lock();
        Arc::clone(routes.entry(name.to_owned()).or_default())
    }

    /// All routes that were ever served, by name.
    pub fn routes(&self) -> Vec<(String, Arc<RouteStats>)> {
        let routes = self.routes.lock();
        routes.iter().map(|(name, stats)| (name.clone(), Arc::clone(stats))).collect()
    }

    /// Requests of all routes.
    pub fn requests(&self, outcome: Outcome, tier: Tier) -> u64 {
        self.routes().iter().map(|(_, stats)| stats.requests(outcome, tier)).sum()
    }

    /// Something was purged.
    pub fn purged(&self, origin: PurgeOrigin) {
        self.purges[origin as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Purges.
    pub fn purges(&self, origin: PurgeOrigin) -> u64 {
        self.purges[origin as usize].load(Ordering::Relaxed)
    }

    /// A tier failed a request.
    pub fn tier_failed(&self, tier: Tier) {
        self.tier_errors[tier.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// How often each tier failed a request.
    pub fn tier_errors(&self) -> [(Tier, u64); Tier::ALL.len()] {
        array::from_fn(|index| (Tier::ALL[index], self.tier_errors[index].load(Ordering::Relaxed)))
    }

    /// Notes whether requests are looked up.
    pub fn set_mode(&self, mode: Mode) {
        *self.mode.lock() = Some(mode);
    }

    /// Whether requests were looked up at the last look, a second ago at most; `None` before the first one.
    pub fn mode(&self) -> Option<Mode> {
        *self.mode.lock()
    }

    /// Notes which tiers are up.
    pub fn set_tiers(&self, tiers: Vec<(String, bool)>) {
        *self.tiers_up.lock() = tiers;
    }

    /// Which tiers were up when last looked at, a second ago at most.
    pub fn tiers(&self) -> Vec<(String, bool)> {
        self.tiers_up.lock().clone()
    }

    /// Notes each tier, and whether it is degraded: not connected, or not with its current secrets.
    pub fn set_degraded(&self, degraded: Vec<(String, bool)>) {
        *self.degraded.lock() = degraded;
    }

    /// Returns each tier, and whether it was degraded a second ago at most.
    pub fn degraded(&self) -> Vec<(String, bool)> {
        self.degraded.lock().clone()
    }

    /// A lease was asked for, and granted or held by another pod.
    pub fn leased(&self, granted: bool) {
        self.leases[usize::from(granted)].fetch_add(1, Ordering::Relaxed);
    }

    /// Leases that were asked for, and granted or held by another pod.
    pub fn leases(&self, granted: bool) -> u64 {
        self.leases[usize::from(granted)].load(Ordering::Relaxed)
    }

    /// A request was refused.
    pub fn refused(&self, error: RequestError) {
        self.refused[error as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were refused.
    pub fn count_refused(&self, error: RequestError) -> u64 {
        self.refused[error as usize].load(Ordering::Relaxed)
    }

    /// A record in Redis was refused.
    pub fn refused_record(&self, reason: RecordError) {
        self.refused_records[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records in Redis that were refused.
    pub fn count_refused_records(&self, reason: RecordError) -> u64 {
        self.refused_records[reason as usize].load(Ordering::Relaxed)
    }

    /// The application failed a request.
    pub fn upstream_failed(&self, reason: UpstreamReason) {
        self.upstream_errors[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that the application failed.
    pub fn upstream_errors(&self, reason: UpstreamReason) -> u64 {
        self.upstream_errors[reason as usize].load(Ordering::Relaxed)
    }

    /// The configuration changed, and was taken or refused.
    pub fn reloaded(&self, taken: bool) {
        self.reloads[usize::from(taken)].fetch_add(1, Ordering::Relaxed);
    }

    /// Changes of the configuration that were taken or refused.
    pub fn reloads(&self, taken: bool) -> u64 {
        self.reloads[usize::from(taken)].load(Ordering::Relaxed)
    }
}
