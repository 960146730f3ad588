//! Attempts to send a request, over one connection after another.

use std::mem;

use super::{Connection, Http1};
use crate::upstream::{ExchangeError, UpstreamError};

/// The attempts to send a request so far.
///
/// # Guarantees
/// - A request of which nothing could be written is sent over another connection: after idle ones over a new one, and over a second new
///   one, but not over a third.
/// - One that failed on a connection which may have been closed is sent once more, over a new connection, if it may be repeated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempts {
    may_be_repeated: bool,
    is_repetition: bool,
    /// True if the connection was made for the request.
    is_new: bool,
    /// True while a new connection may fail before anything was written.
    may_fail_new: bool,
}

/// Step after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The rest of the request, of which nothing was written, over another connection.
    OtherConnection,
    /// The request from its beginning.
    Repetition,
    /// Nothing: the request has failed.
    Nothing,
}

impl Attempts {
    /// Creates the attempts of a request. One may be repeated if its body is at hand and its method is idempotent (RFC 9110,
    /// section 9.2.2).
    pub(super) const fn new(may_be_repeated: bool) -> Self {
        Self { may_be_repeated, is_repetition: false, is_new: false, may_fail_new: true }
    }

    /// Returns true if the request is sent a second time.
    pub(super) const fn is_repetition(&self) -> bool {
        self.is_repetition
    }

    /// Takes an idle connection for the next attempt; `None` if that needs a new one.
    pub(super) fn take_idle(&mut self, http1: &Http1) -> Option<Box<Connection>> {
        // An application that ends has closed the idle connections, or is about to.
        let idle = if self.is_repetition { None } else { http1.take_idle(self.may_be_repeated) };
        self.is_new = idle.is_none();
        idle
    }

    /// Returns the step after an attempt that failed. `has_begun` is true if anything was written.
    pub(super) fn failed(&mut self, http1: &Http1, error: &ExchangeError, has_begun: bool) -> Next {
        if !self.is_new {
            http1.note_failure(error);
        }
        let is_unsent = matches!(error, ExchangeError::Io(_)) && !has_begun;
        if is_unsent && (!self.is_new || mem::take(&mut self.may_fail_new)) {
            return Next::OtherConnection;
        }
        if self.may_be_repeated && !self.is_repetition && error.may_have_been_dead() {
            (self.is_repetition, self.may_fail_new) = (true, true);
            return Next::Repetition;
        }
        Next::Nothing
    }

    /// Returns the error of the request, which says if it was sent before.
    pub(super) fn error(&self, error: UpstreamError) -> UpstreamError {
        if self.is_repetition { error.of_repetition() } else { error }
    }
}
