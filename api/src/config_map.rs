//! Keys of a policy's ConfigMap, which are the names of files in the sidecar's volume.

/// The compiled policy.
pub const DOCUMENT: &str = "policy.yaml";
/// The hash of [`DOCUMENT`].
pub const HASH: &str = "hash";
/// The coverage of the policy, which is not part of [`HASH`].
pub const COVERAGE: &str = "coverage.json";
