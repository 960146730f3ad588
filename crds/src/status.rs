//! What the operator reports about a `CachePolicy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// What became of the policy, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CachePolicyStatus {
    /// The metadata.generation that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// What a sidecar that serves by this policy answers with: 16 hexadecimal digits of the BLAKE3 hash of its
    /// configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,

    /// The pods, counted.
    #[serde(default)]
    pub pods: PodCounts,

    /// The names of missed pods, ten at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub missed_pods: Vec<String>,

    /// Accepted, Injected, TrafficCaptured, ConfigCurrent, WritesSeen, TiersHealthy and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The pods that the selector names, counted. Pods that are on their way out or have opted out don't count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Pods that the selector names.
    pub matched: i32,

    /// Those that have the sidecar.
    pub injected: i32,

    /// Those whose sidecar has answered with this policy's hash.
    pub current: i32,

    /// Those whose sidecar is ready.
    pub ready: i32,

    /// Those that have no sidecar.
    pub missed: i32,
}

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The policy is valid and no older one selects the same pods.
    Accepted,
    /// Every matched pod has the sidecar.
    Injected,
    /// The Services that select the pods send their requests to the sidecar.
    TrafficCaptured,
    /// Every sidecar serves by the policy as it stands.
    ConfigCurrent,
    /// Every write to the pods passes a sidecar that purges by it, where the policy has rules for writes.
    WritesSeen,
    /// Redis and Postgres answer every sidecar.
    TiersHealthy,
    /// All of the above that bear on serving: the policy is in force.
    Ready,
}

impl ConditionType {
    /// All of them, in the order of a policy's way.
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Injected,
        Self::TrafficCaptured,
        Self::ConfigCurrent,
        Self::WritesSeen,
        Self::TiersHealthy,
        Self::Ready,
    ];

    /// Its name in `status.conditions[].type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Injected => "Injected",
            Self::TrafficCaptured => "TrafficCaptured",
            Self::ConfigCurrent => "ConfigCurrent",
            Self::WritesSeen => "WritesSeen",
            Self::TiersHealthy => "TiersHealthy",
            Self::Ready => "Ready",
        }
    }
}
