//! Time, as entries and barriers need it: mostly by the kernel's coarse clocks, which are some 4 ms behind and cost next to nothing.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Milliseconds since the host started: never goes back, means nothing to another pod.
pub fn monotonic_ms() -> u64 {
    millis(clock_gettime(ClockId::MonotonicCoarse))
}

/// Milliseconds since the host started, those that it was suspended included: what trust in the bus is dated by. A process that
/// was stopped, or a host that slept, finds on its first look how long that was.
pub fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

/// Milliseconds since the Unix epoch by this host's clock. Good for ages, which are in seconds; never for the order of a
/// purge and a fill.
pub fn wall_ms() -> u64 {
    millis(clock_gettime(ClockId::RealtimeCoarse))
}

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}
