//! Reads through a pod, as the proxy answers them.

use super::{
    broken::Broken,
    pod::{Entry, Fetch, Pod, names, path},
    protocol::{Command, KEYS, Over, PodEvent, PodId, Read, Record, Reply},
    world::World,
};
use crate::barriers::Stamp;

const LOOKUP_TIMEOUT: u64 = 200;

impl World {
    pub(super) fn read(&mut self, pod: PodId, key: usize, began_at: u64) -> Result<(), String> {
        let now = self.clock(pod);
        let Pod { barriers, l1, flights, fetches, .. } = &mut self.pods[pod];
        if let Some(entry) = l1.get_mut(&key)
            && entry.may_be_served(barriers, key, now)
        {
            let version = entry.version;
            self.oracle.seen.hits += 1;
            return self.answer(pod, key, began_at, version);
        }
        let flight = barriers.revision();
        if let Some(fetch) = flights.get(&(key, flight)) {
            let fetch = fetches.get_mut(fetch).expect("a flight is a fetch");
            fetch.reads.push(began_at);
            return Ok(());
        }
        let stamp = barriers.stamp_of(now);
        self.fetch(pod, Fetch { key, flight, stamp, reads: vec![began_at], is_looked_up: false });
        Ok(())
    }

    pub(super) fn fetch(&mut self, pod: PodId, fetch: Fetch) {
        let (number, now, key) = (self.number(), self.clock(pod), fetch.key);
        let is_ready = self.pods[pod].session.as_ref().is_some_and(|session| session.is_ready);
        self.pods[pod].flights.insert((key, fetch.flight), number);
        self.pods[pod].fetches.insert(number, fetch);
        if is_ready {
            let lookup = Command::Lookup { fetch: number, key, names: names(key), asked_at: now };
            self.say(pod, Over::Commands, lookup);
            self.later(pod, LOOKUP_TIMEOUT, PodEvent::LookupTimeout(number));
        } else {
            self.fetch_from_application(pod, number);
        }
    }

    pub(super) fn fetch_from_application(&mut self, pod: PodId, number: u64) {
        let Some(fetch) = self.pods[pod].fetches.get_mut(&number).filter(|fetch| !fetch.is_looked_up) else {
            return;
        };
        fetch.is_looked_up = true;
        let key = fetch.key;
        self.ask_application(pod, number, key);
    }

    pub(super) fn looked(
        &mut self,
        pod: PodId,
        number: u64,
        reply: &Reply,
        asked_at: u64,
    ) -> Result<(), String> {
        let now = self.clock(pod);
        let broken = self.broken;
        let ignored = broken == Broken::SentinelsIgnored;
        let took_write_at = self.session(pod).took_write_at;
        let vouched_at = if ignored { asked_at } else { self.session(pod).vouched_at };
        let said_at = asked_at.min(vouched_at).min(took_write_at);
        let Pod { barriers, fetches, l1, .. } = &mut self.pods[pod];
        let Some(fetch) = fetches.get_mut(&number).filter(|fetch| !fetch.is_looked_up) else { return Ok(()) };
        if reply.generation == 0 {
            // The barriers were lost: the stamp stays as it was before.
            self.fetch_from_application(pod, number);
            return Ok(());
        }
        fetch.stamp = barriers.stamp_at(reply.generation, reply.order, asked_at);
        if let Some(Record { version, generation, order }) = reply.record {
            let stamp = Stamp { generation, order, local: 0, asked_at: said_at };
            let may_be_under_prefix =
                order < reply.indirect && !barriers.know_all_until(reply.generation, reply.indirect);
            let is_purged = generation != reply.generation
                || order < reply.barrier
                || may_be_under_prefix && broken != Broken::UnheardPrefixesIgnored;
            let mut entry = Entry::new(version, stamp);
            if !is_purged && entry.may_be_served(barriers, fetch.key, now) {
                l1.insert(fetch.key, entry);
                self.oracle.seen.lookups += 1;
                return self.land(pod, number, entry);
            }
        }
        self.fetch_from_application(pod, number);
        Ok(())
    }

    pub(super) fn fetched(&mut self, pod: PodId, number: u64, version: u64) -> Result<(), String> {
        let now = self.clock(pod);
        let broken = self.broken;
        let Pod { barriers, fetches, l1, .. } = &mut self.pods[pod];
        let Some(Fetch { key, stamp, .. }) = fetches.get(&number) else { return Ok(()) };
        let (key, mut stamp) = (*key, *stamp);
        if broken == Broken::EntryDatedByStore {
            stamp.asked_at = now;
        }
        if broken == Broken::EntryStampedByStore {
            stamp = barriers.stamp_of(stamp.asked_at);
        }
        if !barriers.covers(names(key), &path(key), stamp) {
            l1.insert(key, Entry::new(version, stamp));
            let Stamp { generation, order, .. } = stamp;
            self.say(pod, Over::Commands, Command::Store(key, Record { version, generation, order }));
        }
        self.land(pod, number, Entry::new(version, stamp))
    }

    pub(super) fn land(&mut self, pod: PodId, number: u64, mut entry: Entry) -> Result<(), String> {
        let now = self.clock(pod);
        let Pod { barriers, fetches, flights, .. } = &mut self.pods[pod];
        let Some(Fetch { key, flight, reads, .. }) = fetches.remove(&number) else { return Ok(()) };
        if flights.get(&(key, flight)) == Some(&number) {
            flights.remove(&(key, flight));
        }
        let may_join = entry.may_be_served(barriers, key, now) || self.broken == Broken::JoinersDoNotAsk;
        for (place, began_at) in reads.into_iter().enumerate() {
            if place == 0 || may_join {
                self.oracle.seen.joined += usize::from(place > 0);
                self.answer(pod, key, began_at, entry.version)?;
            } else {
                let stamp = self.pods[pod].barriers.stamp_of(now);
                // Each by itself, and nobody joins it.
                let fetch =
                    Fetch { key, flight: u64::MAX, stamp, reads: vec![began_at], is_looked_up: false };
                self.fetch(pod, fetch);
            }
        }
        Ok(())
    }

    pub(super) fn answer(
        &mut self,
        pod: PodId,
        key: usize,
        began_at: u64,
        version: u64,
    ) -> Result<(), String> {
        debug_assert!(key < KEYS);
        self.oracle.check(Read { pod, key, began_at, version })
    }
}
