//! Names of the operator's objects, and of the sidecar in a pod.

/// The field selector of pods that have not completed.
pub const UNFINISHED_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// The sidecar's container.
pub const SIDECAR: &str = "larder-sidecar";
/// The init container that redirects a pod's ports to the sidecar.
pub const REDIRECT: &str = "larder-redirect";
/// The name of the admin API's port in the sidecar's container.
pub const ADMIN_PORT: &str = "larder-admin";
/// The field manager of the operator's writes.
pub const FIELD_MANAGER: &str = "larder-operator";
/// The field manager of the coverage in a policy's ConfigMap, which is separate from that of the other fields.
pub const COVERAGE_MANAGER: &str = "larder-operator-coverage";
/// The reporting controller of the operator's events.
pub const CONTROLLER: &str = "larder";
/// The Lease that the leading replica holds.
pub const LEASE: &str = "larder-operator";
/// The Service through which the API server reaches the webhook.
pub const WEBHOOK_SERVICE: &str = "larder-webhook";
/// The Secret with the webhook's certificates.
pub const TLS_SECRET: &str = "larder-webhook-tls";
/// The Secret with the key from which the tokens of policies' admin APIs are derived.
pub const TOKEN_KEY_SECRET: &str = "larder-token-key";
/// Name of the member of [`TOKEN_KEY_SECRET`] that holds it.
pub const TOKEN_KEY: &str = "key";
/// The operator's own Deployment, ServiceAccount and ClusterRole.
pub const OPERATOR: &str = "larder-operator";
/// The `MutatingWebhookConfiguration`, which the chart creates and the operator fills.
pub const WEBHOOK_CONFIGURATION: &str = "larder-webhook";
/// The webhook in it.
pub const WEBHOOK: &str = "inject.larder.dev";
/// The `MutatingWebhookConfiguration` that earlier versions of the operator created.
pub const FORMER_WEBHOOK_CONFIGURATION: &str = "larder";

/// Returns the name of a policy's ConfigMap.
pub fn config_map(policy: &str) -> String {
    format!("larder-{policy}")
}

/// Returns the name of the Secret with the token for a policy's admin API.
pub fn admin_secret(policy: &str) -> String {
    format!("larder-{policy}-admin")
}

/// Returns the name of the Service by which the sidecars of a policy find one another. Names of Services have no dots, and that of `a.b` is
/// not that of `a-b`.
pub fn peers(policy: &str) -> String {
    format!("larder-{}-peers", policy.replace('.', "-dot-"))
}

/// The key of the token in the Secret of [`admin_secret`].
pub const ADMIN_TOKEN_KEY: &str = "token";

/// Returns the name of the Service beside another, whose callers reach the sidecars.
pub fn companion(service: &str) -> String {
    format!("{service}-cached")
}

/// Volume of a pod with the policy's configuration.
pub const POLICY_VOLUME: &str = "larder-policy";
/// Volume of a pod with the token of the admin API.
pub const ADMIN_VOLUME: &str = "larder-admin";
/// Empty volume of a pod that keeps the token of its service account from the sidecar.
pub const NO_TOKEN_VOLUME: &str = "larder-no-token";
/// Start of the names of volumes with the Secrets that a policy refers to.
const SECRET_VOLUME: &str = "larder-secret-";

/// Returns the name of the volume with the Secret at an index.
pub fn secret_volume(index: usize) -> String {
    format!("{SECRET_VOLUME}{index}")
}

/// Returns true if a name is that of a volume of the sidecar.
pub fn is_sidecar_volume(name: &str) -> bool {
    let index = name.strip_prefix(SECRET_VOLUME);
    [POLICY_VOLUME, ADMIN_VOLUME, NO_TOKEN_VOLUME].contains(&name)
        || index.is_some_and(|index| !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_a_policy_have_different_names() {
        assert_eq!(config_map("shop"), "larder-shop");
        assert_eq!(admin_secret("shop"), "larder-shop-admin");
        assert_eq!(peers("eu.shop"), "larder-eu-dot-shop-peers");
    }

    #[test]
    fn volumes_of_the_sidecar_are_known_by_their_names() {
        for name in [POLICY_VOLUME, ADMIN_VOLUME, NO_TOKEN_VOLUME, &secret_volume(0), &secret_volume(12)] {
            assert!(is_sidecar_volume(name), "{name}");
        }
        for name in ["larder", "larder-secret-", "larder-secret-a", "larder-policy-2"] {
            assert!(!is_sidecar_volume(name), "{name}");
        }
    }
}
