//! A cache in front of an application: in memory, in Redis, in Postgres, or the application itself.

use std::process::ExitCode;

use clap::Parser as _;
use larder_sidecar::{Args, Command, check, drain, run};
use tikv_jemallocator::Jemalloc;

/// Memory that L1 frees must leave the process, which would otherwise exceed its limit: see decision 16.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    // Requests are served on separate threads.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a process can create threads and an event queue");
    let outcome = match args.command {
        Some(Command::Check(check)) => return check::run(&check),
        Some(Command::Drain(drain)) => runtime.block_on(drain::request(&drain)),
        None => runtime.block_on(run::serve(args.serve)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}
