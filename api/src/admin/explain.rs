//! `POST /explain`.

use std::{collections::BTreeMap, num::NonZeroU16};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Number, json};

use super::{EntryState, PurgeRequest, StoredResponse};

/// Maximum number of headers of an [`ExplainRequest`].
pub const MAX_HEADERS: usize = 100;

/// A request as a client would send it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({
    "method": "GET",
    "url": "http://shop/api/users/1?x=1",
    "headers": {"accept-language": "de"},
}))]
pub struct ExplainRequest {
    /// Method, in capitals.
    #[serde(default = "get")]
    #[schemars(regex(pattern = r"^[A-Z-]{1,32}$"))]
    pub method: String,
    /// URL as the client has it.
    #[schemars(regex(
        pattern = r"^https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/[^?#\x00-\x20\x7F]*)?([?][^#\x00-\x20\x7F]*)?$"
    ))]
    pub url: String,
    /// Headers. `host` and `x-forwarded-proto` default to those of the URL.
    #[serde(default)]
    #[schemars(
        extend(
            "maxProperties" = MAX_HEADERS,
            "propertyNames" = {"pattern": r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$"},
            "additionalProperties" = {"type": "string", "pattern": r"^[\t -~]*$"},
        )
    )]
    pub headers: BTreeMap<String, String>,
    /// Body.
    #[serde(default)]
    pub body: String,
    /// The application's port that the request is for, where the sidecar stands before several. Default: the first.
    // A number such as 80.0 is an integer in JSON Schema.
    #[serde(default)]
    #[schemars(with = "Option<NonZeroU16>")]
    pub port: Option<Number>,
}

fn get() -> String {
    "GET".to_owned()
}

/// Treatment of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The route that matches; null if there is none.
    pub route: Option<ExplainedRoute>,
    /// The reason that no stored response is used and the response is not stored, as in `Cache-Status`. Null if the
    /// request is looked up.
    pub bypass: Option<String>,
    /// The reason that the sidecar responds by itself and forwards nothing: `admin` (the path is under
    /// `admin.pathPrefix`), `connect`, `max-forwards` or `purge` (`invalidation.requests`). Null if it does not.
    pub ends_here: Option<String>,
    /// Of a write: the names that are stale once the application has carried it out, by the rules of `onWrite` and RFC
    /// 9111, section 4.4, as `/purge` takes them. Null of other requests.
    pub on_write: Option<PurgeRequest>,
    /// Of a write: the names that become stale by rules of `onWrite` that are soft. Null if there are none.
    #[serde(default)]
    pub on_write_soft: Option<PurgeRequest>,
    /// Of a write: the values, such as `{body:/user/id}`, that are unknown, so that rules of `onWrite` name all that could be meant.
    #[serde(default)]
    pub on_write_unknown: Vec<String>,
    /// Key of the response; null without a route.
    pub key: Option<String>,
    /// Tiers in the order in which they are tried until one responds: `l1`, `l2`, a source such as `postgres/catalog`,
    /// or `app`; and `last-known-good` if all of them fail.
    pub tiers: Vec<String>,
    /// Names by which the response can be purged, as `/purge` takes them. Each of them suffices.
    pub purge: Option<PurgeRequest>,
    /// Contents of memory for the request; null if it is not looked up.
    pub l1: Option<ExplainedMemory>,
}

/// A route, as far as it affects the response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedRoute {
    /// Name.
    pub name: String,
    /// Index among the routes, from 0.
    pub index: usize,
    /// Path; null in a sidecar without a policy, whose one route matches every path.
    pub path: Option<String>,
    /// Values of the path's parameters, by name.
    pub parameters: BTreeMap<String, String>,
    /// Lifetimes of responses.
    pub lifetimes: ExplainedLifetimes,
    /// Time without a sign of life after which other requests for the same no longer wait for a request to the origin.
    pub collapse_timeout_seconds: f64,
    /// True if responses are wrapped in an envelope that names their origin.
    pub envelope: bool,
    /// Headers that name further tags of a response, by which it can be purged as well.
    #[serde(default)]
    pub tags_from: Vec<String>,
}

/// Lifetimes of responses. A null is decided by the response's own header fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedLifetimes {
    /// Freshness lifetime.
    pub ttl_seconds: Option<f64>,
    /// Maximum of the freshness lifetime that responses declare themselves.
    pub max_ttl_seconds: Option<f64>,
    /// Statuses that are stored, with their freshness lifetimes. Empty: only 200 where the route has a TTL, else the
    /// statuses of responses that declare a lifetime.
    pub statuses: Vec<ExplainedStatus>,
    /// Place of a response's own TTL: `header NAME` or `json POINTER`.
    pub ttl_from: Option<String>,
    /// Maximum TTL jitter in percent, by which responses stored together expire at different times.
    pub jitter_percent: u8,
    /// Maximum time in memory, where that is shorter.
    pub l1_seconds: Option<f64>,
    /// Maximum time in Redis, where that is shorter.
    pub l2_seconds: Option<f64>,
    /// Time after the end of freshness during which responses are served while they are renewed.
    pub stale_while_revalidate_seconds: Option<f64>,
    /// Time after the end of freshness during which responses are served where no fresh one can be had.
    pub stale_if_error_seconds: Option<f64>,
    /// True if frequently requested responses are renewed before they are stale.
    pub early_refresh: bool,
    /// Obstacles despite which responses are stored: `NoStore`, `Private` or `VaryAny`, as in the policy.
    pub store_despite: Vec<String>,
    /// Treatment of responses that set a cookie: `Refuse`, `Strip` or `Store`, as in the policy.
    pub set_cookie: String,
    /// Time for which a substitute for a failed response is served before the origin is tried again.
    pub retry_interval_seconds: f64,
}

/// Statuses that are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedStatus {
    /// The status, such as `404`, or a class such as `4xx`.
    pub status: String,
    /// Freshness lifetime; null for that of all statuses.
    pub ttl_seconds: Option<f64>,
}

/// Contents of memory for a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedMemory {
    /// True if the request is served from memory.
    pub hit: bool,
    /// The reason that it is not, as `fwd` of `Cache-Status` has it.
    pub forward: Option<String>,
    /// State of the stored response for a request without cache directives.
    pub state: Option<EntryState>,
    /// The stored response.
    pub response: Option<StoredResponse>,
}
