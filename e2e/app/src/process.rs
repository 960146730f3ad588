//! Signals to other processes of the pod, which has to share its process namespace for that.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, getpid, kill_process};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The signal.
    #[arg(value_enum)]
    signal: What,
    /// A text that the command line of the process contains.
    command_line: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
}

/// Sends the signal to every process that matches, this one excepted.
///
/// # Errors
/// When no process matches.
pub(crate) fn signal(args: &Args) -> anyhow::Result<()> {
    let signal = match args.signal {
        What::Stop => Signal::STOP,
        What::Continue => Signal::CONT,
    };
    let mut sent = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = pid_of(&path) else { continue };
        // A process may be gone since its folder was listed.
        let Ok(raw) = fs::read(path.join("cmdline")) else { continue };
        let command_line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if pid != getpid() && command_line.contains(&args.command_line) {
            kill_process(pid, signal).with_context(|| format!("process {command_line}"))?;
            sent += 1;
        }
    }
    ensure!(sent > 0, "no process has {:?} in its command line", args.command_line);
    Ok(())
}

fn pid_of(path: &Path) -> Option<Pid> {
    Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?)
}
