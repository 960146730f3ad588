//! A process on a core of its own, which ends when its owner is done with it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Maximum time until a server listens, under valgrind too.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(3);

/// A running server.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` on `cores`, such as `0-3,7`, with what it prints in `log`, and waits until it listens on `port`.
    ///
    /// # Errors
    /// If it can't be started, ends, or does not listen in time; the end of its log is in the message.
    pub fn start(cores: &str, command: &[String], log: PathBuf, port: u16) -> Result<Self> {
        let mut process = Self::begin(cores, command, log)?;
        process.wait_for(port).with_context(|| command.join(" "))?;
        Ok(process)
    }

    /// Starts a process that keeps `core` from sleeping and gives way to every other: on a virtual machine, waking a core
    /// takes longer than serving a request.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn keep_awake(core: usize, log: PathBuf) -> Result<Self> {
        let command = ["chrt", "--idle", "0", "sh", "-c", "while :; do :; done"];
        Self::begin(&core.to_string(), &command.map(str::to_owned), log)
    }

    fn begin(cores: &str, command: &[String], log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new("taskset")
            // Whoever kills us leaves nothing behind.
            .args(["-c", cores, "setpriv", "--pdeathsig", "TERM", "--"])
            .args(command)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("taskset")?;
        Ok(Self { child, log })
    }

    fn wait_for(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended, {status}:\n{}", end_of(&self.log));
            }
            if Instant::now() > deadline {
                bail!("it does not listen on port {port}:\n{}", end_of(&self.log));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // TERM first: nginx takes its workers with it.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// Returns distinct loopback ports that are free.
///
/// # Errors
/// If there are none.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
