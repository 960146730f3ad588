//! Memory reservations for large heads and for heads that arrive in pieces. A head that arrives in one read, as most
//! do, needs none.

use std::sync::Arc;

use crate::{
    budget::{Budget, Kind, Reservation},
    connections::Connection,
};

/// The part of the memory budget that a connection holds for its request's head.
#[derive(Debug)]
pub(super) struct Room {
    budget: Arc<Budget>,
    connection: Arc<Connection>,
    reservation: Reservation,
    unread: Reservation,
}

impl Room {
    pub(super) fn new(budget: &Arc<Budget>, connection: &Arc<Connection>) -> Self {
        Self {
            budget: Arc::clone(budget),
            connection: Arc::clone(connection),
            reservation: Reservation::new(budget, Kind::Heads),
            unread: Reservation::new(budget, Kind::Unread),
        }
    }

    /// Reserves this many bytes. If the budget is exhausted, the connections that have been reading heads for longest
    /// make room; fails if there are none.
    pub(super) fn make(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let more = bytes.saturating_sub(self.reservation.bytes());
        if !self.reservation.resize(bytes) {
            if !self.budget.connections.dismiss_readers(more, &self.connection) {
                self.reservation.refuse();
                return false;
            }
            self.reservation.force(bytes);
        }
        self.connection.holds(bytes);
        true
    }

    /// Records the number of bytes that are buffered for a client that does not read. They exist already: without room
    /// for them, the client that has not read for longest is disconnected.
    pub(super) fn hold_unread(&mut self, bytes: u64) {
        if !self.unread.resize(bytes) {
            self.unread.force(bytes);
            self.budget.end_overdraft();
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        self.reservation.bytes() > 0
    }

    /// Releases the reservation, if there is one.
    pub(super) fn clear(&mut self) {
        if self.is_taken() {
            self.reservation.resize(0);
            self.connection.holds(0);
        }
    }
}
