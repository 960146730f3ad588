//! What the route's sources say.

use std::{sync::Arc, time::Instant};

use http::{
    HeaderMap, HeaderValue, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use http_body_util::BodyExt as _;
use larder_policy::{
    Values,
    claims::Times,
    policy::{Ask, HttpSource, QuerySource},
};

use super::{Answered, Proxy, ask::Landing, fetch::Errand, persist::Keeping, question::Question};
use crate::{
    body::{Network, Source as BodySource, SourceError},
    cache_status::Tier,
    clock::wall_ms,
    problem::Problem,
    sources::{
        Source,
        http::{HttpError, HttpFound},
        postgres::PostgresError,
    },
};

/// What a source has under a name.
enum Said {
    This(Parts, Network),
    Nothing,
    /// It could not be asked, or did not answer.
    Failed,
}

impl Proxy {
    /// Asks the route's sources in order, and the application after them if it is one of them.
    pub(super) async fn ask_sources(self: &Arc<Self>, mut errand: Errand) -> Answered {
        let requested_at = wall_ms();
        let serving = Arc::clone(&errand.question.serving);
        let route = &serving.policy.routes()[errand.question.route];
        let mut somebody_failed = false;
        for ask in &route.sources {
            let started = Instant::now();
            let (tier, said) = match ask {
                Ask::Postgres(ask) => (Tier::Postgres, errand.question.ask_postgres(ask).await),
                Ask::Http(ask) => (Tier::Http, errand.question.ask_http(ask).await),
            };
            errand.tier = tier;
            match said {
                Said::This(head, network) => {
                    let took = started.elapsed();
                    self.telemetry.tier_answered(tier, took);
                    let milliseconds = took.as_secs_f64() * 1000.0;
                    tracing::debug!(route = route.name, milliseconds, "fetched from {}", tier.as_str());
                    return errand.deliver_from_source(head, network, requested_at);
                }
                Said::Nothing => self.telemetry.tier_answered(tier, started.elapsed()),
                Said::Failed => {
                    somebody_failed = true;
                    self.telemetry.stats.tier_failed(tier);
                }
            }
            errand.goes_on();
        }
        if route.asks_application {
            errand.tier = Tier::Application;
            return self.ask_application(errand).await;
        }
        if somebody_failed {
            if let Some(answered) = self.rescue(&mut errand, None).await {
                return answered;
            }
            errand.land(Landing::Problem(Problem::SourcesFailed));
            return Answered::problem(Problem::SourcesFailed, Some(errand.question.route));
        }
        let (mut head, body) = Problem::NotFound.response().into_parts();
        head.headers.remove(CONTENT_LENGTH);
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        errand.deliver_from_source(head, Network::text(body), requested_at)
    }
}

impl Errand {
    fn deliver_from_source(self, head: Parts, network: Network, requested_at: u64) -> Answered {
        let times = Times { requested_at, received_at: wall_ms() };
        self.deliver(head.status, head, BodySource::new(network), times)
    }
}

impl Question {
    pub(super) fn values(&self) -> Values<'_> {
        let parameters = self.matched().map(|found| found.parameters(&self.path())).unwrap_or_default();
        Values { parameters, query: self.query(), body: None }
    }

    async fn ask_postgres(&self, ask: &QuerySource) -> Said {
        let Some(Source::Postgres(source)) = self.serving.source(&ask.source) else { return Said::Failed };
        match source.fetch(&ask.query, &self.values()).await {
            Ok(Some(body)) => {
                let json = HeaderValue::from_static("application/json");
                said(Response::new(Network::text(body)), Some(json))
            }
            Ok(None) => Said::Nothing,
            Err(error) => {
                // Nothing was asked of one that is down.
                if !matches!(error, PostgresError::Down) {
                    self.report(&ask.source, &error);
                }
                Said::Failed
            }
        }
    }

    async fn ask_http(&self, ask: &HttpSource) -> Said {
        let Some(Source::Http(source)) = self.serving.source(&ask.source) else { return Said::Failed };
        let Some(target) = self.values().expand_url(&ask.path) else { return Said::Nothing };
        match source.fetch(&target).await {
            Ok(HttpFound::Found(response)) => {
                let keeping = ask.persist.as_ref().map(|persist| self.keeping(persist));
                said(
                    response.map(|body| {
                        Keeping::body(body.map_err(|error| SourceError::Source(error.into())), keeping)
                    }),
                    None,
                )
            }
            Ok(HttpFound::NotFound) => Said::Nothing,
            Err(error) => {
                if !matches!(error, HttpError::Down) {
                    self.report(&ask.source, &error);
                }
                Said::Failed
            }
        }
    }

    pub(super) fn report(&self, source: &str, error: &dyn std::error::Error) {
        tracing::warn!(source, route = self.route().name, %error, "a source failed");
    }
}

fn said(response: Response<Network>, content_type: Option<HeaderValue>) -> Said {
    let (mut head, body) = response.into_parts();
    head.extensions.clear();
    if let Some(content_type) = content_type {
        head.headers = [(CONTENT_TYPE, content_type)].into_iter().collect::<HeaderMap>();
    }
    Said::This(head, body)
}
