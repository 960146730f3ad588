//! Guard of an HTTP/1 connection: reads each request's head before hyper does.
//!
//! The guard serves the connection by itself as long as it can ([`Http1Guard::poll_alone`]):
//! - malformed and ambiguous requests are rejected ([`head`], [`framing`]),
//! - responses in memory are sent immediately ([`ImmediateResponder`]),
//! - other plain requests and their responses are driven from here ([`Exchange`]).
//!
//! From the first request on that needs hyper, hyper serves the connection, and the guard stands between hyper and the socket. Requests
//! that the guard can serve are still served by it, while hyper takes the connection for idle; others are handed to hyper, one whole
//! request at a time.
//!
//! # Guarantees
//! - Responses leave in the order of their requests: nothing is sent immediately while hyper has a request whose
//!   response has not been written and flushed.
//! - hyper is given exactly the bytes of one request, and the next ones after it has responded.
//! - Interim responses (1xx) leave before the final response.
//!
//! # Assumptions
//! The body of each of hyper's responses is a [`ReleasingBody`] of the connection's [`Handoff`]. hyper drops a body
//! when its last piece is in the write buffer, and flushes that buffer before it flushes the stream below.

use std::{
    io, mem,
    ops::Range,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use hyper::rt::ReadBufCursor;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Sleep,
};
use tokio_util::io::poll_read_buf;

use crate::budget::UNREAD;

mod alone;
mod aside;
mod exchange;
mod framing;
mod half_closed;
mod handoff;
mod head;
mod http2;
mod hyper_io;
mod request_error;
mod room;
#[cfg(test)]
mod tests;

pub use alone::Alone;
pub use aside::RawTarget;
use aside::{Aside, Respelled};
use exchange::InExchange;
pub use exchange::{Exchange, Part};
pub use framing::BodyKind;
use framing::Framing;
pub use handoff::{Handoff, ReleasingBody, fields_of_interim, write_fields, write_interim};
#[cfg(test)]
pub(crate) use head::with_valid_head;
pub use head::{Head, Lines};
pub(crate) use head::{MAX_LINES, MAX_TARGET, in_host};
use head::{Rewritten, Scan};
pub use http2::check_http2;
pub use request_error::RequestError;
use room::Room;

/// Maximum time from the first byte of a head to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum pause in a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which an idle connection ends; it may last twice as long, because idleness is measured in steps of this
/// length, so that a request costs no timer.
const IDLE_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Maximum time, and number of bytes, for which a rejected client's data is read and dropped, so that it can read the
/// error.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 256 << 10;
/// Size of a read in bytes.
const READ_SIZE: usize = 8 << 10;
/// Maximum number of bytes that are read ahead while hyper responds.
const MAX_EARLY: usize = READ_SIZE - READ_SIZE / 8;
/// Size of the part of a head that is read without a reservation in the memory budget.
const MAX_SMALL_HEAD: usize = 2 * READ_SIZE;
/// Number of bytes of immediate responses after which they are written.
const MAX_BATCH: usize = 64 << 10;

/// Returns the length of the request at the beginning of `bytes`, as a connection determines it piece by piece; `None`
/// if the request is incomplete. For tests.
///
/// # Errors
/// The reason, if the request is rejected.
pub fn request_length(bytes: &[u8]) -> Result<Option<usize>, RequestError> {
    if let Some(length) = head::empty_line(bytes) {
        return Ok(request_length(&bytes[length..])?.map(|rest| length + rest));
    }
    if head::end(bytes, 0).is_none() {
        return if bytes.len() > head::MAX_HEAD_BYTES { Err(RequestError::HeadTooLarge) } else { Ok(None) };
    }
    let scanned = head::scan(bytes, |head| head.check());
    if is_of_target(&scanned)
        && let Some(Respelled { place, spelled, .. }) = aside::spelled_for_hyper(bytes)
    {
        let respelled = [&bytes[..place.start], &spelled, &bytes[place.end..]].concat();
        let longer = spelled.len() - place.len();
        return Ok(request_length(&respelled)?.map(|length| length - longer));
    }
    let (head, mut framing) = match scanned {
        Scan::Head(length, framing) => (length, framing?),
        Scan::Refused(error) => return Err(error),
        Scan::Incomplete => return Err(RequestError::Syntax),
    };
    let body = framing.take(&bytes[head..])?;
    Ok(framing.has_ended().then_some(head + body))
}

/// Returns true if a head may be rejected only because of a byte in its target.
fn is_of_target<T>(scanned: &Scan<Result<T, RequestError>>) -> bool {
    matches!(scanned, Scan::Refused(RequestError::Syntax) | Scan::Head(_, Err(RequestError::Target)))
}

