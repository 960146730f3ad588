//! A route as a person writes it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FromSpec, KeySpec, rule};
use crate::{Duration, PathTemplate};

/// Requests that are answered alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.tags) || self.tags.all(t, t.findAll('[{][^}]*[}]').all(p, self.match.path.contains(p)))",
        "message": "a tag may only use parameters that match.path has, such as {id}",
    },
    {
        "rule": "!(has(self.ttl) && has(self.maxTTL))",
        "message": "ttl replaces the life that an answer gives itself and maxTTL bounds it: set one of them",
    },
    {
        "rule": "!has(self.ttl) || self.ttl.matches('[1-9]')",
        "message": "ttl must be longer than 0s: to cache nothing, take the route out",
    },
    {
        "rule": "!has(self.maxTTL) || self.maxTTL.matches('[1-9]')",
        "message": "maxTTL must be longer than 0s: to cache nothing, take the route out",
    },
    {
        "rule": "!has(self.l1TTL) || self.l1TTL.matches('[1-9]')",
        "message": "l1TTL must be longer than 0s: leave it out, or write one such as 5s",
    },
    {
        "rule": "!has(self.l2TTL) || self.l2TTL.matches('[1-9]')",
        "message": "l2TTL must be longer than 0s: leave it out, or write one such as 10m",
    },
    {
        "rule": "!has(self.collapseTimeout) || self.collapseTimeout.matches('[1-9]')",
        "message": "collapseTimeout must be longer than 0s: leave it out, or write one such as 5s",
    },
    {
        "rule": "!has(self.match.methods) || !self.match.methods.exists(m, m == 'POST') || (has(self.key) && has(self.key.body))",
        "message": "answers to POST depend on the body: set key.body, such as {maxSize: 64Ki}, or take POST out of match.methods",
    },
    {
        "rule": "!has(self.key) || !has(self.key.body) || (has(self.match.methods) && self.match.methods.exists(m, m == 'POST'))",
        "message": "key.body is for POST: put POST into match.methods, or take key.body out",
    },
    {
        "rule": "!has(self.ttlJitterPercent) || has(self.ttl)",
        "message": "ttlJitterPercent shortens the ttl of the route: set one beside it",
    },
    {
        "rule": "!has(self.ttlFrom) || has(self.ttl)",
        "message": "ttlFrom needs a ttl beside it, for answers that do not say how long they are fresh",
    },
    {
        "rule": "!has(self.notFoundTTL) || (has(self.from) && size(self.from) > 0)",
        "message": "notFoundTTL is for what no source has: set from, or list 404 in statuses",
    },
    {
        "rule": "!has(self.from) || size(self.from) < 2 || self.from.all(f, !has(f.application)) || (has(self.from[size(self.from) - 1].application) && self.from.filter(f, has(f.application)).size() == 1)",
        "message": "the application has the last word: put application at the end of from, once",
    },
    {
        "rule": "!has(self.from) || size(self.from) == 0 || has(self.ttl)",
        "message": "a route with from needs a ttl: a row says nothing about how long it is fresh",
    },
    {
        "rule": "!has(self.from) || size(self.from) == 0 || !has(self.match.methods) || !self.match.methods.exists(m, m == 'POST')",
        "message": "from answers by path and query: take POST out of match.methods, or from out of the route",
    },
]))]
pub struct RouteSpec {
    /// What metrics, logs and messages call it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Which requests it is for.
    #[serde(rename = "match")]
    pub matches: RouteMatch,

    /// How long an answer is fresh. It replaces what `Cache-Control` and `Expires` of the answer say about that; it never
    /// overrides `no-store`, `private`, `Set-Cookie` or `Vary: *`, unless `storeDespite` says so. Without it the answer's
    /// own headers decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,

    /// The longest that an answer is fresh, whatever its own headers say.
    #[serde(default, rename = "maxTTL", skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Duration>,

    /// The statuses whose answers are stored. Without it: 200 where there is a `ttl`, and what RFC 9111 allows where there
    /// is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["code"]))]
    pub statuses: Vec<StatusSpec>,

    /// For how long an answer that is no longer fresh is served at once, while a new one is fetched behind it (RFC 5861).
    /// It replaces what the answer says about that; `0s` is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Duration>,

