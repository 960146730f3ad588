//! `GET /policy`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration in force, and the state of the tiers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyReport {
    /// Hash of the configuration in force; null without one.
    pub hash: Option<String>,
    /// State of the cache.
    pub state: CacheState,
    /// The error that prevents the configuration on disk from being loaded; null if there is none.
    pub error: Option<String>,
    /// State of the tiers besides memory, by kind and name, such as `redis` or `postgres/catalog`.
    pub tiers: BTreeMap<String, TierState>,
    /// Errors of tiers that are not connected, or not with their current secrets, by the tier's kind and name. They
    /// contain no secret.
    #[serde(default)]
    #[schemars(required)]
    pub last_errors: BTreeMap<String, String>,
    /// True if the token of the admin API can be read; without it, everything that requires it is refused.
    #[serde(default = "yes")]
    #[schemars(required)]
    pub admin_token: bool,
    /// Requests since the process began; null in reports of earlier versions.
    #[serde(default)]
    #[schemars(required)]
    pub requests: Option<RequestCounts>,
    /// The other pods that this pod tells of purges directly; absent if it knows no way to find them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersReport>,
}

/// The other pods that a pod tells of purges directly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeersReport {
    /// Number of pods that acknowledge purges.
    pub reachable: usize,
    /// The pods that do not, by admin address, with the reason.
    pub unreachable: BTreeMap<String, String>,
    /// The reason that pods can't be found at present; absent if they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Numbers of requests since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestCounts {
    /// All requests that were responded to.
    pub total: u64,
    /// Requests with a stored response.
    pub hits: u64,
    /// Requests that went to a source or to the application, and were the first to.
    pub misses: u64,
}

/// Sidecars of an earlier version do not say that a token is missing.
const fn yes() -> bool {
    true
}

/// State of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheState {
    /// Requests are looked up in the cache.
    Serving,
    /// Everything passes through, because the policy is suspended.
    Suspended,
    /// Everything passes through, because a pod without a sidecar receives writes, or may.
    Waiting,
    /// Everything passes through, because there is no policy.
    Absent,
    /// A state that this version does not know.
    #[default]
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// State of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TierState {
    /// The tier responds.
    Up,
    /// The tier does not respond, and requests do without it.
    Down,
    /// A state that this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_newer_versions_can_be_read() {
        let newer = r#"{"hash": null, "state": "warming", "tiers": {"redis": "slow"}, "last_errors": {}, "regions": []}"#;
        let newer: PolicyReport = serde_json::from_str(newer).unwrap();
        assert_eq!((newer.state, newer.tiers["redis"]), (CacheState::Unknown, TierState::Unknown));
    }

    #[test]
    fn reports_with_the_former_name_of_last_errors_can_be_read() {
        let former =
            r#"{"hash": "h", "state": "serving", "error": null, "tiers": {}, "troubles": {"redis": "down"}}"#;
        let former: PolicyReport = serde_json::from_str(former).unwrap();
        assert_eq!(former.hash.as_deref(), Some("h"));
    }
}
