//! Where a miss may be answered, as a person writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{UrlFrom, rule};
use crate::Duration;

/// `{query.}` outside quotes, as a pattern inside a CEL string.
const NO_NAME: &str = r#"^([^\x27"]|\x27[^\x27]*\x27|"[^"]*")*[{]query[.][}]"#;

/// A place besides the application that can answer a miss. Exactly one kind is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "has(self.postgres) != has(self.http)",
    "say what the source is: set one of postgres and http",
)))]
pub struct Source {
    /// What routes call it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// A Postgres server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,

    /// An HTTP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

/// A Postgres server, and what a pod may ask of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "self.statementTimeout.matches('[1-9]')",
    "statementTimeout must be longer than 0s: write one such as 2s",
)))]
pub struct Postgres {
    /// Where the URL is, such as `postgres://user:password@postgres:5432/shop?sslmode=verify-full`.
    pub url_from: UrlFrom,

    /// Where the certificates are that TLS trusts, in PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<UrlFrom>,

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

/// An HTTP server, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "self.timeout.matches('[1-9]')",
    "timeout must be longer than 0s: write one such as 1s",
)))]
pub struct Http {
    /// Where it is: scheme, host, port if need be, and perhaps a path that stands before those of routes, such as
    /// `https://catalog.example/v2`.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rule(
        "isURL(self) && url(self).getScheme() in ['http', 'https'] && !self.contains('@') && !self.contains('?') && !self.contains('#')",
        "write a URL such as https://catalog.example, without user, query or fragment",
    )))]
    pub url: String,

    /// Where the certificates are that TLS trusts, in PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<UrlFrom>,

    /// How long a request waits if what is stored, though no longer fresh, may answer it (`staleIfError`). The source is
    /// waited for in the background then, and what it says is stored.
    #[serde(default = "default_http_timeout")]
    pub timeout: Duration,

    /// How long an answer may take in all before it is given up. Without it, 10s, or `timeout` if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_timeout: Option<Duration>,
}

fn default_http_timeout() -> Duration {
    Duration::from_secs(1)
}

impl Http {
    /// How long an answer may take in all.
    pub fn hard_timeout(&self) -> Duration {
        self.hard_timeout.unwrap_or(self.timeout.max(Duration::from_secs(10)))
    }
}

/// One place to ask on a miss. Exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rule(
    "(has(self.postgres) ? 1 : 0) + (has(self.http) ? 1 : 0) + (has(self.application) ? 1 : 0) == 1",
    "say what to ask: set one of postgres, http and application",
)))]
pub struct FromSpec {
    /// A query to a Postgres source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresQuery>,

    /// A request to an HTTP source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,

    /// The application, after the others. Write `application: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<ToApplication>,
}

/// The application, asked as it would be without `from`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToApplication {}

/// A query to a Postgres source. One row becomes a JSON object, several an array; none is left to the next place to ask, and
/// is a 404 after the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresQuery {
    /// The name of a member of `sources`.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// One SELECT. `{key}` stands for that parameter of the path and `{query.page}` for the first one of that name in the
    /// query, null if there is none; they are bound as text, so cast them: `{key}::int`.
    #[schemars(length(min = 1, max = 4096), extend("x-kubernetes-validations" = rule(
        &format!("!self.matches('{NO_NAME}')"),
        "name a parameter of the query, such as {query.page}",
    )))]
    pub query: String,
}

/// A GET to an HTTP source. Its 404 or 410 is left to the next place to ask, and is a 404 after the last; of other statuses
/// only 200 is an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRequest {
    /// The name of a member of `sources`.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// The path, and perhaps a query, such as `/products/{key}?page={query.page}`. Values are encoded, so that none of them
    /// can be more than a part.
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [
        {
            "rule": r"self.startsWith('/') && !self.contains('#') && !self.matches('[\\s\\pZ]')",
            "message": "start path with a slash, and leave out fragments and spaces",
        },
        {
            "rule": "!self.contains('{query.}')",
            "message": "name a parameter of the query in path, such as {query.page}",
        },
    ]))]
    pub path: String,

    /// Writes what it returned to a Postgres source. The client does not wait for that, and does not learn if it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<Persist>,
}

/// A statement that keeps what an HTTP source returned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Persist {
    /// The name of a member of `sources`, a Postgres server.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// One INSERT, with `on conflict` for pods that do the same. `{key}` and `{query.page}` stand for what they do in a query and
    /// `{body}` for the text of the answer: cast it, such as `{body}::jsonb`.
    #[schemars(length(min = 1, max = 4096), extend("x-kubernetes-validations" = [
        {
            "rule": "self.lowerAscii().contains('on conflict')",
            "message": "pods write the same row at the same time: end the statement with such as on conflict do nothing",
        },
        {
            "rule": format!("!self.matches('{NO_NAME}')"),
            "message": "name a parameter of the query in the statement, such as {query.page}",
        },
    ]))]
    pub statement: String,
}
