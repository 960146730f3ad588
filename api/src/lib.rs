//! Agreements between the operator, the sidecars and tools: names of objects, labels and annotations, ports, and the
//! request and response types of the [admin API](admin).
//!
//! No Kubernetes, no HTTP and no I/O but [`ListenAddress::bind`]: a tool that talks to a sidecar needs this crate and a
//! client of its choice.

pub mod admin;
pub mod annotations;
pub mod config_map;
pub mod json;
mod labelled;
pub mod labels;
mod listen;
pub mod names;
pub mod ports;

pub use listen::{AddressError, ListenAddress};

/// The API group of Larder's resources.
pub const GROUP: &str = "larder.dev";
/// The API group and version of a `CachePolicy`.
pub const API_VERSION: &str = "larder.dev/v1alpha1";
/// The kind of a `CachePolicy`.
pub const KIND: &str = "CachePolicy";
