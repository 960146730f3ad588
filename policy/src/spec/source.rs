//! Origins besides the application, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ValueFrom, rule};
use crate::Duration;

/// A text without a parameter of the query that has no name. Within quotes it would be no parameter, but a pattern that
/// knows quotes costs too much for 1,000 routes.
const NAMES_PARAMETERS: &str = "!self.contains('{query.}')";

/// An origin besides the application that can serve a miss. Set exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "has(self.postgres) != has(self.http)",
    "a source needs a kind: set one of postgres and http",
)))]
pub struct Source {
    /// Name by which routes refer to the source.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// A Postgres server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,

    /// An HTTP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

/// A Postgres server, and the limits on its use by each pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "self.statementTimeout.matches('[1-9]')",
    "statementTimeout must be longer than 0s: write one such as 2s",
)))]
pub struct Postgres {
    /// Reference to the URL, such as `postgres://user:password@postgres:5432/shop?sslmode=verify-full`.
    pub url_from: ValueFrom,

    /// Reference to the CA certificates that TLS trusts, in PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<ValueFrom>,

    /// Maximum number of connections of each pod.
    #[serde(default = "default_max_connections")]
    #[schemars(range(min = 1, max = 100))]
    pub max_connections_per_pod: u16,

    /// Maximum time of a statement, waiting for a connection included.
    #[serde(default = "default_statement_timeout")]
    pub statement_timeout: Duration,
}

fn default_max_connections() -> u16 {
    2
}

fn default_statement_timeout() -> Duration {
    Duration::from_secs(2)
}

/// An HTTP server, and the limits on its use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "self.timeout.matches('[1-9]')",
    "timeout must be longer than 0s: write one such as 1s",
)))]
pub struct Http {
    /// Base URL: scheme, host, optional port and an optional path that is put before those of routes, such as
    /// `https://catalog.example/v2`.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rule(
        "isURL(self) && url(self).getScheme() in ['http', 'https'] && !self.contains('@') && !self.contains('?') && !self.contains('#')",
        "write a URL such as https://catalog.example, without user, query or fragment",
    )))]
    pub url: String,

    /// Reference to the CA certificates that TLS trusts, in PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<ValueFrom>,

    /// Maximum time that a request waits for the source if a stale response may be served instead (`staleIfError`).
    /// After that, the stale response is served, and the source's response is awaited in the background and stored.
    #[serde(default = "default_http_timeout")]
    pub timeout: Duration,

    /// Maximum time of a request to the source. Default: 10s, or `timeout` if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_timeout: Option<Duration>,
}

fn default_http_timeout() -> Duration {
    Duration::from_secs(1)
}

impl Http {
    /// Maximum time of a request to the source, default included.
    pub fn hard_timeout(&self) -> Duration {
        self.hard_timeout.unwrap_or(self.timeout.max(Duration::from_secs(10)))
    }
}

/// One origin to try on a miss. Set exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "(has(self.postgres) ? 1 : 0) + (has(self.http) ? 1 : 0) + (has(self.application) ? 1 : 0) == 1",
    "an entry of from needs an origin: set one of postgres, http and application",
)))]
pub struct FromSpec {
    /// A query to a Postgres source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresQuery>,

    /// A request to an HTTP source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,

    /// The application, after the other origins. Write `application: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<ToApplication>,
}

/// The application, requested as it would be without `from`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToApplication {}

/// A query to a Postgres source. One row becomes a JSON object, several become an array. Without a row the next origin
/// is tried; after the last, the response is a 404.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresQuery {
    /// Name of a member of `sources`.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// One SELECT. `{key}` stands for that parameter of the path and `{query.page}` for the first query parameter of
    /// that name, null if there is none. They are bound as text, so cast them: `{key}::int`.
    #[schemars(length(min = 1, max = 4096), extend("x-kubernetes-validations" = rule(
        NAMES_PARAMETERS,
        "name a parameter of the query, such as {query.page}",
    )))]
    pub query: String,
}

/// A GET to an HTTP source. After a 404 or 410 the next origin is tried; after the last, the response is a 404. Of
/// other statuses, only a 200 is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRequest {
    /// Name of a member of `sources`.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// Path with an optional query, such as `/products/{key}?page={query.page}`. Values are encoded, so none of them
    /// can alter the rest of the URL. The value of a `{*path}` keeps its slashes in the path; one with dot segments is
    /// not requested and counts as not found.
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [
        {
            "rule": r"self.startsWith('/') && !self.contains('#') && !self.matches('[\\s\\pZ]')",
            "message": "start path with a slash, and leave out fragments and spaces",
        },
        {
            "rule": NAMES_PARAMETERS,
            "message": "name a parameter of the query in path, such as {query.page}",
        },
    ]))]
    pub path: String,

    /// Persists the response body in a Postgres source. The client does not wait for the statement, and does not learn
    /// of its failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<Persist>,
}

/// A statement that persists what an HTTP source returned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Persist {
    /// Name of a member of `sources`, a Postgres server.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// One INSERT, with `on conflict` because other pods may insert the same row. `{key}` and `{query.page}` have the
    /// same meaning as in a query; `{body}` stands for the text of the response body: cast it, such as `{body}::jsonb`.
    #[schemars(length(min = 1, max = 4096), extend("x-kubernetes-validations" = [
        {
            "rule": NAMES_PARAMETERS,
            "message": "name a parameter of the query in the statement, such as {query.page}",
        },
    ]))]
    pub statement: String,
}
