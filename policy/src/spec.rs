//! The part of a `CachePolicy` that a sidecar serves by, as a person writes it.
//!
//! Doc comments here become the descriptions in the custom resource definition: `kubectl explain` prints them.
//! The `x-kubernetes-validations` are CEL rules that the API server evaluates; [`crate::Policy::compile`] checks the
//! same where a mistake would go unnoticed, and what CEL can't, for sidecars that no API server stands before.

mod invalidation;
mod key;
mod route;
mod source;
mod tiers;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Duration;

pub use self::{
    invalidation::{Invalidation, OnWrite, PurgeSpec, UnseenWrites, WriteMatch},
    key::{KeyBody, KeyQuery, KeySpec, QueryOrder},
    route::{
        Bypass, CacheableMethod, ClientDirectives, Despite, EarlyRefresh, ForwardHeaders, LastKnownGood,
        RouteMatch, RouteSpec, StatusSpec, TtlFrom,
    },
    source::{FromSpec, Http, HttpRequest, Persist, Postgres, PostgresQuery, Source, ToApplication},
    tiers::{Eviction, L1, L2, Redis, Topology},
};

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

    /// What the pods may ask of the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,

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

    /// Treatment of connections that do not speak HTTP: `Pass` them on to the application as they are, without the cache, its
    /// rules and its headers, or `Refuse` them. Default `Pass`. A connection counts as another protocol only when that is
    /// proven; what may be HTTP never does.
    #[serde(default, skip_serializing_if = "OtherProtocols::is_default")]
    pub other_protocols: OtherProtocols,

    /// Request headers that name a person or a tenant, besides those that are known by name or look like it. A request that
    /// carries one passes through, unless a route's `key` puts it in the key or ignores it. A `*` at the start or the end stands
    /// for the rest of a name, as in `x-shop-*`.
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

    /// What drops stored answers before their time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalidation: Option<Invalidation>,

    /// Where the sidecars report to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,

    /// Puts the admin API, which has a port of its own, under the application's address as well, where everything but `/livez`
    /// and `/readyz` wants the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

/// Treatment of connections that do not speak HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OtherProtocols {
    /// They are passed on to the application as they are.
    #[default]
    Pass,
    /// They are closed, and the application does not hear of them.
    Refuse,
}

impl OtherProtocols {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The admin API under the application's address. Everything but `/livez` and `/readyz` wants the token there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Admin {
    /// The path that stands before those of the admin API, such as `/_larder`: its `/stats` is then `/_larder/stats`. The
    /// application no longer sees requests under it.
    #[schemars(length(min = 2, max = 128), extend("x-kubernetes-validations" = rule(
        "self.matches('^(/[A-Za-z0-9._~-]+)+$') && !self.matches('/[.][.]?(/|$)')",
        "write a path without an end slash and without dots alone, such as /_larder",
    )))]
    pub path_prefix: String,
}

/// The application, as the sidecar beside it sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "!has(self.timeout) || self.timeout.matches('[1-9]')",
    "timeout must be longer than 0s: leave it out, or write one such as 30s",
)))]
pub struct Application {
    /// Maximum time without a word from the application: until the head of its response, counted from when it has the request (while
    /// a body is still sent, from the last piece that it took; the time that the client takes does not count), and then between two
    /// pieces of the response's body. It holds for every request, of a route or not. A request whose time is over is a failure: what
    /// `staleIfError` or `lastKnownGood` of the route has stands in, else the response is a 504; a body breaks off. Event streams
    /// (`text/event-stream`), gRPC and connections that changed their protocol may be silent once their head has come. Without it,
    /// the application may take as long as its client waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

impl CacheSpec {
    /// Every place where something is read from a Secret, an environment variable or a file.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = &mut UrlFrom> {
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

/// Where a text that is a secret, or belongs to one, is found, such as a URL with a password. Exactly one member is set; in a cluster that is `secretKeyRef`.
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

/// The same without stars, but perhaps at its ends.
const IDENTITY_HEADER: &str = r"^[*]?[A-Za-z0-9!#$%&+.^_`|~\\x27-]+[*]?$";

/// One CEL rule, with the sentence that the API server answers where it does not hold.
fn rule(rule: &str, message: &str) -> Value {
    json!([{"rule": rule, "message": message}])
}
