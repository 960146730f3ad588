//! What a sidecar serves by at a moment: a policy, and the tiers that it names.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use larder_flight::Flights;
use larder_policy::{Metadata, Policy, PurgeName, storing::NotStored};

use crate::{
    barriers::Barriers,
    budget::Budget,
    cache_status::Bypass,
    entry::authentication::Authentication,
    l1::{Bounds, L1},
    l2::{Keyspace, L2},
    proxy::Landing,
    sources::{Source, last_known_good::LastKnownGood},
    stats::RouteStats,
    telemetry::Telemetry,
};

/// What requests that no route took are counted under.
pub const NO_ROUTE: &str = "none";

/// What is served by at a moment. A change of the configuration makes a new one, which takes over the tiers whose
/// configuration did not change.
#[derive(Debug)]
pub struct Serving {
    /// The configuration's hash; `None` without a file.
    pub hash: Option<String>,
    /// The policy.
    pub policy: Policy,
    /// The policy's [`Policy::shape`], and the round of its coverage where it follows one: what was stored under another is not
    /// served.
    pub shape: String,
    /// The name that everything bears which is stored under this version of the policy.
    pub version: PurgeName,
    /// Whose policy it is.
    pub metadata: Metadata,
    /// Whether requests are looked up at all.
    pub mode: Mode,
    /// Leave to serve from the cache, besides the policy's own.
    pub leave: Leave,
    /// What purges made stale.
    pub barriers: Arc<Barriers>,
    /// The cache in memory.
    pub l1: Arc<L1>,
    /// The memory of everything that is not L1.
    pub budget: Arc<Budget>,
    /// What is being asked for, for those who want the same.
    pub flights: Flights<Landing>,
    /// The shared cache.
    pub l2: Option<Arc<L2>>,
    /// Who has not heard of writes that passed.
    pub missed_writes: Arc<MissedWrites>,
    sources: Vec<(String, Source)>,
    /// The tables of last good answers, by the source that they are in.
    last_known_good: Vec<(String, Arc<LastKnownGood>)>,
    route_stats: Vec<Arc<RouteStats>>,
    no_route_stats: Arc<RouteStats>,
}

/// Writes passed while no store was named that could be told: whatever one holds may be stale.
#[derive(Debug, Default)]
pub struct MissedWrites {
    /// No Redis was.
    pub redis: AtomicBool,
    /// No table of last good answers was.
    pub tables: AtomicBool,
}

/// Whether requests are looked up at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are.
    Serving,
    /// Everything passes: the policy says so. Writes still purge, so that nothing stale is served when it resumes.
    Suspended,
    /// Everything passes: pods without a sidecar take writes, or may. Writes still purge.
    Waiting,
    /// Everything passes: there is no policy.
    Absent,
}

/// Leave to serve from the cache, besides the policy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// None is needed: no operator knows of the other pods, or nothing depends on seeing their writes.
    NotNeeded,
    /// It is needed and not there.
    Waiting,
    /// Every write is seen since this round of [`Coverage`](larder_policy::Coverage) began.
    Round(String),
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Serving, Self::Suspended, Self::Waiting, Self::Absent];

    /// The mode as the admin API has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Suspended => "suspended",
            Self::Waiting => "waiting",
            Self::Absent => "absent",
        }
    }

    /// Why a request passes, if it does whatever it is.
    pub const fn bypass(self) -> Option<Bypass> {
        match self {
            Self::Serving => None,
            Self::Suspended => Some(Bypass::Suspended),
            Self::Waiting => Some(Bypass::WaitingForPods),
            Self::Absent => Some(Bypass::NoPolicy),
        }
    }
}

impl Serving {
    /// What a sidecar without a policy serves by.
    pub fn bare(telemetry: &Arc<Telemetry>, authentication: &Arc<Authentication>) -> Self {
        let (metadata, mode) = (Metadata::default(), (Mode::Serving, Leave::NotNeeded));
        Self::new(None, Policy::bare(), metadata, mode, telemetry, authentication, None)
    }

    /// What is served by while the configuration is missing.
    pub fn absent(
        telemetry: &Arc<Telemetry>,
        authentication: &Arc<Authentication>,
        previous: Option<&Self>,
    ) -> Self {
        let (metadata, mode) = (Metadata::default(), (Mode::Absent, Leave::NotNeeded));
        Self::new(None, Policy::absent(), metadata, mode, telemetry, authentication, previous)
    }

    /// What is served by under a policy.
    pub fn under(
        policy: Policy,
        metadata: Metadata,
        hash: String,
        leave: Leave,
        telemetry: &Arc<Telemetry>,
        authentication: &Arc<Authentication>,
        previous: Option<&Self>,
    ) -> Self {
        let mode = match &leave {
            _ if policy.suspended => Mode::Suspended,
            Leave::Waiting => Mode::Waiting,
            Leave::NotNeeded | Leave::Round(_) => Mode::Serving,
        };
        Self::new(Some(hash), policy, metadata, (mode, leave), telemetry, authentication, previous)
    }

