//! The cache key of a route, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TOKEN, rule};
use crate::ByteSize;

/// Parts of a request that distinguish responses of a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySpec {
    /// Query parameters that are part of the key. Default: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<KeyQuery>,

    /// Significance of the request's host. Default `Include`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "KeyHost")]
    pub host: Option<KeyHost>,

    /// Request headers whose value is part of the key. A request with credentials in one of them is cached, for that
    /// value only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(h, h.matches('{TOKEN}'))"),
            "list names of headers, such as Accept-Language",
        ))
    )]
    pub headers: Option<Vec<String>>,

    /// Request headers that identify a user (`Cookie`, `Authorization`, ...), or by which an application may tailor a
    /// response (`CF-IPCountry`, `HX-Request`, ...), but that do not change this route's responses. Requests with one of
    /// the former would pass through otherwise; the latter would be in the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(h, h.matches('{TOKEN}'))"),
            "list names of headers, such as Cookie",
        ))
    )]
    pub ignore_headers: Option<Vec<String>>,

    /// Cookies whose value is part of the key. A request with a `Cookie` header is then cached: with this list, the
    /// route declares that no other cookie changes its responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(c, c.matches('{TOKEN}'))"),
            "list names of cookies, such as language",
        ))
    )]
    pub cookies: Option<Vec<String>>,

    /// Adds a hash of the request's body, `Content-Type` and `Content-Encoding` to the key, to cache responses to POST
    /// such as GraphQL's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<KeyBody>,
}

/// Significance of the host for the responses of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyHost {
    /// Each host has its own responses. `shop`, `SHOP` and, over http, `shop:80` are one host, and the application receives `shop`.
    #[default]
    Include,
    /// One stored response serves every host by which the pod is reached, such as `shop`, `shop.shop.svc.cluster.local` and the pod's
    /// address. `Host`, the host of an absolute target, `X-Forwarded-Host` and `host=` in `Forwarded` are not in the key. The
    /// application still receives those of the client whose request fills the cache: a response that has them in links or redirects is
    /// served to everybody, and a client can choose them. Use it only where responses do not depend on the host. Keys have `*` in place
    /// of the host, as in `GET:http://*/api/users/1`, or the route's `match.host`.
    Ignore,
}

/// Query parameters that are part of the key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(has(self.allow) && has(self.ignore))",
        "message": "allow and ignore exclude each other: set one of them",
    },
    {
        "rule": "!has(self.allow) || self.allow.all(p, p.matches('^[^*&=#]*[*]?$'))",
        "message": "write the name of a parameter in allow, or its start and a '*', such as filter_*",
    },
    {
        "rule": "!has(self.ignore) || self.ignore.all(p, p.matches('^[^*&=#]*[*]?$'))",
        "message": "write the name of a parameter in ignore, or its start and a '*', such as utm_*",
    },
]))]
pub struct KeyQuery {
    /// The only parameters in the key; a `*` at the end stands for the rest of a name, as in `filter_*`. Names that an
    /// application might read as one of these are included too, such as `PAGE` and `page[]` for `page`, and so are
    /// those that `bypass` examines. To leave out the whole query, set `ignore: ["*"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    pub allow: Option<Vec<String>>,

    /// Parameters to leave out of the key; a `*` at the end stands for the rest of a name, as in `utm_*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    pub ignore: Option<Vec<String>>,

    /// Significance of the order of parameters: `AsSent` distinguishes `?a=1&b=2` from `?b=2&a=1`, `Sorted` does not.
    /// Default `AsSent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "QueryOrder")]
    pub order: Option<QueryOrder>,
}

/// Significance of the order of query parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueryOrder {
    /// Order distinguishes two queries.
    #[default]
    AsSent,
    /// Order does not distinguish two queries, except among parameters of the same name.
    Sorted,
}

/// The request body as a part of the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!isQuantity(string(self.maxSize)) || (quantity(string(self.maxSize)).isGreaterThan(quantity('0')) && quantity(string(self.maxSize)).compareTo(quantity('1Mi')) <= 0)",
    "message": "maxSize must be between 1 and 1Mi: a body is held in memory until its hash is known",
}]))]
pub struct KeyBody {
    /// Maximum size of the request body. A request with a larger body passes through.
    #[serde(default = "default_body_size")]
    pub max_size: ByteSize,
}

fn default_body_size() -> ByteSize {
    ByteSize(64 << 10)
}
