//! Waiting for a state.

use std::time::{Duration, Instant};

use anyhow::Context;

/// For what a quiet machine does within seconds. A deadline ends what will never be: long ones cost a test that passes nothing,
/// and one that a busy machine misses says nothing.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(60);

/// For a changed policy to be in force in the sidecars: sooner than the kubelet finds it by itself, which looks once a minute.
pub const RELOAD_TIMEOUT: Duration = Duration::from_secs(20);

/// For pods that start and stop, one after another.
pub const ROLLOUT_TIMEOUT: Duration = Duration::from_secs(240);

/// Polling interval.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Asks until the answer is `Ok`, for as long as `deadline`.
///
/// # Errors
/// The awaited state and the last answer, when the deadline has passed.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        let answer = match tokio::time::timeout(deadline, ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("no answer to a single look")),
        };
        match answer {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("waited {deadline:?} for this: {what}"));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Seconds, for deadlines.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