/// Responds to requests without hyper.
pub trait ImmediateResponder {
    /// An exchange that the guard drives.
    type Exchange: Exchange;

    /// Writes the whole response to a request without a body, and returns the part of its body that follows: a large one
    /// is not copied. Writes nothing and returns `None` if the request is for hyper.
    fn respond(&mut self, head: &Head<'_>, output: &mut Vec<u8>) -> Option<Bytes>;

    /// Begins the exchange of a valid request with such a body, or returns `None` if the request is for hyper.
    fn exchange(&mut self, head: &Head<'_>, body: BodyKind) -> Option<Self::Exchange>;

    /// Drops what was found out about a request that is for hyper.
    fn forget(&mut self) {}
}

/// A way to respond to a request.
enum Treatment<E> {
    /// The response was written, but for this part of its body.
    Responded(Bytes),
    /// An exchange that the guard drives.
    Exchange(E, Framing),
    /// hyper.
    Hyper(Framing, Option<Rewritten>),
}

/// An HTTP/1 connection: served by itself, or the stream that hyper reads and writes.
#[derive(Debug)]
pub struct Http1Guard<IO, A: ImmediateResponder> {
    stream: IO,
    responder: A,
    handoff: Arc<Handoff>,
    room: Room,
    /// Bytes read from the client and not yet given to hyper.
    input: BytesMut,
    /// Number of bytes of `input` that are known not to contain the end of a head.
    searched: usize,
    /// Bytes to be written before `output_body`, of which `written` have been.
    output: Vec<u8>,
    written: usize,
    output_body: Bytes,
    turn: Turn<A::Exchange>,
    /// True if everything that hyper wrote is flushed.
    flushed: bool,
    /// True once the client has closed its side.
    is_half_closed: bool,
    /// Maximum time without a byte of the current response for which a client that has closed its side counts as present.
    half_closed_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Timer of the current idle step, and whether a head has arrived during it.
    idle: Option<Pin<Box<Sleep>>>,
    used: bool,
    idle_step: Duration,
}

/// The side that acts next.
#[derive(Debug)]
enum Turn<E> {
    /// The client: a head is next.
    Head,
    /// hyper: the rest of a head, of this length, then the body.
    Giving(usize, Framing),
    /// hyper: the body.
    Body(Framing),
    /// hyper: the response to a request that it has completely.
    Answering,
    /// Neither: the guard itself drives a request and its response.
    Exchange(InExchange<E>),
    /// Neither: the protocol has changed, and all bytes pass.
    Raw,
    /// Neither: the client was rejected, and up to this many bytes of it are dropped.
    Refused(usize),
}

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> Http1Guard<IO, A> {
    /// Creates a guard for a connection whose first bytes, `beginning`, have been read already.
    pub fn new(stream: IO, beginning: &[u8], responder: A, handoff: Arc<Handoff>) -> Self {
        Self {
            stream,
            responder,
            room: Room::new(&handoff.budget, &handoff.connection),
            handoff,
            input: BytesMut::from(beginning),
            searched: 0,
            output: Vec::new(),
            written: 0,
            output_body: Bytes::new(),
            turn: Turn::Head,
            flushed: true,
            is_half_closed: false,
            half_closed_timeout: half_closed::RESPONSE_TIMEOUT,
            timer: None,
            idle: None,
            used: false,
            idle_step: IDLE_INTERVAL,
        }
    }

    /// Reads more bytes; 0 at the end of the connection.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < READ_SIZE / 8 {
            self.input.reserve(READ_SIZE);
        }
        poll_read_buf(Pin::new(&mut self.stream), context, &mut self.input)
    }

    /// Returns true if the memory budget has room for the next read of a head, twice because hyper copies it.
    fn has_room(&mut self) -> bool {
        let length = self.input.len() + READ_SIZE;
        length <= MAX_SMALL_HEAD || self.room.make(2 * length)
    }

    /// Marks the connection as waiting in the middle of a head; returns false if there is no room for that.
    fn may_wait(&mut self) -> bool {
        self.handoff.connection.reads_head();
        !self.handoff.connection.must_leave() && (self.room.is_taken() || self.room.make(READ_SIZE))
    }

    /// Marks the connection as waiting between requests; returns false if there is no room for that.
    fn may_rest(&mut self) -> bool {
        if self.room.is_taken() || self.handoff.budget.connections.is_crowded() {
            self.room.clear();
        }
        let connection = &self.handoff.connection;
        connection.rests();
        !connection.must_leave() && !connection.ends_when_idle()
    }

