//! The bodies of answers.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// Told of what passes in a body.
pub trait Tap: Send + Unpin {
    /// A piece passed.
    fn data(&mut self, piece: &Bytes);
    /// Trailers passed.
    fn trailers(&mut self);
    /// The body is whole. Called at most once, before its last piece leaves.
    fn complete(&mut self);
}

/// The body of an answer: at hand, or passed on as it comes.
pub enum Body {
    /// At hand.
    Full(Option<Bytes>),
    /// Passed on as it comes.
    Stream(Incoming),
    /// Passed on as it comes, with somebody listening. Dropped before its end, it never was complete.
    Tapped(Incoming, Option<Box<dyn Tap>>),
}

impl Body {
    /// A body at hand.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// A body to listen to.
    pub fn tapped(incoming: Incoming, mut tap: Box<dyn Tap>) -> Self {
        if incoming.is_end_stream() {
            tap.complete();
            return Self::Stream(incoming);
        }
        Self::Tapped(incoming, Some(tap))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(incoming) => Pin::new(incoming).poll_frame(context),
            Self::Tapped(incoming, tap) => {
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(context));
                match &frame {
                    Some(Ok(frame)) => {
                        if let (Some(tap), Some(piece)) = (tap.as_mut(), frame.data_ref()) {
                            tap.data(piece);
                        } else if let Some(tap) = tap.as_mut() {
                            tap.trailers();
                        }
                        // The connection does not ask for more than Content-Length.
                        if incoming.is_end_stream() {
                            finish(tap);
                        }
                    }
                    None => finish(tap),
                    Some(Err(_)) => *tap = None,
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(incoming) | Self::Tapped(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(incoming) | Self::Tapped(incoming, _) => incoming.size_hint(),
        }
    }
}

fn finish(tap: &mut Option<Box<dyn Tap>>) {
    if let Some(mut tap) = tap.take() {
        tap.complete();
    }
}
