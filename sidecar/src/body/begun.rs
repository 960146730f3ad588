//! Bodies of which the beginning is at hand.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::yield_now;

/// Maximum number of frames that are read with the head: a piece, and what shows whether it ended well.
const MAX_FRAMES: usize = 2;

/// Length of a first piece from which nothing more of the body came with the head.
const LARGE: usize = 8 << 10;

/// A body of which the frames that came with the head have been read.
///
/// # Guarantees
/// - [`Begun::read`] waits for nothing that is still on its way: a head is not delayed by a body that comes slowly.
/// - A body that turned out to be invalid with what came together with its head is an error there, while the client can still be
///   told.
#[derive(Debug)]
pub struct Begun<B> {
    /// The frames, on the heap because the enums that hold bodies must not grow.
    at_hand: Box<[Option<Frame<Bytes>>; MAX_FRAMES]>,
    /// The rest of the body, until it has ended.
    rest: Option<B>,
}

impl<B: Body<Data = Bytes> + Unpin> Begun<B> {
    /// Reads the frames of a body that came with its head.
    ///
    /// # Errors
    /// If the body breaks off there.
    pub async fn read(mut body: B) -> Result<Self, B::Error> {
        let mut at_hand = Box::<[_; MAX_FRAMES]>::default();
        for place in at_hand.iter_mut() {
            if body.is_end_stream() {
                break;
            }
            let mut frame = poll_now(&mut body).await;
            if frame.is_pending() {
                // The task of the connection goes on with what it has read, and hears whether the connection has been closed.
                yield_now().await;
                frame = poll_now(&mut body).await;
            }
            let frame = match frame {
                Poll::Pending => break,
                Poll::Ready(None) => return Ok(Self { at_hand, rest: None }),
                Poll::Ready(Some(frame)) => place.insert(frame?),
            };
            if frame.data_ref().is_some_and(|piece| piece.len() >= LARGE) {
                break;
            }
        }
        Ok(Self { at_hand, rest: Some(body) })
    }
}

impl<B> Begun<B> {
    /// Returns a body of which nothing has been read.
    pub fn unread(body: B) -> Self {
        Self { at_hand: Box::default(), rest: Some(body) }
    }
}

async fn poll_now<B: Body + Unpin>(body: &mut B) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await
}

impl<B: Body<Data = Bytes> + Unpin> Body for Begun<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.at_hand.iter_mut().find_map(Option::take) {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.at_hand.iter().all(Option::is_none) && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // Without an announced length it stays unknown, as it is where the end comes later.
        let rest = self.rest.as_ref().map_or_else(SizeHint::new, Body::size_hint);
        let at_hand =
            self.at_hand.iter().flatten().filter_map(Frame::data_ref).map(|piece| piece.len() as u64).sum();
        super::longer(&rest, at_hand)
    }
}
