//! What a hit costs: caches side by side, in requests per second of their own CPU. What L1 could be: libraries side by side.
//!
//! `docs/benchmarks.md` says how to run it and how to read it.

pub mod answer;
pub mod candidates;
pub mod cpu;
pub mod load;
pub mod memory;
pub mod probe;
pub mod process;
pub mod serve;
pub mod server;
pub mod table;
pub mod traces;
