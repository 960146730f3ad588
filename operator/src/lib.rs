//! The Larder operator: a controller that reconciles policies, and an admission webhook that injects the sidecar into
//! pods.
//!
//! [`inject`], [`capture`], [`companions`], [`compile`], [`coverage`], [`rollout`], [`pace`], [`quota`], [`disruption`] and [`status`] are
//! pure decisions; the other modules carry them out.

pub mod argo;
pub mod bounds;
pub mod capture;
pub mod check;
pub mod choice;
pub mod cli;
pub mod cluster;
pub mod companions;
pub mod compile;
pub mod controller;
pub mod coverage;
pub mod disruption;
pub mod dry_run;
pub mod error;
pub mod events;
pub mod forbidden;
pub mod health;
pub mod in_force;
pub mod inject;
pub mod invalidation;
pub mod leader;
pub mod list;
pub mod metrics;
pub mod owner;
pub mod pace;
pub mod peers;
pub mod pod;
pub mod pod_security;
pub mod policies;
pub mod policy_pods;
pub mod pruned;
pub mod quantity;
pub mod quota;
pub mod reach;
pub mod rollout;
pub mod run;
pub mod scope;
pub mod scoped;
pub mod sidecars;
pub mod status;
pub mod stores;
pub mod throughput;
pub mod tls;
pub mod token_key;
pub mod vacancy;
pub mod watched;
pub mod webhook;
pub mod webhook_configuration;
pub mod wording;
pub mod workload;
