//! Delivery of a response to the client, to those who wait for the same, and into the cache.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, IF_RANGE, SET_COOKIE},
};
use http_body::Body as _;
use larder_policy::{
    Fields as _, PurgeName,
    range::ContentRange,
    response_meta::{ResponseMeta, Times},
    spec::SetCookie,
    storing::{NotStored, storable},
    validation,
};

use super::{
    GuardReply, Served,
    fetch::{Fetch, Purpose},
    received::{Received, ReceivedHead},
    refresh::{REFRESH_TIMEOUT, drain, drain_ahead},
};
use crate::{
    body::{Body, Source},
    cache_status::{Became, CacheStatus},
    entry::{Content, Entry, Head},
    headers::FieldLines,
    stats::Outcome,
    store::{
        fill::{LagRoom, PartFill, WholeFill, is_purged, store, ttl_from_response},
        in_flight::{FetchOutcome, InFlight, InFlightGuard},
    },
};

/// Maximum length of a body of unknown length that is read ahead of its client, in bytes: less than the distance that readers may
/// have from one another.
const MAX_AHEAD: u64 = 4 << 20;

impl Fetch {
    /// Delivers a response as its origin sent it.
    pub(super) fn deliver_received(self: Box<Self>, received: Received) -> Box<Served> {
        let Received { head, body, times } = received;
        self.deliver(head.status, head, Source::new(body), times)
    }

    /// Delivers a response, and stores it if it may be stored. `received` is the status that the origin sent: the response may be
    /// combined with stored parts.
    pub(super) fn deliver(
        mut self: Box<Self>,
        received: StatusCode,
        head: ReceivedHead,
        source: Source,
        times: Times,
    ) -> Box<Served> {
        if self.purpose == Purpose::Bypass {
            return self.passed_on(received, head, Body::Stream(source), Became::Passed);
        }
        let request = &self.request;
        let (cache, tier) = (Arc::clone(request.store()), self.tier);
        let meta = ResponseMeta::read(head.status, &*head.fields, times, cache.policy.targets());
        let storable = storable(&request.facts, head.status, &*head.fields, &meta, request.lifetimes())
            .and_then(|vary| {
                if request.fits(source.size_hint().lower()) { Ok(vary) } else { Err(NotStored::TooLarge) }
            })
            .and_then(|vary| self.vary_to_store(head.status, vary))
            .and_then(|vary| if self.replaces(head.status) { Ok(vary) } else { Err(NotStored::WouldReplace) })
            .and_then(|vary| Ok((vary, head.names(request.names(), self.updated_part(received))?)));
        let (vary, names) = match storable {
            Ok(found) => found,
            Err(reason) => {
                cache.not_stored(&request.route, reason);
                if self.known.stored.is_some() && replaces_the_stored_response(head.status, reason) {
                    request.slot(vec![]).forget(PurgeName::key(request.key.as_str()));
                }
                if let (NotStored::WouldReplace, Purpose::Refresh, Some(stored)) =
                    (reason, self.purpose, self.known.stored())
                {
                    stored.mark_fallback_for(request.lifetimes().retry_interval);
                }
                if self.lead.is_some() && !head.status.is_server_error() {
                    cache.note_unshared(request.key.as_str(), &request.headers);
                }
                self.finish(FetchOutcome::Unshared);
                let mut served = self.passed_on(received, head, Body::Stream(source), Became::Passed);
                served.not_stored = Some(reason);
                return served;
            }
        };
        let stored = self.stored_head(&head, meta, names);
        let slot = self.request.slot(vary);
        let not_stored = is_purged(&stored, &slot).then_some(NotStored::Purged);
        let became = if not_stored.is_some() { Became::Passed } else { Became::Stored };
        if self.request.is_head() {
            self.freshen_response_to_get(&head, times);
            store(&stored, slot, Content::Whole(Bytes::new()), None);
            self.finish(FetchOutcome::Unshared);
            let mut served = self.passed_on(received, head, Body::Stream(source), became);
            served.not_stored = not_stored;
            return served;
        }
        let limit = self.request.max_body();
        if head.status == StatusCode::PARTIAL_CONTENT {
            let Some(range) = ContentRange::of(&*head.fields) else {
                return self.passed_on(received, head, Body::Stream(source), Became::Passed);
            };
            let known = self.known.part.take();
            // A response to `If-Range` may leave out what the client has and this cache has not (RFC 9110, section 15.3.7).
            if known.is_none() && self.request.headers.contains_key(IF_RANGE) {
                cache.not_stored(&self.request.route, NotStored::ContentRange);
                let mut served = self.passed_on(received, head, Body::Stream(source), Became::Passed);
                served.not_stored = Some(NotStored::ContentRange);
                return served;
            }
            let observer = PartFill::new(stored, slot, range, known, self.lease.take());
            let room = Box::new(LagRoom::new(&cache.budget));
            let (_, reader) = larder_flight::fill_within(room, source, limit, Box::new(observer));
            self.finish(FetchOutcome::Unshared);
            let mut served = self.passed_on(received, head, Body::Fill(reader), became);
            served.not_stored = not_stored;
            return served;
        }
        let stored = Arc::new(stored);
        let has_it_already = self.request.has_it_already(&*stored.fields, &stored.meta);
        let guard = InFlightGuard::default();
        let lease = self.lease.take();
        let others_wait = lease.is_some();
        let has_length = source.size_hint().exact().is_some();
        let ahead = if has_length { limit } else { limit.min(MAX_AHEAD) };
        // A body of unknown length may turn out to be too large, so it is not said to be stored.
        let became = if has_length { became } else { Became::Passed };
        let observer = WholeFill::new(Arc::clone(&stored), slot.clone(), guard.clone(), lease);
        let room = Box::new(LagRoom::new(&cache.budget));
        let (fill, reader) = larder_flight::fill_within(room, source, limit, Box::new(observer));
        // Other pods get the complete body, which must not take as long as this client takes to read it.
        if others_wait && let Some(reader) = fill.join() {
            tokio::spawn(drain_ahead(fill.clone(), reader, ahead));
        }
        if let Some(lead) = self.lead.take() {
            let response = InFlight { head: Arc::clone(&stored), slot, fill, tier };
            guard.hold(lead.land(FetchOutcome::InFlight(Arc::new(response))));
        }
        if has_it_already {
            tokio::spawn(drain(Body::Fill(reader), limit, REFRESH_TIMEOUT));
            let head = head.into_not_modified();
            let mut served = self.passed_on(received, head, Body::empty(), became);
            served.not_stored = not_stored;
            return served;
        }
        let mut served = self.passed_on(received, head, Body::Fill(reader), became);
        served.not_stored = not_stored;
        served.life = self.request.life_of(&stored.meta);
        served
    }

