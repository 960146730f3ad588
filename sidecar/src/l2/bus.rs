//! The state of one subscription to the bus: what of it is proven, what is in doubt, and who is to be told.
//!
//! There is no I/O and no clock in here: messages and times come in, and what is to be done is asked for. The simulation
//! ([`super::simulation`]) runs the same code.
//!
//! # Guarantees
//! - A purge is applied before it is acknowledged. One that does not apply, because it is counted in another generation, is
//!   acknowledged when all barriers have been read again.
//! - Trust is proven by this subscription's own probes alone. A probe is published at the server that counts, comes back behind
//!   all that was published there before, and counts from when it left.
//! - A probe proves nothing as long as a purge may have been missed, or the server has not said that it still takes purges.
//! - Memory is bounded, whatever comes.

use std::collections::{BTreeMap, VecDeque};

use super::message::PurgeMessage;
use crate::barriers::{Barriers, Heard};

/// More acknowledgements than this do not wait to be sent: writers whose purge is among them wait as for a pod that hangs.
const MAX_ACKNOWLEDGEMENTS: usize = 8192;

/// State of one subscription to the bus.
#[derive(Debug)]
pub(super) struct Bus {
    /// The name under which other pods acknowledge what this pod purges while it has this subscription.
    pub(super) asker: u64,
    /// Probes that have left and proved nothing yet, the oldest first.
    probes: VecDeque<Probe>,
    next_probe: u64,
    /// The number of times that a purge may have been missed.
    doubts: u64,
    /// The number of those after which all barriers were read.
    settled: u64,
    /// Purges that hold here, by the pod that waits to hear of it.
    due: BTreeMap<u64, Vec<u64>>,
    /// Purges that hold here when that doubt is settled.
    parked: Vec<Parked>,
    waiting: usize,
}

#[derive(Debug)]
struct Probe {
    number: u64,
    sent_at: u64,
    /// The bus has brought it back.
    is_back: bool,
    /// The server takes purges, as it said in reply to what was sent together with the probe.
    is_vouched: bool,
}

#[derive(Debug)]
struct Parked {
    doubt: u64,
    asker: u64,
    order: u64,
}

impl Bus {
    /// The state of a new subscription: nothing is proven.
    pub(super) fn new(asker: u64) -> Self {
        Self {
            asker,
            probes: VecDeque::new(),
            next_probe: 0,
            doubts: 0,
            settled: 0,
            due: BTreeMap::new(),
            parked: Vec::new(),
            waiting: 0,
        }
    }

    /// Applies a purge that the bus told of. Returns its order if it is this subscription's own and holds.
    pub(super) fn hear(&mut self, barriers: &Barriers, message: &PurgeMessage) -> Option<u64> {
        let PurgeMessage { generation, order, asker, names, .. } = message;
        let heard = barriers.heard(*generation, *order, names);
        if heard != Heard::InOrder {
            self.doubt();
        }
        if *asker == 0 {
            return None;
        }
        if heard == Heard::OtherGeneration {
            self.park(*asker, *order);
        } else if *asker == self.asker {
            return Some(*order);
        } else {
            self.acknowledge(*asker, *order);
        }
        None
    }

    fn park(&mut self, asker: u64, order: u64) {
        if self.has_room() {
            self.waiting += 1;
            self.parked.push(Parked { doubt: self.doubts, asker, order });
        }
    }

    /// A purge holds here by another subscription of this pod's.
    pub(super) fn hear_elsewhere(&mut self, message: &PurgeMessage) {
        if message.asker != 0 {
            self.acknowledge(message.asker, message.order);
        }
    }

    fn acknowledge(&mut self, asker: u64, order: u64) {
        if self.has_room() {
            self.waiting += 1;
            self.due.entry(asker).or_default().push(order);
        }
    }

    const fn has_room(&self) -> bool {
        self.waiting < MAX_ACKNOWLEDGEMENTS
    }

    /// A purge may have been missed: all barriers are to be read again.
    pub(super) fn doubt(&mut self) {
        self.doubts += 1;
    }

