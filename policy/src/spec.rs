//! The part of a `CachePolicy` that sidecars run, as written in YAML.
//!
//! Doc comments here become the descriptions in the custom resource definition: `kubectl explain` prints them. The
//! `x-kubernetes-validations` are CEL rules that the API server evaluates. [`crate::Policy::compile`] repeats those
//! whose violation would go unnoticed, because a sidecar outside Kubernetes has no API server in front of it, and adds
//! what CEL cannot express.

mod changes;
mod defaults;
mod invalidation;
mod key;
mod notifications;
mod pass;
mod requests;
mod route;
mod rules;
mod source;
mod tags;
mod tiers;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Duration;

pub use self::{
    changes::{Changes, RowPurge, TableChanges},
    defaults::RouteDefaults,
    invalidation::{Invalidation, OnPurgeFailure, OnWrite, PurgeSpec, UnseenWrites, WriteMatch},
    key::{KeyBody, KeyHost, KeyQuery, KeySpec, QueryOrder},
    notifications::Notifications,
    requests::PurgeRequests,
    route::{
        Bypass, CacheableMethod, ClientDirectives, Despite, EarlyRefresh, ForwardHeaders, LastKnownGood,
        RouteMatch, RouteSpec, SetCookie, StatusSpec, TrailingSlash, TtlFrom,
    },
    source::{FromSpec, Http, HttpRequest, Persist, Postgres, PostgresQuery, Source, ToApplication},
    tags::TagsFrom,
    tiers::{Eviction, L1, L2, Redis, Topology},
};
pub(crate) use self::{pass::says_of_stored_responses, tags::NOT_TAGS};

/// The cache itself, without the pods that it is added to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// Suspends the cache: every sidecar passes all requests through at once, stores nothing and serves nothing from
    /// the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,

    /// The cache in each pod's memory.
    #[serde(default)]
    pub l1: L1,

    /// The cache that the pods share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2>,

    /// Limits on requests to the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,

    /// Origins besides the application that can serve a miss.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sources: Vec<Source>,

    /// Values of fields that routes leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<RouteDefaults>,

    /// Requests that are cached, at most 1,000 routes. The first route of the list that matches a request decides, whichever
    /// is more specific: list exceptions first and `/{*path}` last. A request that no route matches passes through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub routes: Vec<RouteSpec>,

    /// Response headers that carry cache directives for this cache only (RFC 9213), besides `Larder-Cache-Control`,
    /// which always counts. The first of them that a response carries replaces its `Cache-Control` and `Expires`. List
    /// `CDN-Cache-Control` only where its directives are meant for a cache in each pod as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 4),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(n, n.matches('{TOKEN}') && n.lowerAscii() != 'cache-control')"),
            "list names of headers besides Cache-Control, which is always read, such as CDN-Cache-Control",
        ))
    )]
    pub targeted_cache_control: Vec<String>,

    /// Treatment of connections that do not speak HTTP: `Pass` them on to the application as they are, without the cache, its
    /// rules and its headers, or `Refuse` them. Default `Pass`. A connection counts as another protocol only when that is
    /// proven; what may be HTTP never does.
    #[serde(default, skip_serializing_if = "OtherProtocols::is_default")]
    pub other_protocols: OtherProtocols,

    /// Request headers that identify a user or a tenant, besides those that are known by name or pattern. A request
    /// that carries one passes through, unless a route's `key` includes or ignores the header. A `*` at the start or
    /// the end stands for the rest of a name, as in `x-shop-*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(h, h.matches('{IDENTITY_HEADER}') && h.matches('[A-Za-z0-9]'))"),
            "list names of headers, with a '*' at the start or the end at most, such as x-shop-customer or x-shop-*",
        ))
    )]
    pub identity_headers: Vec<String>,

    /// Events that invalidate stored responses before they expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalidation: Option<Invalidation>,

    /// Export of traces and metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,

    /// Serves the admin API, which has a port of its own, under the application's address as well. Everything but
    /// `/livez` and `/readyz` requires the token there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

