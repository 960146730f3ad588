//! Writes that go on without their clients: the purge follows the response, whoever waits for it.

use std::{future::poll_fn, sync::Arc, time::Duration};

use http::Response;
use tokio::time::timeout;

use crate::{
    proxy::{
        Proxy,
        deadline::LATE_WRITE_TIMEOUT,
        write::{self, Write},
    },
    upstream::{ExchangeError, RawExchange, RawHead, UpstreamError, UpstreamReason},
    work::Work,
};

/// A write without a client.
pub(super) struct Unattended {
    pub(super) proxy: Arc<Proxy>,
    pub(super) raw: RawExchange,
    pub(super) write: Write,
    pub(super) _work: Work,
}

impl Unattended {
    /// Waits for the response, up to the policy's `application.timeout`, and purges.
    pub(super) async fn go_on(mut self, limit: Option<Duration>) {
        let stats = &self.proxy.telemetry.stats;
        let outcome = match limit {
            Some(limit) => timeout(limit, final_head(&mut self.raw)).await,
            None => Ok(final_head(&mut self.raw).await),
        };
        match outcome {
            Ok(Ok(response)) => self.write.purge(&self.proxy, Some(&response)).await,
            Ok(Err(error)) => {
                stats.upstream_failed(error.reason());
                if error.may_have_been_sent() {
                    self.write.purge::<()>(&self.proxy, None).await;
                }
            }
            Err(_) => {
                stats.upstream_failed(UpstreamReason::Timeout);
                self.purge_late().await;
            }
        }
    }

    /// Purges, because the response is late, and again when it has come.
    pub(super) async fn purge_late(mut self) {
        self.write.purge::<()>(&self.proxy, None).await;
        let Some(place) = self.proxy.telemetry.stats.budget.late_write() else { return };
        tokio::spawn(async move {
            let response = timeout(LATE_WRITE_TIMEOUT, final_head(&mut self.raw)).await;
            let response = response.ok().and_then(Result::ok);
            self.write.purge(&self.proxy, response.as_ref()).await;
            drop(place);
        });
    }
}

/// Waits for the head of the final response.
async fn final_head(raw: &mut RawExchange) -> Result<Response<()>, UpstreamError> {
    if !raw.is_complete() {
        let source = ExchangeError::Upload("the client has left".into());
        return Err(UpstreamError::Exchange { source, was_sent: raw.was_sent() });
    }
    loop {
        let head = poll_fn(|context| raw.poll_head(context)).await?;
        if head.status() >= 200 {
            return Ok(response_of_write(&head));
        }
    }
}

/// Returns the parts of a response on which the purge of its write depends.
pub(super) fn response_of_write(head: &RawHead) -> Response<()> {
    write::response_of_write(head.status(), head)
}
