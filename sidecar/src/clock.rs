//! Clocks for entries and barriers, mostly the kernel's coarse clocks, which lag by some 4 ms and cost next to nothing.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Returns the milliseconds since the host started. Never goes back; meaningless in other pods.
pub fn monotonic_ms() -> u64 {
    millis(clock_gettime(ClockId::MonotonicCoarse))
}

/// Returns the milliseconds since the host started, including suspended time. Trust in the bus is dated by it: a
/// process that was stopped, or a host that slept, sees immediately how long that was.
pub fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

/// Returns the milliseconds since the Unix epoch by this host's clock. Suitable for ages, which are in seconds; never
/// for the order of a purge and a fill.
pub fn wall_ms() -> u64 {
    millis(clock_gettime(ClockId::RealtimeCoarse))
}

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}
