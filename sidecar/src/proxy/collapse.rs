//! The stage that waits for another request that fetches the same response.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use http::{HeaderValue, Response, header::AGE};
use http_body_util::BodyExt as _;
use larder_flight::{FlightKey, Joined, Lead, Reader, Wait};
use larder_policy::{key::path_of, range::RangeRequest, validation};
use tokio::time::{Instant, timeout_at};

use super::{
    Proxy, Served,
    fetch::{Fetch, Step},
    memory::Lookup,
    request::CacheRequest,
};
use crate::{
    barriers::Covered,
    body::{Body, Source},
    cache_key::hash_of,
    cache_status::{Became, CacheStatus, Forward, Tier},
    entry::{Entry, Head},
    stats::Outcome,
    store::in_flight::{FetchOutcome, InFlight},
};

/// Maximum number of times that a request joins others before it fetches by itself: for its key, for its variant, and for leads
/// that vanish or are overtaken.
const MAX_JOINS: usize = 8;

/// Maximum time that a request waits for others in total, in multiples of the route's `collapseTimeout`: once for a fetch that
/// hangs, and once for the one that replaces it.
const MAX_COLLAPSE_TIMEOUTS: u32 = 2;

/// Time that a fetch goes on after its last client has left.
pub(super) const ABANDONED_TIMEOUT: Duration = Duration::from_secs(1);

impl Proxy {
    /// Waits for another request that fetches the same response, and responds with that; passes the fetch on if there is none, as
    /// their lead. A fetch that shows no progress for the route's `collapseTimeout` is overtaken: of the requests that waited for
    /// it one fetches again, and the others wait for that one.
    pub(super) async fn collapse(self: &Arc<Self>, fetch: Box<Fetch>) -> Step {
        if !fetch.may_wait() {
            return Continue(fetch);
        }
        let flight = fetch.request.flight_key();
        let epoch = flight.epoch;
        match fetch.request.snapshot.flights.join(flight) {
            Joined::Lead(lead) => fetch.led_by(lead),
            Joined::Wait(wait) => Box::pin(self.wait_for_lead(fetch, epoch, wait)).await,
        }
    }

    async fn wait_for_lead(
        self: &Arc<Self>,
        mut fetch: Box<Fetch>,
        mut epoch: u64,
        wait: Wait<FetchOutcome>,
    ) -> Step {
        let limit = fetch.request.route.collapse_timeout;
        let patience = limit * MAX_COLLAPSE_TIMEOUTS;
        let patience = fetch.soft_timeout().map_or(patience, |soft| patience.min(soft));
        let (request, reason) = (&fetch.request, fetch.reason);
        let flights = &request.snapshot.flights;
        let (mut variant, mut hash) = (None::<String>, request.key.hash());
        let mut joined = Joined::Wait(wait);
        for _ in 0..MAX_JOINS {
            let mut wait = match joined {
                Joined::Lead(lead) => return fetch.led_by(lead),
                Joined::Wait(wait) => wait,
            };
            let outcome = match outcome_of(&mut wait, limit, fetch.began_waiting + patience).await {
                Ok(outcome) => outcome,
                Err(Overdue::Flight) => {
                    joined = flights.overtake(wait);
                    continue;
                }
                Err(Overdue::Request) => match fetch.serve_stale_if_error(None) {
                    Some(served) => return Break(served),
                    None => break,
                },
            };
            let Some(outcome) = outcome else {
                // The lead has gone, or one that was overtaken has stored something after all.
                if matches!(request.lookup(), Lookup::Hit(..) | Lookup::Unshared) {
                    break;
                }
                let text = variant.as_deref().unwrap_or(request.key.as_str());
                joined = flights.join(FlightKey { text, hash, epoch });
                continue;
            };
            if matches!(&outcome, FetchOutcome::InFlight(response) if response.is_purged(request)) {
                break;
            }
            if let Some(key) = outcome.slot().and_then(|slot| slot.key().other_variant(&request.headers)) {
                (hash, epoch) = (hash_of(&key), request.flight_key().epoch);
                joined = flights.join(FlightKey { text: &key, hash, epoch });
                variant = Some(key);
                // Nothing hung: the request has learned that there are variants.
                fetch.began_waiting = Instant::now();
                continue;
            }
            match outcome {
                FetchOutcome::InFlight(response) => {
                    if request.has_it_already(&*response.head.fields, &response.head.meta) {
                        return Break(request.read_along(&response, None, reason));
                    }
                    match response.begun(limit, fetch.began_waiting + patience).await {
                        BodyStart::Now(reader) => {
                            return Break(request.read_along(&response, Some(reader), reason));
                        }
                        BodyStart::Not => joined = flights.overtake(wait),
                        BodyStart::Never => break,
                    }
                }
                FetchOutcome::Stored(entry, tier, _) => match request.evaluate(entry) {
                    Lookup::Hit(entry, _) => return Break(request.collapsed(&entry, reason, tier)),
                    _ => break,
                },
                FetchOutcome::Fallback(entry, status, _) if !entry.is_purged(&request.store().barriers) => {
                    return Break(request.response_with(&entry, status, Outcome::Stale, Tier::L1));
                }
                // A request with a stale response of its own tries by itself.
                FetchOutcome::Problem(problem) if fetch.known.stored.is_none() => {
                    return Break(Served::problem(problem, Some(&request.route)));
                }
                FetchOutcome::Fallback(..) | FetchOutcome::Problem(_) | FetchOutcome::Unshared => break,
            }
        }
        // A response may have been stored meanwhile.
        match fetch.request.lookup() {
            Lookup::Hit(entry, freshness) if !freshness.state.refreshes() => {
                Break(fetch.request.hit(&entry, &freshness, Tier::L1))
            }
            _ => Continue(fetch),
        }
    }
}

