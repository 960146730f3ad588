//! A cache in front of an application.
//!
//! [`listener`] accepts requests, [`proxy`] handles them, and responses come from [`l1`], [`l2`], [`sources`] or
//! [`upstream`]. A stored response is an [`entry`]; [`barriers`] decide which entries a purge made stale. [`snapshot`]
//! holds the policy in force, and [`config`] replaces it when the policy's file changes. [`run`] wires everything.

pub mod admin;
pub mod barriers;
pub mod body;
pub mod breaker;
pub mod budget;
pub mod cache_key;
pub mod cache_status;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
pub mod drain;
pub mod entry;
pub mod feed;
pub mod follow;
pub mod head_room;
pub mod headers;
pub mod held;
pub mod http1_guard;
pub mod http2_guard;
pub mod in_progress;
pub mod l1;
pub mod l2;
pub mod listener;
pub mod log_limit;
pub mod mode;
pub mod outlive;
pub mod peers;
pub mod problem;
pub mod proxy;
pub mod purge;
pub mod reload;
pub mod resolver;
pub mod run;
pub mod secret;
pub mod snapshot;
pub mod sniff;
pub mod sources;
mod spare;
pub mod stats;
pub mod store;
pub mod tail;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod work;

pub use cli::{Args, Command};
