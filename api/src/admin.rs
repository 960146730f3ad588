//! Requests and responses of a sidecar's admin API, all in JSON (`sidecar/openapi.json`, `docs/admin-api.md`).
//!
//! Types of responses can be read by tools of another version: unknown fields are ignored, and unknown words of
//! [`CacheState`], [`TierState`], [`Place`] and [`EntryState`] are read as `Unknown`. Types of requests refuse unknown fields.

mod entries;
mod explain;
pub mod path;
mod policy;
mod problem;
mod purge;
mod stats;

pub use entries::{Entries, Entry, EntryState, Place, RedisLookup, Stamp, StoredResponse};
pub use explain::{
    ExplainRequest, ExplainedLifetimes, ExplainedMemory, ExplainedRoute, ExplainedStatus, Explanation,
    MAX_HEADERS,
};
pub use policy::{CacheState, PolicyReport, RequestCounts, TierState};
pub use problem::Problem;
pub use purge::{KEY_PATTERN, PurgeReport, PurgeRequest, PurgedNames};
pub use stats::{DEFAULT_TOP_KEYS, MAX_TOP_KEYS, Stats, StatsQuery, TopKey};
