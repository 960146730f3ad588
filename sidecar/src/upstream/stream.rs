//! The byte stream of a connection to an HTTP source.
//!
//! Each response head is parsed here before hyper reads it ([`head`]).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::head::{self, HeadError, MAX_HEAD};

/// Minimum number of bytes to read at once while a head arrives.
const READ_SIZE: usize = 8 << 10;

/// Maximum length of a piece of a body, in bytes.
///
/// Less than a power of two, because hyper doubles its buffer after a read that fills it, and each piece retains its buffer: a
/// piece of 16 KiB would take 32 KiB.
const MAX_PIECE: usize = 15 << 10;

/// A connection to a server, as hyper reads and writes it.
///
/// # Assumptions
/// No request has the method HEAD, and each is written before its response begins.
#[derive(Debug)]
pub(crate) struct ResponseStream<IO> {
    stream: IO,
    is_http1: bool,
    state: State,
    /// Parsed bytes that hyper has not read yet.
    understood: BytesMut,
}

#[derive(Debug)]
enum State {
    /// The next bytes belong to a body, or none are expected.
    Passing,
    /// The next bytes belong to a head.
    Head { bytes: BytesMut, searched: usize },
}

impl<T: Connection> Connection for ResponseStream<TokioIo<T>> {
    fn connected(&self) -> Connected {
        self.stream.inner().connected()
    }
}

impl<IO> ResponseStream<IO> {
    /// Wraps a connection; one of HTTP/2 is left as it is.
    pub(crate) fn new(stream: IO, is_http1: bool) -> Self {
        Self { stream, is_http1, state: State::Passing, understood: BytesMut::new() }
    }

    /// Records that bytes of a request were written: a head is expected next.
    fn begin_request(&mut self) {
        if self.is_http1 && matches!(self.state, State::Passing) {
            self.state = State::Head { bytes: BytesMut::new(), searched: 0 };
        }
    }

    /// Reads until a head is complete, and parses it.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncRead + Unpin,
    {
        let State::Head { bytes, searched } = &mut self.state else { return Poll::Ready(Ok(())) };
        loop {
            let empty_lines = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if *searched == 0 {
                bytes.advance(empty_lines);
            }
            if let Some(end) = head::end(bytes, *searched) {
                let raw = bytes.split_to(end);
                let understood = head::understand(&raw, false).map_err(invalid)?;
                self.understood.extend_from_slice(&understood.bytes);
                *searched = 0;
                if !matches!(understood.status, 100 | 102..=199) {
                    self.understood.unsplit(bytes.split());
                    self.state = State::Passing;
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

fn invalid(error: HeadError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<IO: AsyncRead + Unpin> AsyncRead for ResponseStream<IO> {
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
        if buffer.remaining() <= MAX_PIECE {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(MAX_PIECE));
        let read = Pin::new(&mut this.stream).poll_read(context, &mut piece);
        let count = piece.filled().len();
        buffer.advance(count);
        read
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
