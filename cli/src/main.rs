//! `larder`, also installed as `kubectl-larder`: policies, sidecars and purges from a terminal.

mod args;
mod cluster;
mod complete;
mod conditions;
mod error;
mod figures;
mod outcome;
mod output;
mod paint;
mod pods;
mod right;
mod run;
mod sidecar;
mod sql;
mod table;
mod terminal;

mod check;
mod completions;
mod explain;
mod init;
#[cfg(test)]
mod krew;
mod lint;
mod man;
mod purge;
mod stats;
mod status;
mod tail;
mod top;
mod wording;

fn main() -> std::process::ExitCode {
    run::run(std::env::args_os().collect())
}
