//! The caches, in each pod and shared, as a person writes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::UrlFrom;
use crate::{ByteSize, Duration};

/// The cache in each pod's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L1 {
    /// How many bytes of keys, headers, bodies and their overhead a pod keeps.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,

    /// How many answers a pod keeps at most, however small they are. Without it, `maxSize` alone bounds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_entries: Option<u32>,

    /// A body larger than this streams through and is not stored, in memory or in L2.
    #[serde(default = "default_max_object_size")]
    pub max_object_size: ByteSize,

    /// Which answer makes room for another.
    #[serde(default, skip_serializing_if = "Eviction::is_default")]
    #[schemars(extend("default" = "LRU"))]
    pub eviction: Eviction,

    /// How long a pod that lost touch with Redis still trusts what it stored before. A purge that it did not hear of
    /// can be missed for this long and no longer.
    #[serde(default = "default_bus_grace")]
    pub bus_grace: Duration,
}

/// Which answer makes room for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Eviction {
    /// The least recently used.
    #[default]
    #[serde(rename = "LRU")]
    Lru,
    /// One that was not asked for again after it came: a scan of many keys that are asked for once does not push out what is
    /// asked for often. See [S3-FIFO](https://dl.acm.org/doi/10.1145/3600006.3613147).
    #[serde(rename = "S3FIFO")]
    S3Fifo,
}

impl Eviction {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The name in a policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lru => "LRU",
            Self::S3Fifo => "S3FIFO",
        }
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

/// Redis, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.masterName) == (has(self.topology) && self.topology == 'Sentinel')",
        "message": "masterName is what Sentinels call the master: set it with topology: Sentinel, and only then",
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
    /// Where the URL is, such as `redis://user:password@redis:6379/0`; with `rediss://`, TLS. Of Sentinels and of a Cluster
    /// it lists several: `redis://user:password@host-1:26379,host-2:26379/0`. User, password and number of the database are
    /// those of the servers that hold data.
    pub url_from: UrlFrom,

    /// How the servers hang together.
    #[serde(default, skip_serializing_if = "Topology::is_default")]
    #[schemars(extend("default" = "Standalone"))]
    pub topology: Topology,

    /// What Sentinels call the master.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub master_name: Option<String>,

    /// Where the certificates are that TLS trusts, in PEM, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<UrlFrom>,

    /// How long a request waits for Redis before it goes on without.
    #[serde(default = "default_redis_timeout")]
    pub timeout: Duration,

    /// How long Redis may take where no source could answer, to give what another pod was waited for, and to take what is
    /// stored, for which nobody waits. Without it, 1s, or `timeout` if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_timeout: Option<Duration>,

    /// A body larger than this stays in the memory of its pod. Without it, whatever `l1.maxObjectSize` allows goes to
    /// Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_object_size: Option<ByteSize>,
}

/// How several Redis servers hang together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Topology {
    /// One server, or an address that leads to the one that takes writes.
    #[default]
    Standalone,
    /// A master and replicas, of which Sentinels say who is which.
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
    /// How long Redis may take where nobody else can answer.
    pub fn hard_timeout(&self) -> Duration {
        self.hard_timeout.unwrap_or(self.timeout.max(Duration::from_secs(1)))
    }
}
