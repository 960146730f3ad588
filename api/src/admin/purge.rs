//! `POST /purge` and `DELETE /entries/{key}`.

use std::ops::Not;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Pattern of keys under which a response may be stored: short ones, and whole ones with their headers and variant.
pub const KEY_PATTERN: &str = concat!(
    r"^(GET|HEAD|POST):(",
    r"(/([^/?#*]|[*]+[^/?#*])*)+([?][^#]*)?",
    r"|[^/?#\n]*://[^/?#\n]*(/([^/?#*\n]|[*]+[^/?#*\n])*)+([?][^#\n]*)?(#[^=\n]+=[^\n]*)?(\n[\s\S]*)?",
    r")$",
);

/// Names to purge, at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(
    extend("anyOf" = [
        {"required": ["keys"], "properties": {"keys": {"minItems": 1}}},
        {"required": ["paths"], "properties": {"paths": {"minItems": 1}}},
        {"required": ["prefixes"], "properties": {"prefixes": {"minItems": 1}}},
        {"required": ["tags"], "properties": {"tags": {"minItems": 1}}},
        {"required": ["everything"], "properties": {"everything": {"const": true}}},
    ]),
    example = json!({"keys": ["GET:/api/posts/"], "paths": ["/api/users/1"], "prefixes": ["/static"], "tags": ["user:1"]}),
)]
pub struct PurgeRequest {
    /// Whole keys, such as `GET:http://shop/api/posts/#accept-language=de`, or short ones, such as `GET:/api/posts/`.
    /// Parameters that the route leaves out of the key may be in them.
    #[schemars(inner(regex(pattern = KEY_PATTERN)))]
    pub keys: Vec<String>,
    /// Whole paths, for every host, scheme, query and variant, in any spelling. A segment that ends in `*` is refused,
    /// because no pattern is matched: write `%2A` for the character.
    #[schemars(inner(regex(pattern = r"^(/([^/?#*]|[*]+[^/?#*])*)+$")))]
    pub paths: Vec<String>,
    /// Prefixes of paths, in whole segments: `/static` stands for `/static` and all that is below, but not for `/statics`.
    /// Written as paths are. Of more than 32 segments the first 32 count.
    #[schemars(inner(regex(pattern = r"^(/([^/?#*]|[*]+[^/?#*])*)+$")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Tags that routes give to responses.
    #[schemars(inner(regex(pattern = r"^\S([\s\S]*\S)?$")))]
    pub tags: Vec<String>,
    /// True to purge everything that the policy has stored.
    #[serde(skip_serializing_if = "Not::not")]
    pub everything: bool,
    /// True to make responses stale, so that they are served while they are refreshed, and while the application fails, as
    /// `staleWhileRevalidate` and `staleIfError` allow. Otherwise they are no longer served.
    #[serde(skip_serializing_if = "Not::not")]
    pub soft: bool,
}

/// Query parameters of `POST /purge`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PurgeQuery {
    /// True if every pod of the policy is asked for this purge, one of them without this parameter: then this pod does not tell the
    /// others directly.
    pub each_pod: bool,
}

/// A purge and its progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PurgeReport {
    /// The names that were purged.
    pub purged: PurgedNames,
    /// Place in the order of purges; null while the purge is pending.
    pub order: Option<u64>,
    /// True if Redis has the purge. False while it is pending, and in a pod whose configuration has no Redis.
    #[serde(default)]
    pub redis: bool,
    /// The reason that Redis does not have the purge yet, or may not be the server that pods listen to, or that other pods
    /// may not have the purge. This pod repeats it when it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
    /// The pods that this pod told directly, because there is no Redis, or it was not told, or not every pod acknowledged
    /// the purge there. Absent if none was told so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersTold>,
}

/// Pods that were told directly of a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeersTold {
    /// Number of pods in which the purge holds, besides the one that was asked for it.
    pub acknowledged: usize,
    /// Admin addresses of the pods that did not acknowledge it in time. They are told again until they do.
    pub missing: Vec<String>,
}

/// Names of a purge. `DELETE /entries/{key}` purges both its key as sent and the decoded one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = super::complete)]
pub struct PurgedNames {
    /// Keys, whole or short.
    pub keys: Vec<String>,
    /// Paths.
    pub paths: Vec<String>,
    /// Prefixes of paths.
    pub prefixes: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// True if everything was purged.
    pub everything: bool,
    /// True if responses were made stale.
    pub soft: bool,
}

impl From<PurgeRequest> for PurgedNames {
    fn from(PurgeRequest { keys, paths, prefixes, tags, everything, soft }: PurgeRequest) -> Self {
        Self { keys, paths, prefixes, tags, everything, soft }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_versions_read_requests_without_new_members() {
        let request = PurgeRequest { tags: vec!["a".into()], ..PurgeRequest::default() };
        assert_eq!(serde_json::to_value(request).unwrap(), json!({"keys": [], "paths": [], "tags": ["a"]}));
    }

    #[test]
    fn reports_of_earlier_versions_do_not_claim_that_redis_has_the_purge() {
        let earlier = json!({"purged": {"keys": [], "paths": [], "tags": ["a"]}, "order": 1});
        let earlier: PurgeReport = serde_json::from_value(earlier).unwrap();
        assert_eq!((earlier.redis, earlier.purged.tags), (false, vec!["a".to_owned()]));
    }
}
