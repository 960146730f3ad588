//! The task that drives one connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use super::{ThreadConnection, resp};

/// Free space of the input before each read, in bytes.
const READ_SIZE: usize = 16 << 10;
/// Capacity above which a buffer is replaced when it is empty, in bytes.
const MAX_IDLE_CAPACITY: usize = 128 << 10;
/// Time without a lookup after which a connection is closed: one that a network forgot in silence would cost the next lookup its time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Reason for which a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("redis closed the connection")]
    Closed,
    #[error("redis replied to what nobody asked, or not as it was asked")]
    Malformed,
    #[error("redis did not reply for {0:?}")]
    Silent(Duration),
    #[error("nobody asked for {IDLE_TIMEOUT:?}")]
    Idle,
}

/// Writes what is asked and hands out the replies, until the connection ends.
pub(super) struct Driver<S> {
    connection: Arc<ThreadConnection>,
    stream: S,
    input: BytesMut,
    writing: Vec<u8>,
    written: usize,
    watch: Watch,
}

/// Gives up lookups in time, and looks every so often whether replies come.
struct Watch {
    patience: Duration,
    timer: Pin<Box<Sleep>>,
    /// Time of the next look for replies.
    look_at: Instant,
    /// Number of replies.
    replies: u64,
    /// Number of them at the last look, and whether one was owed then.
    seen: (u64, bool),
    idle_since: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// A connection that was opened, and whose server may be silent for so long while it owes a reply.
    pub(super) fn new(connection: Arc<ThreadConnection>, stream: S, patience: Duration) -> Self {
        let look_at = Instant::now() + patience;
        let watch = Watch {
            patience,
            timer: Box::pin(sleep_until(look_at)),
            look_at,
            replies: 0,
            seen: (0, false),
            idle_since: Instant::now(),
        };
        Self { connection, stream, input: BytesMut::new(), writing: Vec::new(), written: 0, watch }
    }

    /// Drives the connection until it ends, and returns why it did.
    pub(super) async fn run(mut self) -> Ended {
        poll_fn(|context| match self.poll(context) {
            Poll::Ready(Err(ended)) => Poll::Ready(ended),
            Poll::Ready(Ok(never)) => match never {},
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<std::convert::Infallible, Ended>> {
        self.write(context)?;
        self.read(context)?;
        ready!(self.watch(context))?;
        Poll::Pending
    }

    /// Writes what was asked since the last time, all at once.
    fn write(&mut self, context: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            if self.written == self.writing.len() {
                self.writing.clear();
                self.written = 0;
                if self.writing.capacity() > MAX_IDLE_CAPACITY {
                    self.writing = Vec::new();
                }
                if !self.connection.take_output(&mut self.writing, context.waker()) {
                    break;
                }
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.writing[self.written..]) {
                Poll::Ready(Ok(0)) => return Err(Ended::Closed),
                Poll::Ready(Ok(length)) => self.written += length,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Reads what there is, and hands out the replies that are whole.
    fn read(&mut self, context: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            if self.input.is_empty() && self.input.capacity() > MAX_IDLE_CAPACITY {
                self.input = BytesMut::new();
            }
            self.input.reserve(READ_SIZE);
            match poll_read_buf(Pin::new(&mut self.stream), context, &mut self.input) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(Ended::Closed),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
            let (length, replies) =
                self.connection.hand_out(&self.input).map_err(|resp::Malformed| Ended::Malformed)?;
            self.input.advance(length);
            self.watch.replies += replies;
        }
    }

    /// Gives up lookups whose time is over. Ends the connection if the server owes replies and is silent, or if nobody asks it.
    fn watch(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let Watch { patience, timer, look_at, replies, seen, idle_since } = &mut self.watch;
        loop {
            let first_deadline = self.connection.first_deadline(context.waker());
            let next = first_deadline.map_or(*look_at, |first| first.min(*look_at));
            // A timer that goes off too early is set again then: most lookups have their replies long before their deadlines.
            if next < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(context));
            let now = Instant::now();
            self.connection.give_up(now);
            if now < *look_at {
                continue;
            }
            let (is_owed, has_replied) = (self.connection.owes(), *replies != seen.0);
            if is_owed && seen.1 && !has_replied {
                return Poll::Ready(Err(Ended::Silent(*patience)));
            }
            if is_owed || has_replied {
                *idle_since = now;
            } else if now - *idle_since >= IDLE_TIMEOUT {
                return Poll::Ready(Err(Ended::Idle));
            }
            *seen = (*replies, is_owed);
            *look_at = now + *patience;
        }
    }
}
