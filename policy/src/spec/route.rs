//! A route, as written in a policy.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FromSpec, KeySpec, TagsFrom, rule, rules};
use crate::{Duration, PathTemplate, StatusPattern};

/// Requests that are cached in the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_routes()))]
pub struct RouteSpec {
    /// Name of the route in metrics, logs and messages.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Requests that the route applies to.
    #[serde(rename = "match")]
    pub matches: RouteMatch,

    /// Sends the route's requests to the application without the cache, as those that no route matches. For a part of what a later route
    /// takes, such as `/admin/{*path}` before `/{*path}`. Takes every request that an application may read as one of the route's
    /// (`//ADMIN/x`, a parameter given twice, a host in `X-Forwarded-Host` alone), with any method unless `match.methods` lists some.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pass: bool,

    /// Freshness lifetime of a response. Replaces the lifetime that the response's `Cache-Control` and `Expires`
    /// declare; never overrides `no-store`, `private` or `Vary: *`, unless `storeDespite` says so, or `Set-Cookie`, unless
    /// `setCookie` does.
    /// Default: the response's own headers decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,

    /// Maximum time that a response is fresh, whatever its own headers say.
    #[serde(default, rename = "maxTTL", skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Duration>,

    /// Statuses whose responses are stored. Default: 200 if the route has a `ttl`, otherwise those that RFC 9111
    /// allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub statuses: Option<Vec<StatusSpec>>,

    /// Time after its expiry that a stale response is served at once while a new one is fetched in the background (RFC
    /// 5861). Replaces the response's own directive; `0s` disables it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Duration>,

    /// Time after its expiry that a stale response is served when the application fails (unreachable, slower than
    /// `application.timeout`, or a 500, 502, 503 or 504; RFC 5861), when the sources fail, or when an HTTP source
    /// exceeds its `timeout`. Replaces the response's own directive; `0s` disables it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Duration>,

    /// Time after its expiry that a stale response is served both while a new one is fetched and when the application fails:
    /// `staleWhileRevalidate` and `staleIfError` in one. Each of the two that is set as well replaces it:
    /// `grace: 1h` beside `staleWhileRevalidate: 10s` serves a response for 10s past its expiry from an application that
    /// works, and for an hour in place of one that fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,

    /// Restrictions in response headers that are overridden, so that the response is stored regardless. Many frameworks
    /// send `no-store` by default; first make sure that yours does not mean it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "atomic"))]
    pub store_despite: Option<Vec<Despite>>,

    /// Treatment of responses that set a cookie. Default `Refuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SetCookie")]
    pub set_cookie: Option<SetCookie>,

    /// Treatment of `Cache-Control` in requests, which lets a client force a miss. Default `Ignore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClientDirectives")]
    pub client_directives: Option<ClientDirectives>,

    /// Requests that are neither looked up nor stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Bypass>,

    /// Parts of the request that distinguish responses of this route, besides method, scheme, host, path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySpec>,

    /// Request headers that are forwarded to the application when its response may be stored. Default `All`. `Keyed` closes the set:
    /// nothing outside the key can then change a response that others are served. Recommended wherever
    /// `key.ignoreHeaders` lists credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ForwardHeaders")]
    pub forward_headers: Option<ForwardHeaders>,

    /// Names by which the route's stored responses can be purged; `{id}` stands for that parameter of the path, and `{path}`
    /// for the rest that `{*path}` matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// Takes further tags from headers of the response, such as `Surrogate-Key`. They count as those of `tags` do, in any case and
    /// encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags_from: Option<TagsFrom>,

    /// Origins to try on a miss, in this order. Default: the application.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub from: Vec<FromSpec>,

    /// Takes the TTL from the response, in place of `ttl`, which applies where the response has none. With a number of
    /// 0 or less the response is not fresh: the next request is a miss or a validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_from: Option<TtlFrom>,

    /// Maximum TTL jitter in percent. Each response's TTL is shortened by a different amount up to this, so that
    /// responses stored together do not expire together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub ttl_jitter_percent: Option<u8>,

    /// Maximum time that a pod serves a response from its own memory before it checks L2, where another pod may have
    /// stored a newer one. Default: as long as the response is fresh.
    #[serde(default, rename = "l1TTL", skip_serializing_if = "Option::is_none")]
    pub l1_ttl: Option<Duration>,

