//! Heads of responses as they arrive.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{
    HeaderMap, Response, Version,
    header::{CONNECTION, CONTENT_LENGTH},
};
use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use crate::{
    budget::{Budget, Reservation},
    head_room::{self, HeadRoom},
    upstream::{
        ExchangeError,
        head::{self, BodyFraming, HeadError, MAX_HEAD},
    },
};

/// Minimum number of bytes to read at once while a head arrives.
const READ_SIZE: usize = 8 << 10;

/// Maximum time that a large head waits for memory, and the interval of its attempts.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// The head of a response that is awaited.
pub(super) struct IncomingHead<'a> {
    budget: &'a Arc<Budget>,
    to_head: bool,
    /// Number of bytes that do not contain the end of the head.
    searched: usize,
    /// Memory reserved for a large head that is arriving.
    room: Option<Reservation>,
    /// Time since which no memory was available, and time of the next attempt.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// A head that has arrived, of an interim or a final response.
pub(super) struct Received {
    pub(super) response: Response<()>,
    pub(super) framing: BodyFraming,
    /// True if another request may follow on the connection.
    pub(super) is_kept_alive: bool,
}

impl<'a> IncomingHead<'a> {
    /// Creates the head of a response to a HEAD request, or to another. A large one takes memory from `budget`.
    pub(super) fn new(budget: &'a Arc<Budget>, to_head: bool) -> Self {
        Self { budget, to_head, searched: 0, room: None, waiting: None }
    }

    /// Reads the next head.
    ///
    /// # Errors
    /// If the connection ends or fails before, or the head is ambiguous or too large.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<Received, ExchangeError>> {
        loop {
            let input = &mut connection.input;
            if self.searched == 0 {
                let empty_lines = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                input.advance(empty_lines);
            }
            if let Some(end) = head::end(input, self.searched) {
                self.searched = 0;
                let head = input.split_to(end).freeze();
                return Poll::Ready(self.received(head));
            }
            if !head::may_begin(input) {
                return Poll::Ready(Err(HeadError::StatusLine.into()));
            }
            self.searched = input.len();
            if input.len() > MAX_HEAD {
                return Poll::Ready(Err(HeadError::TooLarge.into()));
            }
            if input.len() > head_room::SMALL && self.room.is_none() {
                self.room = Some(ready!(poll_room(self.budget, &mut self.waiting, context))?);
            }
            if ready!(connection.poll_read(context, READ_SIZE))? == 0 {
                return Poll::Ready(Err(ExchangeError::Closed));
            }
        }
    }

    fn received(&mut self, head: Bytes) -> Result<Received, ExchangeError> {
        let room = self.room.take().map(|room| HeadRoom::of(room, head.len()));
        let understood = head::understand(&head, self.to_head)?;
        let framing = understood.framing;
        let repaired = match understood.bytes {
            std::borrow::Cow::Borrowed(_) => None,
            std::borrow::Cow::Owned(repaired) => Some(Bytes::from(repaired)),
        };
        let mut response = head::read(&repaired.unwrap_or(head))?;
        // Nothing follows a body that others would delimit by its length (RFC 9112, section 6.3). The input has grown with a large head, so
        // its connection is closed after the body, too.
        let is_doubtful = framing == BodyFraming::Chunked && response.headers().contains_key(CONTENT_LENGTH);
        let is_kept_alive = response.version() == Version::HTTP_11
            && framing != BodyFraming::UntilClose
            && !is_doubtful
            && !says_close(response.headers())
            && room.is_none();
        room.into_iter().for_each(|room| drop(response.extensions_mut().insert(room)));
        Ok(Received { response, framing, is_kept_alive })
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|line| {
        line.as_bytes()
            .split(|&byte| byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Reserves memory for a head, or waits for it without reading any further.
fn poll_room(
    budget: &Arc<Budget>,
    waiting: &mut Option<(Instant, Pin<Box<Sleep>>)>,
    context: &mut Context<'_>,
) -> Poll<Result<Reservation, HeadError>> {
    loop {
        if let Some(room) = HeadRoom::reserve(budget, MAX_HEAD) {
            *waiting = None;
            return Poll::Ready(Ok(room));
        }
        let (since, timer) = waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(ROOM_INTERVAL))));
        if since.elapsed() >= ROOM_TIMEOUT {
            return Poll::Ready(Err(HeadError::NoRoom));
        }
        ready!(timer.as_mut().poll(context));
        timer.as_mut().reset(Instant::now() + ROOM_INTERVAL);
    }
}
