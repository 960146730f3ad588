//! Streams of HTTP/2 that a client gives up before their responses have ended.
//!
//! To open a stream and reset it costs a client next to nothing, and each may have cost a connection to the application by then
//! (CVE-2023-44487). Clients do it for good reasons too, now and then.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use crate::clock::monotonic_ms;

/// How many streams a client may give up at once, and in each second. One that ends makes up for one that was given up.
const MAX_RESETS: u64 = 100;
const RESETS_PER_SECOND: u64 = 10;

/// The streams that were given up on a connection.
#[derive(Debug, Default)]
pub(super) struct Resets {
    balance: Mutex<Balance>,
    too_many: Notify,
}

#[derive(Debug, Default)]
struct Balance {
    /// Thousandths of a stream.
    owed: u64,
    /// In [`monotonic_ms`].
    updated_at: u64,
}

impl Balance {
    /// A stream was given up; whether those are too many now.
    fn reset(&mut self, now: u64) -> bool {
        let forgiven = now.saturating_sub(self.updated_at).saturating_mul(RESETS_PER_SECOND);
        self.owed = self.owed.saturating_sub(forgiven) + 1000;
        self.updated_at = now;
        self.owed > MAX_RESETS * 1000
    }

    fn ended(&mut self) {
        self.owed = self.owed.saturating_sub(1000);
    }
}

impl Resets {
    /// A stream, which counts as given up unless it ends.
    pub(super) fn stream(self: &Arc<Self>) -> Stream {
        Stream { resets: Arc::clone(self), end: End::GivenUp }
    }

    /// Waits until too many streams were given up.
    pub(super) async fn too_many(&self) {
        self.too_many.notified().await;
    }
}

/// End of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client did not wait for the end of the response.
    GivenUp,
    /// The response has ended.
    Whole,
    /// There was no place for its request.
    Refused,
}

/// A stream whose response has not ended.
#[derive(Debug)]
pub(super) struct Stream {
    resets: Arc<Resets>,
    end: End,
}

impl Stream {
    /// Watches whether the body is read to its end.
    pub(super) fn until_end_of<B: Body>(mut self, body: B) -> StreamBody<B> {
        if body.is_end_stream() {
            self.end = End::Whole;
        }
        StreamBody { body, stream: self }
    }

    /// Notes that there was no place for its request. A client that has given up others counts as giving up this one: the work
    /// for those has the places.
    pub(super) fn refuse<B: Body>(mut self, body: B) -> StreamBody<B> {
        self.end = End::Refused;
        StreamBody { body, stream: self }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut balance = self.resets.balance.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = match self.end {
            End::Whole => {
                balance.ended();
                false
            }
            End::Refused => balance.owed > 0,
            End::GivenUp => true,
        };
        if counts && balance.reset(monotonic_ms()) {
            self.resets.too_many.notify_one();
        }
    }
}

/// The body of a response, and the stream that it is sent on.
#[derive(Debug)]
pub(super) struct StreamBody<B> {
    body: B,
    stream: Stream,
}

impl<B: Body + Unpin> Body for StreamBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // One that breaks off is not the client's doing.
        let has_ended = matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream();
        if has_ended && self.stream.end == End::GivenUp {
            self.stream.end = End::Whole;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use hyper::body::Bytes;

    use super::*;

    #[test]
    fn a_client_may_give_up_a_few_streams_but_not_most() {
        let mut balance = Balance::default();
        assert!((0..MAX_RESETS).all(|_| !balance.reset(5_000)), "at once");
        assert!(balance.reset(5_000));
        let mut balance = Balance::default();
        assert!((0..10_000).all(|number| !balance.reset(number * 100)), "ten in each second");
        let mut balance = Balance::default();
        assert!((0..10_000).all(|_| {
            balance.ended();
            !balance.reset(0)
        }));
        let mut balance = Balance::default();
        assert!((0..4_000).any(|number| balance.reset(number * 4)), "one every 4 ms");
    }

    #[test]
    fn a_stream_ends_with_its_body() {
        let resets = Arc::<Resets>::default();
        let owed = || resets.balance.lock().unwrap().owed;
        drop(resets.stream());
        assert_eq!(owed(), 1000, "before its response");
        drop(resets.stream().until_end_of(Empty::<Bytes>::new()));
        assert_eq!(owed(), 0, "an empty body has ended");
        drop(resets.stream().until_end_of(http_body_util::Full::new(Bytes::from("unread"))));
        assert_eq!(owed(), 1000);
    }

    #[test]
    fn refused_stream_counts_for_a_client_that_gave_up_others() {
        let resets = Arc::<Resets>::default();
        let owed = || resets.balance.lock().unwrap().owed;
        drop(resets.stream().refuse(Empty::<Bytes>::new()));
        assert_eq!(owed(), 0);
        drop(resets.stream());
        drop(resets.stream().refuse(Empty::<Bytes>::new()));
        assert_eq!(owed(), 2000);
    }
}
