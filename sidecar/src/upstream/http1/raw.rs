//! Exchanges whose request is written, and whose response's head is read, as text.

use std::{
    fmt, io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as _, Frame};
use tokio::{io::AsyncWrite, net::tcp::OwnedWriteHalf};

use super::{
    Http1,
    attempts::{Attempts, Next},
    body::WireBody,
    chunks::{LAST_CHUNK, write_chunk},
    connection::Connection,
    incoming::{IncomingHead, RawHead},
};
use crate::{
    http1_guard::BodyKind,
    upstream::{ApplicationBody, ExchangeError, Upstream, UpstreamError, WhenRefused},
};

/// Number of unwritten bytes from which no more of a body is taken from the client.
const MAX_UNWRITTEN: usize = 8 << 10;

/// A request on its way to the application, then its response.
///
/// # Guarantees
/// - Dropping it ends the connection, unless both have ended.
/// - Nothing of the response is read unless a reader waits for it.
pub struct RawExchange {
    http1: Arc<Http1>,
    stage: Stage,
    /// The request as far as it is not written, and what was written of it if it may be sent again.
    text: Vec<u8>,
    written: usize,
    body: BodyKind,
    /// True once all of the request is in `text`.
    is_complete: bool,
    /// True once any byte was written to the current connection.
    has_begun: bool,
    /// Failure of the connection, after which nothing more is written.
    failure: Option<io::Error>,
    attempts: Attempts,
    head: IncomingHead,
}

enum Stage {
    Unconnected,
    Connecting(BoxFuture<'static, Result<Box<Connection>, UpstreamError>>),
    /// The head of the response is awaited.
    Awaiting(Box<Connection>),
    /// The response has begun. The rest of the request may still be written.
    Responding(WireBody, Option<OwnedWriteHalf>),
    Failed,
}

impl fmt::Debug for RawExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawExchange").field("written", &self.written).finish_non_exhaustive()
    }
}

impl RawExchange {
    /// Creates the exchange of a request with this head. `is_head` is true for HEAD, `is_idempotent` for a method that may be repeated.
    pub fn new(
        upstream: &Upstream,
        head: Vec<u8>,
        body: BodyKind,
        is_head: bool,
        is_idempotent: bool,
    ) -> Self {
        let http1 = Arc::clone(&upstream.http1);
        let incoming = IncomingHead::new(&http1.budget, is_head);
        let is_complete = body == BodyKind::None;
        Self {
            http1,
            stage: Stage::Unconnected,
            text: head,
            written: 0,
            body,
            is_complete,
            has_begun: false,
            failure: None,
            attempts: Attempts::new(is_complete && is_idempotent),
            head: incoming,
        }
    }

    /// Returns true if more of the body may be added.
    pub fn has_room(&self) -> bool {
        self.failure.is_some() || self.text.len() - self.written < MAX_UNWRITTEN
    }

    /// Returns true if all of the request was written, or can't be.
    pub fn has_sent(&self) -> bool {
        self.failure.is_some() || self.is_complete && self.written == self.text.len()
    }

    /// Returns true if the whole body was added.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Returns true if the application waits for the client to send more of the body.
    pub fn waits_for_client(&self) -> bool {
        self.failure.is_none() && !self.is_complete && self.written == self.text.len()
    }

    /// Returns true if the application may have seen a part of the request.
    pub fn was_sent(&self) -> bool {
        self.has_begun || self.attempts.is_repetition()
    }

    /// Adds a piece of the body.
    pub fn add(&mut self, piece: &[u8]) {
        if self.failure.is_some() || piece.is_empty() {
            return;
        }
        match self.body {
            BodyKind::Chunked => write_chunk(&mut self.text, piece),
            BodyKind::None | BodyKind::Length => self.text.extend_from_slice(piece),
        }
    }

    /// Ends the body.
    pub fn complete(&mut self) {
        if !mem::replace(&mut self.is_complete, true) && self.body == BodyKind::Chunked {
            self.text.extend_from_slice(LAST_CHUNK);
        }
    }

