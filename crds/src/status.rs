//! The status of a `CachePolicy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Observed state of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CachePolicyStatus {
    /// The metadata.generation that was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Hash of the configuration that sidecars should run: 16 hexadecimal digits of BLAKE3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,

    /// Capture mode in use: the one that `capture.mode` names, or the one that `Auto` chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<String>,

    /// Numbers of pods.
    #[serde(default)]
    pub pods: PodCounts,

    /// Requests of the last minute, as the sidecars count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,

    /// Names of pods without a sidecar, ten at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub missed_pods: Vec<String>,

    /// Conditions: Accepted, Injected, TrafficCaptured, ConfigCurrent, WritesSeen, TiersHealthy and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Numbers of the pods that the selector matches. Pods that are terminating or have opted out do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Pods that the selector matches.
    pub matched: i32,

    /// Matched pods that have the sidecar.
    pub injected: i32,

    /// Matched pods whose sidecar runs this policy's current configuration.
    pub current: i32,

    /// Matched pods whose sidecar is ready.
    pub ready: i32,

    /// Matched pods that have no sidecar.
    pub missed: i32,
}

/// Requests of the last minute, as the sidecars count them. Small changes are written once a minute at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Hits among hits and misses, in percent. Absent if there were neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_percent: Option<i32>,

    /// Requests a second to all sidecars together, as a decimal number with two significant digits.
    pub requests_per_second: String,
}

larder_api::labelled! {
    /// Types of conditions.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum ConditionType {
        /// The policy is valid and no older one selects the same pods.
        Accepted = "Accepted",
        /// Every matched pod has the sidecar.
        Injected = "Injected",
        /// The Services that select the pods send their requests to the sidecar.
        TrafficCaptured = "TrafficCaptured",
        /// Every sidecar runs the current configuration of the policy.
        ConfigCurrent = "ConfigCurrent",
        /// Every write to the pods passes through a sidecar that purges by it, where the policy has rules for writes.
        WritesSeen = "WritesSeen",
        /// Redis and Postgres respond to every sidecar.
        TiersHealthy = "TiersHealthy",
        /// The policy is in force: the conditions that affect serving hold.
        Ready = "Ready",
    }
}