    /// Returns true if a response with this status may take the place of what is stored. An error of the application may not as long as
    /// that may be served in place of it, by the route and not by the client's directives, which are those of one client.
    fn replaces(&self, status: StatusCode) -> bool {
        let request = &self.request;
        let serves_on_error = |stored: &Arc<Entry>| {
            !stored.status().is_server_error()
                && request.freshness_for_anybody(stored).state.serves_on_error()
                && !stored.is_purged(&request.store().barriers)
        };
        let mut stored = self.known.stored().into_iter().chain(&self.known.part);
        !status.is_server_error() || !stored.any(serves_on_error)
    }

    /// Returns the stored parts of a response that one with this status, as its origin sent it, adds to.
    fn updated_part(&self, received: StatusCode) -> Option<&Arc<Entry>> {
        self.known.part.as_ref().filter(|_| received == StatusCode::PARTIAL_CONTENT)
    }

    /// Returns the head of a response as it is stored, and as other requests receive it.
    fn stored_head(&self, head: &ReceivedHead, meta: ResponseMeta, names: Box<[PurgeName]>) -> Head {
        let request = &self.request;
        let strips =
            request.lifetimes().set_cookie == SetCookie::Strip && head.fields.has(SET_COOKIE.as_str());
        let fields = if strips { Arc::new(without_cookies(&head.fields)) } else { Arc::clone(&head.fields) };
        // A TTL in the body is known when the body is complete.
        let meta = meta.with_ttl_from_response(ttl_from_response(request.lifetimes(), &*fields, None));
        Head { fields, is_to_head: request.is_head(), meta, stamp: self.known.stamp, names }.spread()
    }

    fn passed_on(&self, received: StatusCode, head: ReceivedHead, body: Body, answer: Became) -> Box<Served> {
        let (request, tier, status) = (&self.request, self.tier, Some(received));
        let cache_status = CacheStatus::Forwarded { reason: self.reason, status, tier, answer };
        let is_for_guard = request.is_of_guard;
        let (response, reply) = head.into_response(body, cache_status, is_for_guard);
        let mut served = request.served(response, Outcome::Miss, tier);
        (served.reply, served.forward) = (reply.map(GuardReply::Received), Some(self.reason));
        served
    }

    /// Freshens the stored response to GET with one to HEAD, or drops it if that shows another one (RFC 9111, section 4.3.5).
    fn freshen_response_to_get(&self, head: &ReceivedHead, times: Times) {
        let request = &self.request;
        let Some(stored) = request.stored_of_get() else { return };
        let Content::Whole(body) = &stored.content else { return };
        if head.status != StatusCode::OK || stored.is_purged(&request.store().barriers) {
            return;
        }
        let length =
            head.fields.value(CONTENT_LENGTH.as_str()).and_then(|length| str::from_utf8(length).ok());
        let is_as_long = length.is_none_or(|length| length.parse() == Ok(body.len()));
        let slot = request.slot_of(&stored);
        let of_get = request.names_under(request.key_with_body());
        let names = head.names(&of_get, Some(&stored)).ok();
        let (true, Some(names)) = (is_as_long && validation::selects(&*head.fields, &stored.fields()), names)
        else {
            return slot.forget(request.name_of_get());
        };
        let headers = validation::freshen(&stored.headers(), &head.fields.to_map());
        let meta = ResponseMeta::read(stored.status(), &headers, times, request.snapshot.policy().targets());
        let fields = Arc::new(FieldLines::from(&headers));
        let head = Head { fields, is_to_head: false, meta, stamp: stored.stamp(), names };
        store(&head, slot, stored.content.clone(), None);
    }
}

fn without_cookies(fields: &FieldLines) -> FieldLines {
    fields.lines().filter(|(name, _)| *name != SET_COOKIE.as_str().as_bytes()).collect()
}

/// Returns true if a response that is not stored shows nonetheless that the stored one is outdated, and is not about the client or
/// its request.
fn replaces_the_stored_response(status: StatusCode, reason: NotStored) -> bool {
    let is_about_resource = status.is_success()
        || status.is_redirection()
        || [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&status);
    is_about_resource
        && matches!(
            reason,
            NotStored::Status
                | NotStored::NoStore
                | NotStored::Private
                | NotStored::SetCookie
                | NotStored::VaryAny
                | NotStored::NoLifetime
                | NotStored::Stale
                | NotStored::TooManyTags
        )
}
