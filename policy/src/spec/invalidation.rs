//! Invalidation of stored responses, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Changes, Notifications, PurgeRequests, TagsFrom};
use crate::{ByteSize, PathTemplate, template::PurgePath};

/// Events that invalidate stored responses before they expire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Invalidation {
    /// Writes that pass through a sidecar, and the stored responses that each invalidates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub on_write: Vec<OnWrite>,

    /// Lets responses of the application purge: `Larder-Purge: {"tags": ["user:7"]}`, the document of `POST /purge`, in a response to
    /// any method. It holds before the response leaves. The header is taken out of every response, whatever this says. One of an HTTP
    /// source, or beside `Age`, `Via` or `Cache-Status`, purges nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_responses: bool,

    /// PURGE and BAN requests to the application's address. Without this field they are requests like any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<PurgeRequests>,

    /// Behaviour while a pod that the selector matches receives requests without a sidecar: a write through such a pod
    /// reaches the application and purges nothing. Applies only in a cluster, and only where `onWrite` has rules, or
    /// `fromResponses` or `requests` is set.
    #[serde(default, skip_serializing_if = "UnseenWrites::is_pass_through")]
    #[schemars(extend("default" = "PassThrough"))]
    pub unseen_writes: UnseenWrites,

    /// Notifications of Postgres (`NOTIFY`) that purge, such as those of the triggers that `larder sql trigger` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notifications: Option<Notifications>,

    /// Changes of tables in Postgres, whoever makes them, and the stored responses that each invalidates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,

    /// Treatment of a write whose purge could not be made to hold in every pod: Redis does not take purges, and some other pod of
    /// the policy does not respond, either. A write that makes a stored response stale only because `Location` or
    /// `Content-Location` of its response names that is never refused: this is not known before; with `fromResponses` every write
    /// counts as one that makes responses stale.
    #[serde(default, skip_serializing_if = "OnPurgeFailure::is_ignore")]
    #[schemars(extend("default" = "Ignore"))]
    pub on_purge_failure: OnPurgeFailure,
}

/// Behaviour while a pod receives requests without a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnseenWrites {
    /// Pass everything through until every such pod has been replaced or is gone, then begin with an empty cache. No
    /// response is older than a write; meanwhile the application receives all requests.
    #[default]
    PassThrough,
    /// Serve from the cache. A response may be older than such a write, by its TTL at most. When the policy is new,
    /// sidecars still wait for the pods that the operator replaces.
    Serve,
}

impl UnseenWrites {
    fn is_pass_through(&self) -> bool {
        *self == Self::PassThrough
    }
}

/// Treatment of a write whose purge could not be made to hold in every pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnPurgeFailure {
    /// Let the write pass. Pods that are not reached may serve responses from before it until they are, or for their TTL.
    #[default]
    Ignore,
    /// Refuse the write with a 503 before it reaches the application. Each write that makes stored responses stale waits for a
    /// reply of Redis first or, without Redis, of every pod; one lost pod refuses writes until it is gone.
    Refuse,
}

impl OnPurgeFailure {
    fn is_ignore(&self) -> bool {
        *self == Self::Ignore
    }
}

/// A kind of write, and the stored responses that it invalidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.purge.tags) ? self.purge.tags : []).all(t, t.replace('{', '\\n{').split('\\n', 9).all(p, !p.contains('}') || p.startsWith('{query:') || p.startsWith('{header:') || p.startsWith('{body:') || !p.startsWith('{*') && (self.match.path.contains(p.substring(0, p.indexOf('}') + 1)) || self.match.path.endsWith('{*' + p.substring(1, p.indexOf('}') + 1)))))",
        "message": "purge.tags may only use parameters that match.path has, such as {id} and {path} for the value of {*path}, and {query:name}, {header:X-Name} and {body:/user/id}",
    },
    {
        "rule": "(has(self.purge.paths) ? self.purge.paths : []).all(t, t.replace('{', '\\n{').split('\\n', 9).all(p, !p.contains('}') || p.startsWith('{query:') || p.startsWith('{header:') || p.startsWith('{body:') || !p.startsWith('{*') && (self.match.path.contains(p.substring(0, p.indexOf('}') + 1)) || self.match.path.endsWith('{*' + p.substring(1, p.indexOf('}') + 1)))))",
        "message": "purge.paths may only use parameters that match.path has, such as {id} and {path} for the value of {*path}, and {query:name}, {header:X-Name} and {body:/user/id}",
    },
    {
        "rule": "(has(self.purge.prefixes) ? self.purge.prefixes : []).all(t, t.replace('{', '\\n{').split('\\n', 9).all(p, !p.contains('}') || p.startsWith('{query:') || p.startsWith('{header:') || p.startsWith('{body:') || !p.startsWith('{*') && (self.match.path.contains(p.substring(0, p.indexOf('}') + 1)) || self.match.path.endsWith('{*' + p.substring(1, p.indexOf('}') + 1)))))",
        "message": "purge.prefixes may only use parameters that match.path has, such as {id} and {path} for the value of {*path}, and {query:name}, {header:X-Name} and {body:/user/id}",
    },
    {
        "rule": "!has(self.maxBodySize) || !isQuantity(string(self.maxBodySize)) || (quantity(string(self.maxBodySize)).isGreaterThan(quantity('0')) && quantity(string(self.maxBodySize)).compareTo(quantity('1Mi')) <= 0)",
        "message": "maxBodySize must be between 1 and 1Mi: a copy of the body is held in memory until the application has responded",
    },
]))]
pub struct OnWrite {
    /// Requests that count as this write.
    #[serde(rename = "match")]
    pub matches: WriteMatch,

