//! Time limit of the application (`application.timeout` of a policy).

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Either;
use larder_policy::{Fields, is_named};
use tokio::time::{sleep, timeout};

use crate::{
    mode::Mode,
    snapshot::Snapshot,
    upstream::{Abandoned, ApplicationBody, Progress, RequestBody, Upstream, UpstreamError, WhenRefused},
};

/// Maximum time for which a write goes on after its client got a 504.
pub(super) const LATE_WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A request on its way to the application. Dropping it ends the connection, so that the application hears of it.
pub(super) struct Exchange {
    response: BoxFuture<'static, Result<Response<ApplicationBody>, UpstreamError>>,
    progress: Option<Arc<Progress>>,
    abandoned: Abandoned,
    limit: Option<Duration>,
}

/// Returns the time for which the application may be silent, if the snapshot's policy limits it.
pub(super) fn application_timeout(snapshot: &Snapshot) -> Option<Duration> {
    snapshot.policy().application_timeout.filter(|_| snapshot.mode() == Mode::Serving)
}

impl Exchange {
    /// Creates the exchange of a request whose response must begin within `limit`.
    pub(super) fn new(
        upstream: Upstream,
        mut request: Request<RequestBody>,
        refused: WhenRefused,
        abandoned: Abandoned,
        limit: Option<Duration>,
    ) -> Self {
        let progress = match request.body() {
            Either::Left(upload) => Some(upload.progress()),
            Either::Right(_) => None,
        };
        request.extensions_mut().insert(abandoned.clone());
        let response = Box::pin(async move { upstream.send(request, refused).await });
        Self { response, progress, abandoned, limit }
    }

    /// Returns the maximum time before the response begins, and between two pieces of its body.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Waits for the head of the response, within the limit.
    pub(super) async fn head_in_time(&mut self) -> Result<Response<ApplicationBody>, UpstreamError> {
        let Some(limit) = self.limit else { return (&mut self.response).await };
        if let Ok(outcome) = timeout(limit, &mut self.response).await {
            return outcome;
        }
        // Time in which the client was waited for does not count.
        while let Some(left) =
            self.progress.as_ref().and_then(|progress| limit.checked_sub(progress.waited_for_application()))
        {
            tokio::select! {
                outcome = &mut self.response => return outcome,
                () = sleep(left.max(Duration::from_millis(1))) => {}
            }
        }
        self.abandoned.set();
        Err(UpstreamError::Timeout(limit))
    }

    /// Waits for the head of a response that was too late for its client, or returns `None` if it does not come in this time.
    pub(super) async fn late_head(self, within: Duration) -> Option<Response<ApplicationBody>> {
        timeout(within, self.response).await.ok()?.ok()
    }
}

/// Returns true if the body of a response may be silent for any time: an event stream, gRPC, or another protocol.
pub(super) fn may_be_silent(status: StatusCode, fields: &impl Fields) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || fields.value(CONTENT_TYPE.as_str()).is_some_and(is_stream)
}

/// Returns true if a body of this type may be silent for any time.
pub(super) fn is_stream(content_type: &[u8]) -> bool {
    fn begins<const N: usize>(content_type: &[u8], kind: &[u8; N]) -> bool {
        content_type.first_chunk::<N>().is_some_and(|begins| is_named(begins, kind))
    }
    begins(content_type, b"text/event-stream") || begins(content_type, b"application/grpc")
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn late_write_ends_in_time() {
        let limit = Some(Duration::from_millis(10));
        let abandoned = Abandoned::default();
        let mut exchange =
            Exchange { response: Box::pin(pending()), progress: None, abandoned: abandoned.clone(), limit };
        assert!(matches!(exchange.head_in_time().await, Err(UpstreamError::Timeout(_))));
        assert!(abandoned.is_set());
        let late = timeout(LATE_WRITE_TIMEOUT, exchange.late_head(Duration::from_millis(10)));
        assert!(late.await.unwrap().is_none());
    }
}
