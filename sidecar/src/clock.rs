//! Time, as entries and barriers need it: by the kernel's coarse clocks, which are some 4 ms behind and cost next to nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Milliseconds since the host started: never goes back, means nothing to another pod.
pub fn monotonic_ms() -> u64 {
    millis(clock_gettime(ClockId::MonotonicCoarse))
}

/// Milliseconds since the Unix epoch by this host's clock. Good for ages, which are in seconds; never for the order of a
/// purge and a fill.
pub fn wall_ms() -> u64 {
    millis(clock_gettime(ClockId::RealtimeCoarse))
}

/// The wall clock's time, for those who write dates.
pub fn wall_time(ms: u64) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_millis(ms)
}

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}
