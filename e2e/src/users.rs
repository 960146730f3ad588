//! Users that ask an example's application, by the load that its README shows, and what they found.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use crate::{Sandbox, exec, sandbox::RunningPod};

/// Result of the load.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Requests, answered or not.
    pub requests: u64,
    /// Those without an answer of status 2xx.
    pub failed: u64,
    /// Why, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Requests a second.
    pub requests_per_second: f64,
    /// All that were answered.
    pub times: Times,
    /// Those that were answered, by what the cache said of them, such as `hit l1`.
    pub answers: BTreeMap<String, Times>,
}

/// Response times.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Times {
    /// Answers.
    pub count: u64,
    /// On average.
    pub mean_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Report {
    /// Asserts that each request was answered with a status of 2xx.
    ///
    /// # Errors
    /// If one was not.
    pub fn lost_nothing(&self) -> anyhow::Result<()> {
        ensure!(self.requests > 0 && self.failed == 0, "requests were lost: {:?}", self.failures);
        Ok(())
    }

    /// Returns the number of responses with this outcome or a more specific one: `hit` is a hit anywhere.
    pub fn count(&self, outcome: &str) -> u64 {
        let of = |said: &str| said == outcome || said.starts_with(&format!("{outcome} "));
        self.answers.iter().filter(|(said, _)| of(said)).map(|(_, times)| times.count).sum()
    }
}

/// Runs the load in the application's container of a pod, with these arguments.
///
/// # Errors
/// When it can't be run.
pub async fn ask(sandbox: &Sandbox, pod: &RunningPod, arguments: &[&str]) -> anyhow::Result<Report> {
    let command: Vec<_> =
        ["/larder-example-origin", "load", "--json"].iter().chain(arguments).copied().collect();
    let printed = exec::run(&sandbox.api::<Pod>(), &pod.name, "app", &command).await?;
    serde_json::from_str(&printed).with_context(|| format!("not a report: {printed:?}"))
}
