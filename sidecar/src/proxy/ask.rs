//! Asking once for all who want the same at the same time.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use http::{HeaderValue, Response, header::AGE};
use http_body_util::BodyExt as _;
use larder_flight::{Audience, Fill, Joined, Lead, Reader, Wait};
use larder_policy::{validation, vary};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{Answered, Proxy, fetch::Errand, keep::Place, look::Looked, question::Question, refresh};
use crate::{
    body::{Body, Source},
    cache_status::{Became, CacheStatus, Forward, Tier},
    entry::{Entry, Head},
    l2::Patience,
    problem::Problem,
    stats::Outcome,
};

/// Maximum number of times that a request joins others before it goes by itself: for its key, for its variant, for leads that vanish
/// or are overtaken, and for what those leave behind.
const MAX_JOINS: usize = 8;

/// Maximum time that a request waits for others in sum, in the route's `collapseTimeout`: for one that hangs, and for the one that
/// was sent in its place.
const MAX_COLLAPSE_TIMEOUTS: u32 = 2;

/// Time that a fetch goes on after its last client has left.
pub(super) const ABANDONED_TIMEOUT: Duration = Duration::from_secs(1);

/// What came of asking, for those who waited.
#[derive(Clone, Debug)]
pub enum Landing {
    /// An answer that is on its way into the cache.
    Coming(Arc<Coming>),
    /// An answer that is stored, and where: it may be another variant than the one that somebody waits for.
    Stored(Arc<Entry>, Tier, Place),
    /// An error; what was stored stands in for it.
    StandIn(Arc<Entry>, CacheStatus, Place),
    /// An answer of the sidecar's own.
    Problem(Problem),
    /// An answer that is not for sharing: each asks for itself.
    Unshared,
}

/// An answer on its way into the cache.
#[derive(Debug)]
pub struct Coming {
    pub(super) head: Head,
    pub(super) place: Place,
    pub(super) fill: Fill<Source>,
    pub(super) tier: Tier,
}

impl Proxy {
    /// Answers from memory, or asks.
    pub(super) async fn look_up(self: &Arc<Self>, question: Question) -> Answered {
        let (part, candidate, reason) = match question.look_in_memory() {
            Looked::Usable(entry, standing) => {
                if question.renews(&entry, &standing) {
                    self.refresh_in_background(&question, &entry);
                }
                return question.hit(&entry, &standing, Tier::L1);
            }
            Looked::StandsIn(entry) => {
                return question.stand_in(&entry, Forward::Stale, None, Tier::L1).0;
            }
            _ if question.asked.only_if_cached => return self.only_what_is_stored(question).await,
            Looked::Candidate(entry, reason) => (None, Some(entry), reason),
            Looked::Part(entry) => (Some(entry), None, Forward::Partial),
            Looked::Nothing(reason) => (None, None, reason),
            Looked::Unshared => {
                return self.fetch(Errand::new(question, None, Forward::UriMiss)).await;
            }
        };
        let may_join = question.may_join(candidate.as_deref());
        let errand = Errand { candidate, part, ..Errand::new(question, None, reason) };
        if may_join { self.join(errand).await } else { self.fetch(errand).await }
    }

    /// RFC 9111, section 5.2.1.7: what Redis has is stored, too.
    async fn only_what_is_stored(self: &Arc<Self>, question: Question) -> Answered {
        let problem = Answered::problem(Problem::OnlyIfCached, Some(question.route));
        let mut errand = Errand::new(question, None, Forward::UriMiss);
        self.look_in_redis(&mut errand, Patience::Hard).await.unwrap_or(problem)
    }

