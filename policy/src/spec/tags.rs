//! Tags that responses name themselves, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TOKEN;

/// Response headers that clients and caches need, so that none of them is for tags, in lower case.
pub(crate) const NOT_TAGS: [&str; 27] = [
    "age",
    "cache-control",
    "cache-status",
    "connection",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-security-policy",
    "content-type",
    "date",
    "etag",
    "expires",
    "keep-alive",
    "larder-cache-control",
    "larder-purge",
    "last-modified",
    "location",
    "proxy-authenticate",
    "set-cookie",
    "strict-transport-security",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "www-authenticate",
];

/// Response headers of the application, or of an HTTP source, that name tags. Of a rule for writes: of the application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagsFrom {
    /// Names of the headers. Tags in `Surrogate-Key` are separated by blanks, with a comma before each or without, those in `Cache-Tag` and `Edge-Cache-Tag` by commas,
    /// and those in every other header, such as `xkey` or `X-Cache-Tags`, by both. A response with more than 1,024 tags, or with more
    /// than 16 KiB of them, is not stored (`too-many-tags`): a purge would miss it.
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 128)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = [
            {
                "rule": format!("self.all(h, h.matches('{TOKEN}'))"),
                "message": "list names of headers, such as Surrogate-Key",
            },
            {
                "rule": format!("!self.exists(h, h.lowerAscii() in ['{}'])", NOT_TAGS.join("', '")),
                "message": "some of these headers have a meaning of their own: list headers for tags, such as Surrogate-Key",
            },
        ])
    )]
    pub headers: Vec<String>,

    /// Removes the headers from every response that a client receives, including those that pass because no route takes their
    /// request. Default false: clients, and caches in front, receive them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
}
