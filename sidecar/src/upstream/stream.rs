//! The byte stream of an HTTP/1 connection to the application or to an HTTP source.
//!
//! Each response head is parsed here before hyper reads it ([`head`]). A connection that the application has closed is detected
//! before a request is written to it, even if the kernel has not yet notified the runtime.

use std::{
    io::{self, IoSlice, Read},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};
use tokio_util::io::poll_read_buf;

use super::head::{self, HeadError, MAX_HEAD};
use crate::{
    budget::{Budget, Reservation},
    head_room::{self, HeadRoom},
};

/// Minimum number of bytes to read at once while a head arrives.
const READ_SIZE: usize = 8 << 10;

/// Maximum time that a large head waits for memory, and the interval of its attempts.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// Announcement of a request by its sender, before it is written to the connection, and the memory of its response head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Announcement(Arc<Announced>);

#[derive(Debug, Default)]
struct Announced {
    request: AtomicU8,
    budget: Option<Arc<Budget>>,
    room: Mutex<Option<HeadRoom>>,
}

const NONE: u8 = 0;
const TO_HEAD: u8 = 1;
const TO_OTHER: u8 = 2;
const ALWAYS: u8 = 3;

impl Announcement {
    /// Announces every request of a connection that has no HEAD requests and on which each request is written before its response
    /// begins.
    pub(crate) fn always() -> Self {
        Self(Arc::new(Announced { request: AtomicU8::new(ALWAYS), ..Announced::default() }))
    }

    /// Creates an empty announcement. Large response heads take memory from `budget`.
    pub(super) fn within(budget: &Arc<Budget>) -> Self {
        Self(Arc::new(Announced { budget: Some(Arc::clone(budget)), ..Announced::default() }))
    }

    /// Takes the memory that was reserved for a large response head.
    pub(super) fn take_room(&self) -> Option<HeadRoom> {
        self.0.room.lock().take()
    }

    fn leave_room(&self, room: HeadRoom) {
        *self.0.room.lock() = Some(room);
    }

    /// Announces a request, and states whether its method is HEAD.
    pub(super) fn announce(&self, is_head: bool) {
        self.0.request.store(if is_head { TO_HEAD } else { TO_OTHER }, Ordering::Release);
    }

    fn is_made(&self) -> bool {
        matches!(self.0.request.load(Ordering::Acquire), TO_HEAD | TO_OTHER)
    }

    /// Takes the announcement; true if the method of the request is HEAD.
    fn take(&self) -> Option<bool> {
        if self.0.request.load(Ordering::Acquire) == ALWAYS {
            return Some(false);
        }
        match self.0.request.swap(NONE, Ordering::AcqRel) {
            NONE => None,
            announced => Some(announced == TO_HEAD),
        }
    }
}

/// Maximum length of a piece of a body, in bytes. A client that does not read blocks a few of them.
///
/// Less than a power of two, because hyper doubles its buffer after a read that fills it, and each piece retains its buffer: a
/// piece of 16 KiB would take 32 KiB.
const MAX_PIECE: usize = 15 << 10;

/// A connection to the application.
pub(super) type ApplicationStream = ResponseStream<TcpStream>;

