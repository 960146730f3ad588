//! Names that Larder gives to objects, labels and annotations.

/// The label of an injected pod, and of a policy's ConfigMap: the policy's name.
pub const POLICY_LABEL: &str = "larder.dev/policy";
/// The label by which a pod opts out, when its value is `false`.
pub const INJECT_LABEL: &str = "larder.dev/inject";
/// The label of what the operator made.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "larder";
/// The annotation of an injected pod: a hash of what went into it, compared to find pods that must be replaced.
pub const INJECTION_HASH: &str = "larder.dev/injection-hash";
/// The annotation of an injected pod: JSON of what was rewritten.
pub const ORIGINAL: &str = "larder.dev/original";
/// The annotation of an injected pod: the hash of its policy's configuration. A change makes the kubelet look at the
/// pod, and so refresh its ConfigMap, at once.
pub const CONFIG_HASH: &str = "larder.dev/config-hash";
/// The annotation of an injected pod: what its sidecar is told of the coverage. A change has the kubelet refresh the pod's
/// ConfigMap, as one of [`CONFIG_HASH`] does.
pub const COVERAGE: &str = "larder.dev/coverage";
/// The annotation of a pod that was not injected: `<Reason>: <message>`.
pub const SKIPPED: &str = "larder.dev/skipped";
/// The annotation of a pod template: when the operator last restarted the workload.
pub const RESTARTED_AT: &str = "larder.dev/restarted-at";
/// The annotation of a workload: how many restarts in a row have not brought its pods to what they should be.
pub const ROLL_ATTEMPTS: &str = "larder.dev/roll-attempts";
/// The annotation of a workload: what those restarts were for. Another template or other settings are tried anew.
pub const ROLL_AIM: &str = "larder.dev/roll-aim";
/// The annotation of a policy's ConfigMap: the policy's rollout strategy, for when the policy is gone.
pub const ROLLOUT_STRATEGY: &str = "larder.dev/rollout-strategy";

/// The sidecar's container.
pub const SIDECAR: &str = "larder-sidecar";
/// The field manager of what the operator applies.
pub const FIELD_MANAGER: &str = "larder-operator";
/// The field manager of the coverage in a policy's ConfigMap: who applies the rest leaves it alone.
pub const COVERAGE_MANAGER: &str = "larder-operator-coverage";
/// The name under which the operator reports events.
pub const CONTROLLER: &str = "larder";
/// The Lease that the leading replica holds.
pub const LEASE: &str = "larder-operator";
/// The Secret with the webhook's certificates.
pub const TLS_SECRET: &str = "larder-webhook-tls";
/// The operator's own Deployment.
pub const OPERATOR: &str = "larder-operator";
/// The `MutatingWebhookConfiguration`.
pub const WEBHOOK_CONFIGURATION: &str = "larder";

/// A policy's ConfigMap.
pub fn config_map(policy: &str) -> String {
    format!("larder-{policy}")
}

/// The Secret with the token for a policy's admin API.
pub fn admin_secret(policy: &str) -> String {
    format!("larder-{policy}-admin")
}
