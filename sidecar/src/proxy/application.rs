//! What the application says, and what becomes of it.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, IF_RANGE},
    response::Parts,
};
use http_body::Body as _;
use larder_policy::{
    PurgeName,
    claims::{Claims, Times},
    date,
    range::{self, ContentRange},
    storing::{self, NotStored, storable},
    validation, vary,
};

use super::{
    Answered, Proxy,
    ask::{Coming, Landing},
    fetch::Errand,
    fill::{LagRoom, PartFill, Slot, WholeFill, given_ttl, store},
    keep::Place,
    question::{Ask, Question},
    refresh::{DEADLINE, drain, drain_ahead},
    unreachable,
};
use crate::{
    body::{Body, Network, Source},
    cache_status::{Became, CacheStatus, Tier},
    clock::wall_ms,
    entry::{Content, Entry, Head},
    stats::Outcome,
    upstream::{UpstreamError, WhenRefused},
};

/// So much of a body of unknown length is read ahead of its client: less than a reader may lie behind another.
const MOST_AHEAD: u64 = 4 << 20;

/// An answer of the application as it came.
struct Received {
    head: Parts,
    body: Network,
    times: Times,
}

impl Proxy {
    pub(super) async fn ask_application(self: &Arc<Self>, mut errand: Errand) -> Answered {
        let mut ask = errand.what_to_ask();
        loop {
            let refused = if errand.may_stand_in() { WhenRefused::Fail } else { WhenRefused::Retry };
            let received = match self.exchange(&errand.question, &ask, refused).await {
                Ok(received) => received,
                Err(error) => return self.without_an_answer(errand, &error).await,
            };
            let status = received.head.status;
            match &ask {
                Ask::WhetherItHolds(_) if status == StatusCode::NOT_MODIFIED => {
                    match errand.freshened(&received) {
                        Some(entry) => return errand.still_holds(entry),
                        // It is about another answer than the one that was asked about.
                        None => ask = Ask::ForAll,
                    }
                }
                Ask::ForTheRest { .. } if status == StatusCode::PARTIAL_CONTENT => {
                    match errand.completed(received) {
                        Some((received, source)) => {
                            return errand.deliver(status, received.0, source, received.1);
                        }
                        None => ask = Ask::ForAll,
                    }
                }
                Ask::ForTheRest { .. } if status == StatusCode::RANGE_NOT_SATISFIABLE => ask = Ask::ForAll,
                _ => {
                    if is_failure(status)
                        && let Some(answered) = self.rescue(&mut errand, Some(status)).await
                    {
                        return answered;
                    }
                    let Received { head, body, times } = received;
                    return errand.deliver(status, head, Source::new(body), times);
                }
            }
        }
    }

    async fn without_an_answer(self: &Arc<Self>, mut errand: Errand, error: &UpstreamError) -> Answered {
        if let Some(answered) = self.rescue(&mut errand, None).await {
            tracing::warn!(
                reason = error.reason().as_str(),
                error = error.chain(),
                "the application did not respond; what is stored stands in"
            );
            return answered;
        }
        let answered = unreachable(error, &errand.question.client, Some(errand.question.route));
        errand.land(Landing::Problem(crate::problem::Problem::Upstream(error.reason())));
        answered
    }

    async fn exchange(
        &self,
        question: &Question,
        ask: &Ask,
        refused: WhenRefused,
    ) -> Result<Received, UpstreamError> {
        let requested_at = wall_ms();
        let response = self.forward(question.outgoing(ask), &question.client, None, refused).await?;
        let times = Times { requested_at, received_at: wall_ms() };
        let (mut head, body) = response.into_parts();
        date_if_missing(&mut head.headers, times.received_at);
        Ok(Received { head, body: Network::Application(body), times })
    }
}

