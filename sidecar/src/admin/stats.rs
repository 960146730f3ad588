//! `GET /stats`: what has been counted.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use aide::{OperationInput, transform::TransformOperation};
use axum::{
    Json,
    extract::{FromRequestParts, Query, State},
};
use http::request::Parts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Admin,
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::{
    cache_status::Tier,
    l1::{Held, Stored},
    serving::Serving,
    stats::Outcome,
};

/// How many keys are listed at most.
const MOST: usize = 100;

/// What has been counted since the process began, and what memory holds now.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Stats")]
pub(super) struct Report {
    /// Requests that were answered from what was stored.
    hits: u64,
    /// Requests that went to a source or to the application, and were the first to.
    misses: u64,
    /// Hits among hits and misses, 0 to 1.
    #[schemars(range(min = 0, max = 1))]
    hit_rate: f64,
    /// Hits in this pod's memory.
    l1_hits: u64,
    /// Hits in Redis.
    l2_hits: u64,
    /// Requests that were looked up and that neither memory nor Redis answered: misses, those who waited for what another
    /// asked for, and those whose answer the application had to confirm.
    cache_misses: u64,
    /// Requests that waited for what another was asking for already.
    collapsed: u64,
    /// Requests that were answered from what was stored once the application had said that it still holds.
    revalidated: u64,
    /// Requests that were answered from what was too old, because nobody could say better.
    stale: u64,
    /// Requests of a route that were not for the cache.
    bypassed: u64,
    /// Requests of no route.
    passed: u64,
    /// Requests that nobody could answer.
    errors: u64,
    /// The keys in memory, notes about answers that can't be shared among them.
    l1_entries: u64,
    /// How many bytes they take.
    l1_bytes: u64,
    /// How many made room for others.
    l1_evictions: u64,
    /// The keys in memory with an answer that no purge covers.
    total_cached_keys: u64,
    /// How many bytes memory takes: `l1_bytes`.
    bytes: u64,
    /// The keys among them that memory answered with most often, most often first.
    top_keys: Vec<TopKey>,
}

/// A key, and how often memory answered with what is under it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
struct TopKey {
    // The order of fields is the order in the list.
    /// Hits since it came, or since what was there before it came.
    hits: u64,
    /// The key.
    key: String,
}

/// How much to list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Asked {
    /// How many keys to list.
    #[schemars(range(min = 1, max = 100))]
    top: usize,
}

impl Default for Asked {
    fn default() -> Self {
        Self { top: 10 }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::<Self>::from_request_parts(parts, state).await {
            Ok(Query(asked)) if (1..=MOST).contains(&asked.top) => Ok(asked),
            _ => Err(Refused::malformed(format!("ask for 1 to {MOST} keys: /stats?top=10"))),
        }
    }
}

impl OperationInput for Asked {
    fn operation_input(context: &mut aide::generate::GenContext, operation: &mut aide::openapi::Operation) {
        Query::<Self>::operation_input(context, operation);
    }
}

pub(super) async fn stats(_: Token, State(admin): State<Arc<Admin>>, asked: Asked) -> Json<Report> {
    let stats = &admin.telemetry.stats;
    let of = |outcome| Tier::ALL.into_iter().map(|tier| stats.requests(outcome, tier)).sum::<u64>();
    let beyond = |outcome| {
        let tiers = Tier::ALL.into_iter().filter(|tier| !matches!(tier, Tier::L1 | Tier::L2));
        tiers.map(|tier| stats.requests(outcome, tier)).sum::<u64>()
    };
    let (hits, misses) = (of(Outcome::Hit), of(Outcome::Miss));
    let serving = admin.config.serving();
    let (total_cached_keys, top_keys) = held(&serving, asked.top);
    let l1_bytes = serving.l1.bytes();
    Json(Report {
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
        l1_entries: serving.l1.entries(),
        l1_bytes,
        l1_evictions: serving.l1.evictions(),
        total_cached_keys,
        bytes: l1_bytes,
        top_keys,
    })
}

/// How many answers memory holds that no purge covers, and those that are hit most.
fn held(serving: &Serving, top: usize) -> (u64, Vec<TopKey>) {
    let (mut count, mut most) = (0, BinaryHeap::with_capacity(top + 1));
    serving.l1.for_each(|Held { key, stored, hits, .. }| {
        let Stored::Entry(entry) = stored else { return };
        if entry.is_purged(&serving.barriers) {
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
    });
    (count, most.into_sorted_vec().into_iter().map(|Reverse(key)| key).collect())
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("stats")
        .tag("cache")
        .summary("What has been counted")
        .description("Counts since the process began, of this pod alone; and what its memory holds now.");
    refuses::<400>(guarded(operation), "`top` is not a number from 1 to 100.")
}
