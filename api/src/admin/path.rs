//! Paths of the admin API.

/// Liveness of the process. Open.
pub const LIVEZ: &str = "/livez";
/// Readiness for requests. Open.
pub const READYZ: &str = "/readyz";
/// Metrics in Prometheus' text format. Open.
pub const METRICS: &str = "/metrics";
/// The configuration in force ([`super::PolicyReport`]). Open.
pub const POLICY: &str = "/policy";
/// Counters and the contents of memory ([`super::Stats`]). Requires the token.
pub const STATS: &str = "/stats";
/// The stored responses of a key ([`super::Entries`]), whose percent-encoded text follows. Requires the token.
pub const ENTRIES: &str = "/entries/";
/// Purges ([`super::PurgeRequest`], [`super::PurgeReport`]). Requires the token.
pub const PURGE: &str = "/purge";
/// Purges from pod to pod ([`super::PeerRequest`], [`super::PeerReply`]). Requires proof of knowing the token.
pub const PEER_PURGES: &str = "/peer/purges";
/// The treatment of a request ([`super::ExplainRequest`], [`super::Explanation`]). Requires the token.
pub const EXPLAIN: &str = "/explain";
/// Requests as they are served ([`super::RequestsQuery`], a [`super::ServedRequest`] on each line). Requires the token.
pub const REQUESTS: &str = "/requests";
/// Draining, from the pod itself only.
pub const DRAIN: &str = "/drain";
/// The OpenAPI document. Open.
pub const OPENAPI: &str = "/openapi.json";
/// The document in Swagger UI. Open.
pub const DOCS: &str = "/docs";
/// The document in ReDoc. Open.
pub const REDOC: &str = "/redoc";
