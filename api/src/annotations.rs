//! Annotations on pods, workloads and the operator's objects.

/// On an injected pod: a hash of the injection's inputs, compared to find pods that must be replaced.
pub const INJECTION_HASH: &str = "larder.dev/injection-hash";
/// On an injected pod: the original values of rewritten fields, as JSON.
pub const ORIGINAL: &str = "larder.dev/original";
/// On an injected pod: the hash of its policy's configuration. A change makes the kubelet examine the pod, and so
/// refresh its ConfigMap, at once.
pub const CONFIG_HASH: &str = "larder.dev/config-hash";
/// On an injected pod: the coverage for its sidecar. A change makes the kubelet refresh the pod's ConfigMap, like a
/// change of [`CONFIG_HASH`].
pub const COVERAGE: &str = "larder.dev/coverage";
/// On a pod that was not injected: `<Reason>: <message>`.
pub const SKIPPED: &str = "larder.dev/skipped";
/// On a pod of a dry run by the operator, which asks for nothing but the API server's answer.
pub const TRIAL: &str = "larder.dev/trial";
/// On a pod template: the time of the operator's last restart of the workload.
pub const RESTARTED_AT: &str = "larder.dev/restarted-at";
/// On a workload: the number of consecutive restarts that did not correct its pods.
pub const ROLL_ATTEMPTS: &str = "larder.dev/roll-attempts";
/// On a workload: the aim of those restarts. Another template or other settings reset the attempts.
pub const ROLL_AIM: &str = "larder.dev/roll-aim";
/// On a workload: the value of [`RESTARTED_AT`] before the last restart; empty if there was none.
pub const ROLL_BEFORE: &str = "larder.dev/roll-before";
/// On a workload: the restart that was undone, as JSON.
pub const ROLL_UNDONE: &str = "larder.dev/roll-undone";
/// On a pod template: the hash of the injection that is withheld from the workload's pods, because a rollout with it could
/// not end.
pub const WITHHELD: &str = "larder.dev/withheld-injection";
/// On a workload, by convention of Kubernetes: the cause of its newest revision, which `kubectl rollout history` shows.
/// The operator writes one during its own restarts, unless somebody else's is there.
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
/// On a policy's ConfigMap: the policy's rollout strategy, for use after the policy is deleted.
pub const ROLLOUT_STRATEGY: &str = "larder.dev/rollout-strategy";
/// On a policy's ConfigMap: a random text from which the token of its admin API is derived. A token that was deleted is replaced by another.
pub const TOKEN_SALT: &str = "larder.dev/token-salt";

/// Returns the annotation of the webhook's Secret with the time of issue of one of its certificates.
pub fn issued_at(certificate: &str) -> String {
    format!("larder.dev/{certificate}-issued-at")
}
