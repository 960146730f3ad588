//! The custom resources of the group `larder.dev`.
//!
//! Doc comments here become the descriptions in the custom resource definition: `kubectl explain` prints them. The
//! `x-kubernetes-validations` are CEL rules; the message of each names the remedy.

pub mod cache_policy;
pub mod definition;
mod schema;
pub mod selector;
pub mod status;

pub use cache_policy::{
    CachePolicy, CachePolicySpec, Capture, CaptureMode, Limits, LogLevel, Requests, Resources, Rollout,
    RolloutStrategy, SidecarSpec, Target,
};
pub use definition::cache_policies;
pub use status::{CachePolicyStatus, ConditionType, PodCounts};
