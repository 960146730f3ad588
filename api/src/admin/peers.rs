//! `POST /peer/purges`: what pods of one policy tell each other of purges.
//!
//! Both sides may be of different versions: unknown members are ignored in requests, too.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Purges that a sidecar tells another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PeerRequest {
    /// Identity of the sender's process.
    pub instance: u64,
    /// Time since the sender's process began, in milliseconds.
    pub age_ms: u64,
    /// IP address and port of the sender's admin API, if it knows one that other pods reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// True if nothing is stored in the sender yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub begins: bool,
    /// True if the sender has nothing stored any more that is served, and is about to end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaves: bool,
    /// Number of the last purge that the sender knows of each process. The reply tells of later ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known: Option<BTreeMap<u64, PeerKnown>>,
    /// The last reply of the receiver that the sender had when it put the request together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replied: Option<PeerReplied>,
    /// Purges, by the process through which they were made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub purges: Vec<PeerPurges>,
}

/// Reply to a [`PeerRequest`]. The purges in the request hold in the receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PeerReply {
    /// Identity of the receiver's process.
    pub instance: u64,
    /// Time since the receiver's process began, in milliseconds.
    pub age_ms: u64,
    /// Number of the last purge through the sender of the request up to which all hold in the receiver.
    pub acknowledged: u64,
    /// Number of the last purge that the receiver knows of each process, if the request had its own `known`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known: Option<BTreeMap<u64, PeerKnown>>,
    /// Purges that the sender of the request does not know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub purges: Vec<PeerPurges>,
}

/// Knowledge of the purges through one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerKnown {
    /// Number of the last purge.
    pub last: u64,
    /// Time since whoever knows it made it or heard of it, in milliseconds.
    pub idle_ms: u64,
}

/// Identification of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerReplied {
    /// Identity of the process that replied.
    pub instance: u64,
    /// `age_ms` of the reply.
    pub age_ms: u64,
}

/// All purges through one process from one number to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerPurges {
    /// Identity of the process.
    pub origin: u64,
    /// Number before that of the first purge.
    pub after: u64,
    /// Number of the last purge.
    pub last: u64,
    /// True if purges among them are not listed any more: everything counts as purged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,
    /// Number of the last purge that is not listed because Redis tells of it, or because it is older than whoever has not heard of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub settled: u64,
    /// The purges, the first one first. Unless everything is purged, none is left out after `after` and `settled`.
    pub purges: Vec<PeerPurge>,
}

const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A purge through one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerPurge {
    /// Number of the purge, in the order of its process.
    pub seq: u64,
    /// Name of the policy's version under which the names have a meaning, as 32 hexadecimal digits.
    pub version: String,
    /// The purged names, each as 32 hexadecimal digits.
    pub names: String,
    /// Number of the purge in messages of Redis; 0 if it has none.
    pub number: u64,
    /// Generation in which the Redis counts that has ordered the purge; 0 if none has.
    pub generation: u64,
}