    /// Waits for what another request for the same finds. One that gives no sign of life for the route's `collapseTimeout` is
    /// overtaken: of those who waited for it one asks again, and the others wait for that one.
    async fn join(self: &Arc<Self>, mut errand: Errand) -> Answered {
        let limit = errand.question.route().collapse_timeout;
        let patience = limit * MAX_COLLAPSE_TIMEOUTS;
        let patience = errand.soft_timeout().map_or(patience, |soft| patience.min(soft));
        let (question, reason) = (&errand.question, errand.reason);
        let flights = &question.serving.flights;
        let mut flight = question.flight(question.key.as_str());
        let mut joined = flights.join(&flight);
        for _ in 0..MAX_JOINS {
            let mut wait = match joined {
                Joined::Lead(lead) => return self.lead(Errand { lead: Some(lead), ..errand }).await,
                Joined::Wait(wait) => wait,
            };
            let landing = match landing_of(&mut wait, limit, errand.began_at + patience).await {
                Ok(landing) => landing,
                Err(Late::Flight) => {
                    joined = flights.overtake(wait);
                    continue;
                }
                Err(Late::Request) => match errand.stand_in(None) {
                    Some(answered) => return answered,
                    None => break,
                },
            };
            match landing {
                // The lead has gone, or one that was overtaken has left something after all.
                None => match question.look_in_memory() {
                    Looked::Usable(..) | Looked::Unshared => break,
                    _ => joined = flights.join(&flight),
                },
                Some(Landing::Coming(coming)) if coming.is_purged(question) => break,
                Some(landing) if landing.place().is_some_and(|place| !place.is_for(question)) => {
                    flight =
                        landing.place().map_or(flight, |place| question.flight(&place.key_for(question)));
                    joined = flights.join(&flight);
                    // Nothing hung: it has learned that there are variants.
                    errand.began_at = Instant::now();
                }
                Some(Landing::Coming(coming)) => {
                    if question.has_it_already(&coming.head) {
                        return question.read_along(&coming, None, reason);
                    }
                    match coming.begun(limit, errand.began_at + patience).await {
                        Begun::Now(reader) => return question.read_along(&coming, Some(reader), reason),
                        Begun::Not => joined = flights.overtake(wait),
                        Begun::Never => break,
                    }
                }
                Some(Landing::Stored(entry, tier, _)) => match question.weigh(entry) {
                    Looked::Usable(entry, _) => return question.collapsed(&entry, reason, tier),
                    _ => break,
                },
                Some(Landing::StandIn(entry, status, _)) if !entry.is_purged(&question.serving.barriers) => {
                    return question.answer_with(&entry, status, Outcome::Stale, Tier::L1);
                }
                // Who has something that may stand in asks for itself.
                Some(Landing::Problem(problem)) if errand.candidate.is_none() => {
                    return Answered::problem(problem, Some(question.route));
                }
                Some(Landing::StandIn(..) | Landing::Problem(_) | Landing::Unshared) => break,
            }
        }
        // Meanwhile it may have been stored.
        match errand.question.look_in_memory() {
            Looked::Usable(entry, standing) if !standing.verdict.refreshes() => {
                errand.question.hit(&entry, &standing, Tier::L1)
            }
            _ => self.fetch(errand).await,
        }
    }

    async fn lead(self: &Arc<Self>, mut errand: Errand) -> Answered {
        // Another may have asked, and stored, since we looked.
        if let Looked::Usable(entry, standing) = errand.question.look_in_memory()
            && !standing.verdict.refreshes()
        {
            let answered = errand.question.hit(&entry, &standing, Tier::L1);
            let place = Place::looked_up(&errand.question, vary::names_to_store(&entry.head.headers));
            errand.land(Landing::Stored(entry, Tier::L1, place));
            return answered;
        }
        // Others may wait for it, whether this client stays or leaves.
        let audience = errand.lead.as_ref().map(Lead::audience);
        let (proxy, (mut answer, answered)) = (Arc::clone(self), oneshot::channel());
        let limit = errand.question.serving.policy.l1.max_object_size.0;
        tokio::spawn(async move {
            let answered = tokio::select! {
                answered = proxy.fetch(errand) => answered,
                // The connection to the application ends with the fetch, so that it hears of it.
                () = abandoned(&mut answer, audience.as_ref()) => {
                    return tracing::debug!("nobody waits for a response any more");
                }
            };
            if let Err(Answered { response, .. }) = answer.send(answered) {
                // Those who wait have been told of it, and need a moment to begin to read.
                refresh::drain(response.into_body(), limit, ABANDONED_TIMEOUT).await;
            }
        });
        answered.await.expect("a task that is not abandoned ends, unless it panics, and then so do we")
    }
}

/// Waits until the client has left and nobody waits for the same.
async fn abandoned(answer: &mut oneshot::Sender<Answered>, audience: Option<&Audience<Landing>>) {
    answer.closed().await;
    loop {
        // Who looks again is not among those who wait for a moment.
        sleep(ABANDONED_TIMEOUT).await;
        if audience.is_none_or(Audience::is_empty) {
            return;
        }
    }
}

impl Landing {
    /// Where the answer is stored, or will be.
    fn place(&self) -> Option<&Place> {
        match self {
            Self::Coming(coming) => Some(&coming.place),
            Self::Stored(_, _, place) | Self::StandIn(_, _, place) => Some(place),
            Self::Problem(_) | Self::Unshared => None,
        }
    }
}

