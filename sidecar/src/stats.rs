//! Counters since the process began, read by metrics and by the admin API.

use std::{
    array,
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
pub use larder_api::admin::Outcome;
use larder_policy::{storing::NotStored, writing::Placeholder};
use opentelemetry::{
    KeyValue,
    metrics::{BoundHistogram, Histogram},
};

use crate::{
    barriers::Barriers, budget::Budget, cache_status::Tier, http1_guard::RequestError, l1::L1, mode::Mode,
    upstream::UpstreamReason,
};
use parking_lot::Mutex;

mod peers;

pub use peers::{PeerOutcome, PeerStats};

larder_api::labelled! {
    /// The cause of a purge.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum PurgeOrigin {
        /// The admin API.
        Api = "api",
        /// A PURGE or BAN request to the application's address.
        Request = "request",
        /// A write through the sidecar.
        Write = "write",
        /// Postgres, by a notification, or after a gap in which some may have been lost.
        Postgres = "postgres",
        /// A response of the application, by `Larder-Purge`.
        Response = "response",
    }
}

larder_api::labelled! {
    /// Reason not to carry out a purge that a response or a request asks for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum RefusedPurge {
        /// The document is malformed, or names nothing.
        Malformed = "malformed",
        /// A cache or a proxy passed the response on.
        Relayed = "relayed",
        /// A PURGE or BAN request has no token and comes from no allowed network.
        Forbidden = "forbidden",
        /// A PURGE or BAN request names what no purge does.
        Untranslated = "untranslated",
    }
}

larder_api::labelled! {
    /// Place of a value in a write, or of tags in its response, that a rule of `onWrite` uses.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ValuePlace {
        /// The query.
        Query = "query",
        /// A header field.
        Header = "header",
        /// The body.
        Body = "body",
        /// Header fields of the response.
        Response = "response",
    }
}

impl ValuePlace {
    /// Returns the place of a placeholder; `None` for the path, whose values are always known.
    pub fn of(placeholder: &Placeholder) -> Option<Self> {
        match placeholder {
            Placeholder::Path(_) => None,
            Placeholder::Query(_) => Some(Self::Query),
            Placeholder::Header(_) => Some(Self::Header),
            Placeholder::Body(_) => Some(Self::Body),
            Placeholder::Response(_) => Some(Self::Response),
        }
    }
}

larder_api::labelled! {
    /// Reason to reject a record in Redis.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum RecordError {
        /// The MAC does not match the record and its key.
        Unauthentic = "unauthentic",
        /// The record is not a response that a sidecar stores.
        Malformed = "malformed",
        /// The record is larger than any that this policy stores.
        TooLarge = "too-large",
    }
}

/// Counters of one route.
#[derive(Debug)]
pub struct RouteStats {
    name: Box<str>,
    /// Histograms of its responses. Made by the first, because most of 1,000 routes are idle in most pods.
    durations: ArcSwapOption<Durations>,
    requests: PerThread<[[AtomicU64; Tier::ALL.len()]; Outcome::ALL.len()]>,
    not_stored: [AtomicU64; NotStored::ALL.len()],
}

/// Counters with one copy per thread, so that threads do not contend for cache lines. A copy is made when its thread first
/// counts.
#[derive(Debug, Default)]
struct PerThread<T>([OnceLock<Box<Padded<T>>>; THREADS]);

/// Number of copies; further threads share them.
const THREADS: usize = 8;

/// Two cache lines: some processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T: Default> PerThread<T> {
    fn own(&self) -> &T {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static PLACE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % THREADS;
        }
        &self.0[PLACE.with(|place| *place)].get_or_init(Box::default).0
    }

    fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(OnceLock::get).map(|padded| &padded.0)
    }
}

/// The histograms of a route's responses by outcome, bound to their attributes: to look for these takes longer than to record.
#[derive(Debug)]
struct Durations {
    /// The instruments that the histograms belong to.
    generation: u64,
    by_outcome: [OnceLock<BoundHistogram<f64>>; Outcome::ALL.len()],
}

