//! The guarded connection as hyper reads and writes it.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{Http2Guard, Http2Responder, MAX_KEPT_BYTES, MAX_TURN, Next};

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Http2Responder + Unpin> Http2Guard<IO, R> {
    /// Gives hyper what is there for it.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        if self.given < self.for_hyper.len() {
            let rest = &self.for_hyper[self.given..];
            let length = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..length]);
            self.given += length;
            if self.given < self.for_hyper.len() {
                return;
            }
            self.for_hyper.clear();
            self.for_hyper.shrink_to(MAX_KEPT_BYTES);
            self.given = 0;
        }
        let length = self.passing.min(self.input.len()).min(buffer.remaining());
        buffer.put_slice(&self.input[..length]);
        self.input.advance(length);
        self.passing -= length;
    }

    fn poll_frames(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.last_of_hyper > 0 {
            self.shared.interims.wake_for_interim(context.waker());
            self.take_interims();
        }
        loop {
            self.give(buffer);
            let has_given = buffer.filled().len() > before;
            if buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.passing > 0 {
                if has_given {
                    return Poll::Ready(Ok(()));
                }
                if let Poll::Ready(written) = self.poll_write_own(context) {
                    written?;
                }
                let mut rest = (&mut self.stream).take(self.passing as u64);
                let Poll::Ready(read) = Pin::new(&mut rest).poll_read(context, buffer) else {
                    self.wait();
                    return Poll::Pending;
                };
                read?;
                self.passing -= buffer.filled().len() - before;
                return Poll::Ready(Ok(()));
            }
            let next = self.next_frame().map_err(|code| {
                self.failure = Some(code);
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the client's frames are rejected: {code:?}"),
                )
            })?;
            match next {
                Next::Done if self.turn < MAX_TURN => continue,
                _ if has_given => return Poll::Ready(Ok(())),
                Next::Done => {
                    self.turn = 0;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Next::Incomplete => {
                    if let Poll::Ready(written) = self.poll_write_own(context) {
                        written?;
                    }
                    match self.poll_fill(context) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                        Poll::Ready(filled) => drop(filled?),
                        Poll::Pending => {
                            self.wait();
                            return Poll::Pending;
                        }
                    }
                }
                Next::Full | Next::Unsettled => {
                    self.awaits_write = true;
                    ready!(self.poll_write_own(context))?;
                    if next == Next::Unsettled {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Goes on reading if that waited for a write, or if hyper must be told of its window.
    fn wake_reader(&mut self, context: &Context<'_>) {
        if mem::take(&mut self.awaits_write) || self.window.has_untold() {
            context.waker().wake_by_ref();
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Http2Responder + Unpin> AsyncRead for Http2Guard<IO, R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_frames(context, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Http2Responder + Unpin> AsyncWrite for Http2Guard<IO, R> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Those to a response that is among these bytes were sent before it was made.
        this.take_interims();
        if this.outgoing.is_between_frames() {
            ready!(this.poll_write_own(context))?;
        }
        let mut passable = this.outgoing.passable(bytes, this.has_output());
        if passable == 0 && !bytes.is_empty() {
            if let Some(taken) = this.take_goaway(bytes) {
                return Poll::Ready(Ok(taken));
            }
            passable = bytes.len();
        }
        let written = Pin::new(&mut this.stream).poll_write(context, &bytes[..passable]);
        let written = ready!(this.watched(written))?;
        this.follow(&bytes[..written]);
        this.wake_reader(context);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.take_interims();
        if this.outgoing.is_between_frames() {
            ready!(this.poll_write_own(context))?;
        }
        // Only the first slice has heads of frames; others have the rest of the last frame.
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        if this.has_output() || this.outgoing.passable(first, false) < first.len() {
            return Pin::new(this).poll_write(context, first);
        }
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        let written = ready!(this.watched(written))?;
        let mut left = written;
        for slice in slices {
            let taken = left.min(slice.len());
            this.follow(&slice[..taken]);
            left -= taken;
        }
        this.wake_reader(context);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_output() && this.outgoing.is_between_frames() {
            ready!(this.poll_write_own(context))?;
            this.wake_reader(context);
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.outgoing.is_between_frames() {
            ready!(this.poll_write_own(context))?;
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
