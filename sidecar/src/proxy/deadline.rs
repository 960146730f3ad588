//! The time that the application may take (`application.timeout` of a policy).

use std::{pin::pin, time::Duration};

use http::{HeaderMap, Request, StatusCode, header::CONTENT_TYPE, response::Parts};
use http_body_util::Either;
use tokio::time::{sleep, timeout};

use super::Proxy;
use crate::{
    serving::Mode,
    upstream::{Progress, RequestBody, UpstreamError},
};

impl Proxy {
    /// The time that the application may take for a word, if the policy that is in force says so.
    pub(super) fn application_timeout(&self) -> Option<Duration> {
        let serving = self.config.serving();
        serving.policy.application_timeout.filter(|_| serving.mode == Mode::Serving)
    }
}

/// The progress of a request's body, unless that is at hand.
pub(super) fn progress_of(request: &Request<RequestBody>) -> Option<std::sync::Arc<Progress>> {
    match request.body() {
        Either::Left(upload) => Some(upload.progress()),
        Either::Right(_) => None,
    }
}

/// Waits for the head of a response. Dropped with the exchange, the connection ends, so that the application hears of it.
pub(super) async fn head_in_time<T>(
    exchange: impl Future<Output = Result<T, UpstreamError>>,
    limit: Duration,
    progress: Option<&Progress>,
) -> Result<T, UpstreamError> {
    let mut exchange = pin!(exchange);
    if let Ok(outcome) = timeout(limit, &mut exchange).await {
        return outcome;
    }
    // The client may have been waited for meanwhile.
    while let Some(left) = progress.and_then(|progress| limit.checked_sub(progress.waited_for_application()))
    {
        tokio::select! {
            outcome = &mut exchange => return outcome,
            () = sleep(left.max(Duration::from_millis(1))) => {}
        }
    }
    Err(UpstreamError::Timeout(limit))
}

/// Returns true if the body of a response may be silent for any time: an event stream, gRPC, or another protocol.
pub(super) fn may_be_silent(head: &Parts) -> bool {
    head.status == StatusCode::SWITCHING_PROTOCOLS || is_stream(&head.headers)
}

fn is_stream(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE) else { return false };
    let content_type = content_type.as_bytes().to_ascii_lowercase();
    [&b"text/event-stream"[..], b"application/grpc"].iter().any(|kind| content_type.starts_with(kind))
}
