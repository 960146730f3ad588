//! The most memory that a process has at any time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// The most memory of its own (proc(5), `RssAnon`) that a process had resident since this was made.
#[derive(Debug)]
pub(crate) struct Peak {
    most: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Peak {
    pub(super) fn of(process: u32) -> Self {
        let (most, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let peak = Self { most: Arc::clone(&most), is_over: Arc::clone(&is_over) };
        // A thread of its own: it must look while the test's own threads are busy.
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                most.fetch_max(resident(process).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        peak
    }

    /// In bytes, so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The memory of its own that a process has resident, in bytes.
pub(super) fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}