    fn new(
        hash: Option<String>,
        policy: Policy,
        metadata: Metadata,
        (mode, leave): (Mode, Leave),
        telemetry: &Arc<Telemetry>,
        authentication: &Arc<Authentication>,
        previous: Option<&Self>,
    ) -> Self {
        // In a round's own keys: what was stored in an earlier one may be older than a write that nobody saw.
        let shape = match &leave {
            Leave::NotNeeded | Leave::Waiting => policy.shape(),
            Leave::Round(round) => format!("{} {round}", policy.shape()),
        };
        let version = PurgeName::version(&shape);
        let same_order = previous.filter(|previous| {
            previous.metadata == metadata
                && previous.shape == shape
                && previous.policy.redis == policy.redis
                && previous.policy.l1.bus_grace == policy.l1.bus_grace
                && previous.mode != Mode::Absent
        });
        let (barriers, l2) = match (same_order, &policy.redis) {
            (Some(previous), _) => (Arc::clone(&previous.barriers), previous.l2.clone()),
            (None, None) => (Arc::new(Barriers::alone()), None),
            (None, Some(redis)) => {
                let barriers = Arc::new(Barriers::shared(policy.l1.bus_grace.0));
                let predecessor = previous
                    .filter(|previous| previous.metadata == metadata)
                    .and_then(|previous| previous.l2.as_deref());
                let l2 = L2::start(
                    redis,
                    (Keyspace::new(&metadata), &shape),
                    Arc::clone(&barriers),
                    policy.l1.bus_grace.0,
                    Arc::clone(telemetry),
                    Arc::clone(authentication),
                    predecessor,
                );
                (barriers, Some(Arc::new(l2)))
            }
        };
        let missed_writes =
            previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.missed_writes));
        if let Some(previous) = previous.filter(|_| policy.redis.is_none())
            && previous.l2.as_ref().is_some_and(|l2| l2.has_untold())
        {
            missed_writes.redis.store(true, Ordering::SeqCst);
        }
        if let Some(l2) = l2.as_ref().filter(|_| missed_writes.redis.swap(false, Ordering::SeqCst)) {
            l2.purge_everything();
        }
        let bounds = bounds_of(&policy);
        let same_l1 = same_order.filter(|previous| {
            bounds_of(&previous.policy) == bounds && previous.policy.l1.eviction == policy.l1.eviction
        });
        let (l1, flights) = match same_l1 {
            Some(previous) => (Arc::clone(&previous.l1), previous.flights.clone()),
            None => {
                let l1 = L1::new(bounds, policy.l1.eviction, Arc::clone(&telemetry.stats.evictions));
                (Arc::new(l1), Flights::default())
            }
        };
        let budget = Arc::clone(&telemetry.stats.budget);
        budget.leave_room_for(policy.l1.max_size.0, policy.l1.max_object_size.0);
        telemetry.stats.l1.store(Some(Arc::clone(&l1)));
        telemetry.stats.barriers.store(Some(Arc::clone(&barriers)));
        let sources: Vec<_> = policy
            .sources
            .iter()
            .map(|(name, spec)| {
                let same = previous.and_then(|previous| previous.source(name));
                let same = same.filter(|source| source.is_of(spec)).cloned();
                (name.clone(), same.unwrap_or_else(|| Source::start(spec)))
            })
            .collect();
        let last_known_good = tables(&policy, &metadata, version, &sources, previous);
        if let Some(previous) = previous.filter(|_| last_known_good.is_empty())
            && previous.last_known_good.iter().any(|(_, table)| table.has_untold())
        {
            missed_writes.tables.store(true, Ordering::SeqCst);
        }
        if !last_known_good.is_empty() && missed_writes.tables.swap(false, Ordering::SeqCst) {
            for (_, table) in &last_known_good {
                tokio::spawn(table.forget_everything());
            }
        }
        let route_stats = policy.routes().iter().map(|route| telemetry.stats.route(&route.name)).collect();
        let no_route_stats = telemetry.stats.route(NO_ROUTE);
        Self {
            hash,
            policy,
            shape,
            version,
            metadata,
            mode,
            leave,
            barriers,
            l1,
            budget,
            flights,
            l2,
            missed_writes,
            sources,
            last_known_good,
            route_stats,
            no_route_stats,
        }
    }

    /// Whether a write that passes must be remembered although nothing here is stale: another policy may have been served by
    /// before, and will be again.
    pub fn writes_go_unheard(&self) -> bool {
        self.mode == Mode::Absent
    }

    /// A source of the policy's.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|(known, _)| known == name).map(|(_, source)| source)
    }

    /// Where the last good answers of a route are kept, if they are.
    pub fn last_known_good(&self, route: usize) -> Option<&Arc<LastKnownGood>> {
        let source = self.policy.routes()[route].last_known_good.as_ref()?;
        self.last_known_good.iter().find(|(known, _)| known == source).map(|(_, table)| table)
    }

    /// A write passed. Who is not there to hear of it has missed it.
    pub fn note_write(&self) {
        if self.l2.is_none() {
            self.missed_writes.redis.store(true, Ordering::SeqCst);
        }
        if self.last_known_good.is_empty() {
            self.missed_writes.tables.store(true, Ordering::SeqCst);
        }
    }

    /// Forgets the last good answers that bear one of these names: here at once, and in Postgres soon.
    pub fn forget_last_known_good(&self, names: &[PurgeName]) {
        for (_, table) in &self.last_known_good {
            // A failure to tell Postgres is made up for by the table.
            tokio::spawn(table.forget(names));
        }
    }

    /// A write passed for which this version of the policy names nothing. Others may: what was stored under them before is stale.
    pub async fn tell_other_versions(&self) {
        for (_, table) in &self.last_known_good {
            table.note_unnamed_write();
        }
        if let Some(l2) = &self.l2 {
            l2.tell_other_versions().await;
        }
    }

    /// The counters of a route by its place; `None`: of requests that no route took.
    pub fn route_stats(&self, route: Option<usize>) -> &Arc<RouteStats> {
        route.and_then(|index| self.route_stats.get(index)).unwrap_or(&self.no_route_stats)
    }

    /// Counts why an answer of a route was not stored; the log says it once a reason.
    pub fn not_stored(&self, route: usize, reason: NotStored) {
        if self.route_stats(Some(route)).not_stored(reason) {
            let route = &self.policy.routes()[route].name;
            tracing::info!(
                route,
                reason = reason.as_str(),
                "an answer was not stored; further ones are only counted"
            );
        }
    }

    /// Which tiers are up.
    pub fn tiers(&self) -> Vec<(String, bool)> {
        let redis = self.l2.iter().map(|l2| ("redis".to_owned(), l2.is_up()));
        let sources = self.sources.iter();
        let sources = sources.map(|(name, source)| (format!("{}/{name}", source.kind()), source.is_up()));
        redis.chain(sources).collect()
    }

    /// Why a tier is not connected, or not with the secrets that it is given now. No secret is in it.
    pub fn troubles(&self) -> Vec<(String, String)> {
        let redis = self.l2.iter().filter_map(|l2| Some(("redis".to_owned(), l2.trouble()?)));
        let sources = self.sources.iter();
        let sources = sources
            .filter_map(|(name, source)| Some((format!("{}/{name}", source.kind()), source.trouble()?)));
        redis.chain(sources).collect()
    }
}