    /// Returns true if all barriers must be read again.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.doubts > self.settled
    }

    /// The doubts that reading all barriers from now on would settle.
    pub(super) const fn doubts(&self) -> u64 {
        self.doubts
    }

    /// All barriers have been read since these were all the doubts that there were.
    pub(super) fn settle(&mut self, doubts: u64) {
        self.settled = self.settled.max(doubts);
        let (held, parked) = self.parked.drain(..).partition(|parked| parked.doubt <= doubts);
        self.parked = parked;
        for Parked { asker, order, .. } in <Vec<_> as IntoIterator>::into_iter(held) {
            self.due.entry(asker).or_default().push(order);
        }
    }

    /// Returns true if there are acknowledgements to send.
    pub(super) fn has_acknowledgements(&self) -> bool {
        !self.due.is_empty()
    }

    /// Takes the orders that hold here, by the pod that waits to hear of it.
    pub(super) fn take_acknowledgements(&mut self) -> BTreeMap<u64, Vec<u64>> {
        self.waiting = self.parked.len();
        std::mem::take(&mut self.due)
    }

    /// A probe leaves now; returns its number.
    pub(super) fn probe(&mut self, now: u64) -> u64 {
        self.next_probe += 1;
        self.probes.push_back(Probe {
            number: self.next_probe,
            sent_at: now,
            is_back: false,
            is_vouched: false,
        });
        self.next_probe
    }

    /// The bus has brought a probe back. Returns what that proves: the time until which every purge is applied here.
    #[must_use]
    pub(super) fn came_back(&mut self, number: u64) -> Option<u64> {
        self.complete(number, |probe| probe.is_back = true)
    }

    /// The server that the probe was sent to takes purges, and is the one that it was. Returns what that proves.
    #[must_use]
    pub(super) fn vouched(&mut self, number: u64) -> Option<u64> {
        self.complete(number, |probe| probe.is_vouched = true)
    }

    fn complete(&mut self, number: u64, note: impl FnOnce(&mut Probe)) -> Option<u64> {
        let at = self.probes.iter().position(|probe| probe.number == number)?;
        let probe = &mut self.probes[at];
        note(probe);
        let (sent_at, is_complete) = (probe.sent_at, probe.is_back && probe.is_vouched);
        if !is_complete {
            return None;
        }
        // Those before it would prove less.
        self.probes.drain(..=at);
        (!self.is_in_doubt()).then_some(sent_at)
    }

    /// When the oldest probe left that the bus has not brought back.
    pub(super) fn awaited_since(&self) -> Option<u64> {
        self.probes.iter().find(|probe| !probe.is_back).map(|probe| probe.sent_at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::barriers::RedisBarriers;

    fn barriers() -> Barriers {
        let barriers = Barriers::shared(Duration::from_secs(5));
        barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
        barriers
    }

    const fn purge(generation: u64, order: u64, asker: u64) -> PurgeMessage {
        PurgeMessage { generation, order, asker, names: vec![], number: None, elsewhere: vec![] }
    }

    #[test]
    fn probe_proves_when_it_is_back_and_vouched_for_and_dates_from_its_sending() {
        let mut bus = Bus::new(1);
        let (first, second) = (bus.probe(10), bus.probe(20));
        assert_eq!(bus.awaited_since(), Some(10));
        assert_eq!(bus.came_back(first), None);
        assert_eq!(bus.awaited_since(), Some(20));
        assert_eq!(bus.vouched(first), Some(10));
        assert_eq!(bus.vouched(second), None);
        assert_eq!(bus.came_back(second), Some(20));
        assert_eq!((bus.came_back(second), bus.came_back(99)), (None, None), "once, and only its own");
    }

    #[test]
    fn a_probe_proves_nothing_while_a_purge_may_have_been_missed() {
        let (mut bus, barriers) = (Bus::new(1), barriers());
        let probe = bus.probe(10);
        assert_eq!(bus.vouched(probe), None);
        assert_eq!(bus.hear(&barriers, &purge(7, 5, 0)), None);
        assert!(bus.is_in_doubt(), "4 was missed");
        assert_eq!(bus.came_back(probe), None);
        let settled_by = bus.doubts();
        bus.doubt();
        bus.settle(settled_by);
        assert!(bus.is_in_doubt(), "what came up while the barriers were read is not settled by it");
        bus.settle(bus.doubts());
        let probe = bus.probe(20);
        assert_eq!((bus.vouched(probe), bus.came_back(probe)), (None, Some(20)));
    }

    #[test]
    fn purge_is_acknowledged_only_once_it_holds() {
        let (mut bus, barriers) = (Bus::new(1), barriers());
        assert_eq!(bus.hear(&barriers, &purge(7, 4, 2)), None);
        assert_eq!(bus.hear(&barriers, &purge(7, 5, 1)), Some(5), "its own is counted at once");
        assert_eq!(bus.hear(&barriers, &purge(8, 1, 2)), None);
        assert_eq!(bus.hear(&barriers, &purge(8, 2, 1)), None);
        assert_eq!(bus.take_acknowledgements(), BTreeMap::from([(2, vec![4])]));
        barriers.resync(&RedisBarriers { generation: 8, order: 2, ..RedisBarriers::default() });
        bus.settle(bus.doubts());
        assert_eq!(bus.take_acknowledgements(), BTreeMap::from([(1, vec![2]), (2, vec![1])]));
        assert!(!bus.has_acknowledgements());
    }

    #[test]
    fn acknowledgements_are_bounded() {
        let (mut bus, barriers) = (Bus::new(1), barriers());
        for order in 4..40_000 {
            bus.hear(&barriers, &purge(7, order, 2));
        }
        assert_eq!(bus.take_acknowledgements()[&2].len(), MAX_ACKNOWLEDGEMENTS);
        bus.hear(&barriers, &purge(7, 40_000, 2));
        assert_eq!(bus.take_acknowledgements()[&2], [40_000], "and there is room again");
    }
}
