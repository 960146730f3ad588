//! Heads of responses as they arrive.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::Response;
use larder_policy::Fields;
use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use crate::{
    budget::{Budget, Reservation},
    head_room::{self, HeadRoom},
    headers::{self, FieldLines},
    upstream::{
        ExchangeError,
        head::{self, BodyFraming, FieldLine, HeadError, Lines, MAX_HEAD, ResponseHead},
    },
};

/// Minimum number of bytes to read at once while a head arrives.
const READ_SIZE: usize = 8 << 10;

/// Maximum time that a large head waits for memory, and the interval of its attempts.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum length of a name in a header map, in bytes.
const MAX_NAME: usize = u16::MAX as usize;

/// The head of a response that is awaited.
pub(super) struct IncomingHead {
    budget: Arc<Budget>,
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

impl IncomingHead {
    /// Creates the head of a response to a HEAD request, or to another. A large one takes memory from `budget`.
    pub(super) fn new(budget: &Arc<Budget>, to_head: bool) -> Self {
        Self { budget: Arc::clone(budget), to_head, searched: 0, room: None, waiting: None }
    }

    /// Goes back to the beginning, for another connection.
    pub(super) fn restart(&mut self) {
        (self.searched, self.room, self.waiting) = (0, None, None);
    }

    /// Reads the next head, and its fields.
    ///
    /// # Errors
    /// If the connection ends or fails before, or the head is ambiguous or too large.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<Received, ExchangeError>> {
        let head = ready!(self.poll_raw(context, connection))?;
        Poll::Ready(head.read().map_err(Into::into))
    }

    /// Reads the next head.
    ///
    /// # Errors
    /// If the connection ends or fails before, or the head is ambiguous or too large.
    pub(super) fn poll_raw(
        &mut self,
        context: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<RawHead, ExchangeError>> {
        loop {
            let input = &mut connection.input;
            if self.searched == 0 {
                let empty_lines = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                input.advance(empty_lines);
            }
            // Most heads arrive at once, without a fault.
            if self.searched == 0
                && let Some(clean) = head::clean(input, self.to_head)
            {
                let head = clean?;
                let length = head.bytes.len();
                let head = RawHead::from(head);
                input.advance(length);
                return Poll::Ready(Ok(head));
            }
            if let Some(end) = head::end(input, self.searched) {
                self.searched = 0;
                let head = input.split_to(end);
                return Poll::Ready(self.received(&head));
            }
            if !head::may_begin(input) {
                return Poll::Ready(Err(HeadError::StatusLine.into()));
            }
            self.searched = input.len();
            if input.len() > MAX_HEAD {
                return Poll::Ready(Err(HeadError::TooLarge.into()));
            }
            if input.len() > head_room::SMALL && self.room.is_none() {
                self.room = Some(ready!(poll_room(&self.budget, &mut self.waiting, context))?);
            }
            if ready!(connection.poll_read(context, READ_SIZE))? == 0 {
                return Poll::Ready(Err(ExchangeError::Closed));
            }
        }
    }

    fn received(&mut self, head: &[u8]) -> Result<RawHead, ExchangeError> {
        let room = self.room.take().map(|room| HeadRoom::of(room, head.len()));
        let head = RawHead::of(head, self.to_head)?;
        Ok(RawHead { room, ..head })
    }
}
/// A head that was understood, as text.
#[derive(Debug)]
pub struct RawHead {
    pub(super) status: u16,
    pub(super) framing: BodyFraming,
    /// True if a field says that the connection ends.
    ends: bool,
    bytes: Bytes,
    lines: Lines,
    /// Memory reserved for a large head. The input has grown with it, so its connection is closed after the body.
    room: Option<HeadRoom>,
}

impl RawHead {
    /// Understands a complete head. `to_head` is true for the response to a HEAD request.
    ///
    /// # Errors
    /// If the head is ambiguous or has too many lines.
    pub(crate) fn of(head: &[u8], to_head: bool) -> Result<Self, HeadError> {
        head::understand(head, to_head).map(Self::from)
    }

    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the framing of the body.
    pub fn framing(&self) -> BodyFraming {
        self.framing
    }

    /// Returns the head, which is valid.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the field lines.
    #[inline]
    pub fn lines(&self) -> impl Iterator<Item = FieldLine<'_>> {
        self.lines.of(&self.bytes)
    }

    /// Returns true if each line ends with CRLF.
    pub fn has_usual_breaks(&self) -> bool {
        self.lines.have_usual_breaks()
    }

    /// Reads the status line and the fields.
    ///
    /// # Errors
    /// If a name is too long.
    pub fn response(&self) -> Result<Response<()>, HeadError> {
        Ok(self.with_room(head::read(&self.bytes, &self.lines)?))
    }

    /// Reads the status line, and the end-to-end fields as text.
    ///
    /// # Errors
    /// If a name is too long.
    pub fn response_and_lines(&self) -> Result<(Response<()>, FieldLines), HeadError> {
        if self.bytes.len() > MAX_NAME && self.lines().any(|line| line.name.len() > MAX_NAME) {
            return Err(HeadError::Field);
        }
        Ok((self.with_room(head::status_line(&self.bytes)?), headers::end_to_end(self)))
    }

    fn with_room(&self, mut response: Response<()>) -> Response<()> {
        self.room.iter().for_each(|room| drop(response.extensions_mut().insert(room.clone())));
        response
    }

    fn read(self) -> Result<Received, HeadError> {
        let response = self.response()?;
        Ok(Received { response, framing: self.framing, is_kept_alive: self.is_kept_alive() })
    }

    /// Returns true if another request may follow on the connection.
    pub(super) fn is_kept_alive(&self) -> bool {
        let is_open = !self.ends && self.framing != BodyFraming::UntilClose;
        is_open && self.bytes.get(7) != Some(&b'0') && self.room.is_none()
    }
}

impl Fields for RawHead {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lines.of(&self.bytes).map(|line| (line.name, line.value))
    }
}

impl From<ResponseHead<'_>> for RawHead {
    /// Copies the head, because its connection's input serves on.
    fn from(head: ResponseHead<'_>) -> Self {
        let ResponseHead { status, framing, ends, bytes, lines } = head;
        let bytes = match bytes {
            Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Cow::Owned(repaired) => Bytes::from(repaired),
        };
        Self { status, framing, ends, bytes, lines, room: None }
    }
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
