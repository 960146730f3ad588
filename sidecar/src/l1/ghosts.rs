//! Recently evicted keys.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// The hashes of keys that were evicted before a second request. A key that returns was evicted too early.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    order: VecDeque<u64>,
    known: HashTable<u64>,
}

impl Ghosts {
    /// Remembers a hash, and at most `most` of them.
    pub(super) fn remember(&mut self, hash: u64, most: usize) {
        while self.order.len() >= most.max(1) {
            // The oldest hash may belong to a ghost that returned and left again. The later one is then forgotten
            // early, which is harmless.
            if let Some(hash) = self.order.pop_front() {
                self.forget(hash);
            }
        }
        self.order.push_back(hash);
        if self.known.find(hash, |known| *known == hash).is_none() {
            self.known.insert_unique(hash, hash, |known| *known);
        }
    }

    /// Forgets a hash; returns true if it was remembered.
    pub(super) fn forget(&mut self, hash: u64) -> bool {
        self.known.find_entry(hash, |known| *known == hash).map(|found| found.remove()).is_ok()
    }

    /// Frees memory of which little is used.
    pub(super) fn shrink_to(&mut self, most: usize) {
        self.order.shrink_to(most);
        self.known.shrink_to(most, |known| *known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_ghost_is_forgotten() {
        let mut ghosts = Ghosts::default();
        for hash in 1..=4 {
            ghosts.remember(hash, 3);
        }
        assert!(!ghosts.forget(1) && ghosts.forget(2) && !ghosts.forget(2) && ghosts.forget(4));
    }

    #[test]
    fn number_of_ghosts_is_bounded_when_entries_return_and_leave() {
        let mut ghosts = Ghosts::default();
        for hash in (0..100).map(|number| number % 4) {
            ghosts.forget(hash);
            ghosts.remember(hash, 4);
        }
        assert!(ghosts.order.len() <= 4 && ghosts.known.len() <= 4);
    }
}