    /// Records whether the client reads its responses; `buffered` bytes wait behind the write.
    fn watched<T>(&mut self, written: Poll<T>, buffered: u64) -> Poll<T> {
        if self.is_half_closed && written.is_ready() {
            self.extend_half_closed();
        }
        let connection = &self.handoff.connection;
        match (&written, connection.is_stalled()) {
            (Poll::Pending, false) => {
                connection.stalls();
                self.room.hold_unread(buffered);
            }
            (Poll::Ready(_), true) => {
                connection.serves();
                self.room.hold_unread(0);
            }
            (Poll::Pending, true) | (Poll::Ready(_), false) => {}
        }
        written
    }

    /// Returns true once `time` has passed since the first call.
    fn is_over(&mut self, time: Duration, context: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        timer.as_mut().poll(context).is_ready()
    }

    /// Returns true if the idle connection has been idle for too long.
    fn is_forgotten(&mut self, context: &mut Context<'_>) -> bool {
        match &self.idle {
            Some(timer) if !timer.is_elapsed() => return false,
            Some(_) if !mem::take(&mut self.used) => return true,
            _ => self.used = false,
        }
        let timer = self.idle.insert(Box::pin(tokio::time::sleep(self.idle_step)));
        // Polled exactly once, outside the task's budget: the task never changes, so the timer wakes it.
        let mut timer = pin!(tokio::task::unconstrained(timer.as_mut()));
        let _ = timer.as_mut().poll(context);
        false
    }

    /// Reads the head at the beginning of `input`, and responds immediately if possible.
    fn next_head(&mut self) -> Scan<Turn<A::Exchange>> {
        while let Some(length) = head::empty_line(&self.input) {
            self.input.advance(length);
            self.searched = 0;
            self.timer = None;
        }
        if self.input.is_empty() || self.searched > 0 && head::end(&self.input, self.searched).is_none() {
            return self.incomplete_head();
        }
        let (responder, output) = (&mut self.responder, &mut self.output);
        let half_closed_timeout = &mut self.half_closed_timeout;
        let mut scanned = head::scan(&self.input, |head| {
            head.check_first()?;
            if let Some(body) = responder.respond(head, output) {
                return Ok(Treatment::Responded(body));
            }
            let framing = head.check_rest()?;
            *half_closed_timeout = half_closed::timeout_of(head.method);
            Ok(match responder.exchange(head, framing.kind()) {
                Some(exchange) => Treatment::Exchange(exchange, framing),
                None => Treatment::Hyper(framing, head.rewritten()),
            })
        });
        // Most heads arrive at once: the end of one is looked for only if it is not found by reading it.
        if !matches!(scanned, Scan::Head(..)) && self.searched == 0 && head::end(&self.input, 0).is_none() {
            return self.incomplete_head();
        }
        self.searched = 0;
        self.used = true;
        let mut raw_target = None;
        if is_of_target(&scanned)
            && let Some(Respelled { place, spelled, raw }) = aside::spelled_for_hyper(&self.input)
        {
            raw_target = Some(raw);
            self.replace(place, &spelled);
            scanned = head::scan(&self.input, |head| {
                self.half_closed_timeout = half_closed::timeout_of(head.method);
                head.check().map(|framing| Treatment::Hyper(framing, head.rewritten()))
            });
        }
        match scanned {
            Scan::Head(mut length, Ok(Treatment::Hyper(framing, rewritten))) => {
                let mut expectations = Vec::new();
                if let Some(rewritten) = rewritten {
                    self.replace(0..length, &rewritten.head);
                    (length, expectations) = (rewritten.head.len(), rewritten.expectations);
                }
                self.responder.forget();
                self.handoff.begin(Aside { target: raw_target, expectations });
                Scan::Head(length, Turn::Giving(length, framing))
            }
            Scan::Head(length, Ok(Treatment::Responded(body))) => {
                self.input.advance(length);
                self.output_body = body;
                Scan::Head(length, Turn::Head)
            }
            Scan::Head(length, Ok(Treatment::Exchange(exchange, framing))) => {
                self.input.advance(length);
                self.handoff.begins_exchange();
                Scan::Head(length, Turn::Exchange(InExchange::new(exchange, framing)))
            }
            Scan::Head(_, Err(error)) | Scan::Refused(error) => Scan::Refused(error),
            Scan::Incomplete => Scan::Refused(RequestError::Syntax),
        }
    }

    /// Records that the input has no end of a head.
    fn incomplete_head<T>(&mut self) -> Scan<T> {
        self.searched = self.input.len();
        match self.searched > head::MAX_HEAD_BYTES {
            true => Scan::Refused(RequestError::HeadTooLarge),
            false => Scan::Incomplete,
        }
    }

