//! The guarded connection as hyper reads and writes it.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Alone, BODY_TIMEOUT, Http1Guard, ImmediateResponder, RequestError, Turn, half_closed::RESPONSE_TIMEOUT,
};
use crate::budget::UNREAD;

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> hyper::rt::Read
    for Http1Guard<IO, A>
{
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Alone::Ended = ready!(this.poll_alone(context))? {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_write_own(context))?;
            let next = match &mut this.turn {
                Turn::Head | Turn::Exchange(_) | Turn::Refused(_) => continue,
                Turn::Giving(head, framing) => {
                    let (head, framing) = (*head, framing.clone());
                    let given = this.give(head, &mut cursor);
                    this.turn = match (head - given, framing.has_ended()) {
                        (0, true) => Turn::Answering,
                        (0, false) => Turn::Body(framing),
                        (left, _) => Turn::Giving(left, framing),
                    };
                    return Poll::Ready(Ok(()));
                }
                Turn::Body(_) if this.input.is_empty() => match this.poll_fill(context) {
                    Poll::Ready(filled) => {
                        this.timer = None;
                        if filled? == 0 {
                            return Poll::Ready(Ok(()));
                        }
                        continue;
                    }
                    Poll::Pending if this.is_over(BODY_TIMEOUT, context) => {
                        this.handoff.refuse(RequestError::TooSlow);
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    Poll::Pending => {
                        this.handoff.wake_for_interim(context.waker());
                        return Poll::Pending;
                    }
                },
                Turn::Body(framing) => {
                    let room = this.input.len().min(cursor.remaining());
                    let taken = framing.take(&this.input[..room]).map_err(|error| {
                        this.handoff.refuse(error);
                        io::Error::new(io::ErrorKind::InvalidData, error.detail())
                    })?;
                    let has_ended = framing.has_ended();
                    this.give(taken, &mut cursor);
                    if has_ended {
                        this.turn = Turn::Answering;
                    }
                    return Poll::Ready(Ok(()));
                }
                Turn::Answering => ready!(this.poll_answering(context))?,
                Turn::Raw => {
                    if this.input.is_empty() {
                        ready!(this.poll_fill(context))?;
                    }
                    this.give(this.input.len(), &mut cursor);
                    return Poll::Ready(Ok(()));
                }
            };
            match next {
                Some(turn) => this.turn = turn,
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> hyper::rt::Write
    for Http1Guard<IO, A>
{
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Set even if nothing can be written now, because hyper may have dropped the body.
        this.flushed = false;
        this.half_closed_timeout = RESPONSE_TIMEOUT;
        ready!(this.poll_write_own(context))?;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watched(written, UNREAD)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Set even if nothing can be written now, because hyper may have dropped the body.
        this.flushed = false;
        this.half_closed_timeout = RESPONSE_TIMEOUT;
        ready!(this.poll_write_own(context))?;
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.watched(written, UNREAD)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_own(context))?;
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        let was_flushed = mem::replace(&mut this.flushed, true);
        let is_answering = matches!(this.turn, Turn::Answering);
        let is_answered = is_answering && this.handoff.has_answered();
        // hyper waits for the stream to become readable, but the next request may have been read already. Otherwise the
        // connection rests from now on, which only a read records.
        // Of a client that has closed its side, the time without a response counts from now on.
        if is_answered || is_answering && this.is_half_closed && !was_flushed {
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_own(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
