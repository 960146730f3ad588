//! `GET /stats`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum of [`StatsQuery::top`].
pub const MAX_TOP_KEYS: usize = 100;
/// Default of [`StatsQuery::top`].
pub const DEFAULT_TOP_KEYS: usize = 10;

/// Query parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StatsQuery {
    /// Number of keys to list. With `0` memory's contents are not looked through.
    #[schemars(range(max = MAX_TOP_KEYS))]
    pub top: usize,
    /// List the counters of routes.
    pub routes: bool,
}

impl Default for StatsQuery {
    fn default() -> Self {
        Self { top: DEFAULT_TOP_KEYS, routes: false }
    }
}

/// Counters since the process began, and the current contents of memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
// Sidecars of an earlier version have fewer counters.
#[serde(default)]
#[schemars(transform = super::complete)]
pub struct Stats {
    /// Requests with a stored response.
    pub hits: u64,
    /// Requests that went to a source or to the application, and were the first to.
    pub misses: u64,
    /// Hits among hits and misses, 0 to 1.
    #[schemars(range(min = 0, max = 1))]
    pub hit_rate: f64,
    /// Hits in this pod's memory.
    pub l1_hits: u64,
    /// Hits in Redis.
    pub l2_hits: u64,
    /// Lookups without a usable response in memory or Redis: misses, requests that waited for the response to another,
    /// and requests whose stored response the application had to validate.
    pub cache_misses: u64,
    /// Requests that waited for the response to another.
    pub collapsed: u64,
    /// Requests with a stored response that the application validated first.
    pub revalidated: u64,
    /// Requests with a stale response, because no fresh one could be had.
    pub stale: u64,
    /// Requests of a route that bypassed the cache.
    pub bypassed: u64,
    /// Requests of no route.
    pub passed: u64,
    /// Requests without any response.
    pub errors: u64,
    /// Keys in memory, including notes about responses that can't be shared.
    pub l1_entries: u64,
    /// Size of memory's contents in bytes.
    pub l1_bytes: u64,
    /// Entries that made room for others.
    pub l1_evictions: u64,
    /// Keys in memory with a response that no purge covers; null with `top=0`.
    pub total_cached_keys: Option<u64>,
    /// Size of memory's contents in bytes: `l1_bytes`.
    pub bytes: u64,
    /// The keys with the most hits in memory, most hits first.
    pub top_keys: Vec<TopKey>,
    /// Responses of tiers beyond memory.
    pub tiers: Vec<TierCounters>,
    /// Counters of the routes that were used, with `routes=true`. Requests of no route are those of `none`.
    pub routes: Vec<RouteCounters>,
}

/// Responses that a tier gave: Redis, a source or the application; `none` has those that nothing but the sidecar gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TierCounters {
    /// Name of the tier.
    pub tier: String,
    /// Number of responses.
    pub responses: u64,
    /// Sum of the times until their heads were ready.
    pub seconds: f64,
}

/// Requests of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouteCounters {
    /// Name of the route.
    pub route: String,
    /// All requests.
    pub requests: u64,
    /// Requests with a stored response.
    pub hits: u64,
    /// Requests that went to a source or to the application, and were the first to.
    pub misses: u64,
    /// Requests with a stale response, because no fresh one could be had.
    pub stale: u64,
    /// Requests that bypassed the cache.
    pub bypassed: u64,
    /// Requests without any response.
    pub errors: u64,
}

/// A key, and the hits of its response in memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct TopKey {
    // The order of fields is the order in the list.
    /// Hits since the response, or an earlier one that it replaced, was stored.
    pub hits: u64,
    /// The key.
    pub key: String,
}
