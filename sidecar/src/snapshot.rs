//! A configuration in force, and the tiers that it names.

use std::sync::Arc;

use larder_flight::Flights;
use larder_policy::{ByteSize, Metadata, Policy, PurgeName, Route, policy};

use crate::{
    barriers::Barriers,
    entry::authentication::Authentication,
    feed::Feed,
    l1::{Bounds, L1},
    l2::{Formers, Keyspace, L2},
    mode::Mode,
    resolver::Resolver,
    sources::{Source, last_known_good::LastKnownGood},
    stats::RouteStats,
    store::{Store, in_flight::FetchOutcome},
    telemetry::Telemetry,
};

mod configuration;

use configuration::{Changes, bounds_of};
pub use configuration::{Configuration, Permission};

/// Name under which requests that no route took are counted.
pub const NO_ROUTE: &str = "none";

/// A configuration in force, and what serves it. A change of the configuration makes a new one, which takes over the tiers whose
/// configuration did not change.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration.
    pub configuration: Configuration,
    /// The tiers that store responses.
    pub store: Arc<Store>,
    /// Fetches under way, for requests for the same.
    pub flights: Flights<FetchOutcome>,
    /// Feeds of the policy: Postgres tells of changes.
    pub feeds: Vec<Arc<Feed>>,
    sources: Vec<(String, Source)>,
    no_route_stats: Arc<RouteStats>,
}

/// Tools that every snapshot of a process shares.
#[derive(Debug)]
pub struct Context {
    /// Counters and instruments.
    pub telemetry: Arc<Telemetry>,
    /// The token that authenticates records in Redis.
    pub authentication: Arc<Authentication>,
}

impl Snapshot {
    /// Puts a configuration in force, in place of another one.
    pub fn start(configuration: Configuration, context: &Context, previous: Option<&Self>) -> Self {
        let fingerprint = configuration.fingerprint();
        let before = previous.map(|previous| (&previous.configuration, previous.store.fingerprint.as_str()));
        let changes = Changes::between(before, (&configuration, &fingerprint));
        let unchanged = |has_changed: bool| previous.filter(|_| !has_changed);
        let Configuration { policy, metadata, .. } = &configuration;
        let stats = &context.telemetry.stats;

        let version = PurgeName::version(&fingerprint);
        let redis = match unchanged(changes.order) {
            Some(previous) => SharedTier::of(&previous.store),
            None => {
                let predecessor = unchanged(changes.owner).map(|previous| &*previous.store);
                SharedTier::start(&configuration, &fingerprint, context, predecessor)
            }
        };
        let l1_bytes = stats.budget.l1_within(policy.l1.max_size.0);
        let (l1, flights) = match unchanged(changes.memory) {
            Some(previous) => (Arc::clone(&previous.store.l1), previous.flights.clone()),
            None => {
                let bounds = Bounds { max_bytes: l1_bytes, ..bounds_of(policy) };
                let l1 = L1::new(bounds, policy.l1.eviction, Arc::clone(&stats.evictions));
                if ByteSize(l1_bytes) < policy.l1.max_size {
                    tracing::warn!(
                        max_size = %policy.l1.max_size,
                        bytes = l1_bytes,
                        "l1.maxSize does not fit into the memory of this container; L1 is smaller"
                    );
                }
                (Arc::new(l1), Flights::default())
            }
        };
        let sources = start_sources(&configuration, unchanged(changes.destinations));
        let former_feeds = previous.map_or(&[][..], |previous| &previous.feeds);
        let feeds = Feed::of_policy(policy, metadata, &sources, former_feeds);
        let last_known_good = tables(policy, metadata, version, &sources, previous);
        let missed_writes =
            previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.store.missed_writes));
        let store = Store {
            policy: Arc::clone(policy),
            fingerprint,
            version,
            metadata: metadata.clone(),
            barriers: redis.barriers,
            l1,
            l2: redis.l2,
            formers: redis.formers,
            budget: Arc::clone(&stats.budget),
            missed_writes,
            last_known_good,
            route_stats: policy.routes().iter().map(|route| stats.route(&route.name)).collect(),
        };
        store.make_up_for_missed_writes(previous.map(|previous| &*previous.store));
        stats.budget.leave_room_for(l1_bytes, policy.l1.max_object_size.0);
        stats.l1.store(Some(Arc::clone(&store.l1)));
        stats.barriers.store(Some(Arc::clone(&store.barriers)));
        let no_route_stats = stats.route(NO_ROUTE);
        Self { configuration, store: Arc::new(store), flights, feeds, sources, no_route_stats }
    }

    /// Returns the policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.configuration.policy
    }

    /// Returns the treatment of requests as a whole.
    pub fn mode(&self) -> Mode {
        self.configuration.mode()
    }

    /// Returns true if a write must be remembered although nothing here is stale: another policy may have been in force before, and
    /// may be again.
    pub fn writes_go_unheard(&self) -> bool {
        self.mode() == Mode::Absent
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
        let feeds = self.feeds.iter().map(|feed| (feed.name().to_owned(), feed.is_up()));
        redis.chain(sources).chain(feeds).collect()
    }

    /// Returns each tier that is not connected, or not with the secrets that it is given now, with the error. No text has a secret in
    /// it.
    pub fn last_errors(&self) -> Vec<(String, String)> {
        let redis = self.store.l2.iter().filter_map(|l2| Some(("redis".to_owned(), l2.last_error()?)));
        let sources = self.sources.iter();
        let sources = sources
            .filter_map(|(name, source)| Some((format!("{}/{name}", source.label()), source.last_error()?)));
        let feeds = self.feeds.iter().filter_map(|feed| Some((feed.name().to_owned(), feed.last_error()?)));
        redis.chain(sources).chain(feeds).collect()
    }
}

