//! Requests and responses of a sidecar's admin API, all in JSON (`sidecar/openapi.json`, `docs/admin-api.md`).
//!
//! Types of responses can be read by tools of another version: unknown fields are ignored, and unknown words of
//! [`CacheState`], [`TierState`], [`Place`] and [`EntryState`] are read as `Unknown`. Types of requests refuse unknown fields.

mod entries;
mod explain;
pub mod path;
mod peers;
mod policy;
mod problem;
mod purge;
mod requests;
mod stats;

use schemars::Schema;
use serde_json::Value;

pub use entries::{Entries, Entry, EntryState, Place, RedisLookup, Stamp, StoredResponse};
pub use explain::{
    ExplainRequest, ExplainedLifetimes, ExplainedMemory, ExplainedRoute, ExplainedStatus, Explanation,
    MAX_HEADERS,
};
pub use peers::{PeerKnown, PeerPurge, PeerPurges, PeerReplied, PeerReply, PeerRequest};
pub use policy::{CacheState, PeersReport, PolicyReport, RequestCounts, TierState};
pub use problem::Problem;
pub use purge::{KEY_PATTERN, PeersTold, PurgeQuery, PurgeReport, PurgeRequest, PurgedNames};
pub use requests::{InvalidStatus, Outcome, REQUESTS_MEDIA_TYPE, RequestsQuery, ServedRequest, StatusFilter};
pub use stats::{DEFAULT_TOP_KEYS, MAX_TOP_KEYS, RouteCounters, Stats, StatsQuery, TierCounters, TopKey};

/// Requires all properties of a schema: those of its type have defaults only for reports of earlier versions.
fn complete(schema: &mut Schema) {
    let schema = schema.ensure_object();
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for property in properties.values_mut().filter_map(Value::as_object_mut) {
        property.remove("default");
    }
    let names: Vec<_> = properties.keys().cloned().collect();
    schema.insert("required".to_owned(), names.into());
}
