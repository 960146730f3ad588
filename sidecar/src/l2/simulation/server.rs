//! A Redis: the scripts of [`commands`](super::super::commands), as they are executed.

use std::collections::HashMap;

use larder_policy::PurgeName;

use super::{
    super::{generation::Mark, message::PurgeMessage},
    protocol::{Record, Reply, Subscriber},
};
use crate::barriers::RedisBarriers;

/// A Redis server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) mark: Mark,
    pub(super) is_alive: bool,
    data: Data,
    pub(super) subscribers: Vec<Subscriber>,
    next_generation: u64,
}

/// Data that is replicated, and read back from disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    generation: u64,
    order: u64,
    raised: HashMap<PurgeName, u64>,
    records: HashMap<usize, Record>,
}

impl Data {
    /// As it was before so many purges.
    pub(super) fn without_the_last(mut self, purges: u64) -> Self {
        self.order = self.order.saturating_sub(purges);
        let order = self.order;
        self.raised.retain(|_, raised| *raised <= order);
        self
    }
}

impl Server {
    pub(super) fn new(mark: Mark, data: Data) -> Self {
        Self { mark, is_alive: true, data, subscribers: Vec::new(), next_generation: 0 }
    }

    pub(super) fn data(&self) -> Data {
        self.data.clone()
    }

    fn ensure_generation(&mut self) -> bool {
        let is_lost = self.data.generation == 0;
        if is_lost {
            self.next_generation += 1;
            self.data.generation = self.mark.generation(self.next_generation);
        }
        is_lost
    }

    /// Returns true if the barriers were lost.
    pub(super) fn touch(&mut self) -> bool {
        self.ensure_generation()
    }

    pub(super) fn snapshot(&mut self) -> RedisBarriers {
        self.ensure_generation();
        let Data { generation, order, raised, .. } = &self.data;
        let raised = raised.iter().map(|(name, order)| (*name, *order)).collect();
        RedisBarriers { generation: *generation, order: *order, floor: 0, raised }
    }

    pub(super) fn purge(&mut self, asker: u64, names: &[PurgeName]) -> PurgeMessage {
        self.ensure_generation();
        self.data.order += 1;
        let Data { generation, order, raised, .. } = &mut self.data;
        raised.extend(names.iter().map(|name| (*name, *order)));
        PurgeMessage {
            generation: *generation,
            order: *order,
            asker,
            names: names.to_vec(),
            ..PurgeMessage::default()
        }
    }

    pub(super) fn purge_everything(&mut self, follows: u64) -> Option<PurgeMessage> {
        if self.data.generation != 0 && self.data.generation != follows {
            return None;
        }
        self.data = Data { records: std::mem::take(&mut self.data.records), ..Data::default() };
        self.ensure_generation();
        Some(PurgeMessage { generation: self.data.generation, ..PurgeMessage::default() })
    }

    pub(super) fn lookup(&self, key: usize, names: &[PurgeName]) -> Reply {
        let Data { generation, order, raised, records } = &self.data;
        let barrier = names.iter().filter_map(|name| raised.get(name)).max().copied().unwrap_or(0);
        let indirect = raised.get(&PurgeName::ANY_PREFIX).copied().unwrap_or(0);
        let record = records.get(&key).copied();
        Reply { generation: *generation, order: *order, barrier, indirect, record }
    }

    pub(super) fn store(&mut self, key: usize, record: Record) {
        self.data.records.insert(key, record);
    }
}
