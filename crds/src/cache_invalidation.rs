//! `CacheInvalidation`: a purge of a policy's stored responses, with its result.
#![expect(clippy::duplicated_attributes, reason = "the columns of `kubectl get` share types and priorities")]

use std::ops::Not;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Default of `timeoutSeconds`.
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 60;
/// Default of `ttlSecondsAfterFinished`.
pub const DEFAULT_TTL_SECONDS: u32 = 3600;

/// Stored responses to purge, in every pod of a policy. Cannot be changed: create another one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "CacheInvalidation",
    plural = "cacheinvalidations",
    shortname = "cinv",
    category = "larder",
    namespaced,
    status = "CacheInvalidationStatus",
    derive = "PartialEq",
    doc = "A purge of stored responses in every pod of a policy. It ends with the condition `Complete` or `Partial`, and is deleted after its TTL.",
    printcolumn(
        name = "Policy",
        type_ = "string",
        json_path = ".spec.policy",
        description = "CachePolicy whose responses are purged."
    ),
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".status.pods",
        description = "Pods of the policy that have the sidecar."
    ),
    printcolumn(
        name = "Acknowledged",
        type_ = "integer",
        json_path = ".status.acknowledged",
        description = "Pods that no longer serve what was purged."
    ),
    printcolumn(
        name = "Complete",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Complete')].status",
        description = "Whether every pod acknowledged the purge."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.status=='True')].message",
        description = "The result as a sentence.",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self == oldSelf",
        "message": "a purge can't be changed once it was asked for: create another CacheInvalidation",
    },
    {
        "rule": "has(self.keys) || has(self.paths) || has(self.prefixes) || has(self.tags) || (has(self.everything) && self.everything)",
        "message": "nothing to purge: set keys, paths, prefixes or tags, or everything: true",
    },
]))]
pub struct CacheInvalidationSpec {
    /// Name of the CachePolicy, in the same namespace.
    #[schemars(length(min = 1, max = 50))]
    pub policy: String,

    /// Whole keys as `kubectl larder` and the admin API show them, or short ones such as `GET:/api/posts/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 1024)), extend("x-kubernetes-validations" = [{
        "rule": "self.all(k, k.matches('^(GET|HEAD|POST):'))",
        "message": "a key begins with its method, such as GET:/api/posts/",
    }]))]
    pub keys: Vec<String>,

    /// Whole paths, for every host, scheme, query and variant, in any spelling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 512)), extend("x-kubernetes-validations" = schema::paths()))]
    pub paths: Vec<String>,

    /// Prefixes of paths, in whole segments: `/static` stands for `/static` and all that is below, but not for `/statics`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 512)), extend("x-kubernetes-validations" = schema::paths()))]
    pub prefixes: Vec<String>,

    /// Tags that routes give to responses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)), extend("x-kubernetes-validations" = [{
        "rule": "self.all(t, t == t.trim())",
        "message": "a tag has no spaces at its ends: remove them",
    }]))]
    pub tags: Vec<String>,

    /// True to purge everything that the policy has stored.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub everything: bool,

    /// True to make responses stale, so that they are served while they are refreshed, and while the application fails, as
    /// `staleWhileRevalidate` and `staleIfError` of their route allow. Otherwise they are no longer served.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub soft: bool,

    /// Time in seconds for which pods that do not acknowledge the purge are asked again. After it the result is `Partial`.
    /// Default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600), extend("default" = 60))]
    pub timeout_seconds: Option<u32>,

    /// Time in seconds after which the finished object is deleted. Default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800), extend("default" = 3600))]
    pub ttl_seconds_after_finished: Option<u32>,
}

/// Progress and result of the purge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheInvalidationStatus {
    /// Pods of the policy that have the sidecar.
    #[serde(default)]
    pub pods: i32,

    /// Pods that no longer serve what was purged.
    #[serde(default)]
    pub acknowledged: i32,

    /// Pods that did not acknowledge the purge, twenty at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["pod"]))]
    pub missing: Vec<MissingPod>,

    /// Time at which the purge ended, completely or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub completion_time: Option<Time>,

    /// Conditions: Complete, once every pod has acknowledged the purge, or Partial, once the time is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A pod that did not acknowledge a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissingPod {
    /// Name of the pod.
    pub pod: String,

    /// The reason, as a sentence.
    pub message: String,
}

larder_api::labelled! {
    /// Results of a purge, each a type of condition.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum PurgeResult {
        /// Every pod of the policy acknowledged the purge.
        Complete = "Complete",
        /// The time was over before every pod had acknowledged the purge, or the purge was refused.
        Partial = "Partial",
    }
}
