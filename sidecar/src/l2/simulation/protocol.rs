//! Messages between pods and servers, and events in a pod.

use std::collections::BTreeMap;

use larder_policy::PurgeName;

use super::super::{generation::Mark, message::PurgeMessage};
use crate::barriers::RedisBarriers;

/// The `busGrace` of the pods, in milliseconds as all times here.
pub(super) const GRACE: u64 = 1_000;
/// Number of keys that are read and written.
pub(super) const KEYS: usize = 2;

/// A pod, by its place.
pub(super) type PodId = usize;
/// A server, by its place.
pub(super) type ServerId = usize;

/// A connection of a pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Commands,
    Bus,
}

/// A pod that is subscribed to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscriber {
    pub(super) pod: PodId,
    pub(super) session: u64,
    pub(super) asker: u64,
}

/// An entry in Redis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) version: u64,
    pub(super) generation: u64,
    pub(super) order: u64,
}

/// Result of a lookup.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) generation: u64,
    pub(super) order: u64,
    pub(super) barrier: u64,
    pub(super) indirect: u64,
    pub(super) record: Option<Record>,
}

/// Request of a pod to a server.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Hello,
    Subscribe,
    Touch { probe: u64, asked_at: u64 },
    Snapshot,
    Purge { request: Option<u64>, names: Vec<PurgeName> },
    PurgeEverything(u64),
    Acknowledge(BTreeMap<u64, Vec<u64>>),
    Lookup { fetch: u64, key: usize, names: Vec<PurgeName>, asked_at: u64 },
    Store(usize, Record),
}

/// Event in a pod.
#[derive(Debug)]
pub(super) enum PodEvent {
    Connect,
    Beat(u64),
    ReplyTimeout(u64, u64),
    Bus(u64, OverBus),
    Reply(u64, Replied),
    Closed(u64),
    Sentinels { asked_at: u64, master: ServerId },
    Read { key: usize, began_at: u64 },
    Write { key: usize },
    Written { key: usize, version: u64 },
    PurgeTimeout(u64),
    Impatience(u64),
    LookupTimeout(u64),
    Fetched { fetch: u64, version: u64 },
    Applied(PurgeMessage),
    Crash,
}

/// PurgeMessage on the bus.
#[derive(Clone, Debug)]
pub(super) enum OverBus {
    Subscribed,
    Purge(PurgeMessage),
    Probe(u64),
    Held(Vec<u64>),
}

/// Reply of a server.
#[derive(Debug)]
pub(super) enum Replied {
    Hello(Mark),
    Touched { probe: u64, asked_at: u64, lost: bool, mark: Mark },
    Snapshot(RedisBarriers),
    Purged { request: Option<u64>, generation: u64, order: u64, reached: Vec<PodId> },
    Acknowledged,
    Looked { fetch: u64, reply: Reply, asked_at: u64 },
}

/// A read that has been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) pod: PodId,
    pub(super) key: usize,
    pub(super) began_at: u64,
    pub(super) version: u64,
}
