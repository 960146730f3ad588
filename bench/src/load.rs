//! One run of the load (the program `load`), on a core of its own.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Parameters of a run.
pub struct Load {
    /// The program.
    pub program: PathBuf,
    /// The core of the load.
    pub core: usize,
    /// Bytes of the object.
    pub size: u64,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Duration in seconds.
    pub seconds: u64,
    /// Further request headers, `Name: value`.
    pub headers: Vec<String>,
}

/// Result of a run. Every response was a 200 with the whole object: the run fails otherwise.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Number of responses.
    pub requests: u64,
    /// Duration in microseconds.
    pub micros: u64,
    /// CPU time that the load itself used, in microseconds.
    pub cpu_micros: u64,
    /// Median latency, in microseconds.
    pub p50: u64,
    /// 99th percentile of latency, in microseconds.
    pub p99: u64,
}

impl Load {
    /// Sends requests to the server on this loopback port.
    ///
    /// # Errors
    /// If the load cannot be run, or if a response is missing or is not the object.
    pub fn run(&self, port: u16) -> Result<Report> {
        let mut command = Command::new("taskset");
        command.args(["-c", &self.core.to_string()]).arg(&self.program);
        command.args([format!("--server=127.0.0.1:{port}"), format!("--size={}", self.size)]);
        command.args([format!("--connections={}", self.connections), format!("--seconds={}", self.seconds)]);
        command.args(self.headers.iter().map(|header| format!("--header={header}")));
        let output = command.output().context("taskset")?;
        ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
        let report: Report = serde_json::from_slice(&output.stdout).context("the load's report")?;
        ensure!(report.requests > 0, "no request was answered");
        Ok(report)
    }
}