/// A connection to a server, as hyper reads and writes it.
#[derive(Debug)]
pub(crate) struct ResponseStream<IO> {
    stream: IO,
    announced: Announcement,
    state: State,
    /// Parsed bytes that hyper has not read yet.
    understood: BytesMut,
    /// Memory reserved for a large head that is arriving.
    room: Option<Reservation>,
    /// Time since which no memory was available, and time of the next attempt.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

#[derive(Debug)]
enum State {
    /// The next bytes belong to a body, or none are expected.
    Passing,
    /// The next bytes belong to a head.
    Head { to_head: bool, bytes: BytesMut, searched: usize },
}

/// A stream whose state can be read from the kernel directly, without the runtime.
pub(crate) trait ReadAtOnce {
    /// Reads from the kernel directly, which reveals a closed connection and data that was not requested.
    fn read_at_once(&self, _buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl<T> ReadAtOnce for TokioIo<T> {}

impl ReadAtOnce for TcpStream {
    fn read_at_once(&self, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 64];
        let room = buffer.remaining().min(bytes.len());
        match (&*SockRef::from(self)).read(&mut bytes[..room]) {
            Ok(count) => {
                buffer.put_slice(&bytes[..count]);
                Poll::Ready(Ok(()))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<T: Connection> Connection for ResponseStream<TokioIo<T>> {
    fn connected(&self) -> Connected {
        self.stream.inner().connected()
    }
}

impl<IO> ResponseStream<IO> {
    pub(crate) fn new(stream: IO, announced: Announcement) -> Self {
        Self {
            stream,
            announced,
            state: State::Passing,
            understood: BytesMut::new(),
            room: None,
            waiting: None,
        }
    }

    /// Records that the first bytes of an announced request were written: a head is expected next.
    fn begin_request(&mut self) {
        if matches!(self.state, State::Passing)
            && let Some(to_head) = self.announced.take()
        {
            self.state = State::Head { to_head, bytes: BytesMut::new(), searched: 0 };
        }
    }

    /// Reads until a head is complete, and parses it.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncRead + Unpin,
    {
        let State::Head { to_head, bytes, searched } = &mut self.state else { return Poll::Ready(Ok(())) };
        loop {
            let empty_lines = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if *searched == 0 {
                bytes.advance(empty_lines);
            }
            if let Some(end) = head::end(bytes, *searched) {
                let raw = bytes.split_to(end);
                let understood = head::understand(&raw, *to_head).map_err(invalid)?;
                self.understood.extend_from_slice(&understood.bytes);
                *searched = 0;
                let room = self.room.take().map(|room| HeadRoom::of(room, end));
                if !matches!(understood.status, 100 | 102..=199) {
                    self.understood.unsplit(bytes.split());
                    self.state = State::Passing;
                    room.into_iter().for_each(|room| self.announced.leave_room(room));
                }
                return Poll::Ready(Ok(()));
            }
            if !head::may_begin(bytes) {
                return Poll::Ready(Err(invalid(HeadError::StatusLine)));
            }
            *searched = bytes.len();
            if bytes.len() > MAX_HEAD {
                return Poll::Ready(Err(invalid(HeadError::TooLarge)));
            }
            if bytes.len() > head_room::SMALL
                && self.room.is_none()
                && let Some(budget) = &self.announced.0.budget
            {
                self.room = Some(ready!(poll_room(budget, &mut self.waiting, context))?);
            }
            bytes.reserve(READ_SIZE);
            if ready!(poll_read_buf(Pin::new(&mut self.stream), context, bytes))? == 0 {
                // hyper reports an incomplete message if it has received a part of one.
                self.understood.unsplit(bytes.split());
                self.state = State::Passing;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Reserves memory for a head, or waits for it without reading any further.
fn poll_room(
    budget: &Arc<Budget>,
    waiting: &mut Option<(Instant, Pin<Box<Sleep>>)>,
    context: &mut Context<'_>,
) -> Poll<io::Result<Reservation>> {
    loop {
        if let Some(room) = HeadRoom::reserve(budget, MAX_HEAD) {
            *waiting = None;
            return Poll::Ready(Ok(room));
        }
        let (since, timer) = waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(ROOM_INTERVAL))));
        if since.elapsed() >= ROOM_TIMEOUT {
            return Poll::Ready(Err(invalid(HeadError::NoRoom)));
        }
        ready!(timer.as_mut().poll(context));
        timer.as_mut().reset(Instant::now() + ROOM_INTERVAL);
    }
}

fn invalid(error: HeadError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<IO: AsyncRead + ReadAtOnce + Unpin> AsyncRead for ResponseStream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.understood.is_empty() {
            ready!(this.poll_head(context))?;
        }
        if !this.understood.is_empty() {
            let count = buffer.remaining().min(this.understood.len());
            buffer.put_slice(&this.understood.split_to(count));
            if this.understood.is_empty() {
                this.understood = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let read = if buffer.remaining() > MAX_PIECE {
            let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(MAX_PIECE));
            let read = Pin::new(&mut this.stream).poll_read(context, &mut piece);
            let count = piece.filled().len();
            buffer.advance(count);
            read
        } else {
            Pin::new(&mut this.stream).poll_read(context, buffer)
        };
        match read {
            Poll::Pending if this.announced.is_made() => this.stream.read_at_once(buffer),
            read => read,
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ResponseStream<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begin_request();
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begin_request();
        Pin::new(&mut this.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Write, net::TcpListener};

    use super::*;

    async fn connected() -> (ApplicationStream, std::net::TcpStream, Announcement) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (application, _) = listener.accept().unwrap();
        let announcement = Announcement::default();
        (ApplicationStream::new(stream, announcement.clone()), application, announcement)
    }

    /// Reads before the runtime has polled the kernel.
    async fn read_now(stream: &mut ApplicationStream) -> Option<Vec<u8>> {
        let mut bytes = [0; 64];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = poll_fn(|context| Poll::Ready(Pin::new(&mut *stream).poll_read(context, &mut buffer)));
        match read.await {
            Poll::Ready(outcome) => outcome.map(|()| Some(buffer.filled().to_vec())).unwrap(),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_closed_connection_is_found_closed_before_the_runtime_hears_of_it() {
        let (mut stream, application, announcement) = connected().await;
        announcement.announce(false);
        assert_eq!(read_now(&mut stream).await, None);
        drop(application);
        assert_eq!(read_now(&mut stream).await, Some(vec![]));
    }

    #[tokio::test]
    async fn bytes_before_a_request_are_no_head() {
        let (mut stream, mut application, announcement) = connected().await;
        assert_eq!(read_now(&mut stream).await, None);
        let unasked = b"HTTP/1.1 408 Request Timeout\r\n\r\n";
        application.write_all(unasked).unwrap();
        announcement.announce(false);
        assert_eq!(read_now(&mut stream).await.as_deref(), Some(&unasked[..]));
    }
}
