//! The stage that asks the route's sources.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
    time::Instant,
};

use http::{Response, header::CONTENT_LENGTH};
use http_body_util::BodyExt as _;
use larder_policy::{policy::SourceRef, response_meta::Times};

use super::{
    Proxy,
    fetch::{Fetch, Step},
    persist::Persisting,
    received::Received,
    request::CacheRequest,
};
use crate::{
    body::IncomingBody,
    clock::wall_ms,
    problem::Problem,
    sources::{FetchError, Source},
};

impl Proxy {
    /// Responds from the first source that has a response, or with a 404 if none has and the application is not asked; passes the
    /// fetch on otherwise.
    pub(super) async fn ask_sources(self: &Arc<Self>, fetch: Box<Fetch>) -> Step {
        let route = &fetch.request.route;
        if route.sources.is_empty() && route.asks_application {
            return Continue(fetch);
        }
        Box::pin(self.ask_each_source(fetch)).await
    }

    async fn ask_each_source(self: &Arc<Self>, mut fetch: Box<Fetch>) -> Step {
        let requested_at = wall_ms();
        let route = Arc::clone(&fetch.request.route);
        let mut has_failed = false;
        for source_ref in &route.sources {
            let Some(source) = fetch.request.snapshot.source(source_ref.name()).cloned() else {
                has_failed = true;
                continue;
            };
            let (started, tier) = (Instant::now(), source.tier());
            fetch.tier = tier;
            match source.fetch(source_ref, &fetch.request.values()).await {
                Ok(Some(response)) => {
                    let took = started.elapsed();
                    self.telemetry.tier_answered(tier, took);
                    let milliseconds = took.as_secs_f64() * 1000.0;
                    tracing::debug!(route = route.name, milliseconds, "fetched from {}", tier.as_str());
                    return Break(fetch.deliver_from_source(response, source_ref, requested_at));
                }
                Ok(None) => self.telemetry.tier_answered(tier, started.elapsed()),
                Err(failure) => {
                    if let FetchError::Failed(error) = &failure {
                        fetch.request.log_failure(source_ref.name(), error.as_ref());
                    }
                    has_failed = true;
                    self.telemetry.stats.tier_failed(tier);
                }
            }
            fetch.shows_progress();
        }
        if route.asks_application || has_failed {
            return Continue(fetch);
        }
        let (mut head, body) = Problem::NotFound.response().into_parts();
        head.headers.remove(CONTENT_LENGTH);
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let times = Times { requested_at, received_at: wall_ms() };
        let response = Response::from_parts(head, body);
        let received = Received::with_map(&fetch.request, response, times, IncomingBody::text);
        Break(fetch.deliver_received(received))
    }
}

impl Fetch {
    fn deliver_from_source(
        self: Box<Self>,
        mut response: Response<IncomingBody>,
        source_ref: &SourceRef,
        requested_at: u64,
    ) -> Box<super::Served> {
        response.extensions_mut().clear();
        let times = Times { requested_at, received_at: wall_ms() };
        let received =
            Received::with_map(&self.request, response, times, |body| match source_ref.persist() {
                Some(statement) => Persisting::new(&self.request, statement).wrap(body),
                None => body,
            });
        self.deliver_received(received)
    }
}

impl CacheRequest {
    /// Returns the sources of the route, with what they are asked, in their order.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&SourceRef, &Source)> {
        let known = |source_ref: &'_ SourceRef| self.snapshot.source(source_ref.name());
        self.route.sources.iter().filter_map(move |source_ref| Some((source_ref, known(source_ref)?)))
    }

    pub(super) fn log_failure(&self, source: &str, error: &dyn std::error::Error) {
        tracing::warn!(source, route = self.route.name, %error, "a source failed");
    }
}
