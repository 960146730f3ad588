//! Breakers of Redis, and the operations that they judge.

use std::time::Duration;

use larder_policy::spec::Topology;
use tokio::time::Instant;

use super::{L2, L2Error};
use crate::{breaker::Breaker, cache_status::Tier};

/// Number of slots of a Cluster.
const SLOTS: usize = 16_384;

/// Number of ranges of these slots that have a breaker each. The servers of a Cluster have ranges, too.
const RANGES: usize = 16;

/// The breakers of one Redis: in a Cluster one for each range of slots, so that a server that is lost does not keep requests from the
/// others.
#[derive(Debug)]
pub(super) struct Breakers(Box<[Breaker]>);

impl Breakers {
    pub(super) fn new(topology: Topology) -> Self {
        let count = if topology == Topology::Cluster { RANGES } else { 1 };
        Self((0..count).map(|_| Breaker::default()).collect())
    }

    /// Returns the breaker for a key.
    pub(super) fn of(&self, key: &str) -> &Breaker {
        match &*self.0 {
            [only] => only,
            each => &each[slot(key) * each.len() / SLOTS],
        }
    }

    pub(super) fn are_closed(&self) -> bool {
        self.0.iter().all(Breaker::is_closed)
    }
}

/// Returns the slot of a key (Redis Cluster specification, "Key distribution model"): the CRC16 of its hash tag, if it has one.
fn slot(key: &str) -> usize {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let shift = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
    let crc =
        hashed.bytes().fold(0, |crc, byte| (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| shift(crc)));
    usize::from(crc) % SLOTS
}

impl L2 {
    /// Runs an operation on a key, unless its breaker is open.
    pub(super) async fn timed<T>(
        &self,
        (operation, key): (&'static str, &str),
        deadline: Duration,
        work: impl Future<Output = Result<T, L2Error>>,
    ) -> Result<T, L2Error> {
        if !self.breakers.of(key).allows() {
            return Err(L2Error::Down);
        }
        self.attempt((operation, key), deadline, work).await
    }

    /// Runs an operation on a key, whatever its breaker says.
    pub(super) async fn attempt<T>(
        &self,
        (operation, key): (&'static str, &str),
        deadline: Duration,
        work: impl Future<Output = Result<T, L2Error>>,
    ) -> Result<T, L2Error> {
        let started = Instant::now();
        let outcome = tokio::time::timeout(deadline, work).await.unwrap_or(Err(L2Error::Deadline(deadline)));
        self.judge((operation, key), started, &outcome);
        outcome
    }

    /// Counts the outcome of an operation, and tells the breaker of its key.
    pub(super) fn judge<T>(
        &self,
        (operation, key): (&'static str, &str),
        started: Instant,
        outcome: &Result<T, L2Error>,
    ) {
        match outcome {
            Ok(_) => {
                let elapsed = started.elapsed();
                // One that is quick enough for what nobody waits for may be too slow for requests.
                if elapsed <= self.timeout {
                    self.breakers.of(key).succeeded();
                }
                self.telemetry.tier_answered(Tier::L2, elapsed);
            }
            Err(L2Error::Down | L2Error::Unproven | L2Error::TooLarge) => {}
            Err(error) => {
                self.breakers.of(key).failed();
                self.telemetry.stats.tier_failed(Tier::L2);
                tracing::debug!(operation, %error, "redis failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // CLUSTER KEYSLOT says so.
        for (key, expected) in [("123456789", 12_739), ("foo", 12_182), ("a{foo}b", 12_182), ("{}foo", 9_500)]
        {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn failures_of_one_server_open_no_breaker_of_others() {
        let breakers = Breakers::new(Topology::Cluster);
        let fail = |key| (0..10).for_each(|_| breakers.of(key).failed());
        fail("foo");
        assert!(!breakers.of("x{foo}").allows() && !breakers.are_closed());
        assert!(breakers.of("bar").allows());
        let breakers = Breakers::new(Topology::Standalone);
        assert!(breakers.are_closed());
        breakers.of("foo").succeeded();
        (0..10).for_each(|_| breakers.of("foo").failed());
        assert!(!breakers.of("bar").allows(), "there is one server");
    }
}
