//! One run of the load (the program `load`), on a core of its own.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Place of a number in a target.
pub const NUMBER: &str = "{n}";

/// One in so many responses may lack the expected text: a server that waits for a core longer than it waits for another
/// one does without that.
const MAX_ODD: u64 = 100;

/// Parameters of a run.
pub struct Load {
    /// The program.
    pub program: PathBuf,
    /// The core of the load.
    pub core: usize,
    /// The core of the servers.
    pub server_core: usize,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Duration in seconds.
    pub seconds: f64,
    /// The request.
    pub request: Request,
    /// The response to each request.
    pub expected: Expected,
}

/// A request, and what differs from one to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: &'static str,
    /// The target, in which [`NUMBER`] stands for a number that is another in each request.
    pub target: String,
    /// Count of numbers, each used again and again; 0 for numbers that no run has used before.
    pub numbers: u64,
    /// Length of the body in bytes.
    pub content: usize,
    /// Further headers, `Name: value`.
    pub headers: Vec<String>,
}

impl Request {
    /// Returns a request for a target.
    pub fn get(target: impl Into<String>) -> Self {
        Self { method: "GET", target: target.into(), numbers: 0, content: 0, headers: Vec::new() }
    }
}

/// The only response that is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The status code.
    pub status: u16,
    /// Length of the body in bytes.
    pub size: usize,
    /// Text in its head, which few may lack.
    pub says: Option<&'static str>,
}

impl Expected {
    /// Returns a whole body of this size.
    pub const fn whole(size: usize) -> Self {
        Self { status: 200, size, says: None }
    }
}

/// Result of a run, without its beginning: connecting, and a moment in which the server warms up. Every response was the
/// expected one: the run fails otherwise. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Number of responses.
    pub requests: u64,
    /// Number of responses without the expected text.
    pub odd: u64,
    /// Duration.
    pub time: u64,
    /// CPU time that the load itself used.
    pub load: u64,
    /// CPU time that the server used.
    pub server: u64,
    /// Time for which the server's core was idle.
    pub idle: u64,
    /// Median latency.
    pub p50: u64,
    /// 99th percentile of latency.
    pub p99: u64,
}

impl Load {
    /// Sends requests to the server on this loopback port, of which `pid` is the process.
    ///
    /// # Errors
    /// If the load cannot be run, or if a response is missing or is not the expected one.
    pub fn run(&self, port: u16, pid: u32) -> Result<Report> {
        let Self { request, expected, .. } = self;
        let mut command = Command::new("taskset");
        command.args(["-c", &self.core.to_string()]).arg(&self.program);
        command.args([
            format!("--server=127.0.0.1:{port}"),
            format!("--pid={pid}"),
            format!("--core={}", self.server_core),
            format!("--connections={}", self.connections),
            format!("--seconds={}", self.seconds),
            format!("--method={}", request.method),
            format!("--target={}", request.target),
            format!("--numbers={}", request.numbers),
            format!("--content={}", request.content),
            format!("--status={}", expected.status),
            format!("--size={}", expected.size),
        ]);
        command.args(request.headers.iter().map(|header| format!("--header={header}")));
        command.args(expected.says.map(|text| format!("--says={text}")));
        let output = command.output().context("taskset")?;
        ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
        let report: Report = serde_json::from_slice(&output.stdout).context("the load's report")?;
        ensure!(report.requests > 0, "no request was answered");
        let says = self.expected.says.unwrap_or_default();
        ensure!(
            report.odd * MAX_ODD <= report.requests,
            "{} of {} without {says}",
            report.odd,
            report.requests
        );
        ensure!(report.server > 0, "it used no CPU time that /proc shows");
        Ok(report)
    }
}
