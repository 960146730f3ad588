//! The custom resources of the group `larder.dev`.
//!
//! Doc comments here become the descriptions in the custom resource definition: `kubectl explain` prints them. The
//! `x-kubernetes-validations` are CEL rules; the message of each names the remedy.

#[cfg(feature = "types")]
pub mod cache_invalidation;
#[cfg(feature = "types")]
pub mod cache_policy;
#[cfg(feature = "types")]
pub mod definition;
#[cfg(feature = "types")]
mod schema;
#[cfg(feature = "types")]
pub mod selector;
#[cfg(feature = "types")]
pub mod status;

#[cfg(feature = "types")]
pub use cache_invalidation::{
    CacheInvalidation, CacheInvalidationSpec, CacheInvalidationStatus, MissingPod, PurgeResult,
};
#[cfg(feature = "types")]
pub use cache_policy::{
    CachePolicy, CachePolicySpec, Capture, CaptureMode, Limits, LogLevel, PortFrom, Requests, Resources,
    Rollout, RolloutStrategy, SidecarSpec, Target,
};
#[cfg(feature = "types")]
pub use definition::{cache_invalidations, cache_policies};
#[cfg(feature = "types")]
pub use status::{CachePolicyStatus, ConditionType, PodCounts, Traffic};

/// The custom resource definition of `CachePolicy` as YAML: the generated file `larder.dev_cachepolicies.yaml`.
pub const CACHE_POLICIES: &str = include_str!("../larder.dev_cachepolicies.yaml");
