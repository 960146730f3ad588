//! The part of a `CachePolicy` that a sidecar serves by, as a person writes it.
//!
//! Doc comments here become the descriptions in the custom resource definition: `kubectl explain` prints them.
//! The `x-kubernetes-validations` are CEL rules that the API server evaluates; [`crate::Policy::compile`] checks the
//! same where a mistake would go unnoticed, and what CEL can't, for sidecars that no API server stands before.

mod invalidation;
mod key;
mod route;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{
    invalidation::{Invalidation, OnWrite, PurgeSpec, WriteMatch},
    key::{KeyBody, KeyQuery, KeySpec, QueryOrder},
    route::{
        Bypass, CacheableMethod, ClientDirectives, Despite, FromSpec, PostgresQuery, RouteMatch, RouteSpec,
        StatusSpec,
    },
};
use crate::{ByteSize, Duration};

/// Everything in a policy that concerns the cache itself rather than the pods it sits in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// True: every sidecar passes everything through at once, stores and serves nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,

    /// The cache in each pod's memory.
    #[serde(default)]
    pub l1: L1,

    /// The cache that the pods share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2>,

    /// Where a miss may be answered, besides the application.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sources: Vec<Source>,

    /// What is cached. The first route that matches a request decides; a request that no route matches passes through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub routes: Vec<RouteSpec>,

    /// Response headers that say how long an answer is fresh, to this cache rather than to every cache (RFC 9213), besides
    /// `Larder-Cache-Control`, which always counts. The first of them that an answer carries replaces its `Cache-Control`
    /// and `Expires`. List `CDN-Cache-Control` only where what it says is meant for a cache in each pod as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 4),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(n, n.matches('{TOKEN}') && n.lowerAscii() != 'cache-control')"),
            "list names of headers besides Cache-Control, which counts anyway, such as CDN-Cache-Control",
        ))
    )]
    pub targeted_cache_control: Vec<String>,

    /// What drops stored answers before their time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalidation: Option<Invalidation>,

    /// Where the sidecars report to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,
}

/// The cache in each pod's memory; the least recently used entry makes room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L1 {
    /// How many bytes of keys, headers and bodies a pod keeps.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,

    /// A body larger than this streams through and is not stored, in memory or in L2.
    #[serde(default = "default_max_object_size")]
    pub max_object_size: ByteSize,

    /// How long a pod that lost touch with Redis still trusts what it stored before. A purge that it did not hear of
    /// can be missed for this long and no longer.
    #[serde(default = "default_bus_grace")]
    pub bus_grace: Duration,
}

impl Default for L1 {
    fn default() -> Self {
        Self {
            max_size: default_max_size(),
            max_object_size: default_max_object_size(),
            bus_grace: default_bus_grace(),
        }
    }
}

fn default_max_size() -> ByteSize {
    ByteSize(64 << 20)
}

fn default_max_object_size() -> ByteSize {
    ByteSize(1 << 20)
}

fn default_bus_grace() -> Duration {
    Duration::from_secs(5)
}

/// The cache that the pods share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L2 {
    /// A Redis server.
    pub redis: Redis,
}

/// A Redis server, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// Where the URL is, such as `redis://:password@redis:6379/0`.
    pub url_from: UrlFrom,

    /// How long a request waits for Redis before it goes on without.
    #[serde(default = "default_redis_timeout")]
    pub timeout: Duration,
}

fn default_redis_timeout() -> Duration {
    Duration::from_millis(50)
}

/// Where a URL that carries a secret is found. Exactly one member is set; in a cluster that is `secretKeyRef`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.secretKeyRef)",
    "message": "set secretKeyRef: {name: ..., key: ...}",
}]))]
pub struct UrlFrom {
    /// A key of a Secret in the policy's namespace. It is mounted into the sidecar; the operator never reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,

    /// Outside Kubernetes: the name of an environment variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub env: Option<String>,

    /// Outside Kubernetes: the path of a file. White space around its text is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub file: Option<String>,
}

/// One key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.name.matches('^[a-z0-9][a-z0-9.-]*$') && self.key.matches('^[-._a-zA-Z0-9]+$') && !self.key.startsWith('..')",
    "message": "name a Secret and one of its keys, such as {name: shop-redis, key: url}",
}]))]
pub struct SecretKeyRef {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// The key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A place besides the application that can answer a miss. Exactly one kind is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.postgres)",
    "message": "say what the source is: set postgres",
}]))]
pub struct Source {
    /// What routes call it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// A Postgres server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,
}

/// A Postgres server, and what a pod may ask of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Postgres {
    /// Where the URL is, such as `postgres://user:password@postgres:5432/shop`.
    pub url_from: UrlFrom,

    /// How many connections each pod may hold.
    #[serde(default = "default_max_connections")]
    #[schemars(range(min = 1, max = 100))]
    pub max_connections_per_pod: u16,

    /// How long a statement may run, waiting for a connection included.
    #[serde(default = "default_statement_timeout")]
    pub statement_timeout: Duration,
}

fn default_max_connections() -> u16 {
    2
}

fn default_statement_timeout() -> Duration {
    Duration::from_secs(2)
}

/// Where the sidecars report to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// An OpenTelemetry Collector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
}

/// An OpenTelemetry Collector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Otlp {
    /// The URL of its OTLP/gRPC receiver, such as `http://otel-collector.observability:4317`.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = [{
        "rule": "isURL(self) && url(self).getScheme() == 'http'",
        "message": "write a URL such as http://otel-collector.observability:4317",
    }]))]
    pub endpoint: String,
}

/// A token of RFC 9110, section 5.6.2, as a pattern inside a CEL string: the name of a header or of a cookie.
const TOKEN: &str = r"^[A-Za-z0-9!#$%&*+.^_`|~\\x27-]+$";

/// One CEL rule, with the sentence that the API server answers where it does not hold.
fn rule(rule: &str, message: &str) -> Value {
    json!([{"rule": rule, "message": message}])
}
