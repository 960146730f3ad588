//! Labels on pods and on the operator's objects.

/// The policy of an injected pod or of a policy's ConfigMap, by name.
pub const POLICY: &str = "larder.dev/policy";
/// On a Service beside another one: the other's name.
pub const COMPANION_OF: &str = "larder.dev/companion-of";
/// The label or annotation with a pod's own choice: `false` opts out.
pub const INJECT: &str = "larder.dev/inject";
/// The label of objects that the operator created; its value is [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const MANAGER: &str = "larder";
