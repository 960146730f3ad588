//! Load at a constant rate from the agent, and what came of it.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use kube::api::AttachedProcess;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Agent, agent, exec};

/// Requests per second of each load.
const RATE: &str = "200";

/// Two loads on one URL, one that keeps its connections and one that opens one for each request.
pub struct Load {
    kept: Running,
    fresh: Running,
}

struct Running {
    process: AttachedProcess,
}

/// Result of one load.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Answers with a status of 2xx.
    pub ok: u64,
    /// Other answers, by status.
    pub not_2xx: BTreeMap<u16, u64>,
    /// Requests without an answer, by the kind of error.
    pub errors: BTreeMap<String, u64>,
    /// Those of them that were reset.
    pub resets: u64,
    /// Requests that the client had not yet sent when it saw that the server had closed the connection.
    pub resent: u64,
    /// The first requests without a response of 2xx.
    pub lost: Vec<Lost>,
    /// The median of the times.
    pub p50_ms: u64,
    /// The 99th percentile of the times.
    pub p99_ms: u64,
    /// The longest time.
    pub max_ms: u64,
}

/// A request without a response of 2xx.
#[derive(Debug, Deserialize)]
pub struct Lost {
    /// Milliseconds since 1970 at which it was sent.
    pub sent_at_ms: i64,
    /// Milliseconds until it was given up.
    pub took_ms: u64,
    /// The phase in which it was lost: `connect`, `response` (sent, and no head has come) or `body`.
    pub phase: String,
    /// The client's address of its connection, if there was one.
    pub local: Option<String>,
    /// Number of responses that the connection had brought before.
    pub earlier: u32,
    /// The pod that sent the last of them.
    pub pod: Option<String>,
    /// The error, in words, or the status.
    pub cause: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = Timestamp::from_millisecond(self.sent_at_ms).unwrap_or_default();
        let Self { took_ms, phase, earlier, cause, .. } = self;
        let local = self.local.as_deref().unwrap_or("no address");
        let pod = self.pod.as_deref().unwrap_or("a pod that is not known");
        write!(
            f,
            "{sent:.3} in the phase {phase} after {took_ms} ms, from {local}, {earlier} responses before, to {pod}: {cause}"
        )
    }
}

impl Load {
    /// Starts both loads; they end by themselves after four minutes.
    pub async fn start(agent: &Agent, url: &str) -> anyhow::Result<Self> {
        let kept = Running::start(agent, url, &[]).await?;
        let fresh = Running::start(agent, url, &["--no-keep-alive"]).await?;
        Ok(Self { kept, fresh })
    }

    /// Ends both loads and gives how many requests got no answer with a status of 2xx.
    pub async fn lost(self) -> anyhow::Result<u64> {
        let (kept, fresh) = tokio::join!(self.kept.stop(), self.fresh.stop());
        let (kept, fresh) = (kept?, fresh?);
        Ok(kept.sent - kept.ok + fresh.sent - fresh.ok)
    }

    /// Ends both loads and asserts that every request was answered with a status of 2xx.
    pub async fn lost_nothing(self, during: &str) -> anyhow::Result<()> {
        let (kept, fresh) = tokio::join!(self.kept.stop(), self.fresh.stop());
        let reports = [(kept?, "with keep-alive"), (fresh?, "without keep-alive")];
        for (report, which) in &reports {
            eprintln!(
                "{during}, {which}: {} sent, {} lost, p50 {} ms, p99 {} ms, max {} ms, {} resent unsent",
                report.sent,
                report.sent - report.ok,
                report.p50_ms,
                report.p99_ms,
                report.max_ms,
                report.resent
            );
            for lost in &report.lost {
                eprintln!("    lost: {lost}");
            }
        }
        for (report, which) in &reports {
            ensure!(report.sent > 100, "{during}, {which}: hardly a load: {report:?}");
            ensure!(report.ok == report.sent, "{during}, {which}: requests were lost: {report:?}");
        }
        Ok(())
    }
}

impl Running {
    async fn start(agent: &Agent, url: &str, more: &[&str]) -> anyhow::Result<Self> {
        let mut command = vec![exec::PROGRAM, "load", "--rate", RATE, "--duration", "240", "--url", url];
        command.extend(more);
        Ok(Self { process: exec::start(&agent.pods, agent::NAME, agent::NAME, &command).await? })
    }

    async fn stop(mut self) -> anyhow::Result<Report> {
        let mut stdin = self.process.stdin().context("no standard input")?;
        let mut stdout = self.process.stdout().context("no standard output")?;
        stdin.write_all(b"\n").await.context("the load has ended before its time")?;
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).await?;
        serde_json::from_str(&printed).with_context(|| format!("not a report: {printed:?}"))
    }
}
