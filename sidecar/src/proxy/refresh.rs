//! Refreshing of stored responses while they are served (RFC 5861, section 3).

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use larder_flight::{Fill, Joined, Lead, Reader};
use tokio::time::{sleep, timeout};

use super::{
    Proxy,
    collapse::{ABANDONED_TIMEOUT, is_overdue},
    fetch::{Fetch, Purpose},
    request::CacheRequest,
};
use crate::{
    body::{Body, Source},
    cache_status::{Forward, Tier},
    entry::Entry,
    store::in_flight::FetchOutcome,
};

/// Maximum time for the head, and for the body, of a response that no client waits for: no client would end it.
pub(super) const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);

impl Proxy {
    /// Fetches a stored response again, unless a fetch is under way that has shown progress within the route's `collapseTimeout`.
    pub(super) fn refresh_in_background(self: &Arc<Self>, request: &CacheRequest, stored: &Arc<Entry>) {
        let request = request.without_its_client();
        let flights = &request.snapshot.flights;
        let mut joined = flights.join(request.flight_key());
        if let Joined::Wait(mut wait) = joined {
            if !is_overdue(&mut wait, request.route.collapse_timeout) {
                return;
            }
            joined = flights.overtake(wait);
        }
        if let Joined::Lead(lead) = joined {
            tokio::spawn(Arc::clone(self).refresh(request, lead, Arc::clone(stored)));
        }
    }

    fn refresh(
        self: Arc<Self>,
        request: Box<CacheRequest>,
        lead: Lead<FetchOutcome>,
        stored: Arc<Entry>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut fetch = Fetch::new(request, Purpose::Refresh, Forward::Stale);
            (fetch.lead, fetch.known.stored) = (Some(lead), Some((stored, Tier::L1)));
            let limit = fetch.request.max_body();
            match timeout(REFRESH_TIMEOUT, self.fetch(fetch)).await {
                Ok(served) => drain(served.response.into_body(), limit, REFRESH_TIMEOUT).await,
                Err(_) => tracing::warn!("a stored response was not refreshed within {REFRESH_TIMEOUT:?}"),
            }
        })
    }
}

/// Reads a body without a client, for this time at most, so that it is stored. One that is passed on or too large is not read.
pub(super) async fn drain(mut body: Body, limit: u64, timeout: Duration) {
    let read_all = async {
        let mut read = 0;
        while let Body::Fill(reader) = &body {
            // The response will not be stored any more.
            if read > limit || !reader.is_kept() {
                return;
            }
            match body.frame().await {
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(timeout, read_all).await;
}

/// Reads a body ahead of its clients, for other pods, until it has been the only reader for a while.
pub(super) async fn drain_ahead(fill: Fill<Source>, reader: Reader<Source>, limit: u64) {
    let alone = async {
        let mut was_alone = false;
        loop {
            sleep(ABANDONED_TIMEOUT).await;
            let is_alone = fill.readers() <= 1;
            if was_alone && is_alone {
                return;
            }
            was_alone = is_alone;
        }
    };
    tokio::select! {
        () = drain(Body::Fill(reader), limit, REFRESH_TIMEOUT) => {}
        () = alone => {}
    }
}
