//! `GET /requests`.

use std::{fmt, num::NonZeroU32, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

crate::labelled! {
    /// The cache's part in a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Outcome {
        /// A stored response was served.
        Hit = "hit",
        /// No response was stored; a source or the application responded.
        Miss = "miss",
        /// The response to another request in progress was served.
        Collapsed = "collapsed",
        /// A stored response was served after the application confirmed it.
        Revalidated = "revalidated",
        /// A stale response was served because no origin responded.
        Stale = "stale",
        /// A route matched, but the request bypassed the cache.
        Bypass = "bypass",
        /// No route was used: none matched, the policy is suspended or missing, or the request was a write.
        Pass = "pass",
        /// No tier had a response.
        Error = "error",
    }
}

/// Content type of the stream of requests: each line is a [`ServedRequest`] in JSON, or empty.
pub const REQUESTS_MEDIA_TYPE: &str = "application/x-ndjson";

/// Query parameters: the requests to show are those to which all filters apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RequestsQuery {
    /// Name of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The cache's part, such as `hit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Status, such as `404`, or a class of statuses, such as `5xx`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Start of the path as the client sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// One of so many is shown.
    pub sample: NonZeroU32,
    /// Show the values of query parameters, which may be secret.
    pub query: bool,
}

impl Default for RequestsQuery {
    fn default() -> Self {
        let sample = NonZeroU32::MIN;
        Self { route: None, outcome: None, status: None, path: None, sample, query: false }
    }
}

/// A request whose response was ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
// Sidecars of an earlier version say less.
#[serde(default)]
#[schemars(transform = super::complete)]
pub struct ServedRequest {
    /// Time at which the head of the response was ready (RFC 3339).
    pub time: String,
    /// Method.
    pub method: String,
    /// Path as the client sent it, cut if it is long.
    pub path: String,
    /// Query, cut if it is long. Without `query=true` each value is `*`.
    pub query: Option<String>,
    /// Status of the response.
    pub status: u16,
    /// Route, if one took the request.
    pub route: Option<String>,
    /// The cache's part: `hit`, `miss`, `collapsed`, `revalidated`, `stale`, `bypass`, `pass` or `error`.
    pub outcome: String,
    /// Origin of the response: `l1`, `l2`, `postgres`, `http`, `last-known-good`, `app` or `none`.
    pub tier: String,
    /// Reason why no stored response was used, such as `uri-miss` or `bypass-cookie`.
    pub forward: Option<String>,
    /// Reason why the response is not stored, if its head says so, such as `no-store`.
    pub not_stored: Option<String>,
    /// Time until the head of the response was ready. Not measured for hits that take less than a millisecond.
    pub duration_seconds: Option<f64>,
    /// Number of later requests that are left out because there are too many for this reader.
    pub dropped: u64,
}

/// Statuses of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    /// One status.
    Code(u16),
    /// A class by its first digit.
    Class(u16),
}

impl StatusFilter {
    /// Returns true if the filter lets a status pass.
    pub const fn accepts(self, status: u16) -> bool {
        match self {
            Self::Code(code) => status == code,
            Self::Class(class) => status / 100 == class,
        }
    }
}

impl FromStr for StatusFilter {
    type Err = InvalidStatus;

    fn from_str(text: &str) -> Result<Self, InvalidStatus> {
        let filter = match text.strip_suffix("xx") {
            Some(class) => class.parse().map(Self::Class).ok().filter(|_| class.len() == 1),
            None => text.parse().map(Self::Code).ok(),
        };
        let is_status = |filter: &Self| match filter {
            Self::Code(code) => (100..1000).contains(code),
            Self::Class(class) => (1..=9).contains(class),
        };
        filter.filter(is_status).ok_or(InvalidStatus)
    }
}

impl fmt::Display for StatusFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "{code}"),
            Self::Class(class) => write!(formatter, "{class}xx"),
        }
    }
}

/// Error of a text that is no [`StatusFilter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a status, such as 404, or a class, such as 5xx")]
pub struct InvalidStatus;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_statuses_and_classes() {
        let accepts =
            |filter: &str, status| filter.parse::<StatusFilter>().map(|filter| filter.accepts(status));
        assert_eq!((accepts("5xx", 503), accepts("5xx", 404)), (Ok(true), Ok(false)));
        assert_eq!((accepts("404", 404), accepts("404", 405)), (Ok(true), Ok(false)));
        for invalid in ["", "xx", "0xx", "10xx", "5x", "20", "abc", "+404x"] {
            assert_eq!(accepts(invalid, 200), Err(InvalidStatus), "{invalid}");
        }
        assert_eq!("5xx".parse::<StatusFilter>().unwrap().to_string(), "5xx");
    }
}
