//! Names that Larder gives to objects, labels and annotations.

/// The label of an injected pod, and of a policy's ConfigMap: the policy's name.
pub const POLICY_LABEL: &str = "larder.dev/policy";
/// The label by which a pod opts out, when its value is `false`.
pub const INJECT_LABEL: &str = "larder.dev/inject";
/// The label of objects that the operator created.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "larder";
/// The annotation of an injected pod: a hash of the injection's inputs, compared to find pods that must be replaced.
pub const INJECTION_HASH: &str = "larder.dev/injection-hash";
/// The annotation of an injected pod: the original values of rewritten fields, as JSON.
pub const ORIGINAL: &str = "larder.dev/original";
/// The annotation of an injected pod: the hash of its policy's configuration. A change makes the kubelet examine the
/// pod, and so refresh its ConfigMap, at once.
pub const CONFIG_HASH: &str = "larder.dev/config-hash";
/// The annotation of an injected pod: the coverage for its sidecar. A change makes the kubelet refresh the pod's
/// ConfigMap, like a change of [`CONFIG_HASH`].
pub const COVERAGE: &str = "larder.dev/coverage";
/// The annotation of a pod that was not injected: `<Reason>: <message>`.
pub const SKIPPED: &str = "larder.dev/skipped";
/// The annotation of a pod template: the time of the operator's last restart of the workload.
pub const RESTARTED_AT: &str = "larder.dev/restarted-at";
/// The annotation of a workload: the number of consecutive restarts that did not correct its pods.
pub const ROLL_ATTEMPTS: &str = "larder.dev/roll-attempts";
/// The annotation of a workload: the aim of those restarts. Another template or other settings reset the attempts.
pub const ROLL_AIM: &str = "larder.dev/roll-aim";
/// The annotation of a policy's ConfigMap: the policy's rollout strategy, for use after the policy is deleted.
pub const ROLLOUT_STRATEGY: &str = "larder.dev/rollout-strategy";

/// Name of the sidecar's container.
pub const SIDECAR: &str = "larder-sidecar";
/// The field manager of the operator's applies.
pub const FIELD_MANAGER: &str = "larder-operator";
/// The field manager of the coverage in a policy's ConfigMap, which is separate from that of the other fields.
pub const COVERAGE_MANAGER: &str = "larder-operator-coverage";
/// The reporting controller of the operator's events.
pub const CONTROLLER: &str = "larder";
/// The Lease that the leading replica holds.
pub const LEASE: &str = "larder-operator";
/// The Secret with the webhook's certificates.
pub const TLS_SECRET: &str = "larder-webhook-tls";
/// The operator's own Deployment.
pub const OPERATOR: &str = "larder-operator";
/// The `MutatingWebhookConfiguration`.
pub const WEBHOOK_CONFIGURATION: &str = "larder";

/// Returns the name of a policy's ConfigMap.
pub fn config_map(policy: &str) -> String {
    format!("larder-{policy}")
}

/// Returns the name of the Secret with the token for a policy's admin API.
pub fn admin_secret(policy: &str) -> String {
    format!("larder-{policy}-admin")
}
