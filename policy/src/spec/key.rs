//! What tells two answers of a route apart, as a person writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TOKEN, rule};
use crate::ByteSize;

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
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-validations" = rule(
            &format!("self.all(h, h.matches('{TOKEN}'))"),
            "list names of headers, such as Accept-Language",
        ))
    )]
    pub headers: Vec<String>,

    /// Request headers that name a person (`Cookie`, `Authorization`, ...) and do not change this route's answers. Requests
    /// that carry one would pass through otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-validations" = rule(
            &format!("self.all(h, h.matches('{TOKEN}'))"),
            "list names of headers, such as Cookie",
        ))
    )]
    pub ignore_headers: Vec<String>,

    /// Cookies whose value is part of the key. A request with a `Cookie` header is then cached: the route says by this
    /// list that no other cookie changes its answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = rule(
            &format!("self.all(c, c.matches('{TOKEN}'))"),
            "list names of cookies, such as language",
        ))
    )]
    pub cookies: Vec<String>,

    /// Puts a hash of the request's body, its `Content-Type` and its `Content-Encoding` into the key, for answers to POST such as
    /// GraphQL's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<KeyBody>,
}

/// Which part of the query counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(has(self.allow) && has(self.ignore))",
        "message": "allow lists all that counts and ignore all that does not: set one of them",
    },
    {
        "rule": "(!has(self.allow) || self.allow.all(p, p.matches('^[^*&=#]*[*]?$'))) && (!has(self.ignore) || self.ignore.all(p, p.matches('^[^*&=#]*[*]?$')))",
        "message": "write the name of a parameter, or its start and a '*', such as utm_*",
    },
]))]
pub struct KeyQuery {
    /// The only parameters that count; a `*` at the end stands for the rest of a name, as in `filter_*`. Names that an
    /// application might read as one of these count too, such as `PAGE` and `page[]` for `page`; so do those that `bypass`
    /// looks at. To leave out the whole query, set `ignore: ["*"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub allow: Vec<String>,

    /// Parameters that do not; a `*` at the end stands for the rest of a name, as in `utm_*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    pub ignore: Vec<String>,

    /// Whether `?a=1&b=2` and `?b=2&a=1` are told apart.
    #[serde(default, skip_serializing_if = "QueryOrder::is_as_sent")]
    #[schemars(extend("default" = "AsSent"))]
    pub order: QueryOrder,
}

/// Whether the order of parameters tells two queries apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueryOrder {
    /// It does.
    #[default]
    AsSent,
    /// It does not, but for the order of parameters of one name.
    Sorted,
}

impl QueryOrder {
    fn is_as_sent(&self) -> bool {
        *self == Self::AsSent
    }
}

/// How the body of a request counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!isQuantity(string(self.maxSize)) || (quantity(string(self.maxSize)).isGreaterThan(quantity('0')) && quantity(string(self.maxSize)).compareTo(quantity('1Mi')) <= 0)",
    "message": "maxSize must be between 1 and 1Mi: a body is held in memory until its hash is known",
}]))]
pub struct KeyBody {
    /// A request with a larger body passes through.
    #[serde(default = "default_body_size")]
    pub max_size: ByteSize,
}

fn default_body_size() -> ByteSize {
    ByteSize(64 << 10)
}
