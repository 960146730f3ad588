//! Ports of the sidecar in a pod, and of a sidecar that runs alone.

/// The sidecar's port in a pod for the first target; each further target takes the next number.
pub const DATA: u16 = 24800;
/// The application's port in a pod for the first target whose number the sidecar takes; each further target takes the next
/// number.
pub const APPLICATION: u16 = 24810;
/// The admin API's port in a pod.
pub const ADMIN: u16 = 24890;
/// The listen address of a sidecar that runs alone.
pub const ALONE_DATA: &str = "127.0.0.1:8300";
/// The listen address of the admin API of a sidecar that runs alone.
pub const ALONE_ADMIN: &str = "127.0.0.1:8301";