    /// Maximum time that a response stays in L2. Default: as long as it can be used.
    #[serde(default, rename = "l2TTL", skip_serializing_if = "Option::is_none")]
    pub l2_ttl: Option<Duration>,

    /// Time that a "not found" from every source is cached. Requires `from`. Default 5s; `0s` disables it. If `from`
    /// ends with `application`, the application's own 404s are stored for the same time.
    #[serde(default, rename = "notFoundTTL", skip_serializing_if = "Option::is_none")]
    pub not_found_ttl: Option<Duration>,

    /// Refresh of popular responses before they expire. Default `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "EarlyRefresh")]
    pub early_refresh: Option<EarlyRefresh>,

    /// Persists the last good response in a Postgres table, where it outlives Redis, and serves it when everything else
    /// fails. Only complete responses with status 200 and without `Vary` are persisted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_good: Option<LastKnownGood>,

    /// Time that a fallback response (`staleIfError`, `grace` or `lastKnownGood`) is served before the failed origin is
    /// tried again. Default: 1s where the route has one of the three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_interval: Option<Duration>,

    /// Maximum time without progress on a shared request to the origin. Until then, requests for the same response
    /// share one request to the origin. When the response's head, or the next piece of its body, has not arrived for
    /// this long, one of the waiting requests, or the next that arrives, is sent to the origin as well, and the others
    /// wait for that one. No request waits for others longer than twice this. Set it above the time that the slowest
    /// response takes. Default 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_timeout: Option<Duration>,

    /// Wraps responses: `{"source": "l1", "data": ..., "cached_at": ..., "expires_in_seconds": ...}`. The source is
    /// `l1`, `l2`, `postgres`, `http` or `application`. Only a 200 in JSON without `Content-Encoding` is wrapped; it
    /// loses `ETag`, `Last-Modified` and `Accept-Ranges`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<bool>,
}

/// The part of a response that states how long it is fresh. Set exactly one member. A response that states 0 or a
/// negative number is not fresh: it is stored only if it can be validated or served stale. A response that states
/// nothing, or anything else, has the route's `ttl`.
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

/// Refresh of popular responses before they expire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EarlyRefresh {
    /// No early refresh.
    #[default]
    Never,
    /// Refresh in the background, with a probability that rises as the response nears its expiry and with the time it
    /// took to produce (Vattani, Chierichetti and Lowenstein, Optimal Probabilistic Cache Stampede Prevention, 2015).
    XFetch,
}

/// Storage of the last good response in a Postgres table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastKnownGood {
    /// Name of a member of `sources`, a Postgres server. The tables `larder_last_known_good` and
    /// `larder_last_known_good_purges` are created there if they are missing.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,
}

/// Criteria that select the requests of a route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// Template of the whole path. `{id}` stands for one non-empty segment, and `{*path}` at the end for the rest of the
    /// path, however many segments that is: `/static/{*path}` matches `/static/a`, `/static/a/b` and `/static/`, but not
    /// `/static`; `/{*path}` matches every path, `/` included. Elsewhere in the policy its value is `{path}`.
    pub path: PathTemplate,

    /// Default true. With false the literal text of the path matches in any case: `/Shop` for `/shop`. Only for an application that
    /// treats them alike. The key still has the path as it was sent, so each spelling has a response of its own; a purge by path
    /// finds all of them.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schemars(extend("default" = true))]
    pub case_sensitive: bool,

    /// Significance of a slash at the end of the path. Default `Exact`.
    #[serde(default, skip_serializing_if = "TrailingSlash::is_exact")]
    #[schemars(extend("default" = "Exact"))]
    pub trailing_slash: TrailingSlash,

    /// Methods: GET, HEAD, or POST where `key.body` is set or `pass` is true. Default: GET and HEAD. Other methods pass through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub methods: Vec<CacheableMethod>,

    /// Host of the request: a name in lower case such as `shop.example`, or `*.shop.example` for every name that ends with
    /// `.shop.example`, as in Gateway API. Case, port and a dot at the end do not count. Every host that the request names must
    /// match: `Host` or that of an absolute target, and, where there are such headers, each in `X-Forwarded-Host` and `Forwarded`. A
    /// request whose hosts disagree belongs to none of this route's, because the application may use any of them. Default: any host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rule(
        "self.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        "write a host name in lower case without a port, such as shop.example or *.shop.example",
    )))]
    pub host: Option<String>,

    /// Request headers and the exact value that each must have, such as `x-api-version: "2"`. They are part of the key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub headers: BTreeMap<String, String>,

    /// Query parameters and the exact value that each must have, such as `view: print`; `"*"` matches any value. A request that has
    /// the parameter twice, or another that an application might read as it (`VIEW` or `view[]`), does not match. The parameters are
    /// part of the key whatever `key.query` says, on every route that has paths in common with this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub query: BTreeMap<String, String>,
}

