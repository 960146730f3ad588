//! Thousands of schedules of readers, waiters, joins and drops. Shuttle fails a schedule in which one waits forever.
//!
//! Under std's locks there is nothing to schedule: `cargo test -p larder-flight --features shuttle --test shuttle`.

#![allow(clippy::unwrap_used)]

mod fill;
mod flights;

const SCHEDULES: usize = 2_000;

/// Runs random schedules, and ones with few switches, which find bugs that need a long stop at the wrong place.
fn check(test: fn()) {
    shuttle::check_random(test, SCHEDULES);
    shuttle::check_pct(test, SCHEDULES, 3);
}
