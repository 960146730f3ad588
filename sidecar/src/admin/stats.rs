//! `GET /stats`: counters.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use aide::{OperationInput, transform::TransformOperation};
use axum::{
    Json,
    extract::{FromRequestParts, Query, State},
};
use http::request::Parts;
use larder_api::admin::{MAX_TOP_KEYS, RouteCounters, Stats, StatsQuery, TierCounters, TopKey};

use super::{
    Admin,
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::{
    cache_status::Tier,
    l1::{Held, Stored},
    snapshot::Snapshot,
    stats::{self as counters, Outcome},
};

/// The query of a request, checked.
pub(super) struct CheckedQuery(StatsQuery);

impl<S: Send + Sync> FromRequestParts<S> for CheckedQuery {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::<StatsQuery>::from_request_parts(parts, state).await {
            Ok(Query(query)) if query.top <= MAX_TOP_KEYS => Ok(Self(query)),
            _ => Err(Refused::malformed(format!(
                "top must be from 0 to {MAX_TOP_KEYS}, as in /stats?top=10, and routes true or false"
            ))),
        }
    }
}

impl OperationInput for CheckedQuery {
    fn operation_input(context: &mut aide::generate::GenContext, operation: &mut aide::openapi::Operation) {
        Query::<StatsQuery>::operation_input(context, operation);
    }
}

pub(super) async fn stats(
    _: Token,
    State(admin): State<Arc<Admin>>,
    CheckedQuery(query): CheckedQuery,
) -> Json<Stats> {
    let stats = &admin.telemetry.stats;
    let of = |outcome| Tier::ALL.into_iter().map(|tier| stats.requests(outcome, tier)).sum::<u64>();
    let beyond = |outcome| {
        let tiers = Tier::ALL.into_iter().filter(|tier| !matches!(tier, Tier::L1 | Tier::L2));
        tiers.map(|tier| stats.requests(outcome, tier)).sum::<u64>()
    };
    let (hits, misses) = (of(Outcome::Hit), of(Outcome::Miss));
    let snapshot = admin.config.snapshot();
    let (total_cached_keys, top_keys) = match query.top {
        0 => (None, vec![]),
        top => {
            let (count, keys) = held(&snapshot, top).await;
            (Some(count), keys)
        }
    };
    let l1_bytes = snapshot.store.l1.bytes();
    Json(Stats {
        hits,
        misses,
        hit_rate: if hits + misses == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 },
        l1_hits: stats.requests(Outcome::Hit, Tier::L1),
        l2_hits: stats.requests(Outcome::Hit, Tier::L2),
        cache_misses: [Outcome::Miss, Outcome::Collapsed, Outcome::Revalidated].map(beyond).iter().sum(),
        collapsed: of(Outcome::Collapsed),
        revalidated: of(Outcome::Revalidated),
        stale: of(Outcome::Stale),
        bypassed: of(Outcome::Bypass),
        passed: of(Outcome::Pass),
        errors: of(Outcome::Error),
        l1_entries: snapshot.store.l1.entries(),
        l1_bytes,
        l1_evictions: snapshot.store.l1.evictions(),
        total_cached_keys,
        bytes: l1_bytes,
        top_keys,
        tiers: tiers(stats),
        routes: if query.routes { routes(stats) } else { vec![] },
    })
}

/// Returns the counters of the tiers that responded. Most hits in memory are not measured.
fn tiers(stats: &counters::Stats) -> Vec<TierCounters> {
    let times = stats.tier_times().into_iter();
    let used = times.filter(|(tier, responses, _)| *tier != Tier::L1 && *responses > 0);
    let counters = used.map(|(tier, responses, took)| TierCounters {
        tier: tier.as_str().to_owned(),
        responses,
        seconds: took.as_secs_f64(),
    });
    counters.collect()
}

/// Returns the counters of the routes that were used.
fn routes(stats: &counters::Stats) -> Vec<RouteCounters> {
    let counters = stats.routes().into_iter().map(|(route, stats)| {
        let of = |outcome| Tier::ALL.into_iter().map(|tier| stats.requests(outcome, tier)).sum::<u64>();
        RouteCounters {
            route,
            requests: Outcome::ALL.map(of).iter().sum(),
            hits: of(Outcome::Hit),
            misses: of(Outcome::Miss),
            stale: of(Outcome::Stale),
            bypassed: of(Outcome::Bypass),
            errors: of(Outcome::Error),
        }
    });
    counters.filter(|route| route.requests > 0).collect()
}

/// Returns the number of responses in memory that no purge covers, and the most frequently hit ones.
async fn held(snapshot: &Snapshot, top: usize) -> (u64, Vec<TopKey>) {
    let (mut count, mut most) = (0, BinaryHeap::with_capacity(top + 1));
    let see = |Held { key, stored, hits, .. }: Held<'_>| {
        let Stored::Entry(entry) = stored else { return };
        if entry.is_purged(&snapshot.store.barriers) {
            return;
        }
        count += 1;
        let hits = u64::from(hits);
        let least = most.peek().map(|Reverse(TopKey { hits, .. })| *hits);
        if most.len() < top || least.is_some_and(|least| least < hits) {
            most.push(Reverse(TopKey { hits, key: key.to_owned() }));
            if most.len() > top {
                most.pop();
            }
        }
    };
    snapshot.store.l1.for_each(see).await;
    (count, most.into_sorted_vec().into_iter().map(|Reverse(key)| key).collect())
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation.id("stats").tag("cache").summary("Statistics").description(
        "Counters since the process started and the current contents of memory, of this pod alone.",
    );
    refuses::<400>(guarded(operation), "A parameter is malformed.")
}
