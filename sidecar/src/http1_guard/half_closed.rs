//! Clients that close their side of the connection while they wait for a response.
//!
//! Such a client may read the response, as `nc -N` and scripts with `shutdown` do, or may have gone away: both look the same until
//! something is written to it, which shows an error if nobody is there.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{BODY_TIMEOUT, Http1Guard, ImmediateResponder};

/// Maximum time without a sign of the response to a read. An application is not kept busy for longer on behalf of a client that has
/// left, and less than the default `collapseTimeout`, so that no further request is sent for it.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// Maximum time without a byte of a response that has begun. Most clients that close their side have left, and a stream that pauses holds
/// the application's side for as long.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(8);

/// Maximum time without a sign of the response to a write, which goes on without its client, who would not learn its outcome.
const WRITE_TIMEOUT: Duration = BODY_TIMEOUT;

/// Returns the maximum time before the first byte of the response to a request with this method.
pub(super) fn timeout_of(method: &str) -> Duration {
    let is_read = matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
    if is_read { READ_TIMEOUT } else { WRITE_TIMEOUT }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> Http1Guard<IO, A> {
    /// Waits for the response to a client that has closed its side. Returns `None` if the client counts as gone.
    pub(super) fn poll_left<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<T>>> {
        self.is_half_closed = true;
        let is_writing = !self.flushed || !self.output.is_empty() || !self.output_body.is_empty();
        if is_writing {
            self.timer = None;
            return Poll::Pending;
        }
        if self.is_over(self.half_closed_timeout, context) { Poll::Ready(Ok(None)) } else { Poll::Pending }
    }

    /// Notes that a client that has closed its side was sent something, interim responses included: its time begins again.
    pub(super) fn extend_half_closed(&mut self) {
        if let Some(timer) = &mut self.timer {
            timer.as_mut().reset(Instant::now() + self.half_closed_timeout);
        }
    }
}