/// The shared tier of a policy, and the order of purges that goes with it.
struct SharedTier {
    barriers: Arc<Barriers>,
    l2: Option<Arc<L2>>,
    formers: Arc<Formers>,
}

impl SharedTier {
    fn of(store: &Store) -> Self {
        Self {
            barriers: Arc::clone(&store.barriers),
            l2: store.l2.clone(),
            formers: Arc::clone(&store.formers),
        }
    }

    /// Begins a new order of purges. `predecessor` is the store of the same policy before, whose purges still apply.
    fn start(
        configuration: &Configuration,
        fingerprint: &str,
        context: &Context,
        predecessor: Option<&Store>,
    ) -> Self {
        let Configuration { policy, metadata, destinations, .. } = configuration;
        let former_l2 = predecessor.and_then(|store| store.l2.as_deref());
        let formers =
            L2::left_for(predecessor.map(|store| (&*store.formers, former_l2)), policy.redis.as_ref());
        let Some(redis) = &policy.redis else {
            let barriers = Arc::new(Barriers::alone());
            formers.lead_alone(&barriers, PurgeName::version(fingerprint));
            return Self { barriers, l2: None, formers };
        };
        let barriers = Arc::new(Barriers::shared(policy.l1.bus_grace.0));
        let l2 = L2::start(
            (redis, Resolver::within(destinations)),
            (Keyspace::new(metadata), fingerprint),
            Arc::clone(&barriers),
            policy.l1.bus_grace.0,
            Arc::clone(&context.telemetry),
            Arc::clone(&context.authentication),
            (former_l2, &formers),
        );
        Self { barriers, l2: Some(Arc::new(l2)), formers }
    }
}

/// Returns the sources of a policy: those of the predecessor whose spec is the same, and new ones.
fn start_sources(configuration: &Configuration, previous: Option<&Snapshot>) -> Vec<(String, Source)> {
    let source = |(name, spec): &(String, policy::Source)| {
        let same = previous.and_then(|previous| previous.source(name));
        let same = same.filter(|source| source.is_of(spec)).cloned();
        (
            name.clone(),
            same.unwrap_or_else(|| Source::start(spec, Resolver::within(&configuration.destinations))),
        )
    };
    configuration.policy.sources.iter().map(source).collect()
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
    use larder_policy::spec;

    use super::*;
    use crate::budget::{Budget, MemoryLimit};

    #[tokio::test]
    async fn l1_of_a_policy_from_before_memory_was_bounded_fits_into_memory() {
        let memory = MemoryLimit { bytes: Some(256 << 20), ..MemoryLimit::default() };
        let context = Context {
            telemetry: Arc::new(Telemetry::within(Arc::new(Budget::new(memory))).unwrap()),
            authentication: Arc::new(Authentication::new(None)),
        };
        let mut policy = Policy::bare();
        policy.l1.max_size = ByteSize(900 << 20);
        let configuration = Configuration { policy: Arc::new(policy), ..Configuration::bare() };
        let snapshot = Snapshot::start(configuration.clone(), &context, None);
        assert_eq!(snapshot.store.l1.max_bytes(), 224 << 20);
        let next = Snapshot::start(configuration, &context, Some(&snapshot));
        assert!(Arc::ptr_eq(&next.store.l1, &snapshot.store.l1));
    }

    #[tokio::test]
    async fn another_bound_or_eviction_makes_l1_again() {
        let context = Context {
            telemetry: Arc::new(Telemetry::new().unwrap()),
            authentication: Arc::new(Authentication::new(None)),
        };
        let start = |change: fn(&mut spec::L1), previous| {
            let mut policy = Policy::bare();
            change(&mut policy.l1);
            let configuration = Configuration { policy: Arc::new(policy), ..Configuration::bare() };
            Snapshot::start(configuration, &context, previous)
        };
        let before = start(|_| (), None);
        assert!(Arc::ptr_eq(&before.store.l1, &start(|_| (), Some(&before)).store.l1));
        let changes: [fn(&mut spec::L1); 3] = [
            |l1| l1.max_size = ByteSize(l1.max_size.0 / 2),
            |l1| l1.max_entries = Some(10),
            |l1| l1.eviction = spec::Eviction::S3Fifo,
        ];
        for change in changes {
            let after = start(change, Some(&before));
            assert!(!Arc::ptr_eq(&before.store.l1, &after.store.l1));
            assert_eq!(after.store.l1.max_entries(), after.policy().l1.max_entries.map(u64::from));
        }
    }
}
