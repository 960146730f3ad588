//! A run: events in their order, and what goes wrong.

use larder_policy::PurgeName;

use super::{
    super::{
        log::{Effect, Purge},
        state::LATE,
    },
    broken::Broken,
    oracle::{Hit, Purged},
    pod::{Entry, KEYS, Kind, Pod, Wait, instant},
    redis::index,
    world::{Event, PODS, World},
};

const ACKNOWLEDGEMENT_TIMEOUT: u64 = 100;
const JOIN_TIMEOUT: u64 = 1_000;
const LEAVE_TIMEOUT: u64 = 2_000;
const SETTLING: u64 = 10_000;
/// Time in which every pod that listens to Redis has heard of a purge.
const REDIS_TIMEOUT: u64 = 25;

impl World {
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.until(self.scale.end)?;
        let there: Vec<_> = self.pods.iter().flatten().map(|pod| pod.process).collect();
        let end = self.scale.end;
        for pod in self.pods.iter().flatten().filter(|pod| pod.serves()) {
            for key in 0..KEYS {
                if let Some(hit) = hit(pod, key, end) {
                    self.oracle.check_at_end(hit, &there)?;
                }
            }
        }
        Ok(())
    }

    /// Has everything happen that does until a time.
    pub(super) fn until(&mut self, at: u64) -> Result<(), String> {
        while let Some(event) = self.pop(at) {
            self.happens(event)?;
        }
        self.now = at;
        Ok(())
    }

    fn happens(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Read { pod, key } => return self.read(pod, key),
            Event::Write { pod, key } => self.write(pod, key),
            Event::Fetched { pod, process, key, entry } => {
                if let Some(pod) = self.living(pod, process) {
                    pod.entries[key] = Some(entry);
                }
            }
            Event::Request { from, asker, pod, process, number, message } => {
                if self.living(pod, process).is_some() {
                    self.receive(from, asker, pod, number, message);
                }
            }
            Event::Reply { pod, asker, from, number, reply } => {
                self.take_reply(pod, asker, from, number, reply)
            }
            Event::Timeout { pod, process, other, number, is_refused } => {
                if self.living(pod, process).is_some() {
                    self.give_up(pod, other, number, is_refused);
                }
            }
            Event::Drive { pod, process, other } => {
                if self.living(pod, process).is_some() {
                    self.drive(pod, other);
                }
            }
            Event::Compare { pod, process } => self.compare(pod, process),
            Event::Joined { pod, process } => {
                if let Some(pod) = self.living(pod, process) {
                    pod.is_joining = false;
                }
            }
            Event::Purge { pod, process, number, key } => self.purge(pod, process, number, key),
            Event::Ordered { pod, process, purge, listeners } => {
                self.ordered(pod, process, purge, &listeners)
            }
            Event::Impatience { pod, process, number } => self.is_impatient(pod, process, number),
            Event::Applied { pod, process, purge } => {
                if self.living(pod, process).is_some() {
                    self.apply(pod, &purge.as_ref().map_or(Effect::Everything, Effect::Purge));
                }
            }
            Event::Redis { pod, process } => {
                if self.living(pod, process).is_some() {
                    self.hear_redis(pod);
                }
            }
            Event::Reconnect { pod } => {
                if let Some(link) = self.pods[pod].as_mut().and_then(|pod| pod.redis.as_mut()) {
                    link.is_connected = true;
                    self.hear_redis(pod);
                }
            }
            Event::Begin { pod } => self.begin(pod),
            Event::End { pod, process } => {
                if self.living(pod, process).is_some() {
                    self.pods[pod] = None;
                }
            }
            Event::Fault => self.fault(),
        }
        Ok(())
    }

    fn read(&mut self, at: usize, key: usize) -> Result<(), String> {
        let (now, version, after) = (self.now, self.versions[key], self.rng.u64(1..30));
        let Some(pod) = self.pods[at].as_ref().filter(|pod| pod.serves()) else { return Ok(()) };
        let hit = hit(pod, key, now);
        if hit.is_none_or(|hit| hit.is_stale) {
            let entry = Entry { version, stamp: pod.barriers.stamp_of(now), asked_at: now };
            let process = pod.process;
            self.later(after, Event::Fetched { pod: at, process, key, entry });
        }
        hit.map_or(Ok(()), |hit| self.oracle.check(hit))
    }

    fn write(&mut self, pod: usize, key: usize) {
        let is_soft = self.rng.bool();
        let kind = match self.rng.u8(0..12) {
            0..6 => Kind::Tag { is_soft },
            6..10 => Kind::Prefix { is_soft },
            10 => Kind::Everything,
            _ => Kind::Many,
        };
        self.write_of(pod, key, kind);
    }

    /// A client writes through a pod, which is to purge after that.
    pub(super) fn write_of(&mut self, pod: usize, key: usize, kind: Kind) {
        if !self.pods[pod].as_ref().is_some_and(Pod::serves) {
            return;
        }
        let keys = kind.keys(key).into_iter().map(|key| {
            self.versions[key] += 1;
            (key, self.versions[key])
        });
        let purge = Purged {
            kind,
            place: None,
            keys: keys.collect(),
            acknowledged_at: None,
            reached: vec![],
            is_ordered: false,
            heard_by: Default::default(),
        };
        let (number, process, after) = (self.oracle.purges.len(), self.process(pod), self.rng.u64(1..10));
        self.oracle.purges.push(purge);
        self.later(after, Event::Purge { pod, process, number, key });
    }

    /// The application has responded to a write.
    fn purge(&mut self, at: usize, process: u64, number: usize, key: usize) {
        let names = self.oracle.purges[number].kind.names(key);
        let version = PurgeName::version("v");
        let purge = Purge { seq: 0, version, names, number: number as u64 + 1, generation: 0 };
        if self.living(at, process).is_none() {
            return;
        }
        self.apply(at, &Effect::Purge(&purge));
        let listeners: Vec<_> = self
            .pods
            .iter()
            .enumerate()
            .filter_map(|(at, pod)| {
                let listens = pod.as_ref()?.redis.as_ref()?.is_connected;
                listens.then_some((at, pod.as_ref()?.process))
            })
            .collect();
        if listeners.contains(&(at, process)) {
            self.order(vec![purge.clone()]);
            self.later(REDIS_TIMEOUT, Event::Ordered { pod: at, process, purge, listeners });
            return;
        }
        if let Some(link) = self.living(at, process).and_then(|pod| pod.redis.as_mut()) {
            link.pending.push(purge.clone());
        }
        self.tell(at, purge);
    }

    fn ordered(&mut self, pod: usize, process: u64, purge: Purge, listeners: &[(usize, u64)]) {
        if self.process(pod) != process {
            return;
        }
        let heard_by = &self.oracle.purges[index(&purge)].heard_by;
        if listeners.iter().all(|(_, process)| heard_by.contains(process)) {
            self.oracle.seen.by_redis += 1;
            let reached = listeners.iter().map(|(_, process)| *process).collect();
            self.responds(index(&purge), reached);
        } else {
            self.tell(pod, Purge { generation: 1, ..purge });
        }
    }

    /// Tells the other pods, and waits for them.
    fn tell(&mut self, at: usize, purge: Purge) {
        let (now, number) = (self.now, index(&purge));
        let Some(pod) = self.pods[at].as_mut() else { return };
        let (process, seq) = (pod.process, pod.ledger.append(purge, now));
        let left = (0..PODS).filter(|other| *other != at).collect();
        pod.waits.push(Wait { number, seq, began_at: now, left, reached: vec![process] });
        self.oracle.purges[number].place = Some((process, seq));
        if self.broken == Broken::AcknowledgementsNotAwaited {
            let all = self.pods.iter().flatten().map(|pod| pod.process).collect();
            self.responds(number, all);
        }
        self.drive_all(at);
        self.acknowledge(at);
        self.later(ACKNOWLEDGEMENT_TIMEOUT, Event::Impatience { pod: at, process, number });
    }

    /// Looks whether writes of a pod need not wait any more.
    pub(super) fn acknowledge(&mut self, at: usize) {
        let processes: Vec<_> = (0..PODS).map(|pod| self.process(pod)).collect();
        let Some(pod) = self.pods[at].as_mut() else { return };
        let mut waits = std::mem::take(&mut pod.waits);
        for wait in &mut waits {
            for other in wait.left.clone().into_iter().filter(|other| pod.is_settled(*other, wait.seq)) {
                wait.left.remove(&other);
                if pod.others[other].state.acknowledged >= wait.seq {
                    wait.reached.push(processes[other]);
                }
            }
        }
        let (done, left): (Vec<_>, Vec<_>) = waits.into_iter().partition(|wait| wait.left.is_empty());
        pod.waits = left;
        for Wait { number, reached, .. } in done {
            self.responds(number, reached);
        }
    }

    fn is_impatient(&mut self, at: usize, process: u64, number: usize) {
        let base = self.base;
        let Some(pod) = self.living(at, process) else { return };
        let Some(place) = pod.waits.iter().position(|wait| wait.number == number) else { return };
        let Wait { began_at, left, reached, .. } = pod.waits.remove(place);
        for other in left {
            let state = &mut pod.others[other].state;
            if state.is_late(instant(base, began_at)) {
                state.fails(LATE, false, instant(base, began_at));
            }
        }
        self.responds(number, reached);
    }

    /// The response to a write leaves, which says where its purge holds.
    fn responds(&mut self, number: usize, reached: Vec<u64>) {
        let now = self.now;
        let purge = &mut self.oracle.purges[number];
        if purge.acknowledged_at.is_none() {
            self.oracle.seen.acknowledged += reached.len();
            self.oracle.seen.missed += PODS.saturating_sub(reached.len());
            (purge.acknowledged_at, purge.reached) = (Some(now), reached);
        }
    }

    fn begin(&mut self, at: usize) {
        if self.pods[at].is_none() {
            let process = self.number();
            let has_redis = self.has_redis.then_some(self.redis.len());
            self.pods[at] = Some(Pod::new(process, has_redis, self.now));
            self.drive_all(at);
            self.later(JOIN_TIMEOUT, Event::Joined { pod: at, process });
            self.later(self.scale.comparison, Event::Compare { pod: at, process });
        }
    }

    /// Looks whether a pod is known to all others, and may begin.
    pub(super) fn join(&mut self, at: usize) {
        let Some(pod) = self.pods[at].as_mut().filter(|pod| pod.is_joining) else { return };
        let mut others = (0..PODS).filter(|other| *other != at);
        if others.all(|other| pod.others[other].state.is_joined()) {
            pod.is_joining = false;
            self.oracle.seen.joined += 1;
        }
    }

    fn compare(&mut self, at: usize, process: u64) {
        let (now, other) = (self.now, self.any_pod());
        let after = self.rng.u64(self.scale.comparison / 2..self.scale.comparison * 3 / 2);
        let Some(pod) = self.living(at, process) else { return };
        pod.others[other].compares = true;
        let has_told_redis = pod.has_told_redis();
        pod.ledger.forget(has_told_redis, now.saturating_sub(SETTLING), now);
        self.drive(at, other);
        self.later(after, Event::Compare { pod: at, process });
    }

    fn fault(&mut self) {
        let (any, other) = (self.any_pod(), self.any_pod());
        // What befalls a pod that is cut off from Redis is of most interest.
        let is_cut_off = |pod: &usize| {
            let link = self.pods[*pod].as_ref().and_then(|pod| pod.redis.as_ref());
            link.is_some_and(|link| !link.is_connected)
        };
        let pod = (0..PODS).find(is_cut_off).filter(|pod| any > *pod).unwrap_or(any);
        let calm = self.scale.end - self.scale.calm;
        let until = (self.now + self.rng.u64(100..self.scale.longest_fault)).min(calm);
        let process = self.process(pod);
        match self.rng.u8(0..9) {
            0 => self.links[pod][other].is_cut_until = until,
            1 => {
                for other in 0..PODS {
                    self.links[pod][other].is_cut_until = until;
                    self.links[other][pod].is_cut_until = until;
                }
            }
            2 => {
                for other in 0..PODS {
                    self.links[other][pod].is_late_until = until;
                }
            }
            3 | 4 => {
                self.pods[pod] = None;
                self.at(until, Event::Begin { pod });
            }
            5 => {
                if self.pods[pod].is_some() {
                    self.leave(pod);
                    self.later(LEAVE_TIMEOUT, Event::End { pod, process });
                    self.at(until + LEAVE_TIMEOUT, Event::Begin { pod });
                }
            }
            6 => {
                // For good.
                self.pods[pod] = None;
            }
            _ => {
                let now = self.now;
                if let Some(link) = self.pods[pod].as_mut().and_then(|pod| pod.redis.as_mut()) {
                    (link.is_connected, link.proven_at) = (false, now);
                    self.at(until, Event::Reconnect { pod });
                }
            }
        }
    }
}

impl World {
    /// A pod serves nothing any more, and tells what it knows.
    pub(super) fn leave(&mut self, pod: usize) {
        let Some(leaving) = self.pods[pod].as_mut() else { return };
        leaving.is_leaving = true;
        for other in &mut leaving.others {
            (other.compares, other.rests_until) = (true, 0);
        }
        self.drive_all(pod);
    }
}

/// Returns what a pod responds with from memory.
fn hit(pod: &Pod, key: usize, at: u64) -> Option<Hit> {
    let (Entry { version, .. }, is_stale) = pod.stored(key, at)?;
    Some(Hit { process: pod.process, key, version, is_stale, at })
}