    /// Stored responses that the write invalidates, in every pod.
    pub purge: PurgeSpec,

    /// Maximum size of a body in which the values of `{body:…}` are looked for, at most 1Mi; 64Ki without it. A larger one passes to the
    /// application all the same, and its values are unknown. Of several rules for one write the largest size counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_size: Option<ByteSize>,
}

/// Criteria that identify a write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.methods) || self.methods.all(m, m.matches('^[A-Z][A-Z-]*$') && !(m in ['GET', 'HEAD', 'OPTIONS', 'TRACE', 'QUERY']))",
    "message": "list methods that write, in capitals, such as PUT, PATCH, POST or DELETE",
}]))]
pub struct WriteMatch {
    /// Template of the whole path. `{id}` stands for one non-empty segment, and `{*path}` at the end for the rest of the
    /// path, as in the `match.path` of a route. Elsewhere in the rule its value is `{path}`.
    pub path: PathTemplate,

    /// Methods that count as writes. Default: every method but GET, HEAD, OPTIONS, TRACE and QUERY. A request counts with
    /// each method that a header, a parameter or the content may put in place of its own: a POST of a form or of JSON
    /// as PUT, PATCH and DELETE, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    pub methods: Vec<String>,
}

/// Stored responses to invalidate.
///
/// Tags, paths and prefixes may have values of the write: `{id}` of `match.path`, `{query:name}` of the query, `{header:X-Name}` of a
/// header field, and `{body:/user/id}` of a body of JSON, at a JSON pointer (RFC 6901), in
/// which `*` stands for every element of a list, as in `{body:/items/*/id}`. Each of several values of one name, or of the
/// elements of a list, counts. Where a value is not known, because it is missing, null, not text, too long or one of more than 64, or because
/// the body is not JSON, compressed or larger than `maxBodySize`, the write purges all that could be meant: the prefix before the value,
/// or, of a tag, all that the routes with such tags have stored below the literal part of their paths.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.tags) || has(self.tagsFrom) || has(self.paths) || has(self.prefixes) || (has(self.everything) && self.everything)",
    "message": "nothing to purge: set tags, tagsFrom, paths or prefixes, or everything: true",
}]))]
pub struct PurgeSpec {
    /// Tags: every stored response with one of them is invalidated. Tags, paths and prefixes may have values of the write: `{id}` of
    /// `match.path`, `{query:name}`, `{header:X-Name}` and, at a JSON pointer, `{body:/user/id}`, where `*` stands for every element of a
    /// list, as in `{body:/items/*/id}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// Headers of the response to the write that name tags: every stored response with one of them is invalidated. A response that
    /// refuses the write (a 4xx other than 404, 408, 409 and 410) names none. Without a response, with too many tags, and with any other
    /// error that names none, all is invalidated that could have a tag, as for values that are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags_from: Option<TagsFrom>,

    /// Paths: every stored response under one of them is invalidated, regardless of host, scheme, query and variant. Each is
    /// a whole path: `{path}` inserts what the `{*path}` of `match.path` matched, and `{*path}` is refused here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub paths: Vec<PurgePath>,

    /// Prefixes of paths, in whole segments: `/api/users` stands for `/api/users`, `/api/users/7` and all that is below, but
    /// not for `/api/users2`. Written as `paths` are; of more than 32 segments the first 32 count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub prefixes: Vec<PurgePath>,

    /// Invalidates every stored response of the policy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,

    /// Makes the responses stale instead of unusable: each is served while it is refreshed, and while the application fails, as the
    /// route's `staleWhileRevalidate` and `staleIfError` allow. The response under the write's own path, and under those that
    /// `Location` and `Content-Location` of a success name, becomes unusable all the same (RFC 9111, section 4.4).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
}
