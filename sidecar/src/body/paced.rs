//! An application's body with a timeout for pauses, whose trailers lose the fields that heads lose.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{Begun, SourceError};
use crate::{
    headers::LARDER_PURGE,
    stats::Stats,
    upstream::{ApplicationBody, UpstreamReason},
};

/// An application's body, which breaks off when the application pauses for too long while a reader waits. The reason is
/// logged and counted, because the client can't be told.
#[derive(Debug)]
pub struct Paced {
    body: Begun<ApplicationBody>,
    timeout: Option<Duration>,
    /// Timer of the current pause, while a reader waits.
    left: Option<Pin<Box<Sleep>>>,
    /// Fields that are taken out of trailers, besides `Larder-Purge`.
    removed: Box<[HeaderName]>,
    stats: Arc<Stats>,
}

impl Paced {
    /// Creates a body that may pause for `timeout` (`None`: for any time), and loses the `removed` fields of its trailers.
    pub fn new(
        body: Begun<ApplicationBody>,
        timeout: Option<Duration>,
        removed: &[HeaderName],
        stats: &Arc<Stats>,
    ) -> Self {
        Self { body, timeout, left: None, removed: removed.into(), stats: Arc::clone(stats) }
    }

    fn passed(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(trailers) = frame.trailers_mut() {
            trailers.remove(&LARDER_PURGE);
            for name in &self.removed {
                trailers.remove(name);
            }
        }
        frame
    }

    fn broke_off(&self, reason: UpstreamReason, error: SourceError) -> SourceError {
        self.stats.upstream_failed(reason);
        tracing::warn!(reason = reason.as_str(), %error, "a response of the application is incomplete");
        error
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.left = None;
            return Poll::Ready(frame.map(|frame| match frame {
                Ok(frame) => Ok(this.passed(frame)),
                Err(error) => Err(this.broke_off(UpstreamReason::of_body(&error), error.into())),
            }));
        }
        let Some(timeout) = this.timeout else { return Poll::Pending };
        let left = this.left.get_or_insert_with(|| Box::pin(sleep(timeout)));
        left.as_mut()
            .poll(context)
            .map(|()| Some(Err(this.broke_off(UpstreamReason::Timeout, SourceError::Stalled(timeout)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
