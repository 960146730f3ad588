//! The stages of a request that may be served from the cache, in their order.
//!
//! A stage either responds (`Break`) or passes the fetch on to the next one (`Continue`).

use std::{
    convert::Infallible,
    ops::ControlFlow::{self, Break, Continue},
    sync::Arc,
    time::Duration,
};

use larder_flight::Lead;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Proxy, Served,
    collapse::ABANDONED_TIMEOUT,
    fallback::StaleWhenSlow,
    fetch::Fetch,
    refresh::{REFRESH_TIMEOUT, drain},
    request::CacheRequest,
};
use crate::{l2::Patience, outlive::Outliving, store::in_flight::FetchOutcome};

/// Result of the last stage, which always responds.
type Last = ControlFlow<Box<Served>, Infallible>;

impl Proxy {
    /// Responds to a request of a route.
    pub(super) async fn respond(self: &Arc<Self>, request: Box<CacheRequest>) -> Box<Served> {
        let stages = async || -> Last {
            let fetch = self.look_in_memory(request).await?;
            let fetch = self.collapse(fetch).await?;
            Break(match fetch.lead {
                Some(_) => self.fetch_detached(fetch).await,
                None => Box::pin(self.fetch(fetch)).await,
            })
        };
        response_of(stages().await)
    }

    /// Responds beyond this pod's memory.
    pub(super) async fn fetch(self: &Arc<Self>, fetch: Box<Fetch>) -> Box<Served> {
        let stages = async || -> Last {
            let fetch = self.ask_redis(fetch, Patience::Soft).await?;
            Break(self.within_soft_timeout(fetch).await)
        };
        response_of(stages().await)
    }

    /// Responds from the origins as soon as no other pod asks them for the same: from the route's sources, then from the application,
    /// and in place of an error with what is stored.
    pub(super) async fn fetch_from_origins(self: &Arc<Self>, fetch: Box<Fetch>) -> Box<Served> {
        let stages = async || -> Last {
            let fetch = self.wait_for_lease(fetch).await?;
            let fetch = self.ask_sources(fetch).await?;
            let (fetch, failure) = self.ask_application(fetch).await?;
            Break(Box::pin(self.handle_failure(fetch, failure)).await)
        };
        response_of(stages().await)
    }

    /// Fetches for several clients: the fetch goes on when the one that began it leaves, until nobody waits for it.
    async fn fetch_detached(self: &Arc<Self>, fetch: Box<Fetch>) -> Box<Served> {
        let audience = fetch.lead.as_ref().map(Lead::audience);
        let (proxy, limit) = (Arc::clone(self), fetch.request.max_body());
        let fetching = async move { proxy.fetch(fetch).await };
        let go_on = move |fetching| async move {
            let abandoned = async {
                loop {
                    // A request that looks again is not in the audience for a moment.
                    sleep(ABANDONED_TIMEOUT).await;
                    if audience.as_ref().is_none_or(larder_flight::Audience::<FetchOutcome>::is_empty) {
                        return;
                    }
                }
            };
            tokio::select! {
                // Those who wait have been told, and need a moment to begin to read.
                fetched = fetching => {
                    let served: Box<Served> = fetched;
                    drain(served.response.into_body(), limit, ABANDONED_TIMEOUT).await;
                }
                // The connection to the application ends with the fetch, so that it hears of it.
                () = abandoned => tracing::debug!("cancelled a fetch that no client waits for"),
            }
        };
        Outliving::new(fetching, go_on).await
    }

    /// Fetches, from sources that are slow only as long as nothing else may be served.
    async fn within_soft_timeout(self: &Arc<Self>, fetch: Box<Fetch>) -> Box<Served> {
        match fetch.stale_when_slow() {
            None => self.fetch_from_origins(fetch).await,
            Some((soft, stale)) => Box::pin(self.fetch_unless_slow(fetch, soft, stale)).await,
        }
    }

    /// Fetches, and responds with a stale response as soon as a source takes longer than its `timeout`. The source's response is stored
    /// all the same.
    async fn fetch_unless_slow(
        self: &Arc<Self>,
        mut fetch: Box<Fetch>,
        soft: Duration,
        stale: StaleWhenSlow,
    ) -> Box<Served> {
        let limit = fetch.request.max_body();
        // An interim response might come after the stale one has begun.
        fetch.request.client.forget_way();
        let proxy = Arc::clone(self);
        let fetching = Box::pin(async move { proxy.fetch_from_origins(fetch).await });
        let mut fetching = AbortOnDropHandle::new(tokio::spawn(fetching));
        let served = match timeout(soft, &mut fetching).await {
            Ok(served) => served,
            Err(_) => {
                if let Some(served) = stale.response() {
                    tokio::spawn(async move {
                        if let Ok(Ok(served)) = timeout(REFRESH_TIMEOUT, fetching).await {
                            drain(served.response.into_body(), limit, REFRESH_TIMEOUT).await;
                        }
                    });
                    return served;
                }
                // The stored response was purged meanwhile.
                fetching.await
            }
        };
        served.expect("the task is never aborted while it is awaited, and its panic is passed on")
    }
}

fn response_of(last: Last) -> Box<Served> {
    match last {
        Break(served) => served,
        Continue(never) => match never {},
    }
}
