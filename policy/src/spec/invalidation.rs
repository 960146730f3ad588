//! What drops stored answers before their time, as a person writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PathTemplate;

/// What drops stored answers before their time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Invalidation {
    /// Writes that pass through a sidecar, and what they make stale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub on_write: Vec<OnWrite>,

    /// What sidecars do while a pod that the selector names takes requests without a sidecar: a write through it reaches the
    /// application, and purges nothing. In a cluster only, and only where `onWrite` has rules.
    #[serde(default, skip_serializing_if = "UnseenWrites::is_pass_through")]
    #[schemars(extend("default" = "PassThrough"))]
    pub unseen_writes: UnseenWrites,
}

/// What sidecars do while a pod takes requests without a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnseenWrites {
    /// They pass everything through until every such pod has been replaced or is gone, and then begin with an empty cache. No
    /// response is older than a write; the application takes all requests meanwhile.
    #[default]
    PassThrough,
    /// They serve from the cache. A response may be older than such a write, for its TTL at most. When the policy is new they
    /// still wait for the pods that the operator replaces.
    Serve,
}

impl UnseenWrites {
    fn is_pass_through(&self) -> bool {
        *self == Self::PassThrough
    }
}

/// A kind of write, and what it makes stale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.purge.tags) ? self.purge.tags : []).all(t, t.findAll('[{][^}]*[}]').all(p, self.match.path.contains(p)))",
        "message": "purge.tags may only use parameters that match.path has, such as {id}",
    },
    {
        "rule": "(has(self.purge.paths) ? self.purge.paths : []).all(t, t.findAll('[{][^}]*[}]').all(p, self.match.path.contains(p)))",
        "message": "purge.paths may only use parameters that match.path has, such as {id}",
    },
]))]
pub struct OnWrite {
    /// Which requests are such writes.
    #[serde(rename = "match")]
    pub matches: WriteMatch,

    /// What they make stale, in every pod.
    pub purge: PurgeSpec,
}

/// Which requests are writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.methods) || self.methods.all(m, m.matches('^[A-Z][A-Z-]*$') && !(m in ['GET', 'HEAD', 'OPTIONS', 'TRACE']))",
    "message": "list methods that write, in capitals, such as PUT, PATCH, POST or DELETE",
}]))]
pub struct WriteMatch {
    /// The path, whole; `{id}` stands for one segment that is not empty.
    pub path: PathTemplate,

    /// The methods. Without it, every method but GET, HEAD, OPTIONS and TRACE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    pub methods: Vec<String>,
}

/// What is made stale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.tags) || has(self.paths)",
    "message": "say what to purge: set tags, paths or both",
}]))]
pub struct PurgeSpec {
    /// Everything that bears one of these tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// Everything under one of these paths, whatever its host, scheme, query and variant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub paths: Vec<PathTemplate>,
}
