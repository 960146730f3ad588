//! Servers and sidecars that tests start, and waiting for conditions.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

mod authority;
mod database;
mod load;
mod origin;
mod pair;
mod peak;
mod peer;
mod policy;
mod ports;
mod postgres_server;
mod redis_monitor;
mod redis_server;
mod redis_set;
mod relay;
mod servers;
mod shop;
mod sidecar;
mod steps;
mod wire;

pub(super) use authority::Authority;
pub(super) use database::Database;
pub(super) use load::{newcomers, p99_of_hits};
pub(super) use origin::{Origin, RawOrigin, Reply, Seen, read_head, reply};
pub(super) use pair::{Pages, two, until_shared};
pub(super) use peak::Peak;
pub(super) use peer::Peer;
pub(super) use policy::Policy;
pub(super) use ports::free_port;
pub(super) use postgres_server::PostgresServer;
pub(super) use redis_monitor::SeenCommand;
pub(super) use redis_server::RedisServer;
pub(super) use redis_set::{Cluster, Sentinels};
pub(super) use relay::{Fault, Relay};
pub(super) use servers::Application;
pub(super) use shop::Shop;
pub(super) use sidecar::{Answer, Sidecar, TOKEN, exchange};
pub(super) use steps::Steps;
pub(super) use wire::{Wire, header};

/// The spec of a policy with these lines, and with pages that are purged by a tag of their own and by writes.
macro_rules! tagged_pages {
    ($($line:literal),*) => {
        concat!(
            $($line, "\n",)*
            r#"routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"]}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {tags: ["page:{page}"]}}
"#
        )
    };
}
pub(super) use tagged_pages;

/// Timeout for anything that must happen.
const TEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Polls until `check` returns a value.
pub(super) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {TEST_TIMEOUT:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns a variable that `./dev test integration` sets.
pub(super) fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run ./dev test integration"))
}

/// Returns a name that no other test has, in this run or another.
pub(super) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{prefix}_{}_{}_{}", process::id(), since.subsec_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A folder that is removed when the test ends.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("larder"));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
