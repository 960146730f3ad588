//! The part of a `CachePolicy` that a sidecar serves by, as a person writes it.
//!
//! Doc comments here become the descriptions in the custom resource definition: `kubectl explain` prints them.
//! The `x-kubernetes-validations` are CEL rules that the API server evaluates; [`crate::Policy::compile`] checks the
//! same where a mistake would go unnoticed, and what CEL can't, for sidecars that no API server stands before.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, PathTemplate};

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

/// Requests that are answered alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.tags) || self.tags.all(t, t.findAll('[{][^}]*[}]').all(p, self.match.path.contains(p)))",
    "message": "a tag may only use parameters that match.path has, such as {id}",
}]))]
pub struct RouteSpec {
    /// What metrics, logs and messages call it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Which requests it is for.
    #[serde(rename = "match")]
    pub matches: RouteMatch,

    /// How long an answer is fresh. It replaces what `Cache-Control` and `Expires` of the answer say about that; it never
    /// overrides `no-store` or `private`. Without it the answer's own headers decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,

    /// Requests that are neither looked up nor stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Bypass>,

    /// What tells two answers of this route apart, besides method, scheme, host, path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySpec>,

    /// Names under which what is stored can be purged; `{id}` stands for that parameter of the path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// What is asked on a miss, in this order; without it, the application.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub from: Vec<FromSpec>,
}

/// Which requests a route is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// The path, whole; `{id}` stands for one segment that is not empty.
    pub path: PathTemplate,

    /// The methods: GET, HEAD or both. Without it, both; other methods pass through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub methods: Vec<CacheableMethod>,
}

/// A method whose answers are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CacheableMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
}

/// Requests that are neither looked up nor stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bypass {
    /// Query parameters and the value that bypasses, such as `nocache: "true"`.
    #[schemars(extend("maxProperties" = 16))]
    pub query: BTreeMap<String, String>,
}

/// What tells two answers of a route apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySpec {
    /// Which part of the query counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<KeyQuery>,

    /// Request headers whose value is part of the key. A request with credentials in one of them is cached, for that value
    /// alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    pub headers: Vec<String>,

    /// Request headers that name a person (`Cookie`, `Authorization`, ...) and do not change this route's answers. Requests
    /// that carry one would pass through otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    pub ignore_headers: Vec<String>,
}

/// Which part of the query counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyQuery {
    /// Parameters that do not; a `*` at the end stands for the rest of a name, as in `utm_*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    pub ignore: Vec<String>,
}

/// One place to ask on a miss. Exactly one member is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.postgres)",
    "message": "say what to ask: set postgres",
}]))]
pub struct FromSpec {
    /// A query to a Postgres source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresQuery>,
}

/// A query to a Postgres source. One row becomes a JSON object, several an array, none a 404.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresQuery {
    /// The name of a member of `sources`.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// One SELECT. `{key}` stands for that parameter of the path; it is bound as text, so cast it: `{key}::int`.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}

/// What drops stored answers before their time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Invalidation {
    /// Writes that pass through a sidecar, and what they make stale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub on_write: Vec<OnWrite>,
}

/// A kind of write, and what it makes stale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.purge.tags) ? self.purge.tags : []).all(t, t.findAll('[{][^}]*[}]').all(p, self.match.path.contains(p)))",
        "message": "purge.tags may only use parameters that match.path has, such as {id}",
    },
    {
        "rule": "(has(self.purge.paths) ? self.purge.paths : []).all(t, t.findAll('[{][^}]*[}]').all(p, self.match.path.contains(p)))",
        "message": "purge.paths may only use parameters that match.path has, such as {id}",
    },
]))]
pub struct OnWrite {
    /// Which requests are such writes.
    #[serde(rename = "match")]
    pub matches: WriteMatch,

    /// What they make stale, in every pod.
    pub purge: PurgeSpec,
}

/// Which requests are writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.methods) || self.methods.all(m, m.matches('^[A-Z][A-Z-]*$') && !(m in ['GET', 'HEAD', 'OPTIONS', 'TRACE']))",
    "message": "list methods that write, in capitals, such as PUT, PATCH, POST or DELETE",
}]))]
pub struct WriteMatch {
    /// The path, whole; `{id}` stands for one segment that is not empty.
    pub path: PathTemplate,

    /// The methods. Without it, every method but GET, HEAD, OPTIONS and TRACE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    pub methods: Vec<String>,
}

/// What is made stale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.tags) || has(self.paths)",
    "message": "say what to purge: set tags, paths or both",
}]))]
pub struct PurgeSpec {
    /// Everything that bears one of these tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// Everything under one of these paths, whatever its host, scheme, query and variant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub paths: Vec<PathTemplate>,
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