/// Treatment of connections that do not speak HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OtherProtocols {
    /// Pass the connection on to the application unchanged.
    #[default]
    Pass,
    /// Close the connection without involving the application.
    Refuse,
}

impl OtherProtocols {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The admin API under the application's address. Everything but `/livez` and `/readyz` requires the token there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Admin {
    /// Prefix of the admin API's paths, such as `/_larder`: `/stats` is then `/_larder/stats`. The application no
    /// longer receives requests under it.
    #[schemars(length(min = 2, max = 128), extend("x-kubernetes-validations" = rule(
        "self.matches('^(/[A-Za-z0-9._~-]+)+$') && !self.matches('/[.][.]?(/|$)')",
        "write a path without an end slash and without dots alone, such as /_larder",
    )))]
    pub path_prefix: String,
}

/// The application, as the sidecar in its pod sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "!has(self.timeout) || self.timeout.matches('[1-9]')",
    "timeout must be longer than 0s: leave it out, or write one such as 30s",
)))]
pub struct Application {
    /// Maximum time that the application may be silent: before the head of its response, counted from the moment it has
    /// the whole request (while a body is still being sent, from the last piece it accepted; time that the client takes
    /// does not count), and then between two pieces of the response body. Applies to every request, on a route or not.
    /// On timeout, the route's `staleIfError` or `lastKnownGood` supplies the response, otherwise it is a 504; a body
    /// that has begun breaks off. A write goes on without its client for up to 60 s after its 504, unless a quarter of
    /// the places for requests are taken by such writes, and purges again when its response arrives. Event streams (`text/event-stream`), gRPC and upgraded connections may be silent once
    /// their head has arrived. Default: no limit besides the client's own patience.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

impl CacheSpec {
    /// Every reference to a Secret, an environment variable or a file.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = &mut ValueFrom> {
        let redis = self.l2.as_mut().map(|l2| &mut l2.redis);
        let redis = redis.into_iter().flat_map(|redis| {
            let Redis { url_from, ca_from, .. } = redis;
            [Some(url_from), ca_from.as_mut()].into_iter().flatten()
        });
        let sources = self.sources.iter_mut().flat_map(|source| {
            let Source { name: _, postgres, http } = source;
            let postgres = postgres
                .as_mut()
                .map(|Postgres { url_from, ca_from, .. }| [Some(url_from), ca_from.as_mut()]);
            let http = http.as_mut().map(|Http { ca_from, .. }| ca_from.as_mut());
            postgres.into_iter().flatten().chain(http).flatten()
        });
        redis.chain(sources)
    }
}

/// Reference to a text that is secret or belongs to a secret, such as a URL with a password. Set exactly one member; in
/// a cluster that is `secretKeyRef`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.secretKeyRef)",
    "message": "set secretKeyRef: {name: ..., key: ...}",
}]))]
pub struct ValueFrom {
    /// A key of a Secret in the policy's namespace. The Secret is mounted into the sidecar; the operator never reads
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,

    /// Name of an environment variable, outside Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub env: Option<String>,

    /// Path of a file, outside Kubernetes. Surrounding white space in the file is dropped.
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
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Export of traces and metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// An OpenTelemetry Collector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
}

/// URL of the collector's OTLP/gRPC receiver, such as `http://otel-collector.observability:4317`.
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

/// A [`TOKEN`] with a star allowed only at the start or the end, as a pattern inside a CEL string.
const TOKEN: &str = r"^[A-Za-z0-9!#$%&*+.^_`|~\\x27-]+$";

/// One CEL rule, with the message that the API server returns when it does not hold.
const IDENTITY_HEADER: &str = r"^[*]?[A-Za-z0-9!#$%&+.^_`|~\\x27-]+[*]?$";

/// One CEL rule, with the sentence that the API server answers where it does not hold.
fn rule(rule: &str, message: &str) -> Value {
    json!([{"rule": rule, "message": message}])
}
