//! Response bodies.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use larder_flight::{FillError, Reader};

use crate::upstream::ExchangeError;

mod begun;
mod paced;

pub use begun::Begun;
pub use paced::Paced;

/// The body of a response.
pub enum Body {
    /// A body in memory.
    Full(Option<Bytes>),
    /// A body that is passed on as it arrives.
    Stream(Source),
    /// A body that is passed on as it arrives, to all requests that were collapsed, and into the cache.
    Fill(Reader<Source>),
    /// Another body without its trailers, between two pieces.
    Between(Option<Bytes>, Box<Body>, Option<Bytes>),
}

impl Body {
    /// Creates a body in memory.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// Creates an empty body.
    pub const fn empty() -> Self {
        Self::Full(None)
    }

    /// Puts a body between two pieces.
    pub fn between(before: Bytes, body: Self, after: Bytes) -> Self {
        Self::Between(Some(before), Box::new(body), Some(after))
    }

    /// Creates a body that the application sends.
    pub fn stream(incoming: Paced) -> Self {
        Self::Stream(Source::new(IncomingBody::Application(incoming)))
    }
}

/// Reason why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The origin broke it off.
    #[error(transparent)]
    Application(#[from] SourceError),
    /// The origin broke it off, or this reader was too far behind the others.
    #[error(transparent)]
    Fill(#[from] FillError),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(source) => {
                Pin::new(source).poll_frame(context).map(|frame| frame.map(|frame| Ok(frame?)))
            }
            Self::Fill(reader) => {
                Pin::new(reader).poll_frame(context).map(|frame| frame.map(|frame| Ok(frame?)))
            }
            Self::Between(before, body, after) => {
                if let Some(before) = before.take() {
                    return Poll::Ready(Some(Ok(Frame::data(before))));
                }
                while !body.is_end_stream() {
                    match ready!(Pin::new(&mut **body).poll_frame(context)) {
                        // Trailers are dropped: nothing may follow them, and they describe only the inner body.
                        Some(Ok(frame)) if frame.is_trailers() => {}
                        Some(frame) => return Poll::Ready(Some(frame)),
                        None => break,
                    }
                }
                Poll::Ready(after.take().map(|after| Ok(Frame::data(after))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(source) => source.is_end_stream(),
            Self::Fill(reader) => reader.is_end_stream(),
            Self::Between(before, body, after) => before.is_none() && after.is_none() && body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(source) => source.size_hint(),
            Self::Fill(reader) => reader.size_hint(),
            Self::Between(before, body, after) => {
                let more = [before, after].into_iter().flatten().map(|bytes| bytes.len() as u64).sum();
                longer(&body.size_hint(), more)
            }
        }
    }
}

/// Reason why a body broke off on its way to the sidecar.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The application broke it off.
    #[error("the application ended the response body early: {0}")]
    Broken(#[from] ExchangeError),
    /// The application paused for too long.
    #[error("the application sent no more of the response body within {0:?}")]
    Stalled(Duration),
    /// A source broke it off, or took too long.
    #[error("the source ended the response body early: {0}")]
    Source(#[source] anyhow::Error),
    /// The length differs from the announced one.
    #[error("the application's partial response does not have the length that it declares")]
    Length,
}

/// A body that arrives over the network.
#[derive(Debug)]
pub enum IncomingBody {
    /// From the application.
    Application(Paced),
    /// From a source of the policy.
    Source(BoxBody<Bytes, SourceError>),
}

impl IncomingBody {
    /// Creates the body of a source's response that is a text.
    pub fn text(text: Bytes) -> Self {
        Self::Source(Full::new(text).map_err(|never| match never {}).boxed())
    }
}

impl HttpBody for IncomingBody {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        match self.get_mut() {
            Self::Application(body) => Pin::new(body).poll_frame(context),
            Self::Source(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Application(body) => body.is_end_stream(),
            Self::Source(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Application(body) => body.size_hint(),
            Self::Source(body) => body.size_hint(),
        }
    }
}

/// An incoming body, optionally between stored parts.
#[derive(Debug)]
pub struct Source {
    before: Option<Bytes>,
    incoming: IncomingBody,
    /// Number of bytes still to come, if it is known.
    left: Option<u64>,
    after: Option<Bytes>,
}

impl Source {
    /// Creates a body without stored parts.
    pub fn new(incoming: IncomingBody) -> Self {
        Self { before: None, incoming, left: None, after: None }
    }

    /// Puts an incoming body, which must have `length` bytes, between stored parts.
    pub fn between(before: Bytes, incoming: IncomingBody, length: u64, after: Bytes) -> Self {
        let some = |bytes: Bytes| (!bytes.is_empty()).then_some(bytes);
        Self { before: some(before), incoming, left: Some(length), after: some(after) }
    }

    /// Handles the end of the incoming body.
    fn end_of_network(&mut self) -> Option<Result<Frame<Bytes>, SourceError>> {
        match self.left {
            Some(1..) => Some(Err(SourceError::Length)),
            _ => self.after.take().map(|after| Ok(Frame::data(after))),
        }
    }

    fn at_hand(&self) -> u64 {
        [&self.before, &self.after].into_iter().flatten().map(|bytes| bytes.len() as u64).sum()
    }
}

impl HttpBody for Source {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        let this = self.get_mut();
        if let Some(before) = this.before.take() {
            return Poll::Ready(Some(Ok(Frame::data(before))));
        }
        if this.incoming.is_end_stream() {
            return Poll::Ready(this.end_of_network());
        }
        let frame = match ready!(Pin::new(&mut this.incoming).poll_frame(context)) {
            None => return Poll::Ready(this.end_of_network()),
            Some(frame) => frame?,
        };
        if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
            let Some(rest) = left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Some(Err(SourceError::Length)));
            };
            *left = rest;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_none()
            && self.after.is_none()
            && self.incoming.is_end_stream()
            && !matches!(self.left, Some(1..))
    }

    fn size_hint(&self) -> SizeHint {
        let (incoming, more) = (self.incoming.size_hint(), self.at_hand());
        if let Some(left) = self.left {
            return SizeHint::with_exact(left + more);
        }
        longer(&incoming, more)
    }
}

/// Returns the size hint of a body that is `more` bytes longer.
fn longer(hint: &SizeHint, more: u64) -> SizeHint {
    let mut longer = SizeHint::new();
    longer.set_lower(hint.lower() + more);
    if let Some(upper) = hint.upper() {
        longer.set_upper(upper + more);
    }
    longer
}
