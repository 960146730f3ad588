//! The instruments, their names and units.

use std::sync::{Arc, atomic::Ordering};

use larder_policy::storing::NotStored;
use opentelemetry::{
    KeyValue,
    metrics::{Histogram, Meter, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;

use crate::{
    barriers::Barriers,
    budget::Kind,
    cache_status::Tier,
    http1_guard::RequestError,
    mode::Mode,
    stats::{Outcome, PeerOutcome, PurgeOrigin, RecordError, RefusedPurge, Stats, ValuePlace},
    upstream::UpstreamReason,
};

/// Histogram buckets in seconds, from a hit in memory to a slow source.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Kind of the memory reserved for connections, which are limited by their number.
const CONNECTIONS: &str = "connections";

/// Registers every instrument; observed ones read `stats`. Returns the histograms of requests and of tiers.
pub(super) fn register(provider: &SdkMeterProvider, stats: &Arc<Stats>) -> (Histogram<f64>, Histogram<f64>) {
    let meter = provider.meter("larder");
    observe_requests(&meter, stats);
    observe_l1(&meter, stats);
    observe_tiers(&meter, stats);
    observe_records(&meter, stats);
    observe_upstream(&meter, stats);
    observe_memory(&meter, stats);
    observe_process(&meter, stats);
    let histogram = |name, description| {
        meter
            .f64_histogram(name)
            .with_unit("s")
            .with_description(description)
            .with_boundaries(SECONDS.to_vec())
            .build()
    };
    (
        histogram("larder.request.duration", "Time until the head of a response was ready."),
        histogram("larder.tier.duration", "Duration of operations in a tier."),
    )
}

fn observe_requests(meter: &Meter, stats: &Arc<Stats>) {
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.requests")
        .with_description("Requests, by outcome and by the tier that responded.")
        .with_callback(move |observer| {
            for (route, stats) in counted.routes() {
                for (outcome, tier) in Outcome::ALL.into_iter().flat_map(|o| Tier::ALL.map(|t| (o, t))) {
                    let count = stats.requests(outcome, tier);
                    if count > 0 {
                        let attributes = [
                            KeyValue::new("route", route.clone()),
                            KeyValue::new("outcome", outcome.as_str()),
                            KeyValue::new("tier", tier.as_str()),
                        ];
                        observer.observe(count, &attributes);
                    }
                }
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.not_stored")
        .with_description("Responses of cached routes that were not stored, by reason.")
        .with_callback(move |observer| {
            for (route, stats) in counted.routes() {
                for reason in NotStored::ALL {
                    let count = stats.count_not_stored(reason);
                    if count > 0 {
                        let attributes =
                            [KeyValue::new("route", route.clone()), KeyValue::new("reason", reason.as_str())];
                        observer.observe(count, &attributes);
                    }
                }
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.purges")
        .with_description("Purges, by origin.")
        .with_callback(move |observer| {
            for origin in PurgeOrigin::ALL {
                observer.observe(counted.purges(origin), &[KeyValue::new("origin", origin.as_str())]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.refused.purges")
        .with_description("Purges that responses asked for in Larder-Purge, or requests by PURGE or BAN, and that were not carried out.")
        .with_callback(move |observer| {
            for reason in RefusedPurge::ALL {
                observer.observe(counted.refused_purges(reason), &[KeyValue::new("reason", reason.as_str())]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.peer.purges")
        .with_description("Purges that went from pod to pod, once for each other pod, by outcome.")
        .with_callback(move |observer| {
            for outcome in PeerOutcome::ALL {
                let outcome_label = KeyValue::new("outcome", outcome.as_str());
                observer.observe(counted.peers.purges(outcome), &[outcome_label]);
            }
        })
        .build();
    let known = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.peers")
        .with_description("Other pods that are told of purges directly, by state.")
        .with_callback(move |observer| {
            for (state, pods) in known.peers.pods() {
                observer.observe(pods, &[KeyValue::new("state", state)]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.purges.broadened")
        .with_description(
            "Purges by writes that covered all that could be meant, by the place of the unknown value.",
        )
        .with_callback(move |observer| {
            for place in ValuePlace::ALL {
                observer.observe(counted.count_broadened(place), &[KeyValue::new("place", place.as_str())]);
            }
        })
        .build();
}

fn observe_l1(meter: &Meter, stats: &Arc<Stats>) {
    let gauge = |name, description, read: fn(&crate::l1::L1) -> u64| {
        let stats = Arc::clone(stats);
        meter
            .u64_observable_gauge(name)
            .with_description(description)
            .with_callback(move |observer| observer.observe(stats.l1.load().as_deref().map_or(0, read), &[]))
            .build();
    };
    gauge("larder.l1.bytes", "Bytes of keys, headers and bodies in memory.", |l1| l1.bytes());
    gauge("larder.l1.entries", "Entries in memory.", |l1| l1.entries());
    gauge("larder.l1.max_bytes", "Maximum bytes of keys, headers and bodies in memory.", |l1| l1.max_bytes());
    let stats = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.l1.evictions")
        .with_description("Entries evicted to make room for others.")
        .with_callback(move |observer| observer.observe(stats.evictions.load(Ordering::Relaxed), &[]))
        .build();
}

fn observe_tiers(meter: &Meter, stats: &Arc<Stats>) {
    let known = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.tier.up")
        .with_description("1 if a tier is connected and trusted to respond.")
        .with_callback(move |observer| {
            for (tier, up) in known.tiers() {
                observer.observe(u64::from(up), &[KeyValue::new("tier", tier)]);
            }
        })
        .build();
    let known = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.tier.degraded")
        .with_description("1 if the tier's URL or CA can't be used as they are now, or Redis is not connected; /policy says why.")
        .with_callback(move |observer| {
            for (tier, is_degraded) in known.degraded() {
                observer.observe(u64::from(is_degraded), &[KeyValue::new("tier", tier)]);
            }
        })
        .build();
    let known = Arc::clone(stats);
    meter
        .f64_observable_gauge("larder.bus.lag")
        .with_unit("s")
        .with_description("Time since all purges that Redis had ordered were known to be applied here.")
        .with_callback(move |observer| {
            if let Some(lag) = known.barriers.load().as_deref().and_then(Barriers::lag) {
                observer.observe(lag.as_secs_f64(), &[]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.leases")
        .with_description(
            "Requests that asked for a lease, by whether they got it or waited for another pod's.",
        )
        .with_callback(move |observer| {
            for (outcome, granted) in [("granted", true), ("waited", false)] {
                observer.observe(counted.leases(granted), &[KeyValue::new("outcome", outcome)]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.tier.errors")
        .with_description("Requests that failed in a tier.")
        .with_callback(move |observer| {
            for (tier, count) in counted.tier_errors() {
                if count > 0 {
                    observer.observe(count, &[KeyValue::new("tier", tier.as_str())]);
                }
            }
        })
        .build();
}

fn observe_records(meter: &Meter, stats: &Arc<Stats>) {
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.malformed_notifications")
        .with_description("Notifications of Postgres that named nothing, so that everything was purged.")
        .with_callback(move |observer| observer.observe(counted.malformed_notifications(), &[]))
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.l2.refused_records")
        .with_description("Records in Redis that were not used because no sidecar of this policy can have written them, by reason.")
        .with_callback(move |observer| {
            for reason in RecordError::ALL {
                let count = counted.count_refused_records(reason);
                observer.observe(count, &[KeyValue::new("reason", reason.as_str())]);
            }
        })
        .build();
}

fn observe_upstream(meter: &Meter, stats: &Arc<Stats>) {
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.upstream.errors")
        .with_description("Requests to which the application gave no usable response, by reason.")
        .with_callback(move |observer| {
            for reason in UpstreamReason::ALL {
                observer
                    .observe(counted.upstream_errors(reason), &[KeyValue::new("reason", reason.as_str())]);
            }
        })
        .build();
}

fn observe_memory(meter: &Meter, stats: &Arc<Stats>) {
    let read = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.memory.budget_bytes")
        .with_description("Memory budget of everything but L1.")
        .with_callback(move |observer| observer.observe(read.budget.bytes(), &[]))
        .build();
    let read = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.memory.reserved_bytes")
        .with_description("Bytes of the memory budget that are reserved, by purpose.")
        .with_callback(move |observer| {
            for kind in Kind::ALL {
                observer.observe(read.budget.reserved(kind), &[KeyValue::new("kind", kind.as_str())]);
            }
            observer.observe(read.budget.connection_bytes(), &[KeyValue::new("kind", CONNECTIONS)]);
        })
        .build();
    let read = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.memory.refusals")
        .with_description("Reservations that the memory budget had no room for, by purpose.")
        .with_callback(move |observer| {
            for kind in Kind::ALL {
                observer.observe(read.budget.refused(kind), &[KeyValue::new("kind", kind.as_str())]);
            }
            observer.observe(read.budget.connections.refused(), &[KeyValue::new("kind", CONNECTIONS)]);
        })
        .build();
    let read = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.connections.dismissed")
        .with_description("Connections closed to make room for others.")
        .with_callback(move |observer| observer.observe(read.budget.connections.dismissed(), &[]))
        .build();
}

fn observe_process(meter: &Meter, stats: &Arc<Stats>) {
    let known = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.state")
        .with_description("State of the cache: 1 for the current one.")
        .with_callback(move |observer| {
            let current = known.mode();
            for mode in Mode::ALL {
                observer.observe(u64::from(current == Some(mode)), &[KeyValue::new("state", mode.as_str())]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.refused_requests")
        .with_description("Requests that were refused before they were processed, by reason.")
        .with_callback(move |observer| {
            for error in RequestError::ALL {
                observer.observe(counted.count_refused(error), &[KeyValue::new("reason", error.as_str())]);
            }
        })
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.spliced_connections")
        .with_description("Connections that did not use HTTP and were passed through.")
        .with_callback(move |observer| observer.observe(counted.spliced.load(Ordering::Relaxed), &[]))
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.requests_in_progress")
        .with_description("Requests in progress, including those whose client has left.")
        .with_callback(move |observer| observer.observe(counted.budget.in_progress.count() as u64, &[]))
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_gauge("larder.connections")
        .with_description("Open connections.")
        .with_callback(move |observer| observer.observe(counted.budget.connections.open() as u64, &[]))
        .build();
    let counted = Arc::clone(stats);
    meter
        .u64_observable_counter("larder.config.reloads")
        .with_description("Changes of the configuration, by result.")
        .with_callback(move |observer| {
            for (result, taken) in [("ok", true), ("refused", false)] {
                observer.observe(counted.reloads(taken), &[KeyValue::new("result", result)]);
            }
        })
        .build();
}
