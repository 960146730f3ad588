//! HTTP/2 streams that a client gives up before their responses have ended.
//!
//! Opening and resetting a stream costs a client next to nothing, but may have cost a connection to the application
//! (rapid reset, CVE-2023-44487). Clients occasionally do it for good reasons, too.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::monotonic_ms;

/// Maximum number of streams that a client may give up in a burst, and per second. Each stream that ends makes up for
/// one that was given up.
const MAX_RESETS: u64 = 100;
const RESETS_PER_SECOND: u64 = 10;

/// The streams given up on a connection.
#[derive(Debug, Default)]
pub(super) struct Resets {
    balance: Mutex<Balance>,
    too_many: Notify,
}

#[derive(Debug, Default)]
struct Balance {
    /// Balance in thousandths of a stream.
    owed: u64,
    /// Time of the last update, as [`monotonic_ms`].
    updated_at: u64,
}

impl Balance {
    /// Counts a stream that was given up; returns true if there are too many.
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
    /// Returns a stream that counts as given up unless it ends.
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
    /// There was no room for the request.
    Refused,
}

/// A stream whose response has not ended.
#[derive(Debug)]
pub(super) struct Stream {
    resets: Arc<Resets>,
    end: End,
}

impl Stream {
    /// Returns a body that records whether it is read to its end.
    pub(super) fn until_end_of<B: Body>(mut self, body: B) -> StreamBody<B> {
        if body.is_end_stream() {
            self.end = End::Whole;
        }
        StreamBody { body, stream: self }
    }

    /// Records that there was no room for the request. It counts as given up if the client has given up others, because
    /// their work takes up the room.
    pub(super) fn refuse<B: Body>(mut self, body: B) -> StreamBody<B> {
        self.end = End::Refused;
        StreamBody { body, stream: self }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut balance = self.resets.balance.lock();
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

/// The body of a response, with its stream.
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
        // A body that breaks off is not the client's fault.
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
        let owed = || resets.balance.lock().owed;
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
        let owed = || resets.balance.lock().owed;
        drop(resets.stream().refuse(Empty::<Bytes>::new()));
        assert_eq!(owed(), 0);
        drop(resets.stream());
        drop(resets.stream().refuse(Empty::<Bytes>::new()));
        assert_eq!(owed(), 2000);
    }
}