    /// For how long an answer that is no longer fresh is served where the application fails (it can't be reached, takes
    /// longer than `application.timeout`, or answers 500, 502, 503 or 504; RFC 5861) or the sources do, and where an HTTP source takes longer than its `timeout`. It replaces
    /// what the answer says about that; `0s` is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Duration>,

    /// What is stored although the answer's headers forbid it. Many frameworks send `no-store` by default; look first
    /// whether they mean it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub store_despite: Vec<Despite>,

    /// Whether a client's own `Cache-Control` counts, by which it can force a miss.
    #[serde(default, skip_serializing_if = "ClientDirectives::is_ignore")]
    #[schemars(extend("default" = "Ignore"))]
    pub client_directives: ClientDirectives,

    /// Requests that are neither looked up nor stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Bypass>,

    /// What tells two answers of this route apart, besides method, scheme, host, path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySpec>,

    /// Which headers of a request the application gets, where its response may be stored. `Keyed` closes the set: nothing that
    /// is not in the key can change what others are served. Recommended wherever `key.ignoreHeaders` lists credentials.
    #[serde(default, skip_serializing_if = "ForwardHeaders::is_all")]
    #[schemars(extend("default" = "All"))]
    pub forward_headers: ForwardHeaders,

    /// Names under which what is stored can be purged; `{id}` stands for that parameter of the path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// What is asked on a miss, in this order; without it, the application.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub from: Vec<FromSpec>,

    /// Takes the TTL from the answer, in place of `ttl`, which counts where the answer does not say it. With a number of 0 or less the
    /// answer is not fresh: the next request is a miss or a validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_from: Option<TtlFrom>,

    /// By how many hundredths of it a TTL is shortened at most, for each answer by another part, so that what was stored at
    /// the same time does not end at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub ttl_jitter_percent: Option<u8>,

    /// How long a pod answers from its own memory before it looks into L2 again, where another may have stored something
    /// newer. Without it, for as long as the answer is fresh.
    #[serde(default, rename = "l1TTL", skip_serializing_if = "Option::is_none")]
    pub l1_ttl: Option<Duration>,

    /// The longest that an answer stays in L2. Without it, for as long as it is of any use.
    #[serde(default, rename = "l2TTL", skip_serializing_if = "Option::is_none")]
    pub l2_ttl: Option<Duration>,

    /// How long it is remembered that no source has what was asked for. `0s`: not at all. Only with `from`; 5s without it. Where
    /// `from` ends with `application`, the application's own 404s are stored for as long.
    #[serde(default, rename = "notFoundTTL", skip_serializing_if = "Option::is_none")]
    pub not_found_ttl: Option<Duration>,

    /// Whether an answer that is asked for often is renewed before it ends.
    #[serde(default, skip_serializing_if = "EarlyRefresh::is_never")]
    #[schemars(extend("default" = "Never"))]
    pub early_refresh: EarlyRefresh,

    /// Keeps the last good answer in a table of Postgres, where it outlives Redis, and answers with it if everything else
    /// fails. Kept are whole answers with status 200 and without `Vary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_good: Option<LastKnownGood>,

    /// How long what stands in for a failed answer is served before the failed place is asked again. Without it, 1s where the
    /// route has `staleIfError` or `lastKnownGood`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_interval: Option<Duration>,

    /// Time without a sign of life after which a request to the origin is no longer waited for by requests for the same. Until
    /// then, requests for the same response share one request to the origin. When the response's head, or the next piece of its
    /// body, has not come for this long, one of those that wait, or the next that comes, asks again, and the others wait for that
    /// one. No request waits for others for longer than twice this. Set it above what the slowest response takes. Default 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_timeout: Option<Duration>,

    /// Wraps answers: `{"source": "l1", "data": ..., "cached_at": ..., "expires_in_seconds": ...}`. The source is `l1`, `l2`,
    /// `postgres`, `http` or `application`. Only a 200 in JSON without `Content-Encoding` is wrapped; it loses `ETag`,
    /// `Last-Modified` and `Accept-Ranges`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub envelope: bool,
}

