//! How much of what is on its way into the cache may be in memory at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// What all fills together hold at most, unless one object alone may be larger.
const MOST: u64 = 16 << 20;

/// A bound on the bytes that all fills together hold. What finds no room passes to its readers all the same, and is not
/// stored.
#[derive(Debug)]
pub struct Budget {
    held: AtomicU64,
    most: u64,
}

impl Budget {
    /// For a cache of `max_size` bytes of objects of at most `max_object_size`.
    pub fn new(max_size: u64, max_object_size: u64) -> Self {
        Self { held: AtomicU64::new(0), most: (max_size / 4).min(MOST).max(max_object_size) }
    }

    /// How much is held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// What one fill holds. It is given back when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    held: u64,
}

impl Share {
    /// Of nothing yet.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), held: 0 }
    }

    /// Takes so much more, if there is room.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let before = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.budget.most;
        if fits {
            self.held += bytes;
        } else {
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_refused_until_others_give_back() {
        let budget = Arc::new(Budget::new(400, 60));
        let (mut one, mut other) = (Share::new(&budget), Share::new(&budget));
        assert!(one.grow(60) && other.grow(40));
        assert!(!other.grow(1));
        drop(one);
        assert!(other.grow(60));
        drop(other);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn one_object_always_has_room() {
        let budget = Arc::new(Budget::new(100, 90));
        assert!(Share::new(&budget).grow(90));
    }
}
