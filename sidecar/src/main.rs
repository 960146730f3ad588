//! A cache in front of an application: in memory, in Redis, in Postgres, or the application itself.

use std::process::ExitCode;

use clap::Parser as _;
use larder_sidecar::{Args, Command, check, drain, run};
use tikv_jemalloc_ctl::{Access, AsName};
use tikv_jemallocator::Jemalloc;

/// Memory that L1 frees must leave the process, which would otherwise exceed its limit: see decision 16.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Length from which jemalloc has an arena of its own for allocations, unless it is built with a lower one.
const OVERSIZE: usize = 8 << 20;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = return_large_memory_at_once() {
        eprintln!("larder-sidecar: large responses leave the process late, because jemalloc says: {error}");
    }
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

/// Makes large allocations leave the process when they are freed, and not a tenth of a second later: L1 may free several of the
/// largest responses within that time.
fn return_large_memory_at_once() -> Result<(), tikv_jemalloc_ctl::Error> {
    // The first large allocation makes the arena of all of them, which is the last one. None of its pages is touched.
    std::hint::black_box(Vec::<u8>::with_capacity(OVERSIZE));
    let arenas: u32 = "arenas.narenas\0".name().read()?;
    let decay: &'static str = format!("arena.{}.dirty_decay_ms\0", arenas - 1).leak();
    decay.name().write(0_isize)
}