fn bounds_of(policy: &Policy) -> Bounds {
    Bounds { max_bytes: policy.l1.max_size.0, max_entries: policy.l1.max_entries.map(u64::from) }
}

/// The tables of last good answers, each once. What the ones before could not tell Postgres is told by these.
fn tables(
    policy: &Policy,
    metadata: &Metadata,
    version: PurgeName,
    sources: &[(String, Source)],
    previous: Option<&Serving>,
) -> Vec<(String, Arc<LastKnownGood>)> {
    let owner = format!("{}/{}", metadata.namespace, metadata.name);
    let mut names: Vec<_> =
        policy.routes().iter().filter_map(|route| route.last_known_good.clone()).collect();
    names.sort();
    names.dedup();
    let table = |name: String| {
        let source = sources.iter().find(|(known, _)| *known == name);
        let Some((_, Source::Postgres(source))) = source else { return None };
        let before = previous.and_then(|previous| {
            previous.last_known_good.iter().find(|(known, _)| *known == name).map(|(_, table)| table)
        });
        let table = match before {
            Some(table) if table.is_of(source, &owner, version) => Arc::clone(table),
            before => {
                let table = LastKnownGood::new(Arc::clone(source), owner.clone(), version);
                before.inspect(|before| table.inherit(before));
                Arc::new(table)
            }
        };
        Some((name, table))
    };
    names.into_iter().filter_map(table).collect()
}

#[cfg(test)]
mod tests {
    use larder_policy::{ByteSize, spec};

    use super::*;

    #[tokio::test]
    async fn another_bound_or_eviction_makes_l1_again() {
        let telemetry = Arc::new(Telemetry::new().unwrap());
        let authentication = Arc::new(Authentication::new(None));
        let under = |change: fn(&mut spec::L1), previous| {
            let mut policy = Policy::bare();
            change(&mut policy.l1);
            Serving::under(
                policy,
                Metadata::default(),
                "hash".to_owned(),
                Leave::NotNeeded,
                &telemetry,
                &authentication,
                previous,
            )
        };
        let before = under(|_| (), None);
        assert!(Arc::ptr_eq(&before.l1, &under(|_| (), Some(&before)).l1));
        let changes: [fn(&mut spec::L1); 3] = [
            |l1| l1.max_size = ByteSize(l1.max_size.0 / 2),
            |l1| l1.max_entries = Some(10),
            |l1| l1.eviction = spec::Eviction::S3Fifo,
        ];
        for change in changes {
            let after = under(change, Some(&before));
            assert!(!Arc::ptr_eq(&before.l1, &after.l1));
            assert_eq!(after.l1.max_entries(), after.policy.l1.max_entries.map(u64::from));
        }
    }
}
