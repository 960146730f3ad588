//! A connection to the application.

use std::{
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use socket2::SockRef;
use tokio::{
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};
use tokio_util::io::poll_read_buf;

use crate::spare;

/// A connection that serves one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    reader: OwnedReadHalf,
    /// The other half, unless a task of its own writes the rest of a request.
    pub(super) writer: Option<OwnedWriteHalf>,
    /// Bytes that were received and not yet understood.
    pub(super) input: BytesMut,
    /// Time since which the connection has been idle.
    pub(super) since: Instant,
    /// Number of times that it began to be idle.
    rests: u32,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader, writer: Some(writer), input: BytesMut::new(), since: Instant::now(), rests: 0 }
    }

    /// Reads into the input, which gets room for so many bytes once there are any. Returns 0 at the end of the stream.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        spare::take(&mut self.input);
        // No buffer is made while the application takes its time.
        if !self.input.try_reclaim(room) {
            let readiness = self.reader.as_ref().poll_read_ready(context);
            if readiness.is_pending() {
                spare::give_back(&mut self.input);
            }
            ready!(readiness)?;
            self.input.reserve(room);
        }
        let read = poll_read_buf(Pin::new(&mut self.reader), context, &mut self.input);
        if read.is_pending() {
            spare::give_back(&mut self.input);
        }
        read
    }

    /// Appends at most so many bytes to `output`, without a copy of those that have not been received yet. Returns 0 at the end of the
    /// stream.
    pub(super) fn poll_append(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.input.is_empty() {
            let count = self.input.len().min(most);
            output.extend_from_slice(&self.input[..count]);
            self.input.advance(count);
            return Poll::Ready(Ok(count));
        }
        if output.capacity() - output.len() < most {
            ready!(self.reader.as_ref().poll_read_ready(context))?;
            output.reserve_exact(most);
        }
        poll_read_buf(Pin::new(&mut self.reader), context, &mut output.limit(most))
    }

    /// Begins to be idle.
    pub(super) fn rest(&mut self) {
        spare::give_back(&mut self.input);
        self.since = Instant::now();
        self.rests = self.rests.saturating_add(1);
    }

    /// Returns true if the application has kept the connection open between two requests before.
    pub(super) fn is_proven(&self) -> bool {
        self.rests > 1
    }

    /// Returns true if an idle connection is open and has received nothing, as far as the runtime has heard. With `asks_kernel`, the
    /// kernel is asked as well.
    pub(super) fn is_quiet(&self, asks_kernel: bool) -> bool {
        let stream = self.reader.as_ref();
        let mut byte = [0];
        let heard = stream.try_read(&mut byte);
        has_nothing(&heard) && (!asks_kernel || has_nothing(&(&*SockRef::from(stream)).read(&mut byte)))
    }

    /// Returns the stream, and the bytes received from it; `None` if a task of its own writes the rest of a request.
    pub(super) fn into_parts(self) -> Option<(TcpStream, BytesMut)> {
        let stream = self.reader.reunite(self.writer?).ok()?;
        Some((stream, self.input))
    }
}

fn has_nothing(read: &io::Result<usize>) -> bool {
    read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::*;

    async fn connected() -> (Connection, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (application, _) = listener.accept().unwrap();
        (Connection::new(stream), application)
    }

    #[tokio::test]
    async fn closed_connection_is_found_closed_before_the_runtime_hears_of_it() {
        let (connection, application) = connected().await;
        assert!(connection.is_quiet(true));
        drop(application);
        assert!(!connection.is_quiet(true));
    }

    #[tokio::test]
    async fn bytes_before_a_request_are_found() {
        let (connection, mut application) = connected().await;
        application.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap();
        assert!(!connection.is_quiet(true));
    }

    #[tokio::test]
    async fn end_that_the_runtime_has_heard_of_is_found_without_the_kernel() {
        let (connection, application) = connected().await;
        assert!(connection.is_quiet(false));
        drop(application);
        connection.reader.as_ref().readable().await.unwrap();
        assert!(!connection.is_quiet(false));
    }
}