impl Errand {
    fn what_to_ask(&self) -> Ask {
        let question = &self.question;
        if question.is_head() {
            return Ask::AsTheClient;
        }
        // Of POST, a condition that fails is an error (RFC 9110, section 13.1.2).
        let stored = self.candidate.as_ref().filter(|_| question.method == Method::GET);
        if let Some(validators) = stored.and_then(|entry| validators_of(entry)) {
            return Ask::WhetherItHolds(validators);
        }
        if let Some(ask) = self.part.as_ref().and_then(|part| question.ask_for_the_rest(part)) {
            return ask;
        }
        if self.lead.is_some() || self.candidate.is_some() { Ask::ForAll } else { Ask::AsTheClient }
    }

    /// What is stored, made fresh by a 304 (RFC 9111, section 4.3.4).
    fn freshened(&self, received: &Received) -> Option<Entry> {
        let stored = self.candidate.as_ref()?;
        if !validation::selects(&received.head.headers, &stored.head.headers) {
            return None;
        }
        let headers =
            validation::freshen(&stored.head.headers, &storing::kept_headers(&received.head.headers));
        let status = stored.head.status;
        let claims = Claims::read(status, &headers, received.times, self.question.serving.policy.targets())
            .with_given_ttl(given_ttl(self.question.lifetimes(), &headers, Some(&stored.content)));
        let head = Head {
            status,
            headers,
            claims,
            times: received.times,
            stamp: self.stamp,
            names: self.question.names(),
        };
        Some(Entry::new(head, stored.content.clone()))
    }

    fn still_holds(mut self, entry: Entry) -> Answered {
        let entry = Arc::new(entry);
        let question = &self.question;
        let head = &entry.head;
        let status = head.status;
        let stored =
            match storable(&question.asker, status, &head.headers, &head.claims, question.lifetimes()) {
                Ok(_) if question.serving.barriers.covers(&head.names, head.stamp) => Err(NotStored::Purged),
                other => other,
            };
        let (answer, landing) = match stored {
            Ok(vary) => {
                let place = Place::new(question, vary);
                place.clone().keep(Arc::clone(&entry), self.lease.take());
                (Became::Stored, Landing::Stored(Arc::clone(&entry), Tier::Application, place))
            }
            Err(reason) => {
                question.serving.not_stored(question.route, reason);
                (Became::Passed, Landing::Unshared)
            }
        };
        let (reason, tier) = (self.reason, Tier::Application);
        let status = CacheStatus::Forwarded { reason, status: Some(StatusCode::NOT_MODIFIED), tier, answer };
        let answered = question.answer_with(&entry, status, Outcome::Revalidated, tier);
        self.land(landing);
        answered
    }

    /// What was missing of a stored answer, with the rest around it.
    fn completed(&self, received: Received) -> Option<((Parts, Times), Source)> {
        let Received { mut head, body, times } = received;
        let stored = self.part.as_ref()?;
        let Content::Parts(pieces) = &stored.content else { return None };
        let missing = pieces.missing()?;
        let range = ContentRange::of(&head.headers)?;
        let fits = (range.first, range.last + 1) == (missing.start, missing.end)
            && range.total == Some(pieces.total())
            && body.size_hint().exact().is_none_or(|length| length == missing.end - missing.start)
            && range::may_combine(&stored.head.headers, &head.headers);
        if !fits {
            return None;
        }
        let slice =
            |range: Range<u64>| if range.is_empty() { Some(Bytes::new()) } else { pieces.slice(range) };
        let (before, after) = (slice(0..missing.start)?, slice(missing.end..pieces.total())?);
        head.status = StatusCode::OK;
        head.headers = validation::freshen(&stored.head.headers, &head.headers);
        head.headers.remove(CONTENT_RANGE);
        head.headers.remove(CONTENT_LENGTH);
        Some(((head, times), Source::between(before, body, missing.end - missing.start, after)))
    }