/// Why a landing is not waited for any longer.
enum Late {
    /// The flight gave no sign of life for the route's `collapseTimeout`.
    Flight,
    /// The request has waited for as long as it may.
    Request,
}

/// Waits for what a flight finds.
async fn landing_of(
    wait: &mut Wait<Landing>,
    limit: Duration,
    until: Instant,
) -> Result<Option<Landing>, Late> {
    loop {
        let overdue = Instant::from_std(wait.since()) + limit;
        if let Ok(landing) = timeout_at(overdue.min(until), &mut *wait).await {
            return Ok(landing);
        }
        if until <= overdue {
            return Err(Late::Request);
        }
        // Unless it gave a sign of life meanwhile.
        if Instant::from_std(wait.since()) + limit == overdue {
            return Err(Late::Flight);
        }
    }
}

/// Returns true if a flight has given no sign of life for this long: no head of a response, or nothing more of its body.
pub(super) fn is_overdue(wait: &mut Wait<Landing>, limit: Duration) -> bool {
    match wait.now_or_never() {
        None => wait.since().elapsed() >= limit,
        Some(Some(Landing::Coming(coming))) => coming.is_stalled(limit),
        Some(_) => false,
    }
}

/// The beginning of a body that others read as well.
enum Begun {
    /// Some of it is there, or all, if it is empty.
    Now(Reader<Source>),
    /// The origin has not sent any of it, or nothing more, for the route's `collapseTimeout`.
    Not,
    /// It is no longer to be had from its start, or the request may wait no longer for it.
    Never,
}

impl Coming {
    /// Whether a purge, or too long a time without proof that there was none, forbids to give it to those who did not ask first.
    fn is_purged(&self, question: &Question) -> bool {
        let (barriers, Head { names, stamp, .. }) = (&question.serving.barriers, &self.head);
        !barriers.trusts(stamp.asked_at) || barriers.covers(names, *stamp)
    }

    fn is_stalled(&self, limit: Duration) -> bool {
        self.fill.starved_since().is_some_and(|since| since.elapsed() >= limit)
    }

    /// Waits until some of the body is there: who has sent a head to its client can not turn to another response any more.
    async fn begun(&self, limit: Duration, until: Instant) -> Begun {
        if self.is_stalled(limit) {
            return Begun::Not;
        }
        // One reads the first piece, and the other still has it before it.
        let (Some(mut first), Some(reader)) = (self.fill.join(), self.fill.join()) else {
            return Begun::Never;
        };
        let overdue = self.fill.starved_since().map_or_else(Instant::now, Instant::from_std) + limit;
        match timeout_at(overdue.min(until), first.frame()).await {
            Ok(Some(Err(_))) => Begun::Never,
            Ok(_) => Begun::Now(reader),
            Err(_) if until < overdue => Begun::Never,
            Err(_) => Begun::Not,
        }
    }
}

impl Question {
    /// Whether it may wait for what another asks for: not if it wants something of its own.
    fn may_join(&self, candidate: Option<&Entry>) -> bool {
        let wants_a_part = !matches!(self.range, larder_policy::range::Asked::Whole) && candidate.is_none();
        self.asked.is_empty() && !self.shares_only_what_it_may && !wants_a_part
    }

    fn collapsed(&self, entry: &Entry, reason: Forward, tier: Tier) -> Answered {
        let status = Some(entry.head.status);
        let status = CacheStatus::Forwarded { reason, status, tier, answer: Became::Collapsed };
        self.answer_with(entry, status, Outcome::Collapsed, tier)
    }

    /// A response from what is on its way, with the body that `reader` reads; without one, the client has it already.
    fn read_along(&self, coming: &Coming, reader: Option<Reader<Source>>, reason: Forward) -> Answered {
        let Coming { head, tier, .. } = coming;
        let mut response = if let Some(reader) = reader {
            let mut response = Response::new(Body::Fill(reader));
            *response.status_mut() = head.status;
            *response.headers_mut() = head.headers.clone();
            response
        } else {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            *response.headers_mut() = validation::not_modified_headers(&head.headers);
            response
        };
        let age = head.claims.initial_age() + head.resident();
        response.headers_mut().insert(AGE, HeaderValue::from(age.as_secs()));
        let (status, tier) = (Some(head.status), *tier);
        CacheStatus::Forwarded { reason, status, tier, answer: Became::Collapsed }
            .append_to(response.headers_mut());
        let answered = self.answered(response, Outcome::Collapsed, tier);
        Answered { life: Some(self.life_of(head)), ..answered }
    }
}
