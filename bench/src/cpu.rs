//! CPU time by process: `/proc/<pid>/task/<tid>/schedstat`, `/proc/<pid>/stat` and `/proc/stat`, proc(5).

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};

/// `sysconf(_SC_CLK_TCK)`: 100 on every Linux that we run on.
const TICKS_PER_SECOND: u64 = 100;

struct Stat {
    parent: u32,
    /// utime, stime, and those of children that have been waited for, so that a child that ends in between still
    /// counts.
    ticks: u64,
}

/// A process and its descendants at one moment, of which no thread ends.
#[derive(Debug)]
pub struct Tree(Vec<u32>);

impl Tree {
    /// Finds a process and its descendants.
    pub fn of(root: u32) -> Self {
        let all = processes();
        Self(all.keys().copied().filter(|pid| descends(&all, *pid, root)).collect())
    }

    /// Returns the process ids.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// Returns the time that their threads have run so far, to the nanosecond.
    ///
    /// # Errors
    /// If one of them is gone, or the kernel does not count.
    pub fn time(&self) -> Result<Duration> {
        let mut nanos = 0;
        for pid in &self.0 {
            let folder = format!("/proc/{pid}/task");
            for thread in fs::read_dir(&folder).with_context(|| folder.clone())? {
                let file = thread?.path().join("schedstat");
                let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                nanos += ran(&text).with_context(|| format!("{}: {text}", file.display()))?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }
}

/// Returns the first field of `schedstat`: the time on a CPU in nanoseconds.
fn ran(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// Returns the user and system time of a process and its descendants so far, to a hundredth of a second; nothing after
/// its end.
pub fn time_of_tree(root: u32) -> Duration {
    let all = processes();
    let ticks: u64 =
        all.iter().filter(|(pid, _)| descends(&all, **pid, root)).map(|(_, stat)| stat.ticks).sum();
    time_of(ticks)
}

fn processes() -> HashMap<u32, Stat> {
    let all = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        Some((pid, parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
    });
    all.collect()
}

/// Returns the cores that this process may use, such as `0-3,7`.
///
/// # Errors
/// If the kernel does not tell.
pub fn allowed() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(cores.context("/proc/self/status has no Cpus_allowed_list")?.trim().to_owned())
}

/// Returns the idle time of a core since the machine started.
///
/// # Errors
/// If there is no such core.
pub fn idle_time(core: usize) -> Result<Duration> {
    let all = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    idle_ticks(&all, core).map(time_of).with_context(|| format!("this machine has no core {core}"))
}

fn idle_ticks(all: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core} ");
    let fields = all.lines().find_map(|line| line.strip_prefix(&name))?;
    // user, nice, system, idle, iowait, ...
    fields.split_whitespace().skip(3).take(2).map(|field| field.parse::<u64>().ok()).sum()
}

fn time_of(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

fn descends(all: &HashMap<u32, Stat>, mut pid: u32, root: u32) -> bool {
    // The list was not read at one moment: a reused pid could close a circle.
    for _ in 0..64 {
        if pid == root {
            return true;
        }
        match all.get(&pid) {
            Some(stat) => pid = stat.parent,
            None => return false,
        }
    }
    false
}

fn parse(stat: &str) -> Option<Stat> {
    // The name of the program is in parentheses and may hold any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn line_of_proc_is_read() {
        let stat = parse("7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 300 4000 20 0 1 0 5").unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 4330));
        assert!(parse("7 (a) S 3").is_none());
        assert_eq!((ran("1234 5 6\n"), ran("")), (Some(1234), None));
    }

    #[test]
    fn time_of_a_busy_process_grows() {
        // Not this process: other tests' threads end in it.
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let tree = Tree::of(busy.id());
        let before = tree.time().unwrap();
        while tree.time().unwrap() < before + Duration::from_millis(1) {}
        busy.kill().unwrap();
        busy.wait().unwrap();
    }

    #[test]
    fn idle_time_of_a_core_is_read() {
        let all = "cpu  9 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7\ncpu1 1 2 3 80 5 6 7\n";
        assert_eq!((idle_ticks(all, 0), idle_ticks(all, 1), idle_ticks(all, 2)), (Some(45), Some(85), None));
    }

    #[test]
    fn a_tree_is_its_root_and_all_below() {
        let stat = |parent| Stat { parent, ticks: 0 };
        let all = HashMap::from([(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1))]);
        assert!(descends(&all, 3, 2) && descends(&all, 2, 2));
        assert!(!descends(&all, 4, 2) && !descends(&all, 1, 2));
    }
}
