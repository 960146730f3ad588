//! The operator's own metrics.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Upper bounds of the histogram's buckets, in seconds.
const ADMISSION_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0];

/// Metrics of the operator.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations, by controller and error (empty on success).
    pub reconciles: IntCounterVec,
    /// Pods that the webhook examined, by outcome: injected, skipped, unmatched or error.
    pub admissions: IntCounterVec,
    /// Time that the webhook took for a pod, from the parsed request to the response.
    pub admission_duration: Histogram,
    /// Restarts of workloads, by reason.
    pub rolls: IntCounterVec,
    /// Failures of watches, by the kind of object.
    pub watch_failures: IntCounterVec,
    /// 1 while this replica leads.
    pub leader: IntGauge,
}

impl Metrics {
    /// Creates counters at zero.
    pub fn new() -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("the name is valid")
        };
        let metrics = Self {
            registry: Registry::new(),
            reconciles: counter(
                "larder_operator_reconciles_total",
                "Reconciliations, by controller and error.",
                &["controller", "error"],
            ),
            admissions: counter(
                "larder_operator_admissions_total",
                "Pods that the webhook examined, by outcome.",
                &["outcome"],
            ),
            admission_duration: Histogram::with_opts(
                HistogramOpts::new(
                    "larder_admission_duration_seconds",
                    "Time that the webhook took for a pod, without the way there and back.",
                )
                .buckets(ADMISSION_BUCKETS.into()),
            )
            .expect("the name and the buckets are valid"),
            rolls: counter("larder_operator_rolls_total", "Restarts of workloads, by reason.", &["reason"]),
            watch_failures: counter(
                "larder_operator_watch_failures_total",
                "Failures of watches, by the kind of object.",
                &["kind"],
            ),
            leader: IntGauge::new("larder_operator_leader", "1 while this replica leads.")
                .expect("the name is valid"),
        };
        let Self { registry, reconciles, admissions, admission_duration, rolls, watch_failures, leader } =
            &metrics;
        let registered = registry
            .register(Box::new(reconciles.clone()))
            .and_then(|()| registry.register(Box::new(admissions.clone())))
            .and_then(|()| registry.register(Box::new(admission_duration.clone())))
            .and_then(|()| registry.register(Box::new(rolls.clone())))
            .and_then(|()| registry.register(Box::new(watch_failures.clone())))
            .and_then(|()| registry.register(Box::new(leader.clone())));
        registered.expect("no two metrics have one name");
        metrics
    }

    /// Returns all metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
