//! Asking beyond this pod's memory: Redis, the route's sources, the application.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use larder_flight::Lead;
use larder_policy::{
    Values,
    claims::{Claims, Times},
    policy::Ask,
    storing::NotStored,
};

use super::{Answered, Proxy, ask::Landing, keep::Place, look::Looked, question::Question};
use crate::{
    barriers::Stamp,
    body::Body,
    cache_status::{Became, CacheStatus, Forward, Tier},
    clock::wall_ms,
    entry::{Content, Entry, Head},
    l2::Found,
    problem::Problem,
    sources::{Source, postgres::PostgresError},
    stats::Outcome,
};

/// A request that goes beyond memory, and who waits for what comes of it.
pub(super) struct Errand {
    pub(super) question: Question,
    /// Those who wait for the same.
    pub(super) lead: Option<Lead<Landing>>,
    /// What is stored and too old: it may be said to hold still, or stand in for an error.
    pub(super) candidate: Option<Arc<Entry>>,
    /// What is stored of the answer.
    pub(super) part: Option<Arc<Entry>>,
    pub(super) reason: Forward,
    /// Where the order of purges stood when it began.
    pub(super) stamp: Stamp,
    /// Nobody waits for it: what is stored has been served.
    pub(super) is_refresh: bool,
}

impl Errand {
    pub(super) fn new(question: Question, lead: Option<Lead<Landing>>, reason: Forward) -> Self {
        let stamp = question.serving.barriers.stamp();
        Self { question, lead, candidate: None, part: None, reason, stamp, is_refresh: false }
    }

    /// Tells those who wait what came of it.
    pub(super) fn land(&mut self, landing: Landing) {
        if let Some(lead) = self.lead.take() {
            drop(lead.land(landing));
        }
    }
}

impl Proxy {
    /// Asks Redis, then the route's sources, or the application.
    pub(super) async fn fetch(self: &Arc<Self>, mut errand: Errand) -> Answered {
        if let Some(answered) = self.look_in_redis(&mut errand).await {
            return answered;
        }
        if errand.question.route().sources.is_empty() {
            self.ask_application(errand).await
        } else {
            let stamp = errand.stamp;
            self.ask_sources(errand, Some(stamp)).await
        }
    }

    /// An answer from Redis, if it has one; and where the order of purges stands, if it answers.
    pub(super) async fn look_in_redis(self: &Arc<Self>, errand: &mut Errand) -> Option<Answered> {
        let question = &errand.question;
        let l2 = question.serving.l2.as_ref()?;
        let key = question.key_of_get.as_ref().unwrap_or(&question.key);
        let serving = &question.serving;
        let names = question.names();
        let lookup = l2
            .lookup(&serving.shape, key.as_str(), &question.headers, &names, serving.policy.targets())
            .await;
        let lookup = lookup.ok()?;
        errand.stamp = lookup.stamp;
        let (vary, entry) = match lookup.found {
            Found::Nothing => return None,
            Found::OtherVariants => {
                errand.reason = Forward::VaryMiss;
                return None;
            }
            Found::Purged => {
                errand.reason = Forward::Stale;
                return None;
            }
            Found::Entry(vary, entry) => (vary, Arc::new(*entry)),
        };
        let place = Place::looked_up(question, vary);
        match question.weigh(Arc::clone(&entry)) {
            Looked::Usable(entry, standing) if standing.verdict.refreshes() && errand.is_refresh => {
                errand.candidate = Some(entry);
                None
            }
            Looked::Usable(entry, standing) => {
                place.keep_in_memory(&entry);
                let answered = question.hit(&entry, &standing, Tier::L2);
                errand.land(Landing::Stored(Arc::clone(&entry), Tier::L2, place));
                // Whoever renews it leads those who wait for the same: not while this errand does.
                if standing.verdict.refreshes() {
                    self.refresh_in_background(&errand.question, &entry);
                }
                Some(answered)
            }
            Looked::Candidate(entry, reason) => {
                errand.candidate.get_or_insert(entry);
                errand.reason = reason;
                None
            }
            Looked::Part(entry) => {
                errand.part.get_or_insert(entry);
                None
            }
            Looked::Nothing(_) | Looked::Unshared => None,
        }
    }

    /// Asks the route's sources in order. Without a stamp, nothing is stored.
    pub(super) async fn ask_sources(&self, mut errand: Errand, stamp: Option<Stamp>) -> Answered {
        let serving = Arc::clone(&errand.question.serving);
        let route = errand.question.route;
        let problem = match self.ask_each_source(&errand.question).await {
            Ok(Some(body)) => {
                let headers: HeaderMap =
                    [(CONTENT_TYPE, HeaderValue::from_static("application/json"))].into_iter().collect();
                let mut response = Response::new(Body::full(body.clone()));
                *response.headers_mut() = headers.clone();
                let fits = errand.question.fits(body.len() as u64);
                let mut answer = Became::Passed;
                match stamp {
                    Some(stamp) if fits => {
                        let now = wall_ms();
                        let times = Times { requested_at: now, received_at: now };
                        let status = StatusCode::OK;
                        let claims = Claims::read(status, &headers, times, serving.policy.targets());
                        let names = errand.question.names();
                        let head = Head { status, headers, times, claims, stamp, names };
                        let entry = Arc::new(Entry::new(head, Content::Whole(body)));
                        let place = Place::new(&errand.question, vec![]);
                        if serving.barriers.covers(&entry.head.names, stamp) {
                            serving.not_stored(route, NotStored::Purged);
                        } else {
                            place.clone().keep(Arc::clone(&entry));
                            answer = Became::Stored;
                        }
                        errand.land(Landing::Stored(entry, Tier::Postgres, place));
                    }
                    Some(_) => {
                        serving.not_stored(route, NotStored::TooLarge);
                        errand.land(Landing::Unshared);
                    }
                    None => {}
                }
                let (reason, status) = (errand.reason, Some(StatusCode::OK));
                CacheStatus::Forwarded { reason, status, tier: Tier::Postgres, answer }
                    .append_to(response.headers_mut());
                return errand.question.answered(response, Outcome::Miss, Tier::Postgres);
            }
            Ok(None) => Problem::NotFound,
            Err(SourcesFailed) => Problem::SourcesFailed,
        };
        errand.land(Landing::Problem(problem));
        match problem {
            Problem::NotFound => errand.question.answered(problem.response(), Outcome::Miss, Tier::Postgres),
            _ => Answered::problem(problem, Some(route)),
        }
    }

    async fn ask_each_source(&self, question: &Question) -> Result<Option<Bytes>, SourcesFailed> {
        let Some(found) = question.matched() else { return Err(SourcesFailed) };
        let path = question.path();
        let values = Values { parameters: found.parameters(&path), query: question.query(), body: None };
        for ask in &found.route.sources {
            let Ask::Postgres(ask) = ask else { continue };
            let Some(Source::Postgres(source)) = question.serving.source(&ask.source) else { continue };
            let started = Instant::now();
            match source.fetch(&ask.query, &values).await {
                Ok(body) => {
                    self.telemetry.tier_answered(Tier::Postgres, started.elapsed());
                    return Ok(body);
                }
                // Nothing was asked.
                Err(PostgresError::Down) => {}
                Err(error) => {
                    tracing::warn!(source = ask.source, route = found.route.name, %error, "a source failed");
                    self.telemetry.stats.tier_failed(Tier::Postgres);
                }
            }
        }
        Err(SourcesFailed)
    }
}

/// No source could answer.
struct SourcesFailed;
