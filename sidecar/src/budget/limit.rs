//! Limits of the process on memory and open files.

use std::{fs, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are not connections of clients or to the application: tiers, the policy, logs.
const OTHER_FILES: u64 = 128;
/// Above this a limit is none: cgroup v1 writes the largest number of pages.
const NO_LIMIT: u64 = 1 << 50;

/// Limits of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Memory, in bytes; `None` where no limit is known.
    pub bytes: Option<u64>,
    /// Open files for connections: each of a client's may need one to the application.
    pub files: u64,
}

impl Default for MemoryLimit {
    fn default() -> Self {
        Self { bytes: None, files: 1024 }
    }
}

impl MemoryLimit {
    /// With the memory that the command line says, or else the control group.
    pub fn of_process(told: Option<u64>) -> Self {
        Self { bytes: told.or_else(|| of_control_group(Path::new("/"))), files: files() }
    }
}

/// The limit of the control group that a process in a container sees as its own.
fn of_control_group(root: &Path) -> Option<u64> {
    let files = ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |file| fs::read_to_string(root.join(file)).ok()?.trim().parse().ok();
    files.into_iter().find_map(limit).filter(|limit| *limit < NO_LIMIT)
}

fn files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES)
}

/// Raises the limit of open files to the most that the process may have without asking anybody.
pub fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_either_version_of_control_groups_is_read() {
        let root = std::env::temp_dir().join(format!("larder-cgroup-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        assert_eq!(of_control_group(&root), None);
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of_control_group(&root), None);
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n");
        assert_eq!(of_control_group(&root), Some(128 << 20));
        write("sys/fs/cgroup/memory.max", "268435456\n");
        assert_eq!(of_control_group(&root), Some(256 << 20));
        write("sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(of_control_group(&root), Some(128 << 20));
        fs::remove_dir_all(root).unwrap();
    }
}