/// Where a response says how long it is fresh. Exactly one member is set. A response that says 0, or a negative number, is not
/// fresh: it is stored only if it can be validated or served stale. One that says nothing, or anything else, has the route's
/// `ttl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "has(self.header) != has(self.json)",
    "set one of header, such as X-TTL, and json, such as /meta/ttl",
)))]
pub struct TtlFrom {
    /// A response header whose value is a number of seconds, or a duration such as `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub header: Option<String>,

    /// A pointer (RFC 6901) to a number of seconds, or a duration such as `"5m"`, in a JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = rule(
        "self.startsWith('/')",
        "write a JSON pointer, such as /meta/ttl",
    )))]
    pub json: Option<String>,
}

/// Whether an answer that is asked for often is renewed before it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EarlyRefresh {
    /// It is not.
    #[default]
    Never,
    /// It is renewed in the background, the more likely the nearer its end is and the longer it took to make (Vattani,
    /// Chierichetti and Lowenstein, Optimal Probabilistic Cache Stampede Prevention, 2015).
    XFetch,
}

impl EarlyRefresh {
    fn is_never(&self) -> bool {
        *self == Self::Never
    }
}

/// Keeps the last good answer in a table of Postgres.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastKnownGood {
    /// The name of a member of `sources`, a Postgres server. The tables `larder_last_known_good` and
    /// `larder_last_known_good_purges` are made there if they are not.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,
}

/// Which requests a route is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// The path, whole; `{id}` stands for one segment that is not empty.
    pub path: PathTemplate,

    /// The methods: GET, HEAD, or POST where `key.body` is set. Without it, GET and HEAD; other methods pass through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub methods: Vec<CacheableMethod>,

    /// Request headers and the value that each must have, to the letter, such as `x-api-version: "2"`. They are part of
    /// the key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub headers: BTreeMap<String, String>,
}

/// A method whose answers are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CacheableMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST, told apart by its body.
    Post,
}

/// A status whose answers are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.code != 304",
        "message": "a 304 is about an answer that is stored already: list that answer's status, such as 200",
    },
    {
        "rule": "!has(self.ttl) || self.ttl.matches('[1-9]')",
        "message": "ttl must be longer than 0s: to store nothing of this status, take it out of statuses",
    },
]))]
pub struct StatusSpec {
    /// The status, such as 404.
    #[schemars(range(min = 200, max = 599))]
    pub code: u16,

    /// How long an answer of this status is fresh, in place of the route's `ttl` or of what its headers say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// What is stored although an answer's headers forbid it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Despite {
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// `Set-Cookie`: the cookie is stored with the answer, and everybody gets it.
    SetCookie,
    /// `Vary: *`.
    VaryAny,
}

/// Whether a client's own `Cache-Control` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientDirectives {
    /// It does not: a client can't force a miss.
    #[default]
    Ignore,
    /// It does, as RFC 9111 has it.
    Honor,
}

/// Which headers of a request the application gets, where its response may be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ForwardHeaders {
    /// All of them.
    #[default]
    All,
    /// Those in the key: those of `key.headers` and `match.headers`, the cookies of `key.cookies`, host and scheme; and
    /// `Accept-Encoding`, preconditions and ranges, `Via`, `X-Forwarded-For` and `traceparent`. `User-Agent` is `larder` unless
    /// it is in the key. Requests that pass through keep all theirs.
    Keyed,
}

impl ForwardHeaders {
    fn is_all(&self) -> bool {
        *self == Self::All
    }
}

impl ClientDirectives {
    fn is_ignore(&self) -> bool {
        *self == Self::Ignore
    }
}

/// Requests that are neither looked up nor stored. One of these is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.query) && size(self.query) > 0) || (has(self.headers) && size(self.headers) > 0) || (has(self.cookies) && size(self.cookies) > 0)",
    "message": "say what bypasses: set query, headers or cookies, such as query: {nocache: \"true\"}",
}]))]
pub struct Bypass {
    /// Query parameters and the value that bypasses, such as `nocache: "true"`; `"*"` is any value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub query: BTreeMap<String, String>,

    /// Request headers and the value that bypasses, such as `x-preview: "1"`; `"*"` is any value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub headers: BTreeMap<String, String>,

    /// Cookies and the value that bypasses, such as `session: "*"`; `"*"` is any value. A request with other cookies still
    /// passes through unless `key.cookies`, `key.headers` or `key.ignoreHeaders` deal with them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub cookies: BTreeMap<String, String>,
}
