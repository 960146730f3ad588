//! The sidecar's command line and policies.

use std::path::Path;

use anyhow::Result;

use super::{Behind, Place, Role, display, write};

/// Memory limit. With the 256 MiB of the chart, 825 requests may be in progress, and more connections than that are
/// measured.
const MEMORY: &str = "512Mi";

/// Environment variable with the URL of Redis.
const REDIS: &str = "BENCH_REDIS_URL";

/// The caches have no policy, so that the origin's `Cache-Control` decides; requests that pass have one that
/// has no route for them.
pub(super) fn command(
    role: Role,
    place: &Place,
    (port, admin): (u16, u16),
    behind: Behind,
    folder: &Path,
) -> Result<Vec<String>> {
    let mut command = vec!["env".to_owned(), format!("{REDIS}=redis://127.0.0.1:{}/", behind.redis)];
    command.extend_from_slice(&place.larder);
    command.extend([
        format!("--threads={}", place.threads),
        format!("--memory-limit={MEMORY}"),
        format!("--listen=127.0.0.1:{port}"),
        format!("--admin-listen=127.0.0.1:{admin}"),
        format!("--upstream=http://127.0.0.1:{}", role.origin(behind)),
    ]);
    let spec = match role {
        Role::Cache | Role::Http2Cache => return Ok(command),
        Role::Pass | Role::Near | Role::Calls => {
            "  routes:\n  - {name: cached, match: {path: \"/cached/{id}\"}, ttl: 1h}\n"
        }
        // Nothing in memory is found again: a lookup takes longer than this.
        Role::Shared => {
            "  l2: {redis: {urlFrom: {env: BENCH_REDIS_URL}, timeout: 2s}}\n  routes:\n  \
             - {name: shared, match: {path: \"/shared/{size}/{number}\"}, ttl: 1h, l1TTL: 1ms}\n"
        }
    };
    let (policy, token) = (folder.join("policy.yaml"), folder.join("token"));
    let head = "apiVersion: larder.dev/v1alpha1\nkind: CachePolicy\nmetadata: {name: bench, namespace: bench}\nspec:\n";
    write(&policy, &format!("{head}{spec}"))?;
    write(&token, "a token of this run\n")?;
    command.extend([
        format!("--policy={}", display(&policy)),
        format!("--admin-token-file={}", display(&token)),
    ]);
    Ok(command)
}
