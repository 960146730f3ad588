//! `GET /entries/{key}`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stored responses of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Entries {
    /// Entries, those in memory first.
    pub entries: Vec<Entry>,
    /// Outcome of the lookup in Redis.
    pub redis: RedisLookup,
}

/// Outcome of the lookup in Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RedisLookup {
    /// True if Redis responded. It is looked up for whole keys only.
    pub responded: bool,
    /// The error if Redis was looked up and did not respond.
    pub error: Option<String>,
}

/// An entry in memory or in Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// The whole key. That of a variant has a line for each header that it differs by.
    pub key: String,
    /// Place of the entry.
    pub tier: Place,
    /// The route of requests with this key; null if there is none.
    pub route: Option<String>,
    /// State of the entry for a request without cache directives.
    pub state: EntryState,
    /// True if such a request is served from it now.
    pub served: bool,
    /// Headers by which variants differ.
    pub vary: Vec<String>,
    /// The response; null if there is none, or none that can be read.
    pub response: Option<StoredResponse>,
}

/// Place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// This pod's memory.
    L1,
    /// Redis.
    L2,
    /// A place that this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// State of an entry for a request without cache directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EntryState {
    /// Served: the response is fresh.
    Fresh,
    /// Served, and renewed meanwhile: the response has been stale for less than `staleWhileRevalidate`.
    StaleWhileRevalidate,
    /// Served if no fresh response can be had: the response has been stale for less than `staleIfError`.
    StaleIfError,
    /// Not served: the response is stale. If the application validates it, it is fresh again.
    Stale,
    /// Not served: a purge made the response stale.
    Purged,
    /// Not served: purges have not been heard of for longer than `l1.busGrace`.
    BusSilent,
    /// Served in parts to range requests: the rest is not stored.
    Partial,
    /// Not served: no route of the policy matches requests with this key.
    NoRoute,
    /// Not served: the policy is suspended, or there is none.
    Passing,
    /// No response: requests differ by the headers in `vary`, and each variant has a key of its own.
    Variants,
    /// No response: the last one could not be shared, and no request waits for another's.
    Unshared,
    /// A state that this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl EntryState {
    /// Returns true if a request without cache directives is served from the entry.
    pub const fn is_served(self) -> bool {
        matches!(self, Self::Fresh | Self::StaleWhileRevalidate)
    }
}

/// A stored response without its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredResponse {
    /// The status.
    pub status: u16,
    /// Header fields as received: the values of each name's lines.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Approximate size in memory, in bytes.
    pub bytes: usize,
    /// Size of the stored part of the body, in bytes.
    pub body_bytes: u64,
    /// True if that is the whole body.
    pub complete: bool,
    /// Hits in this pod's memory of this response or of an earlier one that it replaced; null for an entry in Redis.
    pub hits: Option<u32>,
    /// Time of receipt (RFC 3339).
    pub stored_at: String,
    /// Age, as in the header `Age`.
    pub age_seconds: f64,
    /// Remaining freshness, negative once the response is stale; null where no route matches the key.
    pub ttl_seconds: Option<f64>,
    /// Remaining usefulness, to be served stale or to be validated; null where no route matches the key.
    pub useful_for_seconds: Option<f64>,
    /// Beginning of the fill in the order of purges.
    pub stamp: Stamp,
    /// Number of names by which the response can be purged.
    pub purge_names: usize,
}

/// A place in the order of purges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stamp {
    /// The server that counts `order`, as a random number in hexadecimal; 0 without Redis.
    pub generation: String,
    /// The last purge before it that Redis counted.
    pub order: u64,
    /// The last purge before it that only this pod knows of.
    pub local: u64,
}
