//! What a hit costs: caches side by side, in requests per second of their own CPU.
//!
//! `docs/benchmarks.md` says how to run it and how to read it.

pub mod answer;
pub mod cpu;
pub mod load;
pub mod probe;
pub mod process;
pub mod serve;
pub mod server;
pub mod table;
