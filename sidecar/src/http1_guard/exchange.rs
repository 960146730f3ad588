//! Exchanges that the guard drives itself, without hyper: a request and its response.
//!
//! Both directions go on by themselves: a client may read nothing before it has sent its request, and an application may respond
//! before it has read the request.

use std::{
    fmt, io, mem,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    BODY_TIMEOUT, Http1Guard, ImmediateResponder, MAX_EARLY, MAX_LINGER_BYTES, RequestError, Turn,
    framing::Framing, half_closed::RESPONSE_TIMEOUT,
};

/// A request and its response, which comes from the application or from elsewhere. Dropped when its client has left.
///
/// The methods for the request's body and for sending it need no code where requests have no body and are not sent as they are.
pub trait Exchange: fmt::Debug + Unpin {
    /// Returns true if more of the request's body may be added.
    fn has_room(&self) -> bool {
        true
    }

    /// Adds a piece of the request's body.
    fn add(&mut self, _piece: &[u8]) {}

    /// Ends the request's body.
    fn complete(&mut self) {}

    /// Ends a request whose body was rejected.
    fn reject(&mut self, _error: RequestError) {}

    /// Sends as much of the request as there is.
    fn send(&mut self, _context: &mut Context<'_>) {}

    /// Returns true if all of the request was sent, or can't be.
    fn has_sent(&self) -> bool {
        true
    }

    /// Goes on while earlier responses are unwritten: with what needs no room in the output, and for which others may wait.
    fn prepare(&mut self, _context: &mut Context<'_>) {}

    /// Appends the next part of the response to `output`, and returns what follows that: a large piece is not copied.
    ///
    /// # Errors
    /// If the response breaks off, so that the client's connection must be cut.
    fn poll(&mut self, context: &mut Context<'_>, output: &mut Vec<u8>) -> Poll<io::Result<Part>>;
}

/// A part of a response.
#[derive(Debug)]
pub enum Part {
    /// One that others follow.
    More(Bytes),
    /// The last one. The connection ends after it if this is true.
    Last(Bytes, bool),
}

/// An exchange, and how far its client's connection has come.
#[derive(Debug)]
pub(super) struct InExchange<E> {
    exchange: E,
    /// The part of the request's body that is still to come.
    framing: Framing,
    /// True once the body was rejected: no more of it is read.
    is_rejected: bool,
    /// Set once the response has ended: true if the connection ends after it.
    ends: Option<bool>,
}

impl<E: Exchange> InExchange<E> {
    pub(super) fn new(exchange: E, framing: Framing) -> Self {
        Self { exchange, framing, is_rejected: false, ends: None }
    }

    fn reads_body(&self) -> bool {
        !self.is_rejected && !self.framing.has_ended()
    }

    fn reject(&mut self, error: RequestError) {
        self.is_rejected = true;
        self.exchange.reject(error);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> Http1Guard<IO, A> {
    /// Drives the exchange to its end.
    pub(super) fn poll_exchange(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Turn<A::Exchange>>>> {
        let Turn::Exchange(mut current) = mem::replace(&mut self.turn, Turn::Head) else {
            return Poll::Ready(Ok(Some(Turn::Head)));
        };
        let Poll::Ready(outcome) = self.poll_both(&mut current, context) else {
            self.turn = Turn::Exchange(current);
            return Poll::Pending;
        };
        self.handoff.ends_exchange();
        self.timer = None;
        Poll::Ready(outcome)
    }

    /// Drives both directions. Returns the next turn, or `None` if the client has left.
    fn poll_both(
        &mut self,
        current: &mut InExchange<A::Exchange>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Turn<A::Exchange>>>> {
        loop {
            if current.reads_body() && self.read_body(current, context)?.is_none() {
                return Poll::Ready(Ok(None));
            }
            current.exchange.send(context);
            let is_written = self.poll_write_own(context)?.is_ready();
            if let Some(ends) = current.ends.filter(|_| is_written) {
                let (is_read, is_sent) = (current.framing.has_ended(), current.exchange.has_sent());
                // The application may have closed its connection before it got all of the request.
                if ends || is_sent && !is_read {
                    let rest = if is_read { 0 } else { MAX_LINGER_BYTES };
                    return Poll::Ready(Ok(Some(Turn::Refused(rest))));
                }
                if is_sent {
                    return Poll::Ready(Ok(Some(Turn::Head)));
                }
            } else if is_written {
                match current.exchange.poll(context, &mut self.output)? {
                    Poll::Ready(Part::More(body)) => {
                        (self.output_body, self.timer) = (body, None);
                        self.half_closed_timeout = RESPONSE_TIMEOUT;
                        continue;
                    }
                    Poll::Ready(Part::Last(body, ends)) => {
                        (self.output_body, current.ends) = (body, Some(ends));
                        continue;
                    }
                    // Interim responses do not wait for the final one.
                    Poll::Pending if !self.output.is_empty() => continue,
                    Poll::Pending => {}
                }
            } else {
                current.exchange.prepare(context);
            }
            return if current.framing.has_ended() { self.poll_gone(context) } else { Poll::Pending };
        }
    }

    /// Waits for the client to leave, or to close its side. Its next request is read early, as far as there is room.
    fn poll_gone<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<T>>> {
        while self.input.len() < MAX_EARLY {
            if ready!(self.poll_fill(context))? == 0 {
                return self.poll_left(context);
            }
        }
        Poll::Pending
    }

    /// Adds what comes of the request's body to the exchange, as long as that has room. Returns `None` if the client has left.
    fn read_body(
        &mut self,
        current: &mut InExchange<A::Exchange>,
        context: &mut Context<'_>,
    ) -> io::Result<Option<()>> {
        while current.reads_body() {
            if !current.exchange.has_room() {
                current.exchange.send(context);
                if !current.exchange.has_room() {
                    return Ok(Some(()));
                }
            }
            if self.input.is_empty() {
                match self.poll_fill(context) {
                    Poll::Ready(Ok(0)) => return Ok(None),
                    Poll::Ready(Ok(_)) => self.timer = None,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending if self.is_over(BODY_TIMEOUT, context) => {
                        self.reject_body(current, RequestError::TooSlow);
                    }
                    Poll::Pending => return Ok(Some(())),
                }
                continue;
            }
            match current.framing.next(&self.input) {
                Ok((framing, data)) => {
                    current.exchange.add(&self.input[framing..framing + data]);
                    self.input.advance(framing + data);
                }
                Err(error) => self.reject_body(current, error),
            }
            if current.framing.has_ended() {
                current.exchange.complete();
            }
        }
        Ok(Some(()))
    }

    fn reject_body(&mut self, current: &mut InExchange<A::Exchange>, error: RequestError) {
        self.handoff.refuse(error);
        current.reject(error);
    }
}