impl Durations {
    fn record(&self, outcome: Outcome, seconds: f64, route: &str, histogram: &Histogram<f64>) {
        let bound = self.by_outcome[outcome as usize].get_or_init(|| {
            let attributes =
                [KeyValue::new("route", route.to_owned()), KeyValue::new("outcome", outcome.as_str())];
            histogram.bind(&attributes)
        });
        bound.record(seconds);
    }
}

impl RouteStats {
    fn new(route: &str) -> Self {
        Self {
            name: Box::from(route),
            durations: ArcSwapOption::empty(),
            requests: PerThread::default(),
            not_stored: Default::default(),
        }
    }

    /// Records the time until the head of a response was ready in one of the histograms of this generation.
    pub fn took(&self, outcome: Outcome, seconds: f64, generation: u64, histogram: &Histogram<f64>) {
        let durations = self.durations.load();
        match durations.as_ref().filter(|durations| durations.generation == generation) {
            Some(durations) => durations.record(outcome, seconds, &self.name, histogram),
            None => {
                let durations = Arc::new(Durations { generation, by_outcome: Default::default() });
                durations.record(outcome, seconds, &self.name, histogram);
                self.durations.store(Some(durations));
            }
        }
    }

    /// Counts a response.
    pub fn answered(&self, outcome: Outcome, tier: Tier) {
        self.requests.own()[outcome as usize][tier.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a response that was not stored. Returns true the first time for this reason.
    pub fn not_stored(&self, reason: NotStored) -> bool {
        self.not_stored[reason as usize].fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Returns the number of responses.
    pub fn requests(&self, outcome: Outcome, tier: Tier) -> u64 {
        let of_thread = |counters: &[[AtomicU64; Tier::ALL.len()]; Outcome::ALL.len()]| {
            counters[outcome as usize][tier.index()].load(Ordering::Relaxed)
        };
        self.requests.all().map(of_thread).sum()
    }

    /// Returns the number of responses that were not stored.
    pub fn count_not_stored(&self, reason: NotStored) -> u64 {
        self.not_stored[reason as usize].load(Ordering::Relaxed)
    }

    /// Adds the counts of a route that is gone.
    fn absorb(&self, gone: &Self) {
        for (outcome, tier) in Outcome::ALL.into_iter().flat_map(|o| Tier::ALL.map(|t| (o, t))) {
            let own = &self.requests.own()[outcome as usize][tier.index()];
            own.fetch_add(gone.requests(outcome, tier), Ordering::Relaxed);
        }
        for reason in NotStored::ALL {
            self.not_stored[reason as usize].fetch_add(gone.count_not_stored(reason), Ordering::Relaxed);
        }
    }
}

/// Maximum number of routes with counters of their own, those of earlier policies included. A policy has at most 1,000.
const MAX_ROUTES: usize = 2_000;

/// Name that counts the requests of routes of earlier policies, once there are more than [`MAX_ROUTES`].
const REMOVED: &str = "removed";

/// Responses of a tier, and the sum of the times until their heads were ready.
#[derive(Debug, Default)]
struct Times {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Counters since the process began.
#[derive(Debug, Default)]
pub struct Stats {
    routes: Mutex<BTreeMap<String, Arc<RouteStats>>>,
    purges: [AtomicU64; PurgeOrigin::ALL.len()],
    refused_purges: [AtomicU64; RefusedPurge::ALL.len()],
    broadened: [AtomicU64; ValuePlace::ALL.len()],
    tier_errors: [AtomicU64; Tier::ALL.len()],
    tier_times: PerThread<[Times; Tier::ALL.len()]>,
    mode: Mutex<Option<Mode>>,
    tiers_up: Mutex<Vec<(String, bool)>>,
    degraded: Mutex<Vec<(String, bool)>>,
    leases: [AtomicU64; 2],
    reloads: [AtomicU64; 2],
    refused: [AtomicU64; RequestError::ALL.len()],
    refused_records: [AtomicU64; RecordError::ALL.len()],
    malformed_notifications: AtomicU64,
    upstream_errors: [AtomicU64; UpstreamReason::ALL.len()],
    /// Connections in other protocols that were passed on.
    pub spliced: AtomicU64,
    /// Entries that were evicted from L1.
    pub evictions: Arc<AtomicU64>,
    /// The L1 in use.
    pub l1: ArcSwapOption<L1>,
    /// The barriers in use.
    pub barriers: ArcSwapOption<Barriers>,
    /// Purges from pod to pod.
    pub peers: PeerStats,
    /// The memory budget.
    pub budget: Arc<Budget>,
}

impl Stats {
    /// Creates the counters of a process with a budget.
    pub fn within(budget: Arc<Budget>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Returns the counters of a route, which survive changes of the policy. Beyond [`MAX_ROUTES`] those of routes that no
    /// policy in force has are counted together.
    pub fn route(&self, name: &str) -> Arc<RouteStats> {
        let mut routes = self.routes.lock();
        if routes.len() >= MAX_ROUTES && !routes.contains_key(name) {
            let removed = entry_of(&mut routes, REMOVED);
            routes.retain(|_, stats| {
                let is_in_use = Arc::strong_count(stats) > 1;
                if !is_in_use {
                    removed.absorb(stats);
                }
                is_in_use
            });
        }
        entry_of(&mut routes, name)
    }

    /// Returns all routes that have counters, by name.
    pub fn routes(&self) -> Vec<(String, Arc<RouteStats>)> {
        let routes = self.routes.lock();
        routes.iter().map(|(name, stats)| (name.clone(), Arc::clone(stats))).collect()
    }

    /// Returns the number of responses of all routes.
    pub fn requests(&self, outcome: Outcome, tier: Tier) -> u64 {
        self.routes.lock().values().map(|stats| stats.requests(outcome, tier)).sum()
    }

    /// Counts a purge.
    pub fn purged(&self, origin: PurgeOrigin) {
        self.purges[origin as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of purges.
    pub fn purges(&self, origin: PurgeOrigin) -> u64 {
        self.purges[origin as usize].load(Ordering::Relaxed)
    }

    /// Counts a purge that a response or a request asked for in vain. Returns true for the first of its reason.
    pub fn purge_refused(&self, reason: RefusedPurge) -> bool {
        self.refused_purges[reason as usize].fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Returns the number of purges that responses and requests asked for in vain.
    pub fn refused_purges(&self, reason: RefusedPurge) -> u64 {
        self.refused_purges[reason as usize].load(Ordering::Relaxed)
    }

    /// Counts the time until the head of a tier's response was ready.
    pub fn took(&self, tier: Tier, elapsed: Duration) {
        let Times { count, nanoseconds } = &self.tier_times.own()[tier.index()];
        count.fetch_add(1, Ordering::Relaxed);
        nanoseconds.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns the number of responses of each tier whose times were measured, and the sum of these.
    pub fn tier_times(&self) -> [(Tier, u64, Duration); Tier::ALL.len()] {
        let sum = |tier: Tier, read: fn(&Times) -> &AtomicU64| {
            self.tier_times.all().map(|times| read(&times[tier.index()]).load(Ordering::Relaxed)).sum::<u64>()
        };
        Tier::ALL.map(|tier| {
            let nanoseconds = sum(tier, |times| &times.nanoseconds);
            (tier, sum(tier, |times| &times.count), Duration::from_nanos(nanoseconds))
        })
    }

    /// Counts a purge by a write that covers all that could be meant, because a value in this place is unknown.
    pub fn broadened(&self, place: ValuePlace) {
        self.broadened[place as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of purges that were broadened because of values in this place.
    pub fn count_broadened(&self, place: ValuePlace) -> u64 {
        self.broadened[place as usize].load(Ordering::Relaxed)
    }

    /// Counts a failure of a tier.
    pub fn tier_failed(&self, tier: Tier) {
        self.tier_errors[tier.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of failures of each tier.
    pub fn tier_errors(&self) -> [(Tier, u64); Tier::ALL.len()] {
        array::from_fn(|index| (Tier::ALL[index], self.tier_errors[index].load(Ordering::Relaxed)))
    }

    /// Records the mode.
    pub fn set_mode(&self, mode: Mode) {
        *self.mode.lock() = Some(mode);
    }

    /// Returns the mode at the last check, a second ago at most; `None` before the first check.
    pub fn mode(&self) -> Option<Mode> {
        *self.mode.lock()
    }

    /// Records each tier, and whether it is up.
    pub fn set_tiers(&self, tiers: Vec<(String, bool)>) {
        *self.tiers_up.lock() = tiers;
    }

    /// Returns each tier, and whether it was up a second ago at most.
    pub fn tiers(&self) -> Vec<(String, bool)> {
        self.tiers_up.lock().clone()
    }

    /// Records each tier, and whether it is degraded: not connected, or not with its current secrets.
    pub fn set_degraded(&self, degraded: Vec<(String, bool)>) {
        *self.degraded.lock() = degraded;
    }

    /// Returns each tier, and whether it was degraded a second ago at most.
    pub fn degraded(&self) -> Vec<(String, bool)> {
        self.degraded.lock().clone()
    }

    /// Counts a lease that was granted, or held by another pod.
    pub fn leased(&self, granted: bool) {
        self.leases[usize::from(granted)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of leases that were granted, or held by another pod.
    pub fn leases(&self, granted: bool) -> u64 {
        self.leases[usize::from(granted)].load(Ordering::Relaxed)
    }

    /// Counts a rejected request.
    pub fn refused(&self, error: RequestError) {
        self.refused[error as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of rejected requests.
    pub fn count_refused(&self, error: RequestError) -> u64 {
        self.refused[error as usize].load(Ordering::Relaxed)
    }

    /// Counts a rejected record in Redis.
    pub fn refused_record(&self, reason: RecordError) {
        self.refused_records[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of rejected records in Redis.
    pub fn count_refused_records(&self, reason: RecordError) -> u64 {
        self.refused_records[reason as usize].load(Ordering::Relaxed)
    }

    /// Counts a notification of Postgres that names nothing.
    pub fn malformed_notification(&self) {
        self.malformed_notifications.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of notifications of Postgres that named nothing.
    pub fn malformed_notifications(&self) -> u64 {
        self.malformed_notifications.load(Ordering::Relaxed)
    }

    /// Counts a failure of the application.
    pub fn upstream_failed(&self, reason: UpstreamReason) {
        self.upstream_errors[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of failures of the application.
    pub fn upstream_errors(&self, reason: UpstreamReason) -> u64 {
        self.upstream_errors[reason as usize].load(Ordering::Relaxed)
    }

    /// Counts a change of the configuration that was applied or rejected.
    pub fn reloaded(&self, taken: bool) {
        self.reloads[usize::from(taken)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of changes of the configuration that were applied or rejected.
    pub fn reloads(&self, taken: bool) -> u64 {
        self.reloads[usize::from(taken)].load(Ordering::Relaxed)
    }
}

fn entry_of(routes: &mut BTreeMap<String, Arc<RouteStats>>, name: &str) -> Arc<RouteStats> {
    Arc::clone(routes.entry(name.to_owned()).or_insert_with(|| Arc::new(RouteStats::new(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_earlier_policies_are_counted_together_when_they_are_many() {
        let stats = Stats::default();
        let kept = stats.route("kept");
        for number in 0..3 * MAX_ROUTES {
            let route = stats.route(&format!("route-{number}"));
            route.answered(Outcome::Hit, Tier::L1);
            route.not_stored(NotStored::Status);
        }
        kept.answered(Outcome::Hit, Tier::L1);
        let routes = stats.routes();
        assert!(routes.len() <= MAX_ROUTES, "{}", routes.len());
        assert!(routes.iter().any(|(name, stats)| name == "kept" && Arc::ptr_eq(stats, &kept)));
        let hits = u64::try_from(3 * MAX_ROUTES + 1).unwrap();
        assert_eq!(stats.requests(Outcome::Hit, Tier::L1), hits);
        let not_stored: u64 = routes.iter().map(|(_, stats)| stats.count_not_stored(NotStored::Status)).sum();
        assert_eq!(not_stored, hits - 1);
    }

    #[test]
    fn route_without_requests_takes_little_memory() {
        assert!(size_of::<RouteStats>() <= 384, "{}", size_of::<RouteStats>());
    }
}