/// Significance of a slash at the end of a route's path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrailingSlash {
    /// The path matches with the slash that it has, or without one.
    #[default]
    Exact,
    /// `/shop` and `/shop/` belong to the same route, and so does `/static` to that of `/static/{*path}`, where `{path}` is empty then.
    /// The key still has the path as it was sent, so each spelling has a response of its own; a purge by path finds both.
    Ignore,
}

impl TrailingSlash {
    fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

fn yes() -> bool {
    true
}

fn is_yes(is: &bool) -> bool {
    *is
}

/// A method whose responses are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CacheableMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST, distinguished by its body.
    Post,
}

/// Statuses whose responses are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.ttl) || self.ttl.matches('[1-9]')",
        "message": "ttl must be longer than 0s: to store nothing of this status, take it out of statuses",
    },
]))]
pub struct StatusSpec {
    /// The status, such as 404, or a class of them, such as `4xx`. A status that is listed by itself has its own `ttl`, and
    /// not that of its class. A class is made of statuses about the resource, and leaves out those that are about one client
    /// or the form of its request: `4xx` has 404, 405, 410, 414 and 451, and the other classes have all but 226, 505, 510 and
    /// 511. Stale responses with 4xx are served only while the application fails, and those with 5xx not at all, whatever
    /// `grace`, `staleWhileRevalidate` and `staleIfError` say.
    pub code: StatusPattern,

    /// Freshness lifetime of a response of this status, in place of the route's `ttl` and of the response's own
    /// headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// A restriction in response headers that is overridden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Despite {
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// `Vary: *`.
    VaryAny,
}

/// Treatment of responses that set a cookie (`Set-Cookie`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SetCookie {
    /// Pass the response on, and do not store it.
    #[default]
    Refuse,
    /// Store the response without the cookie, which only the client receives whose request went to the application. For a
    /// cookie that has nothing to do with the content, such as one of a load balancer or of statistics; where the content
    /// belongs to the cookie, as a form does that repeats its token, everybody gets the content of one client.
    Strip,
    /// Store the response with the cookie: **everybody receives the same cookie**. A cookie that identifies a session puts
    /// every client into that session.
    Store,
}

/// Treatment of `Cache-Control` in requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientDirectives {
    /// Ignore the directives: a client cannot force a miss.
    #[default]
    Ignore,
    /// Honor the directives as RFC 9111 defines them.
    Honor,
}

/// Request headers that are forwarded to the application when its response may be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ForwardHeaders {
    /// All headers.
    #[default]
    All,
    /// Only headers in the key: those of `key.headers` and `match.headers`, the cookies of `key.cookies`, host and
    /// scheme; and `Accept-Encoding`, preconditions and ranges, `Via`, `X-Forwarded-For` and `traceparent`.
    /// `User-Agent` is `larder` unless it is in the key. Requests that pass through retain all of their headers.
    Keyed,
}

/// Requests that are neither looked up nor stored. One matching condition is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.query) || has(self.headers) || has(self.cookies)",
    "message": "bypass needs a condition: set query, headers or cookies, such as query: {nocache: \"true\"}",
}]))]
pub struct Bypass {
    /// Query parameters, each with the value that bypasses the cache, such as `nocache: "true"`; `"*"` matches any
    /// value. A `*` at the end of a name stands for its rest, as in `preview_*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic", "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub query: Option<BTreeMap<String, String>>,

    /// Request headers, each with the value that bypasses the cache, such as `x-preview: "1"`; `"*"` matches any value. Names match in any case,
    /// and with `_` for `-`; values match in any case, quoted, and as a member of a list, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic", "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub headers: Option<BTreeMap<String, String>>,

    /// Cookies, each with the value that bypasses the cache, such as `session: "*"`; `"*"` matches any value. A `*` at the end of a name
    /// stands for its rest, as in `wordpress_logged_in_*`. A request
    /// with other cookies still passes through unless `key.cookies`, `key.headers` or `key.ignoreHeaders` covers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic", "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub cookies: Option<BTreeMap<String, String>>,
}
