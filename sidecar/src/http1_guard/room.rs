//! Room for heads that come in pieces, or are large. What comes whole in one read, as most heads do, takes none.

use std::sync::Arc;

use crate::{
    budget::{Budget, Kind, Reservation},
    connections::Connection,
};

/// What a connection holds of the budget for its request's head.
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

    /// Makes room for so many bytes. Where all of it is taken, those make room who have been at their heads for longest; if
    /// nobody is, there is none.
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

    /// Notes how much is buffered for a client that does not read. It is there already: where it has no room, the client that has
    /// read nothing for longest is cut off.
    pub(super) fn hold_unread(&mut self, bytes: u64) {
        if !self.unread.resize(bytes) {
            self.unread.force(bytes);
            self.budget.end_overdraft();
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        self.reservation.bytes() > 0
    }

    /// Gives it back, if any was taken.
    pub(super) fn clear(&mut self) {
        if self.is_taken() {
            self.reservation.resize(0);
            self.connection.holds(0);
        }
    }
}
