//! The bodies of answers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use larder_flight::{FillError, Reader};

/// The body of an answer.
pub enum Body {
    /// At hand.
    Full(Option<Bytes>),
    /// Passed on as it comes.
    Stream(Source),
    /// Passed on as it comes, to several who asked for the same, and into the cache.
    Fill(Reader<Source>),
}

impl Body {
    /// A body at hand.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// No body.
    pub const fn empty() -> Self {
        Self::Full(None)
    }

    /// What the application sends.
    pub fn stream(network: Incoming) -> Self {
        Self::Stream(Source::new(network))
    }
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The application broke it off.
    #[error("the application broke the body off: {0}")]
    Application(#[from] hyper::Error),
    /// So it did, or this reader was too far behind the others.
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(source) => source.is_end_stream(),
            Self::Fill(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(source) => source.size_hint(),
            Self::Fill(reader) => reader.size_hint(),
        }
    }
}

/// What the application sends, perhaps with what was stored of it before and after.
#[derive(Debug)]
pub struct Source {
    before: Option<Bytes>,
    network: Incoming,
    after: Option<Bytes>,
}

impl Source {
    /// What the application sends.
    pub fn new(network: Incoming) -> Self {
        Self { before: None, network, after: None }
    }

    /// What the application sends, between what is at hand already.
    pub fn between(before: Bytes, network: Incoming, after: Bytes) -> Self {
        let some = |bytes: Bytes| (!bytes.is_empty()).then_some(bytes);
        Self { before: some(before), network, after: some(after) }
    }

    fn at_hand(&self) -> u64 {
        [&self.before, &self.after].into_iter().flatten().map(|bytes| bytes.len() as u64).sum()
    }
}

impl HttpBody for Source {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(before) = this.before.take() {
            return Poll::Ready(Some(Ok(Frame::data(before))));
        }
        if this.network.is_end_stream() {
            return Poll::Ready(this.after.take().map(|after| Ok(Frame::data(after))));
        }
        match Pin::new(&mut this.network).poll_frame(context) {
            Poll::Ready(None) => Poll::Ready(this.after.take().map(|after| Ok(Frame::data(after)))),
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_none() && self.after.is_none() && self.network.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (network, more) = (self.network.size_hint(), self.at_hand());
        let mut hint = SizeHint::new();
        hint.set_lower(network.lower() + more);
        if let Some(upper) = network.upper() {
            hint.set_upper(upper + more);
        }
        hint
    }
}
