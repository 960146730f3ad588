//! A policy in force, and the tiers that it names.

use std::sync::{Arc, atomic::Ordering};

use larder_flight::Flights;
use larder_policy::{Metadata, Policy, PurgeName, Route};

use crate::{
    barriers::Barriers,
    entry::authentication::Authentication,
    l1::{Bounds, L1},
    l2::{Formers, Keyspace, L2},
    mode::Mode,
    sources::{Source, last_known_good::LastKnownGood},
    stats::RouteStats,
    store::{Store, in_flight::FetchOutcome},
    telemetry::Telemetry,
};

/// Name under which requests that no route took are counted.
pub const NO_ROUTE: &str = "none";

/// A policy in force, and what serves it. A change of the configuration makes a new one, which takes over the tiers whose
/// configuration did not change.
#[derive(Debug)]
pub struct Snapshot {
    /// Hash of the configuration; `None` without a file.
    pub hash: Option<String>,
    /// The policy.
    pub policy: Arc<Policy>,
    /// Treatment of requests as a whole.
    pub mode: Mode,
    /// Permission to serve from the cache, besides the policy's own.
    pub leave: Leave,
    /// The tiers that store responses.
    pub store: Arc<Store>,
    /// Fetches under way, for requests for the same.
    pub flights: Flights<FetchOutcome>,
    sources: Vec<(String, Source)>,
    no_route_stats: Arc<RouteStats>,
}

/// Permission to serve from the cache, besides the policy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Not needed: no operator knows the other pods, or nothing depends on seeing their writes.
    NotNeeded,
    /// Needed and not given.
    Waiting,
    /// Given: every write is seen since this round of [`Coverage`](larder_policy::Coverage) began.
    Round(String),
}

impl Snapshot {
    /// Creates the snapshot of a sidecar that never had a policy: a plain shared cache.
    pub fn bare(telemetry: &Arc<Telemetry>, authentication: &Arc<Authentication>) -> Self {
        let (metadata, mode) = (Metadata::default(), (Mode::Serving, Leave::NotNeeded));
        Self::new(None, Arc::new(Policy::bare()), metadata, mode, telemetry, authentication, None)
    }

    /// Creates the snapshot of a sidecar whose configuration is missing: everything passes.
    pub fn absent(
        telemetry: &Arc<Telemetry>,
        authentication: &Arc<Authentication>,
        previous: Option<&Self>,
    ) -> Self {
        let (metadata, mode) = (Metadata::default(), (Mode::Absent, Leave::NotNeeded));
        Self::new(None, Arc::new(Policy::absent()), metadata, mode, telemetry, authentication, previous)
    }

    /// Creates the snapshot of a policy.
    pub fn under(
        policy: impl Into<Arc<Policy>>,
        metadata: Metadata,
        hash: String,
        leave: Leave,
        telemetry: &Arc<Telemetry>,
        authentication: &Arc<Authentication>,
        previous: Option<&Self>,
    ) -> Self {
        let policy = policy.into();
        let mode = match &leave {
            _ if policy.suspended => Mode::Suspended,
            Leave::Waiting => Mode::Waiting,
            Leave::NotNeeded | Leave::Round(_) => Mode::Serving,
        };
        Self::new(Some(hash), policy, metadata, (mode, leave), telemetry, authentication, previous)
    }

