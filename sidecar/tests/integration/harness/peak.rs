//! Peak memory of a process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Sampling interval.
const INTERVAL: Duration = Duration::from_millis(5);

/// Peak of a process's own resident memory (proc(5), `RssAnon`) since this value was made.
#[derive(Debug)]
pub(crate) struct Peak {
    most: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Peak {
    pub(super) fn of(process: u32) -> Self {
        let (most, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let peak = Self { most: Arc::clone(&most), is_over: Arc::clone(&is_over) };
        // A thread of its own samples while the test's threads are busy.
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                most.fetch_max(resident(process).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        peak
    }

    /// Returns the peak so far, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Returns a process's own resident memory, in bytes.
pub(super) fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}
