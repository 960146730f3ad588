//! Response body of an HTTP source.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{body::Begun, breaker::Breaker};

/// The response body of an HTTP source. It fails if it is incomplete at the response's deadline, and reports its
/// outcome to the breaker.
#[derive(Debug)]
pub struct HttpBody {
    incoming: Begun<Incoming>,
    deadline: Pin<Box<Sleep>>,
    limit: Duration,
    /// Taken when the outcome is reported.
    breaker: Option<Arc<Breaker>>,
}

/// Reason why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum HttpBodyError {
    /// The body was incomplete at the deadline.
    #[error("the HTTP source's response was not complete within {0:?}")]
    Deadline(Duration),
    /// The source broke it off.
    #[error("the HTTP source ended the response body early: {0}")]
    Broken(#[from] hyper::Error),
}

impl HttpBody {
    pub(super) fn new(
        incoming: Begun<Incoming>,
        deadline: Instant,
        limit: Duration,
        breaker: Arc<Breaker>,
    ) -> Self {
        let deadline = Box::pin(sleep_until(deadline));
        let mut body = Self { incoming, deadline, limit, breaker: Some(breaker) };
        body.tell_if_whole();
        body
    }

    /// Reports success once the body is complete, because the reader may stop there.
    fn tell_if_whole(&mut self) {
        if self.incoming.is_end_stream() {
            self.ended(true);
        }
    }

    fn ended(&mut self, well: bool) {
        match self.breaker.take() {
            Some(breaker) if well => breaker.succeeded(),
            Some(breaker) => breaker.failed(),
            None => {}
        }
    }
}

/// Reports success if the reader stops early, because the source has not failed so far.
impl Drop for HttpBody {
    fn drop(&mut self) {
        self.ended(true);
    }
}

impl Body for HttpBody {
    type Data = Bytes;
    type Error = HttpBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpBodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.tell_if_whole();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.ended(false);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.ended(true);
                Poll::Ready(None)
            }
            // Data that has arrived is passed on, however late the reader is.
            Poll::Pending => this.deadline.as_mut().poll(context).map(|()| {
                this.ended(false);
                Some(Err(HttpBodyError::Deadline(this.limit)))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
