//! Names of the operator's objects, and of the sidecar in a pod.

/// The sidecar's container.
pub const SIDECAR: &str = "larder-sidecar";
/// The field manager of the operator's applies.
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
/// The operator's own Deployment and ClusterRole.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_a_policy_have_different_names() {
        assert_eq!(config_map("shop"), "larder-shop");
        assert_eq!(admin_secret("shop"), "larder-shop-admin");
    }
}
