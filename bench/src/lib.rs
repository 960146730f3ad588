//! The cost of a hit, and of every other path of a request: servers side by side, in requests per second of their own CPU.
//! Instructions for each request beside those on record. The choice of L1: libraries side by side. The
//! memory of a sidecar under churn. Purges, and the pods that acknowledge them. The operator at scale.
//!
//! `docs/benchmarks.md` explains how to run and read the results.

pub mod answer;
pub mod candidates;
pub mod cpu;
pub mod instructions;
pub mod invalidation;
pub mod load;
pub mod memory;
pub mod operator;
pub mod origin;
pub mod paths;
pub mod probe;
pub mod process;
pub mod serve;
pub mod server;
pub mod soak;
pub mod table;
pub mod traces;
