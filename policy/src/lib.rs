//! The cache policy and its semantics: the part of Larder that knows neither Kubernetes nor sockets.
//!
//! [`spec`] holds the types of the YAML document. [`Policy::compile`] turns them into the sidecar's runtime form:
//! routes that match a normalised path, keys, tags and the barriers that a write raises.

pub mod cache_control;
pub mod coverage;
mod credential_names;
pub mod credentials;
pub mod date;
pub mod destinations;
pub mod digest;
pub mod document;
pub mod duration;
pub mod fields;
mod forwarding;
pub mod freshness;
pub mod header_kinds;
pub mod key;
#[cfg(test)]
mod language;
pub mod lifetimes;
mod names;
pub mod network;
pub mod path;
pub mod policy;
pub mod purge;
pub mod range;
pub mod response_meta;
pub mod rows;
pub mod size;
pub mod spec;
pub mod sql;
pub mod statuses;
pub mod storing;
pub mod tags;
mod tailoring;
pub mod targeted;
pub mod template;
#[cfg(test)]
mod testing;
pub mod trigger;
pub mod ttl;
pub mod validation;
pub mod values;
pub mod vary;
pub mod writing;

pub use coverage::Coverage;
pub use credentials::IdentityHeaders;
pub use destinations::Destinations;
pub use document::{Document, Metadata};
pub use duration::Duration;
pub use fields::{Fields, is_named};
pub use forwarding::names_sender;
pub use header_kinds::HeaderKinds;
pub use key::Key;
pub use lifetimes::Lifetimes;
pub use network::Network;
pub use path::NormalPath;
pub use policy::{FieldError, Policy, Route};
pub use purge::{PurgeName, WrittenKey};
pub use size::ByteSize;
pub use statuses::StatusPattern;
pub use template::PathTemplate;
pub use values::Values;
pub use writing::Writing;