    /// Replaces a range of `input`.
    fn replace(&mut self, place: Range<usize>, bytes: &[u8]) {
        let rest = self.input.split_off(place.end);
        self.input.truncate(place.start);
        self.input.extend_from_slice(bytes);
        self.input.unsplit(rest);
    }

    /// Waits for the client's next head.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Turn<A::Exchange>>>> {
        loop {
            let error = match self.next_head() {
                Scan::Head(_, Turn::Head) => {
                    self.timer = None;
                    if !self.output_body.is_empty() || self.output.len() >= MAX_BATCH {
                        return Poll::Ready(Ok(Some(Turn::Head)));
                    }
                    continue;
                }
                Scan::Head(_, turn) => {
                    self.timer = None;
                    return Poll::Ready(Ok(Some(turn)));
                }
                Scan::Refused(error) => error,
                Scan::Incomplete if !self.output.is_empty() => return Poll::Ready(Ok(Some(Turn::Head))),
                Scan::Incomplete if !self.has_room() => RequestError::Overloaded,
                Scan::Incomplete => match self.poll_fill(context) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_)) => continue,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if !self.input.is_empty() && !self.may_wait() => RequestError::Overloaded,
                    Poll::Pending if !self.input.is_empty() => {
                        if !self.is_over(HEAD_TIMEOUT, context) {
                            return Poll::Pending;
                        }
                        RequestError::TooSlow
                    }
                    Poll::Pending if !self.may_rest() => return Poll::Ready(Ok(None)),
                    Poll::Pending if self.is_forgotten(context) => return Poll::Ready(Ok(None)),
                    Poll::Pending => return Poll::Pending,
                },
            };
            self.handoff.refuse(error);
            self.output.extend_from_slice(&error.answer());
            self.input = BytesMut::new();
            self.room.clear();
            self.timer = None;
            // A connection that has to make room does so immediately.
            let linger = if error == RequestError::Overloaded { 0 } else { MAX_LINGER_BYTES };
            return Poll::Ready(Ok(Some(Turn::Refused(linger))));
        }
    }

    /// Waits for hyper's response. Until then the client may only close its side, or send its next request too early.
    fn poll_answering(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Turn<A::Exchange>>>> {
        if self.handoff.has_changed_protocol() {
            return Poll::Ready(Ok(Some(Turn::Raw)));
        }
        if self.flushed && self.handoff.has_answered() {
            self.timer = None;
            return Poll::Ready(Ok(Some(Turn::Head)));
        }
        self.handoff.wake_for_interim(context.waker());
        while self.input.len() < MAX_EARLY {
            if ready!(self.poll_fill(context))? == 0 {
                return self.poll_left(context);
            }
        }
        // The task is woken when the response is flushed.
        Poll::Pending
    }

    /// Drops a rejected client's data until it has read the error, or for a limited time.
    fn poll_linger(&mut self, mut left: usize, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The client may be gone already.
        let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(context));
        while left > 0 && !self.is_over(LINGER_TIMEOUT, context) {
            self.input.clear();
            match ready!(self.poll_fill(context)) {
                Ok(0) | Err(_) => break,
                Ok(read) => left = left.saturating_sub(read),
            }
            self.turn = Turn::Refused(left);
        }
        self.turn = Turn::Refused(0);
        Poll::Ready(Ok(()))
    }

    /// Writes `output` and `output_body`.
    fn poll_write_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handoff.take_interim(&mut self.output);
        if self.output.is_empty() && self.output_body.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let unread = if self.handoff.is_in_exchange() { UNREAD } else { 0 };
        while self.written < self.output.len() || !self.output_body.is_empty() {
            let (stream, own) = (Pin::new(&mut self.stream), &self.output[self.written..]);
            let written = if self.output_body.is_empty() {
                stream.poll_write(context, own)
            } else {
                let slices = [io::IoSlice::new(own), io::IoSlice::new(&self.output_body)];
                stream.poll_write_vectored(context, &slices)
            };
            let own = own.len();
            let written = ready!(self.watched(written, unread))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_own = written.min(own);
            self.written += of_own;
            self.output_body.advance(written - of_own);
        }
        (self.written, self.output_body) = (0, Bytes::new());
        self.output.clear();
        Poll::Ready(Ok(()))
    }

    fn give(&mut self, most: usize, cursor: &mut ReadBufCursor<'_>) -> usize {
        let length = most.min(cursor.remaining());
        cursor.put_slice(&self.input[..length]);
        self.input.advance(length);
        length
    }
}
