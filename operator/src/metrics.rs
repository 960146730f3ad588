//! The operator's own metrics.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Metrics of the operator.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations, by controller and error (empty on success).
    pub reconciles: IntCounterVec,
    /// Pods that the webhook examined, by outcome: injected, skipped, unmatched or error.
    pub admissions: IntCounterVec,
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
            rolls: counter("larder_operator_rolls_total", "Restarts of workloads, by reason.", &["reason"]),
            watch_failures: counter(
                "larder_operator_watch_failures_total",
                "Failures of watches, by the kind of object.",
                &["kind"],
            ),
            leader: IntGauge::new("larder_operator_leader", "1 while this replica leads.")
                .expect("the name is valid"),
        };
        let Self { registry, reconciles, admissions, rolls, watch_failures, leader } = &metrics;
        let registered = registry
            .register(Box::new(reconciles.clone()))
            .and_then(|()| registry.register(Box::new(admissions.clone())))
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
