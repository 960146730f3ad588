//! Foundation of the end-to-end tests: a throw-away namespace for each, an agent in it to send requests from, and
//! ways to wait for a state instead of for a time.
//!
//! # Assumptions
//! The cluster of `./dev up` with Larder on it, and the variables that `./dev env` prints. Tests run side by side in
//! one process: one that disturbs the whole cluster takes [`sandbox::alone_in_the_cluster`].

pub mod agent;
pub mod apply;
pub mod cluster;
mod dump;
pub mod environment;
pub mod eventually;
pub mod examples;
pub mod exec;
pub mod larder;
pub mod load;
pub mod mesh;
pub mod policy;
pub mod sandbox;
pub mod timeline;
pub mod users;
pub mod workload;

pub use agent::{Agent, Answer, Ask};
pub use eventually::eventually;
pub use sandbox::{Sandbox, alone_in_the_cluster, in_a_namespace};
pub use timeline::Timeline;
pub use workload::Workload;
