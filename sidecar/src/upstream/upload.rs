//! The body of a request on its way to the application, and who is waited for.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::clock::monotonic_ms;

/// A client's body as it comes, which notes when the application takes a piece of it.
#[derive(Debug)]
pub struct Upload {
    body: Incoming,
    progress: Arc<Progress>,
}

/// The state of an upload, for somebody who waits for the response to it.
#[derive(Debug)]
pub struct Progress {
    /// When the application last took a piece, or the body ended, in [`monotonic_ms`].
    taken_at: AtomicU64,
    /// The client has been asked for the next piece and has not sent it.
    waits_for_client: AtomicBool,
}

impl Upload {
    /// The body of a client's request.
    pub fn new(body: Incoming) -> Self {
        let progress =
            Progress { taken_at: AtomicU64::new(monotonic_ms()), waits_for_client: AtomicBool::new(false) };
        Self { body, progress: Arc::new(progress) }
    }

    /// Its state.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl Progress {
    /// Returns the time for which it has been the application's turn: to take a piece, or to respond.
    pub fn waited_for_application(&self) -> Duration {
        if self.waits_for_client.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_millis(monotonic_ms().saturating_sub(self.taken_at.load(Ordering::Relaxed)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        this.progress.taken_at.store(monotonic_ms(), Ordering::Relaxed);
        this.progress.waits_for_client.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