impl Fetch {
    /// Returns true if the request may wait for another's response: not if it needs one of its own.
    fn may_wait(&self) -> bool {
        let request = &self.request;
        let wants_part = !matches!(request.range, RangeRequest::Whole) && self.known.stored.is_none();
        !self.known.is_unshared && request.directives.is_empty() && !request.is_authorized && !wants_part
    }

    /// Responds from memory if another request has stored a response meanwhile, and otherwise becomes the lead.
    fn led_by(mut self: Box<Self>, lead: Lead<FetchOutcome>) -> Step {
        self.lead = Some(lead);
        if let Lookup::Hit(entry, freshness) = self.request.lookup()
            && !freshness.state.refreshes()
        {
            let served = self.request.hit(&entry, &freshness, Tier::L1);
            let slot = self.request.slot_of(&entry);
            self.finish(FetchOutcome::Stored(entry, Tier::L1, slot));
            return Break(served);
        }
        Continue(self)
    }
}

/// Reason why an outcome is not waited for any longer.
enum Overdue {
    /// The fetch showed no progress for the route's `collapseTimeout`.
    Flight,
    /// The request has waited as long as it may.
    Request,
}

/// Waits for the outcome of a fetch; `None` if it was given up.
async fn outcome_of(
    wait: &mut Wait<FetchOutcome>,
    limit: Duration,
    until: Instant,
) -> Result<Option<FetchOutcome>, Overdue> {
    loop {
        let overdue = Instant::from_std(wait.since()) + limit;
        if let Ok(outcome) = timeout_at(overdue.min(until), &mut *wait).await {
            return Ok(outcome);
        }
        if until <= overdue {
            return Err(Overdue::Request);
        }
        // Unless it has shown progress meanwhile.
        if Instant::from_std(wait.since()) + limit == overdue {
            return Err(Overdue::Flight);
        }
    }
}

/// Returns true if a fetch has shown no progress for this long: no head of a response, or nothing more of its body.
pub(super) fn is_overdue(wait: &mut Wait<FetchOutcome>, limit: Duration) -> bool {
    match wait.now_or_never() {
        None => wait.since().elapsed() >= limit,
        Some(Some(FetchOutcome::InFlight(response))) => response.is_stalled(limit),
        Some(_) => false,
    }
}

/// Beginning of a body that other requests read as well.
enum BodyStart {
    /// The first piece is there, or the body is empty.
    Now(Reader<Source>),
    /// The origin has sent none of it, or nothing more, for the route's `collapseTimeout`.
    Not,
    /// The start is gone, or the request may not wait any longer.
    Never,
}

impl InFlight {
    /// Returns true if a purge, or too long a time without proof that there was none, forbids to serve it to a later request.
    fn is_purged(&self, request: &CacheRequest) -> bool {
        let (barriers, Head { names, stamp, .. }) = (&request.store().barriers, &*self.head);
        let path = path_of(self.slot.key().primary());
        !barriers.trusts(stamp.asked_at)
            || barriers.coverage(0, names.iter().copied(), path, *stamp) != Covered::No
    }

    fn is_stalled(&self, limit: Duration) -> bool {
        self.fill.starved_since().is_some_and(|since| since.elapsed() >= limit)
    }

    /// Waits until some of the body is there: a request whose client has a head can't turn to another response any more.
    async fn begun(&self, limit: Duration, until: Instant) -> BodyStart {
        if self.is_stalled(limit) {
            return BodyStart::Not;
        }
        // One reads the first piece, which the other still has before it.
        let (Some(mut first), Some(reader)) = (self.fill.join(), self.fill.join()) else {
            return BodyStart::Never;
        };
        let overdue = self.fill.starved_since().map_or_else(Instant::now, Instant::from_std) + limit;
        match timeout_at(overdue.min(until), first.frame()).await {
            Ok(Some(Err(_))) => BodyStart::Never,
            Ok(_) => BodyStart::Now(reader),
            Err(_) if until < overdue => BodyStart::Never,
            Err(_) => BodyStart::Not,
        }
    }
}

impl CacheRequest {
    fn collapsed(&self, entry: &Arc<Entry>, reason: Forward, tier: Tier) -> Box<Served> {
        let status = Some(entry.status());
        let status = CacheStatus::Forwarded { reason, status, tier, answer: Became::Collapsed };
        self.response_with(entry, status, Outcome::Collapsed, tier)
    }

    /// Returns a response that is on its way, with the body that `reader` reads; without one, the client has it already.
    fn read_along(
        &self,
        response: &InFlight,
        reader: Option<Reader<Source>>,
        reason: Forward,
    ) -> Box<Served> {
        let InFlight { head, tier, .. } = response;
        let mut response = if let Some(reader) = reader {
            let mut response = Response::new(Body::Fill(reader));
            *response.status_mut() = head.meta.status();
            *response.headers_mut() = head.headers();
            response
        } else {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            *response.headers_mut() = validation::not_modified_headers(&head.headers());
            response
        };
        let age = head.age();
        response.headers_mut().insert(AGE, HeaderValue::from(age.as_secs()));
        let (status, tier) = (Some(head.meta.status()), *tier);
        CacheStatus::Forwarded { reason, status, tier, answer: Became::Collapsed }
            .append_to(response.headers_mut());
        let mut served = self.served(response, Outcome::Collapsed, tier);
        (served.forward, served.life) = (Some(reason), self.life_of(&head.meta));
        served
    }
}