    /// Writes as much of the request as there is. A failure is found by waiting for the head.
    pub fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { stage, text, written, .. } = self;
        let writer = match stage {
            Stage::Awaiting(connection) => connection.writer.as_mut(),
            Stage::Responding(_, writer) => writer.as_mut(),
            Stage::Unconnected | Stage::Connecting(_) | Stage::Failed => None,
        };
        let Some(writer) = writer.filter(|_| self.failure.is_none()) else { return Poll::Pending };
        while *written < text.len() {
            match ready!(Pin::new(&mut *writer).poll_write(context, &text[*written..])) {
                Ok(count @ 1..) => {
                    self.has_begun = true;
                    *written += count;
                }
                Ok(0) => self.failure = Some(io::ErrorKind::WriteZero.into()),
                Err(error) => self.failure = Some(error),
            }
            if self.failure.is_some() {
                return Poll::Ready(());
            }
        }
        if !self.is_complete {
            text.clear();
            *written = 0;
        }
        Poll::Ready(())
    }

    /// Waits for the next head, of an interim or the final response, and sends the request meanwhile, again if it may be.
    ///
    /// # Errors
    /// If the application refused or closed the connection, or sent a malformed response.
    pub fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<RawHead, UpstreamError>> {
        let outcome = ready!(self.poll_attempts(context));
        Poll::Ready(outcome.map_err(|error| {
            self.stage = Stage::Failed;
            self.attempts.error(error)
        }))
    }

    fn poll_attempts(&mut self, context: &mut Context<'_>) -> Poll<Result<RawHead, UpstreamError>> {
        loop {
            match &mut self.stage {
                Stage::Unconnected => {
                    self.stage = match self.attempts.take_idle(&self.http1) {
                        Some(connection) => Stage::Awaiting(connection),
                        None => {
                            let http1 = Arc::clone(&self.http1);
                            Stage::Connecting(Box::pin(
                                async move { http1.connect(WhenRefused::Retry).await },
                            ))
                        }
                    };
                }
                Stage::Connecting(connecting) => {
                    self.stage = Stage::Awaiting(ready!(connecting.as_mut().poll(context))?);
                }
                Stage::Awaiting(_) => match ready!(self.poll_exchange(context)) {
                    Ok(head) => return Poll::Ready(Ok(head)),
                    Err(source) => match self.attempts.failed(&self.http1, &source, self.has_begun) {
                        Next::OtherConnection => self.stage = Stage::Unconnected,
                        Next::Repetition => {
                            (self.stage, self.written, self.has_begun) = (Stage::Unconnected, 0, false);
                            self.head.restart();
                        }
                        Next::Nothing => {
                            let was_sent = self.has_begun;
                            return Poll::Ready(Err(UpstreamError::Exchange { source, was_sent }));
                        }
                    },
                },
                Stage::Responding(..) | Stage::Failed => return Poll::Pending,
            }
        }
    }

    fn poll_exchange(&mut self, context: &mut Context<'_>) -> Poll<Result<RawHead, ExchangeError>> {
        let _ = self.poll_send(context);
        if !self.has_begun {
            // Bytes before the request are no response.
            return match self.failure.take() {
                Some(error) => Poll::Ready(Err(error.into())),
                None => Poll::Pending,
            };
        }
        let Stage::Awaiting(connection) = &mut self.stage else { return Poll::Pending };
        match ready!(self.head.poll_raw(context, connection)) {
            // The reason why the request could not be written tells more than the end of the connection.
            Err(ExchangeError::Closed) => {
                let failure = self.failure.take();
                Poll::Ready(Err(failure.map_or(ExchangeError::Closed, ExchangeError::Io)))
            }
            outcome => Poll::Ready(outcome),
        }
    }

    /// Leaves a failed exchange behind, and returns this one.
    pub fn detach(&mut self) -> Self {
        let failed = Self {
            http1: Arc::clone(&self.http1),
            stage: Stage::Failed,
            text: Vec::new(),
            written: 0,
            head: IncomingHead::new(&self.http1.budget, false),
            failure: Some(io::ErrorKind::Interrupted.into()),
            ..*self
        };
        mem::replace(self, failed)
    }

    /// Begins to read the body of the final response.
    pub fn begin_body(&mut self, head: &RawHead) {
        let Stage::Awaiting(mut connection) = mem::replace(&mut self.stage, Stage::Failed) else { return };
        let was_written = self.failure.is_none() && self.has_sent();
        let pool = (was_written && head.is_kept_alive()).then(|| Arc::clone(&self.http1));
        let writer = if self.has_sent() { None } else { connection.writer.take() };
        let body = WireBody::new(connection, head.framing, pool, None);
        self.stage = Stage::Responding(body, writer);
    }

    /// Returns the body of the final response, as [`Self::begin_body`] begins it. The request must have no body.
    pub fn into_body(mut self, head: &RawHead) -> ApplicationBody {
        self.begin_body(head);
        match self.stage {
            Stage::Responding(body, _) => ApplicationBody::Http1(body),
            _ => ApplicationBody::Http1(WireBody::none()),
        }
    }

    /// Returns true if the body of the response has ended.
    pub fn has_ended(&self) -> bool {
        matches!(&self.stage, Stage::Responding(body, _) if body.is_end_stream())
    }

    /// Appends at most so many bytes of a body with a length, which has not ended, to `output`.
    pub fn poll_append(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
        most: usize,
    ) -> Poll<Result<(), ExchangeError>> {
        match &mut self.stage {
            Stage::Responding(body, _) => body.poll_append(context, output, most),
            _ => Poll::Ready(Err(ExchangeError::ClosedInBody)),
        }
    }

    /// Reads the next piece of the body; `None` at its end.
    pub fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match &mut self.stage {
            Stage::Responding(body, _) => Pin::new(body).poll_frame(context),
            _ => Poll::Ready(None),
        }
    }
}
