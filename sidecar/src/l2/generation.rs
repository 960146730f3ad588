//! Generations: what purges are counted in.
//!
//! A server that lost purges gives their numbers away again, so what it counts must not be taken for the same. A generation
//! says in its upper bits on which server it was begun, and a pod that finds one from elsewhere begins another.

use std::hash::{BuildHasher, Hasher, RandomState};

use anyhow::{Context, ensure};
use redis::InfoDict;

/// Number of random bits in a generation. The others are its [`Mark`].
const RANDOM_BITS: u32 = 40;

/// Identity of the server that counts, since its last start or promotion.
///
/// A mark is made from the server's replication id (`master_replid` of `INFO replication`), which is another one after each
/// start, and after each time that a replica became a master: whenever purges may be lost. A connection alone never
/// changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    /// The mark of a server, from what it says to `INFO replication`.
    ///
    /// # Errors
    /// If it is not a master: a replica has the id of its master.
    pub(super) fn read(info: &InfoDict) -> anyhow::Result<Self> {
        let role: String = info.get("role").context("INFO replication has no role")?;
        ensure!(role == "master", "the server is a replica: name the master, or the Sentinels");
        let id: String = info.get("master_replid").context("INFO replication has no master_replid")?;
        let [a, b, c, ..] = *blake3::hash(id.as_bytes()).as_bytes();
        Ok(Self(u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c])))
    }

    /// A generation that nobody has begun yet. It is never 0, which is what a pod without Redis counts in.
    pub(super) fn new_generation(self) -> u64 {
        (self.0 << RANDOM_BITS) | (random() >> (u64::BITS - RANDOM_BITS)).max(1)
    }

    /// A mark of the simulation's.
    #[cfg(test)]
    pub(super) const fn numbered(number: u64) -> Self {
        Self(number)
    }

    /// A generation of the simulation's.
    #[cfg(test)]
    pub(super) const fn generation(self, number: u64) -> u64 {
        (self.0 << RANDOM_BITS) | number
    }

    /// Returns true if a generation was begun on this server.
    pub(super) const fn began(self, generation: u64) -> bool {
        generation >> RANDOM_BITS == self.0
    }
}

/// A number that no other pod has; never 0.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(info: &str) -> anyhow::Result<Mark> {
        Mark::read(&InfoDict::new(info))
    }

    #[test]
    fn generation_reveals_the_server_that_began_it() {
        let (a, b) = (
            mark("# Replication\r\nrole:master\r\nmaster_replid:aaaa\r\n").unwrap(),
            mark("role:master\r\nmaster_replid:bbbb\r\n").unwrap(),
        );
        assert_eq!(a, mark("role:master\r\nmaster_replid:aaaa\r\n").unwrap());
        for _ in 0..100 {
            let generation = a.new_generation();
            assert!(a.began(generation) && !b.began(generation));
            assert_ne!(generation, a.new_generation());
        }
        assert!(!a.began(0));
    }

    #[test]
    fn a_replica_has_no_mark_of_its_own() {
        for info in ["role:slave\r\nmaster_replid:aaaa\r\n", "master_replid:aaaa\r\n", "role:master\r\n", ""]
        {
            assert!(mark(info).is_err(), "{info}");
        }
    }
}