    /// Passes an answer on, and stores it if it may be. `said` is the status with which the application answered: what it gave
    /// may have been put together with what is stored.
    pub(super) fn deliver(
        mut self,
        said: StatusCode,
        mut head: Parts,
        source: Source,
        times: Times,
    ) -> Answered {
        if !self.stores {
            return self.passed_on(said, head, Body::Stream(source), Became::Passed);
        }
        let question = &self.question;
        let (serving, route, tier) = (Arc::clone(&question.serving), question.route, self.tier);
        let claims = Claims::read(head.status, &head.headers, times, serving.policy.targets());
        let storable = storable(&question.asker, head.status, &head.headers, &claims, question.lifetimes())
            .and_then(|vary| {
                if question.fits(source.size_hint().lower()) { Ok(vary) } else { Err(NotStored::TooLarge) }
            });
        let vary = match storable {
            Ok(vary) => vary,
            Err(reason) => {
                serving.not_stored(route, reason);
                if self.candidate.is_some() && says_that_what_was_stored_is_gone(head.status, reason) {
                    let place = Place::new(question, vec![]);
                    place.forget(PurgeName::key(question.key.as_str()));
                }
                if self.lead.is_some() && !head.status.is_server_error() {
                    question.note_unshared();
                }
                self.land(Landing::Unshared);
                return self.passed_on(said, head, Body::Stream(source), Became::Passed);
            }
        };
        let stored = self.stored_head(&head, times, claims);
        let place = Place::new(&self.question, vary);
        if self.question.is_head() {
            self.freshen_what_get_stored(&head, times);
            store(stored, place, Content::Whole(Bytes::new()), None);
            self.land(Landing::Unshared);
            return self.passed_on(said, head, Body::Stream(source), Became::Stored);
        }
        let limit = serving.policy.l1.max_object_size.0;
        if head.status == StatusCode::PARTIAL_CONTENT {
            let Some(range) = ContentRange::of(&head.headers) else {
                return self.passed_on(said, head, Body::Stream(source), Became::Passed);
            };
            let known = self.part.take();
            // What answers `If-Range` may leave out what the client has, and we have not (RFC 9110, section 15.3.7).
            if known.is_none() && self.question.headers.contains_key(IF_RANGE) {
                serving.not_stored(route, NotStored::ContentRange);
                return self.passed_on(said, head, Body::Stream(source), Became::Passed);
            }
            let observer = PartFill::new(stored, place, range, known, self.lease.take());
            let room = Box::new(LagRoom::new(&serving.budget));
            let (_, reader) = larder_flight::fill_within(room, source, limit, Box::new(observer));
            self.land(Landing::Unshared);
            return self.passed_on(said, head, Body::Fill(reader), Became::Stored);
        }
        let has_it_already = self.question.has_it_already(&stored);
        let slot = Slot::default();
        let lease = self.lease.take();
        let others_wait = lease.is_some();
        let has_length = source.size_hint().exact().is_some();
        let ahead = if has_length { limit } else { limit.min(MOST_AHEAD) };
        // A body of unknown length may turn out to be too large: nothing is claimed of it.
        let became = if has_length { Became::Stored } else { Became::Passed };
        let observer = WholeFill::new(stored.clone(), place.clone(), slot.clone(), lease);
        let room = Box::new(LagRoom::new(&serving.budget));
        let (fill, reader) = larder_flight::fill_within(room, source, limit, Box::new(observer));
        // Other pods have it when it is whole: that must not take as long as this client takes to read it.
        if let Some(reader) = fill.join().filter(|_| others_wait) {
            tokio::spawn(drain_ahead(fill.clone(), reader, ahead));
        }
        if let Some(lead) = self.lead.take() {
            slot.hold(lead.land(Landing::Coming(Arc::new(Coming {
                head: stored.clone(),
                place,
                fill,
                tier,
            }))));
        }
        if has_it_already {
            tokio::spawn(drain(Body::Fill(reader), limit, DEADLINE));
            head.status = StatusCode::NOT_MODIFIED;
            head.headers = validation::not_modified_headers(&head.headers);
            return self.passed_on(said, head, Body::empty(), became);
        }
        let life = self.question.life_of(&stored);
        let answered = self.passed_on(said, head, Body::Fill(reader), became);
        Answered { life: Some(life), ..answered }
    }

