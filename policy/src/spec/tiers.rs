//! The caches, in each pod and shared, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ValueFrom;
use crate::{ByteSize, Duration};

/// The cache in each pod's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L1 {
    /// Maximum memory of the cache in each pod: keys, headers, bodies and their overhead.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,

    /// Maximum number of stored responses in each pod, however small. Default: only `maxSize` limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_entries: Option<u32>,

    /// Maximum size of a stored body. A larger one streams through and is not stored, in memory or in L2.
    #[serde(default = "default_max_object_size")]
    pub max_object_size: ByteSize,

    /// Eviction policy: the choice of the stored response that makes room for another. Default `LRU`.
    #[serde(default, skip_serializing_if = "Eviction::is_default")]
    #[schemars(extend("default" = "LRU"))]
    pub eviction: Eviction,

    /// Maximum time that a pod trusts its stored responses after it lost its connection to Redis. A purge that the pod
    /// missed can go unnoticed for this long and no longer.
    #[serde(default = "default_bus_grace")]
    pub bus_grace: Duration,
}

larder_api::labelled! {
    /// Eviction policy: the choice of the stored response that makes room for another.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    pub enum Eviction {
        /// Evicts the least recently used.
        #[default]
        #[serde(rename = "LRU")]
        Lru = "LRU",
        /// Evicts first what was not requested again after it was stored: a scan of many keys that are requested once does
        /// not evict popular responses. See [S3-FIFO](https://dl.acm.org/doi/10.1145/3600006.3613147).
        #[serde(rename = "S3FIFO")]
        S3Fifo = "S3FIFO",
    }
}

impl Eviction {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for L1 {
    fn default() -> Self {
        Self {
            max_size: default_max_size(),
            max_entries: None,
            max_object_size: default_max_object_size(),
            eviction: Eviction::default(),
            bus_grace: default_bus_grace(),
        }
    }
}

fn default_max_size() -> ByteSize {
    ByteSize(64 << 20)
}

fn default_max_object_size() -> ByteSize {
    ByteSize(1 << 20)
}

fn default_bus_grace() -> Duration {
    Duration::from_secs(5)
}

/// The cache that the pods share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L2 {
    /// A Redis server, or several.
    pub redis: Redis,
}

/// Redis connection and timeouts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.masterName) == (has(self.topology) && self.topology == 'Sentinel')",
        "message": "masterName is the name by which Sentinels monitor the master: set it with topology: Sentinel, and only then",
    },
    {
        "rule": "self.timeout.matches('[1-9]')",
        "message": "timeout must be longer than 0s: to do without Redis, take l2 out",
    },
    {
        "rule": "!has(self.maxObjectSize) || string(self.maxObjectSize).matches('[1-9]')",
        "message": "maxObjectSize must be at least 1: to do without Redis, take l2 out",
    },
]))]
pub struct Redis {
    /// Reference to the URL, such as `redis://user:password@redis:6379/0`; `rediss://` uses TLS. For Sentinel and
    /// Cluster the URL lists several hosts: `redis://user:password@host-1:26379,host-2:26379/0`. User, password and
    /// database number are those of the data servers.
    pub url_from: ValueFrom,

    /// Redis deployment topology. Default `Standalone`.
    #[serde(default, skip_serializing_if = "Topology::is_default")]
    #[schemars(extend("default" = "Standalone"))]
    pub topology: Topology,

    /// Name by which the Sentinels monitor the master. Requires `topology: Sentinel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub master_name: Option<String>,

    /// Reference to the CA certificates that TLS trusts, in PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<ValueFrom>,

    /// Maximum time that a request waits for Redis before it continues without.
    #[serde(default = "default_redis_timeout")]
    pub timeout: Duration,

    /// Timeout for Redis operations that have no alternative: lookups after every source failed, reads of a response
    /// that another pod was fetching, and background writes. Default: 1s, or `timeout` if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_timeout: Option<Duration>,

    /// Maximum size of a body in Redis. A larger one is stored only in the memory of its pod. Default:
    /// `l1.maxObjectSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_object_size: Option<ByteSize>,
}

/// Redis deployment topology.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Topology {
    /// One server, or an address that leads to the server that accepts writes.
    #[default]
    Standalone,
    /// A master and its replicas, monitored by Sentinels.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

impl Topology {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn default_redis_timeout() -> Duration {
    Duration::from_millis(50)
}

impl Redis {
    /// Timeout for Redis operations that have no alternative, default included.
    pub fn hard_timeout(&self) -> Duration {
        self.hard_timeout.unwrap_or(self.timeout.max(Duration::from_secs(1)))
    }
}