    fn new(
        hash: Option<String>,
        policy: Arc<Policy>,
        metadata: Metadata,
        (mode, leave): (Mode, Leave),
        telemetry: &Arc<Telemetry>,
        authentication: &Arc<Authentication>,
        previous: Option<&Self>,
    ) -> Self {
        // A round has keys of its own: a response of an earlier one may be older than a write that no sidecar saw.
        let fingerprint = match &leave {
            Leave::NotNeeded | Leave::Waiting => policy.fingerprint(),
            Leave::Round(round) => format!("{} {round}", policy.fingerprint()),
        };
        let version = PurgeName::version(&fingerprint);
        let same_order = previous.filter(|previous| {
            previous.store.metadata == metadata
                && previous.store.fingerprint == fingerprint
                && previous.policy.redis == policy.redis
                && previous.policy.l1.bus_grace == policy.l1.bus_grace
                && previous.mode != Mode::Absent
        });
        let predecessor =
            previous.map(|previous| &*previous.store).filter(|store| store.metadata == metadata);
        let formers = match same_order {
            Some(previous) => Arc::clone(&previous.store.formers),
            None => Formers::following(
                predecessor.map(|store| (&*store.formers, store.l2.as_deref())),
                policy.redis.as_ref(),
            ),
        };
        let (barriers, l2) = match (same_order, &policy.redis) {
            (Some(previous), _) => (Arc::clone(&previous.store.barriers), previous.store.l2.clone()),
            (None, None) => {
                let barriers = Arc::new(Barriers::alone());
                formers.lead_alone(&barriers, version);
                (barriers, None)
            }
            (None, Some(redis)) => {
                let barriers = Arc::new(Barriers::shared(policy.l1.bus_grace.0));
                let l2 = L2::start(
                    redis,
                    (Keyspace::new(&metadata), &fingerprint),
                    Arc::clone(&barriers),
                    policy.l1.bus_grace.0,
                    Arc::clone(telemetry),
                    Arc::clone(authentication),
                    (predecessor.and_then(|store| store.l2.as_deref()), &formers),
                );
                (barriers, Some(Arc::new(l2)))
            }
        };
        let missed_writes =
            previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.store.missed_writes));
        if let Some(previous) = previous.filter(|_| policy.redis.is_none())
            && previous.store.l2.as_ref().is_some_and(|l2| l2.has_untold())
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
            Some(previous) => (Arc::clone(&previous.store.l1), previous.flights.clone()),
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
            && previous.store.last_known_good.iter().any(|(_, table)| table.has_untold())
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
        let store = Store {
            policy: Arc::clone(&policy),
            fingerprint,
            version,
            metadata,
            barriers,
            l1,
            l2,
            formers,
            budget,
            missed_writes,
            last_known_good,
            route_stats,
        };
        Self { hash, policy, mode, leave, store: Arc::new(store), flights, sources, no_route_stats }
    }

    /// Returns true if a write must be remembered although nothing here is stale: another policy may have been in force before, and
    /// may be again.
    pub fn writes_go_unheard(&self) -> bool {
        self.mode == Mode::Absent
    }

    /// Returns a source of the policy by its name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|(known, _)| known == name).map(|(_, source)| source)
    }

    /// Returns the counters of a route, or of the requests that no route took.
    pub fn route_stats(&self, route: Option<&Route>) -> &Arc<RouteStats> {
        route.and_then(|route| self.store.route_stats.get(route.index)).unwrap_or(&self.no_route_stats)
    }

    /// Returns each tier, and true if it is up.
    pub fn tiers(&self) -> Vec<(String, bool)> {
        let redis = self.store.l2.iter().map(|l2| ("redis".to_owned(), l2.is_up()));
        let sources = self.sources.iter();
        let sources = sources.map(|(name, source)| (format!("{}/{name}", source.label()), source.is_up()));
        redis.chain(sources).collect()
    }

    /// Returns each tier that is not connected, or not with the secrets that it is given now, with the error. No text has a secret in
    /// it.
    pub fn last_errors(&self) -> Vec<(String, String)> {
        let redis = self.store.l2.iter().filter_map(|l2| Some(("redis".to_owned(), l2.trouble()?)));
        let sources = self.sources.iter();
        let sources = sources
            .filter_map(|(name, source)| Some((format!("{}/{name}", source.label()), source.last_error()?)));
        redis.chain(sources).collect()
    }
}

fn bounds_of(policy: &Policy) -> Bounds {
    Bounds { max_bytes: policy.l1.max_size.0, max_entries: policy.l1.max_entries.map(u64::from) }
}

/// Returns the tables of last known good responses, each once. They tell Postgres what their predecessors could not.
fn tables(
    policy: &Policy,
    metadata: &Metadata,
    version: PurgeName,
    sources: &[(String, Source)],
    previous: Option<&Snapshot>,
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
            previous.store.last_known_good.iter().find(|(known, _)| *known == name).map(|(_, table)| table)
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
            Snapshot::under(
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
        assert!(Arc::ptr_eq(&before.store.l1, &under(|_| (), Some(&before)).store.l1));
        let changes: [fn(&mut spec::L1); 3] = [
            |l1| l1.max_size = ByteSize(l1.max_size.0 / 2),
            |l1| l1.max_entries = Some(10),
            |l1| l1.eviction = spec::Eviction::S3Fifo,
        ];
        for change in changes {
            let after = under(change, Some(&before));
            assert!(!Arc::ptr_eq(&before.store.l1, &after.store.l1));
            assert_eq!(after.store.l1.max_entries(), after.policy.l1.max_entries.map(u64::from));
        }
    }
}
