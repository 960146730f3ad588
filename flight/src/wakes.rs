//! Wakers: stored under a lock, woken and dropped outside it, because either may run code that takes the same lock.

use std::task::Waker;

/// The waker of one waiter.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waker: Option<Waker>,
    waiting: bool,
}

impl Bell {
    /// Waits with `waker`. Returns the waker that it replaces, to be dropped outside the lock.
    #[must_use = "drop it outside the lock"]
    pub(crate) fn wait(&mut self, waker: &Waker) -> Option<Waker> {
        self.waiting = true;
        match &self.waker {
            Some(known) if known.will_wake(waker) => None,
            _ => self.waker.replace(waker.clone()),
        }
    }

    /// Stops waiting. The waker is retained, because the next wait is likely the same task's.
    pub(crate) fn rest(&mut self) {
        self.waiting = false;
    }

    /// Stops waiting; `into` wakes the waiter.
    pub(crate) fn ring(&mut self, into: &mut Wakes) {
        if std::mem::take(&mut self.waiting)
            && let Some(waker) = self.waker.take()
        {
            into.push(waker);
        }
    }
}

/// Wakers to call once the lock is released.
#[derive(Debug, Default)]
#[must_use = "wake them outside the lock"]
pub(crate) struct Wakes {
    // Most often there is one, and that costs no allocation.
    first: Option<Waker>,
    rest: Vec<Waker>,
}

impl Wakes {
    fn push(&mut self, waker: Waker) {
        match self.first {
            None => self.first = Some(waker),
            Some(_) => self.rest.push(waker),
        }
    }

    /// Wakes all of them. No lock may be held.
    pub(crate) fn wake(self) {
        for waker in self.first.into_iter().chain(self.rest) {
            waker.wake();
        }
    }
}
