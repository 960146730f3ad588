//! Guard of an HTTP/2 connection: reads each frame before hyper does.
//!
//! hyper serves the connection; the guard stands between it and the socket, follows the frames of both directions, and
//! responds to plain GETs with responses in memory ([`Http2Responder`]). hyper never sees their streams. Everything
//! else reaches hyper with its meaning unchanged.
//!
//! # Guarantees
//! - hyper sees no frame of a stream that the guard responded to, as long as it has seen no later stream. To hyper,
//!   the stream is one that the client skipped, and therefore closed (RFC 9113, section 5.1.1).
//! - Frames of the guard stand between frames of hyper, and never in a header block.
//! - Interim responses to hyper's requests stand before hyper's final ones ([`interim`]).
//! - Both directions of header compression stay in step: the guard owns the client's dynamic table and hands its
//!   header lists to hyper without one; hyper and the guard respond without one.
//! - The guard sends no more than the client granted, and hyper is never starved ([`window`]).
//! - A client that does not read its responses has no more of them made: nothing is sent from memory, and no interim response, while
//!   [`MAX_BATCH`] bytes wait.
//!
//! # Assumptions
//! hyper acknowledges settings before it reads further frames, and writes the head of a frame in one piece, as well as a
//! whole GOAWAY.

use std::{
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::poll_read_buf;

mod frame;
mod headers;
mod hpack;
mod hyper_io;
mod interim;
mod list;
mod outgoing;
mod settings;
#[cfg(test)]
mod tests;
mod window;

pub use frame::ErrorCode;
use frame::{
    ACK, CONTINUATION, DATA, FrameHead, GOAWAY, HEAD, HEADERS, MAX_31, MAX_PAYLOAD, PUSH_PROMISE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, append_block, append_goaway, u32_at,
};
use hpack::Decoder;
#[cfg(test)]
pub(crate) use hpack::fields_of;
pub use hpack::{field, status};
pub use interim::{InterimStream, Interims};
use list::HeaderList;
#[cfg(test)]
pub(crate) use list::with_plain_request;
pub use list::{Lines, MAX_LIST, PlainRequest};
use outgoing::Outgoing;
use window::Window;

use crate::{
    budget::{Budget, Kind, Reservation},
    connections::Admitted,
    in_progress::InProgress,
};

/// Length of the client's connection preface (RFC 9113, section 3.4), which hyper checks.
const PREFACE: usize = 24;
/// Size of a read in bytes.
const READ_SIZE: usize = 8 << 10;
/// Number of the guard's bytes that wait to be written at most, before the last response.
const MAX_BATCH: usize = 64 << 10;
/// Maximum length of a body that is sent from memory.
const MAX_BODY: usize = 64 << 10;
/// Size of the buffers that an idle connection keeps.
const MAX_KEPT_BYTES: usize = 8 << 10;
/// Number of responses from memory after which hyper has its turn.
const MAX_TURN: usize = 256;

/// Responds to requests without hyper.
pub trait Http2Responder {
    /// Appends the header block of the whole response to a plain GET, without a dynamic table and of at most
    /// [`MAX_BLOCK`] bytes, and returns the body. Appends nothing and returns `None` if the request is for hyper, or if the
    /// body would be longer than `max_body`.
    fn respond(&mut self, request: &PlainRequest<'_>, max_body: usize, block: &mut Vec<u8>) -> Option<Bytes>;
}

/// Maximum length of the header block of a response from memory: it fits into one frame.
pub const MAX_BLOCK: usize = MAX_PAYLOAD - 1;

/// State that the guard shares with the code that serves its connection.
#[derive(Debug)]
pub struct Shared {
    /// The connection's place.
    pub place: Arc<Admitted>,
    /// The requests that hyper has.
    pub in_progress: Arc<InProgress>,
    /// Set by every request.
    pub is_used: Arc<AtomicBool>,
    /// Interim responses to the requests that hyper has.
    pub interims: Arc<Interims>,
}

/// An HTTP/2 connection, as hyper sees it.
#[derive(Debug)]
pub struct Http2Guard<IO, R> {
    stream: IO,
    responder: R,
    shared: Shared,
    budget: Arc<Budget>,
    /// Reservations for a large header block, and for bytes that the client does not read.
    heads: Reservation,
    unread: Reservation,
    /// Bytes read from the client and not yet given to hyper, of which the first `passing` go to hyper as they are.
    input: BytesMut,
    passing: usize,
    /// Frames made for hyper, of which `given` bytes have been given.
    for_hyper: Vec<u8>,
    given: usize,
    /// Frames made for the client, of which `written` bytes have been written.
    output: Vec<u8>,
    written: usize,
    outgoing: Outgoing,
    decoder: Decoder,
    list: HeaderList,
    /// Buffer for header blocks.
    block: Vec<u8>,
    window: Window,
    settings: settings::Settings,
    /// The last streams that the client opened, that hyper has, and that the guard responded to.
    last: u32,
    last_of_hyper: u32,
    last_answered: u32,
    /// False once one side is about to end the connection.
    answers: bool,
    failure: Option<ErrorCode>,
    /// Number of responses since hyper had its turn, and whether there was one since the connection rested.
    turn: usize,
    has_answered: bool,
    /// True if reading goes on when hyper or the guard has written.
    awaits_write: bool,
}

/// Result of looking at the next frame.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The frame is dealt with, or to be given to hyper.
    Done,
    /// The frame is incomplete.
    Incomplete,
    /// hyper must acknowledge the client's settings first.
    Unsettled,
    /// The client must read responses first.
    Full,
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Http2Responder + Unpin> Http2Guard<IO, R> {
    /// Creates a guard for a connection whose first bytes, `beginning`, have been read already.
    pub fn new(stream: IO, beginning: &[u8], responder: R, budget: &Arc<Budget>, shared: Shared) -> Self {
        Self {
            stream,
            responder,
            shared,
            budget: Arc::clone(budget),
            heads: Reservation::new(budget, Kind::Heads),
            unread: Reservation::new(budget, Kind::Unread),
            input: BytesMut::from(beginning),
            passing: PREFACE,
            for_hyper: Vec::new(),
            given: 0,
            output: Vec::new(),
            written: 0,
            outgoing: Outgoing::default(),
            decoder: Decoder::default(),
            list: HeaderList::default(),
            block: Vec::new(),
            window: Window::new(),
            settings: settings::Settings::default(),
            last: 0,
            last_of_hyper: 0,
            last_answered: 0,
            answers: true,
            failure: None,
            turn: 0,
            has_answered: false,
            awaits_write: false,
        }
    }

    /// Returns the reason if the guard ended the connection.
    pub fn failure(&self) -> Option<ErrorCode> {
        self.failure
    }

    /// Ends the output, stating the reason unless in the middle of a frame.
    ///
    /// # Errors
    /// If the client cannot be written to.
    pub async fn end(&mut self, code: ErrorCode) -> io::Result<()> {
        // A client that does not read this makes room for others.
        self.shared.place.connection().rests();
        if self.outgoing.is_between_frames() {
            append_goaway(&mut self.output, self.last, code);
            self.stream.write_all(&self.output[self.written..]).await?;
        }
        self.stream.shutdown().await
    }

    /// Looks at the next frame of the client, and deals with it or gives it to hyper.
    fn next_frame(&mut self) -> Result<Next, ErrorCode> {
        if self.window.has_untold() {
            let increment = self.window.tell().to_be_bytes();
            FrameHead::append(&mut self.for_hyper, WINDOW_UPDATE, 0, 0, &increment);
            return Ok(Next::Done);
        }
        let Some(head) = FrameHead::read(&self.input) else { return Ok(Next::Incomplete) };
        if head.length > MAX_PAYLOAD {
            return Err(ErrorCode::FrameSize);
        }
        // The settings come first (RFC 9113, section 3.4).
        if !self.settings.are_known() && (head.kind != SETTINGS || head.has(ACK)) {
            return Err(ErrorCode::Protocol);
        }
        let is_answered = head.stream > self.last_of_hyper && head.stream <= self.last;
        match head.kind {
            HEADERS => self.next_headers(head, is_answered),
            CONTINUATION | PUSH_PROMISE => Err(ErrorCode::Protocol),
            SETTINGS => self.next_settings(head),
            DATA if is_answered => Err(ErrorCode::StreamClosed),
            RST_STREAM if is_answered => Ok(self.skip_known(head, |payload| payload.len() == 4)),
            WINDOW_UPDATE if is_answered => Ok(self.skip_known(head, is_window_update)),
            RST_STREAM => {
                self.shared.interims.forget(head.stream);
                Ok(self.pass(head))
            }
            WINDOW_UPDATE if head.stream == 0 => self.next_window_update(head),
            GOAWAY => {
                self.answers = false;
                Ok(self.pass(head))
            }
            _ => Ok(self.pass(head)),
        }
    }

    /// Gives the frame to hyper as it is.
    fn pass(&mut self, head: FrameHead) -> Next {
        self.passing = HEAD + head.length;
        Next::Done
    }

    /// Drops the frame if it is valid; hyper rejects it otherwise.
    fn skip_known(&mut self, head: FrameHead, is_valid: impl FnOnce(&[u8]) -> bool) -> Next {
        let end = HEAD + head.length;
        let Some(payload) = self.input.get(HEAD..end) else { return Next::Incomplete };
        if !is_valid(payload) {
            return self.pass(head);
        }
        self.input.advance(end);
        Next::Done
    }

    /// Reads what the client grants for the connection.
    fn next_window_update(&mut self, head: FrameHead) -> Result<Next, ErrorCode> {
        let end = HEAD + head.length;
        let Some(payload) = self.input.get(HEAD..end) else { return Ok(Next::Incomplete) };
        if !is_window_update(payload) {
            return Ok(self.pass(head));
        }
        let increment = u32_at(payload, 0).unwrap_or_default() & MAX_31;
        self.window.granted(increment).map_err(|_| ErrorCode::FlowControl)?;
        self.input.advance(end);
        Ok(Next::Done)
    }

    /// Reads more bytes; 0 at the end of the connection.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < READ_SIZE / 8 {
            self.input.reserve(READ_SIZE);
        }
        poll_read_buf(Pin::new(&mut self.stream), context, &mut self.input)
    }

    /// Prepares for waiting until the client sends more.
    fn wait(&mut self) {
        if mem::take(&mut self.has_answered) && self.shared.in_progress.count() == 0 {
            self.shared.place.connection().rests();
        }
        self.turn = 0;
        if self.input.is_empty() && self.budget.connections.is_crowded() {
            (self.input, self.block) = (BytesMut::new(), Vec::new());
            self.list.shrink();
            self.decoder.shrink();
            if self.output.is_empty() {
                self.output = Vec::new();
            }
        }
    }

    fn has_output(&self) -> bool {
        self.written < self.output.len()
    }

    /// Returns true if so much waits to be written that the guard adds nothing to it.
    fn is_full(&self) -> bool {
        self.output.len() - self.written >= MAX_BATCH
    }

    /// Puts interim responses behind what waits to be written. A client that does not read may do without them.
    fn take_interims(&mut self) {
        for mut interim in self.shared.interims.take() {
            if self.is_full() {
                return;
            }
            if mem::take(&mut self.settings.must_empty_table) {
                interim.block.insert(0, hpack::EMPTY_TABLE);
            }
            append_block(&mut self.output, 0, interim.stream, &interim.block);
        }
    }

    /// Writes `output`; waits for hyper in the middle of a frame.
    fn poll_write_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if !self.outgoing.is_between_frames() {
            return Poll::Pending;
        }
        while self.has_output() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.output[self.written..]);
            let written = ready!(self.watched(written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.written = 0;
        self.output.clear();
        self.output.shrink_to(MAX_KEPT_BYTES);
        Poll::Ready(Ok(()))
    }

    /// Records whether the client reads what is sent.
    fn watched<T>(&mut self, written: Poll<T>) -> Poll<T> {
        let connection = self.shared.place.connection();
        let buffered = match (&written, connection.is_stalled()) {
            (Poll::Pending, _) => {
                connection.stalls();
                if self.has_output() { self.output.capacity() as u64 } else { 0 }
            }
            (Poll::Ready(_), true) if self.shared.in_progress.count() == 0 => {
                connection.rests();
                0
            }
            (Poll::Ready(_), true) => {
                connection.serves();
                0
            }
            (Poll::Ready(_), false) => return written,
        };
        if !self.unread.resize(buffered) {
            // The bytes exist already.
            self.unread.force(buffered);
            self.budget.end_overdraft();
        }
        written
    }

    /// Follows what hyper wrote.
    fn follow(&mut self, bytes: &[u8]) {
        let (window, settings) = (&mut self.window, &mut self.settings);
        self.outgoing.follow(bytes, |written| match written {
            outgoing::Written::Data(length) => window.hyper_sent(length),
            outgoing::Written::SettingsAck => settings.acknowledged(),
        });
    }

    /// Takes over a GOAWAY of hyper, so that it includes streams that hyper does not know. Returns the length of the frame, if it is
    /// complete.
    fn take_goaway(&mut self, bytes: &[u8]) -> Option<usize> {
        let head = FrameHead::read(bytes)?;
        let payload = bytes.get(HEAD..HEAD + head.length)?;
        let last = u32_at(payload, 0)?.max(self.last_answered);
        self.answers = false;
        self.output.extend_from_slice(&bytes[..HEAD]);
        self.output.extend_from_slice(&last.to_be_bytes());
        self.output.extend_from_slice(&payload[4..]);
        Some(HEAD + head.length)
    }

    /// Records that the guard responded to a request.
    fn answered(&mut self, stream: u32) {
        self.last_answered = stream;
        self.turn += 1;
        self.has_answered = true;
        if !self.shared.is_used.load(Ordering::Relaxed) {
            self.shared.is_used.store(true, Ordering::Relaxed);
        }
    }
}

fn is_window_update(payload: &[u8]) -> bool {
    payload.len() == 4 && u32_at(payload, 0).is_some_and(|increment| increment & MAX_31 > 0)
}
