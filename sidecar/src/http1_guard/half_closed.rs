//! Clients that close their side of the connection while they wait for a response.
//!
//! Such a client may read the response, as `nc -N` and scripts with `shutdown` do, or may have gone away: both look the same until
//! something is written to it, which shows an error if nobody is there.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Http1Guard, ImmediateResponder};

/// Maximum time without a byte of its response for which a client that has closed its side counts as present. An application is not
/// kept busy for longer on behalf of one that has left, and less than the default `collapseTimeout`, so that no further request is
/// sent for it.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(4);

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> Http1Guard<IO, A> {
    /// Waits for the response to a client that has closed its side. Returns `None` if the client counts as gone.
    pub(super) fn poll_left<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<T>>> {
        self.is_half_closed = true;
        let is_writing = !self.flushed || !self.output.is_empty() || !self.output_body.is_empty();
        if is_writing {
            self.timer = None;
            return Poll::Pending;
        }
        if self.is_over(HALF_CLOSED_TIMEOUT, context) { Poll::Ready(Ok(None)) } else { Poll::Pending }
    }
}
