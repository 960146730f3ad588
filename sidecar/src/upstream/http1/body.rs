//! Bodies of responses, read from the connection by their reader.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Http1,
    chunks::{Chunks, Decoded, Malformed},
    connection::Connection,
};
use crate::upstream::{ExchangeError, head::BodyFraming};

/// Maximum length of a piece of a body, in bytes. A client that does not read blocks a few of them, each with its buffer.
pub(super) const MAX_PIECE: usize = 15 << 10;

/// Room for reading behind input that can't be decoded yet.
const MIN_ROOM: usize = 1 << 10;

/// The body of a response over HTTP/1.
///
/// # Guarantees
/// - Nothing is read unless a reader waits for it.
/// - The connection serves further requests once the body was read to its end. It is closed if the body fails, or is dropped before.
#[derive(Debug)]
pub struct WireBody {
    /// The connection, until the body has ended.
    connection: Option<Box<Connection>>,
    framing: Framing,
    /// The pool to which the connection returns; `None` if it is closed after the body.
    pool: Option<Arc<Http1>>,
    /// The task that writes the rest of the request.
    upload: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
enum Framing {
    /// Number of bytes left.
    Length(u64),
    Chunked(Chunks),
    UntilClose,
    Closed,
}

impl WireBody {
    pub(super) fn new(
        connection: Box<Connection>,
        framing: BodyFraming,
        pool: Option<Arc<Http1>>,
        upload: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        let framing = match framing {
            BodyFraming::Length(length) => Framing::Length(length),
            BodyFraming::Chunked => Framing::Chunked(Chunks::new()),
            BodyFraming::UntilClose => Framing::UntilClose,
        };
        let mut body = Self { connection: Some(connection), framing, pool, upload };
        if body.framing.has_ended() {
            body.end();
        }
        body
    }

    /// Creates the body of a response whose connection is used otherwise.
    pub(super) fn none() -> Self {
        Self { connection: None, framing: Framing::Length(0), pool: None, upload: None }
    }

    /// Releases the connection after the end of the body.
    fn end(&mut self) {
        let connection = self.connection.take();
        // The rest of the request goes on without a response, as the application may want it.
        if let Some(upload) = self.upload.take() {
            drop(upload.detach());
        }
        // Bytes that nobody asked for may not be taken for the next response.
        if let (Some(pool), Some(connection)) = (self.pool.take(), connection)
            && connection.input.is_empty()
        {
            pool.keep(connection);
        }
    }

    /// Appends at most so many bytes of a body with a length to `output`.
    pub(super) fn poll_append(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
        most: usize,
    ) -> Poll<Result<(), ExchangeError>> {
        let (Some(connection), Framing::Length(left)) = (&mut self.connection, &mut self.framing) else {
            return Poll::Ready(Err(ExchangeError::ClosedInBody));
        };
        let most = most.min(usize::try_from(*left).unwrap_or(usize::MAX));
        let appended = match ready!(connection.poll_append(context, output, most)) {
            Ok(0) => Err(ExchangeError::ClosedInBody),
            Ok(appended) => Ok(appended),
            Err(error) => Err(error.into()),
        };
        match appended {
            Ok(appended) => *left -= appended as u64,
            Err(error) => {
                (self.connection, self.upload) = (None, None);
                return Poll::Ready(Err(error));
            }
        }
        if self.framing.has_ended() {
            self.end();
        }
        Poll::Ready(Ok(()))
    }

    fn fail(&mut self, error: ExchangeError) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        (self.connection, self.upload) = (None, None);
        Poll::Ready(Some(Err(error)))
    }
}

impl Framing {
    fn has_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.has_ended(),
            Self::UntilClose => false,
            Self::Closed => true,
        }
    }

    /// Takes the next part of the body.
    fn next(&mut self, input: &mut BytesMut) -> Result<Decoded, Malformed> {
        match self {
            Self::Chunked(chunks) => chunks.next(input),
            Self::Length(0) | Self::Closed => Ok(Decoded::End),
            Self::Length(_) | Self::UntilClose if input.is_empty() => Ok(Decoded::More),
            Self::Length(left) => {
                let taken = input.len().min(MAX_PIECE).min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(Decoded::Data(input.split_to(taken).freeze()))
            }
            Self::UntilClose => Ok(Decoded::Data(input.split_to(input.len().min(MAX_PIECE)).freeze())),
        }
    }

    /// Takes what follows a piece of data, so that the end of the body is found with its last piece.
    fn settle(&mut self, input: &mut BytesMut) -> bool {
        if let Self::Chunked(chunks) = self {
            // A fault is found again, with the next piece.
            let _ = chunks.skip_framing(input);
        }
        self.has_ended()
    }

    /// Returns the number of bytes to read at once.
    fn room(&self, input: &BytesMut) -> usize {
        let most = MAX_PIECE.saturating_sub(input.len()).max(MIN_ROOM);
        match self {
            Self::Length(left) => most.min(usize::try_from(*left).unwrap_or(usize::MAX)),
            _ => most,
        }
    }
}

impl Body for WireBody {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let this = self.get_mut();
        loop {
            let Some(connection) = &mut this.connection else { return Poll::Ready(None) };
            match this.framing.next(&mut connection.input) {
                Ok(Decoded::Data(piece)) => {
                    if this.framing.settle(&mut connection.input) {
                        this.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    this.end();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End) => {
                    this.end();
                    return Poll::Ready(None);
                }
                Ok(Decoded::More) => {}
                Err(Malformed(fault)) => return this.fail(ExchangeError::MalformedBody(fault)),
            }
            let room = this.framing.room(&connection.input);
            match ready!(connection.poll_read(context, room)) {
                Ok(1..) => {}
                Ok(0) if matches!(this.framing, Framing::UntilClose) => {
                    this.framing = Framing::Closed;
                    (this.connection, this.upload) = (None, None);
                }
                Ok(0) => return this.fail(ExchangeError::ClosedInBody),
                Err(error) => return this.fail(error.into()),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.framing.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose | Framing::Closed => SizeHint::new(),
        }
    }
}
