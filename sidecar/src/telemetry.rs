//! Metrics, scraped by Prometheus and pushed over OTLP. `docs/metrics.md` lists them.

use std::{
    collections::HashSet,
    env,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper_util::client::legacy::connect::HttpConnector;
use larder_policy::{Destinations, writing::Placeholder};
use opentelemetry::{
    Key, KeyValue,
    metrics::{BoundHistogram, Histogram},
};
use opentelemetry_otlp::{MetricExporter, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    metrics::{Instrument, PeriodicReader, SdkMeterProvider, Stream},
};
use prometheus::Registry;
use tonic::transport::{Channel, Endpoint};

use crate::{
    budget::Budget,
    cache_status::Tier,
    http1_guard::RequestError,
    log_limit::LogLimit,
    resolver::Resolver,
    stats::{Outcome, RouteStats, Stats, ValuePlace},
    tail::Tails,
};

mod instruments;

/// Maximum number of attribute sets of a counter of routes.
const MAX_SERIES_OF_ROUTES: usize = 10_000;

const EXPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum time to connect to the collector, and of an export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Counters, and the instruments that report them.
#[derive(Debug)]
pub struct Telemetry {
    /// Counters since the process began.
    pub stats: Arc<Stats>,
    /// Readers of requests as they are served.
    pub tails: Arc<Tails>,
    /// Limit on the log of rejected requests.
    errors: LogLimit,
    /// Limit on the log of writes that purge more than they name.
    broadened: LogLimit,
    instruments: ArcSwap<Instruments>,
}

#[derive(Debug)]
struct Instruments {
    /// Number of instruments before these.
    generation: u64,
    endpoint: Option<String>,
    resolver: Resolver,
    provider: SdkMeterProvider,
    registry: Registry,
    request_duration: Histogram<f64>,
    tier_duration: Histogram<f64>,
    /// The histogram of each tier, bound to its attribute when it is first used.
    by_tier: [OnceLock<BoundHistogram<f64>>; Tier::ALL.len()],
}

impl Telemetry {
    /// Creates metrics for scraping only, until [`Telemetry::export_to`] names a collector.
    ///
    /// # Errors
    /// If an instrument can't be created.
    pub fn new() -> anyhow::Result<Self> {
        Self::within(Arc::default())
    }

    /// Creates the metrics of a process with a memory budget, which they show.
    ///
    /// # Errors
    /// If an instrument can't be created.
    pub fn within(budget: Arc<Budget>) -> anyhow::Result<Self> {
        let stats = Arc::new(Stats::within(budget));
        let instruments = ArcSwap::from_pointee(Instruments::new(0, None, Resolver::default(), &stats)?);
        let tails = Arc::new(Tails::within(Arc::clone(&stats.budget)));
        let (errors, broadened) = Default::default();
        Ok(Self { stats, tails, errors, broadened, instruments })
    }

    /// Counts and logs a rejected request of `client`.
    pub fn refused(&self, error: RequestError, client: IpAddr) {
        self.stats.refused(error);
        if let Some(left_out) = self.errors.admits() {
            tracing::warn!(
                reason = error.as_str(),
                status = error.status().as_u16(),
                %client,
                left_out,
                "refused a request: {}",
                error.detail()
            );
        }
    }

    /// Counts and logs a purge by a write that covers all that could be meant, because these values are unknown.
    pub fn broadened(&self, unknown: &[Placeholder]) {
        let places = ValuePlace::ALL.into_iter();
        for place in places.filter(|place| unknown.iter().any(|one| ValuePlace::of(one) == Some(*place))) {
            self.stats.broadened(place);
        }
        if !unknown.is_empty()
            && let Some(left_out) = self.broadened.admits()
        {
            let unknown: Vec<_> = unknown.iter().map(ToString::to_string).collect();
            tracing::info!(
                unknown = unknown.join(", "),
                left_out,
                "a write purged all that it could mean, because values are unknown"
            );
        }
    }

    /// Pushes metrics to a collector from now on; `None`: metrics are only scraped.
    ///
    /// # Errors
    /// If the endpoint is invalid.
    pub fn export_to(&self, endpoint: Option<&str>, destinations: &Arc<Destinations>) -> anyhow::Result<()> {
        let before = self.instruments.load();
        if before.endpoint.as_deref() == endpoint
            && (endpoint.is_none() || before.resolver.destinations() == destinations)
        {
            return Ok(());
        }
        let generation = before.generation + 1;
        drop(before);
        let (endpoint, resolver) = (endpoint.map(str::to_owned), Resolver::within(destinations));
        let instruments = Arc::new(Instruments::new(generation, endpoint, resolver, &self.stats)?);
        let previous = self.instruments.swap(instruments);
        // The last push to the old collector may block.
        tokio::task::spawn_blocking(move || previous.provider.shutdown());
        Ok(())
    }

    /// Returns the reason why no connection to the collector is opened.
    pub fn collector_error(&self) -> Option<String> {
        self.instruments.load().resolver.refused()
    }

    /// Pushes the remaining metrics before the process ends.
    pub async fn shutdown(&self) {
        let instruments = self.instruments.load_full();
        let _ = tokio::task::spawn_blocking(move || instruments.provider.shutdown()).await;
    }

    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// If a metric can't be written.
    pub fn prometheus(&self) -> anyhow::Result<String> {
        Ok(prometheus::TextEncoder::new().encode_to_string(&self.instruments.load().registry.gather())?)
    }

    /// Records the time until the head of a response of a route was ready.
    pub fn answered(&self, route: &RouteStats, outcome: Outcome, elapsed: Duration) {
        let instruments = self.instruments.load();
        let Instruments { generation, request_duration, .. } = &**instruments;
        route.took(outcome, elapsed.as_secs_f64(), *generation, request_duration);
    }

    /// Records the duration of a request to a tier.
    pub fn tier_answered(&self, tier: Tier, elapsed: Duration) {
        let instruments = self.instruments.load();
        let bound = instruments.by_tier[tier.index()]
            .get_or_init(|| instruments.tier_duration.bind(&[KeyValue::new("tier", tier.as_str())]));
        bound.record(elapsed.as_secs_f64());
    }
}

impl Instruments {
    fn new(
        generation: u64,
        endpoint: Option<String>,
        resolver: Resolver,
        stats: &Arc<Stats>,
    ) -> anyhow::Result<Self> {
        let registry = Registry::new();
        // A collector can copy these labels to every series, too, so that a dashboard works with either.
        let on_every_series: HashSet<_> = IDENTITY.iter().map(|(name, _)| Key::new(*name)).collect();
        let scrape = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .with_resource_selector(on_every_series)
            .scope_info_enabled(false)
            .build()?;
        let mut builder =
            SdkMeterProvider::builder().with_resource(resource()).with_reader(scrape).with_view(of_routes);
        let channel = endpoint.as_deref().map(|endpoint| channel(endpoint, &resolver)).transpose()?;
        if let Some(channel) = channel.flatten() {
            let exporter = MetricExporter::builder().with_tonic().with_channel(channel).build()?;
            builder =
                builder.with_reader(PeriodicReader::builder(exporter).with_interval(EXPORT_INTERVAL).build());
        }
        let provider = builder.build();
        let (request_duration, tier_duration) = instruments::register(&provider, stats);
        let by_tier = Default::default();
        Ok(Self {
            generation,
            endpoint,
            resolver,
            provider,
            registry,
            request_duration,
            tier_duration,
            by_tier,
        })
    }
}

/// Raises the number of attribute sets of the counters of routes above the SDK's 2,000. The number of routes is bounded by
/// [`Stats::route`], and each has a few outcomes and tiers.
fn of_routes(instrument: &Instrument) -> Option<Stream> {
    let counts_routes = ["larder.requests", "larder.not_stored"].contains(&instrument.name());
    let stream =
        counts_routes.then(|| Stream::builder().with_cardinality_limit(MAX_SERIES_OF_ROUTES).build());
    stream?.ok()
}

/// Returns a channel to a collector, which connects on first use, and to the addresses that the resolver allows; `None` if it refuses
/// the host.
fn channel(endpoint: &str, resolver: &Resolver) -> anyhow::Result<Option<Channel>> {
    let mut connector = HttpConnector::new_with_resolver(resolver.clone());
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(EXPORT_TIMEOUT));
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?.timeout(EXPORT_TIMEOUT);
    // The connector resolves names, and takes addresses as they are.
    let is_allowed = resolver.check_host(endpoint.uri().host().unwrap_or_default()).is_ok();
    Ok(is_allowed.then(|| endpoint.connect_with_connector_lazy(connector)))
}

/// Resource attributes by OpenTelemetry's semantic conventions, and the variables from which they are read.
const IDENTITY: [(&str, &str); 3] = [
    ("k8s.namespace.name", "POD_NAMESPACE"),
    ("k8s.pod.name", "POD_NAME"),
    ("larder.policy", "LARDER_POLICY"),
];

fn resource() -> Resource {
    let attributes = IDENTITY
        .into_iter()
        .filter_map(|(name, variable)| Some(KeyValue::new(name, env::var(variable).ok()?)));
    Resource::builder()
        .with_service_name("larder-sidecar")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes)
        .build()
}