    /// What is stored of the head of an answer.
    fn stored_head(&self, head: &Parts, times: Times, claims: Claims) -> Head {
        let mut headers = storing::kept_headers(&head.headers);
        if !self.question.is_head() {
            headers.remove(CONTENT_LENGTH);
        }
        // What the body says of it is known when that is whole.
        let claims = claims.with_given_ttl(given_ttl(self.question.lifetimes(), &headers, None));
        let names = self.question.names();
        Head { status: head.status, headers, times, claims, stamp: self.stamp, names }.spread()
    }

    fn passed_on(&self, said: StatusCode, head: Parts, body: Body, answer: Became) -> Answered {
        let status = Some(said);
        let mut response = Response::from_parts(head, body);
        CacheStatus::Forwarded { reason: self.reason, status, tier: self.tier, answer }
            .append_to(response.headers_mut());
        self.question.answered(response, Outcome::Miss, self.tier)
    }

    /// RFC 9111, section 4.3.5: an answer to HEAD renews what is stored of GET, or shows that it no longer holds.
    fn freshen_what_get_stored(&self, head: &Parts, times: Times) {
        let question = &self.question;
        let Some(stored) = question.stored_of_get() else { return };
        let Content::Whole(body) = &stored.content else { return };
        if head.status != StatusCode::OK || stored.is_purged(&question.serving.barriers) {
            return;
        }
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let is_as_long = length.is_none_or(|length| length.parse() == Ok(body.len()));
        let place = Place::looked_up(question, vary::names_to_store(&stored.head.headers));
        if !is_as_long || !validation::selects(&head.headers, &stored.head.headers) {
            return place.forget(question.name_of_get());
        }
        let headers = validation::freshen(&stored.head.headers, &storing::kept_headers(&head.headers));
        let claims = Claims::read(stored.head.status, &headers, times, question.serving.policy.targets());
        let head = Head { headers, claims, times, ..stored.head.clone() };
        store(head, place, stored.content.clone(), None);
    }
}

/// RFC 9110, section 6.6.1: who receives an answer without a date, and has a clock, writes it down.
pub(super) fn date_if_missing(headers: &mut HeaderMap, received_at: u64) {
    if !headers.contains_key(DATE) {
        let now = date::format(received_at / 1000);
        headers.insert(DATE, HeaderValue::from_bytes(&now).expect("a date is visible ASCII"));
    }
}

/// The statuses that stand for a failure of the application (RFC 5861, section 4).
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether an answer that is not stored is no less the newest word on what is there, and not on who asked or how.
fn says_that_what_was_stored_is_gone(status: StatusCode, reason: NotStored) -> bool {
    let is_about_it = status.is_success()
        || status.is_redirection()
        || [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&status);
    is_about_it
        && matches!(
            reason,
            NotStored::Status
                | NotStored::NoStore
                | NotStored::Private
                | NotStored::SetCookie
                | NotStored::VaryAny
                | NotStored::NoLifetime
                | NotStored::Stale
        )
}

fn validators_of(entry: &Entry) -> Option<validation::Validators> {
    match entry.content {
        Content::Whole(_) => validation::validators(&entry.head.headers),
        Content::Parts(_) => None,
    }
}

impl Question {
    /// What is missing of an answer, if that is one part of a body that is still the same (RFC 9111, section 3.3).
    fn ask_for_the_rest(&self, part: &Entry) -> Option<Ask> {
        let Content::Parts(pieces) = &part.content else { return None };
        let missing = pieces.missing().filter(|_| matches!(self.range, range::Asked::Whole))?;
        let if_range = part.head.headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"))?.clone();
        let range = format!("bytes={}-{}", missing.start, missing.end - 1);
        Some(Ask::ForTheRest { range: HeaderValue::try_from(range).ok()?, if_range })
    }
}
