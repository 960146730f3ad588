//! Responses made from stored ones.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{AGE, CONTENT_LENGTH, CONTENT_RANGE},
};
use larder_policy::{
    Fields,
    freshness::{self, Freshness, State},
    range::{self, ContentRange, RangeRequest},
    response_meta::ResponseMeta,
    validation::{self, Precondition},
};

use super::{GuardReply, Life, Served, StoredReply, request::CacheRequest};
use crate::{
    body::Body,
    cache_status::{CacheStatus, Tier, ttl_seconds},
    clock::wall_ms,
    entry::{Content, Entry, MAX_COPIED, for_reader},
    stats::Outcome,
};

impl CacheRequest {
    /// Returns a hit.
    pub(super) fn hit(&self, entry: &Arc<Entry>, freshness: &Freshness, tier: Tier) -> Box<Served> {
        let status = CacheStatus::Hit { tier, ttl: ttl_seconds(freshness.state) };
        self.response_with(entry, status, Outcome::Hit, tier)
    }

    /// Returns a stored response with this `Cache-Status`.
    pub(super) fn response_with(
        &self,
        entry: &Arc<Entry>,
        status: CacheStatus,
        outcome: Outcome,
        tier: Tier,
    ) -> Box<Served> {
        if let Some(stored) = self.stored_reply(entry, status) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = stored.status();
            let mut served = self.served(response, outcome, tier);
            (served.reply, served.forward) = (Some(GuardReply::Stored(stored)), status.forward());
            return served;
        }
        self.response_in_map(entry, status, outcome, tier)
    }

    /// Returns a stored response with this `Cache-Status`, whose fields are in a header map.
    pub(super) fn response_in_map(
        &self,
        entry: &Arc<Entry>,
        status: CacheStatus,
        outcome: Outcome,
        tier: Tier,
    ) -> Box<Served> {
        let mut response = self.response_from(entry);
        response.headers_mut().insert(AGE, HeaderValue::from(entry.age().as_secs()));
        status.append_to(response.headers_mut());
        let mut served = self.served(response, outcome, tier);
        served.forward = status.forward();
        served.life = self.life(entry.meta(), || self.freshness_of(entry).state);
        served
    }

    pub(super) fn served(&self, response: Response<Body>, outcome: Outcome, tier: Tier) -> Box<Served> {
        Served::new(response, Some(Arc::clone(&self.route)), outcome, tier)
    }

    /// Returns the lifetime of a stored response, for a route whose envelope states it.
    pub(super) fn life_of(&self, meta: &ResponseMeta) -> Option<Life> {
        let resident = Duration::from_millis(wall_ms().saturating_sub(meta.times().received_at));
        self.life(meta, || freshness::evaluate(meta, self.lifetimes(), resident, &self.directives).state)
    }

    fn life(&self, meta: &ResponseMeta, state: impl FnOnce() -> State) -> Option<Life> {
        self.route.envelope.then(|| {
            let left = match state() {
                State::Fresh { ttl } => ttl,
                State::Stale { .. } => Duration::ZERO,
            };
            Life { received_at: meta.times().received_at, left }
        })
    }

    /// Returns a stored response that is written without a header map, for a request of the guard.
    fn stored_reply(&self, entry: &Arc<Entry>, status: CacheStatus) -> Option<StoredReply> {
        self.is_of_guard.then(|| StoredReply::of(&self.method, &self.headers, self.kinds, entry, status))?
    }

    fn response_from(&self, entry: &Entry) -> Response<Body> {
        if self.has_it_already(&entry.fields(), entry.meta()) {
            return with_head(StatusCode::NOT_MODIFIED, validation::not_modified_headers(&entry.headers()));
        }
        match &entry.content {
            Content::Whole(body) => {
                if let Some(range) = self.range_of(entry, body.len() as u64) {
                    return match range {
                        Ok(range) => partial(entry, range.clone(), body.len() as u64, slice(body, range)),
                        Err(()) => unsatisfiable(body.len() as u64),
                    };
                }
                let mut response = with_head(entry.status(), entry.headers());
                if !self.is_head() {
                    *response.body_mut() = Body::full(for_reader(body));
                } else if entry.status() != StatusCode::NO_CONTENT && !body.is_empty() {
                    // A response to HEAD is stored without a body, with the length that the application declared.
                    response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| body.len().into());
                }
                response
            }
            Content::Parts(pieces) => {
                let total = pieces.total();
                let range = self.range_of(entry, total).and_then(Result::ok);
                match range.clone().and_then(|range| Some((range.clone(), pieces.slice(range)?))) {
                    Some((range, piece)) => partial(entry, range, total, piece),
                    // Only a request for a stored part comes here.
                    None => unsatisfiable(total),
                }
            }
        }
    }

    /// Returns true if the client's own copy is still valid.
    pub(super) fn has_it_already(&self, stored: &impl Fields, meta: &ResponseMeta) -> bool {
        self.kinds.is_conditional() && has_it_already(&self.headers, stored, meta)
    }

    fn range_of(&self, entry: &Entry, length: u64) -> Option<Result<Range<u64>, ()>> {
        range_of(self.range, &self.headers, entry, length)
    }
}

/// Returns true if the copy of a client that sent these fields is still valid (RFC 9110, section 13.2.2).
pub(super) fn has_it_already(fields: &impl Fields, stored: &impl Fields, meta: &ResponseMeta) -> bool {
    let precondition = validation::evaluate(fields, meta.status(), stored, meta.times().received_at);
    matches!(precondition, Precondition::NotModified)
}

/// Returns the part of a body that a request with these fields asks for, or `None` for all of it.
///
/// # Errors
/// If the body does not have that part.
pub(super) fn range_of(
    range: RangeRequest,
    fields: &impl Fields,
    entry: &Entry,
    length: u64,
) -> Option<Result<Range<u64>, ()>> {
    let RangeRequest::One(spec) = range else { return None };
    let is_part = matches!(entry.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if !is_part || !range::if_range_holds(fields, &entry.fields()) {
        return None;
    }
    Some(spec.resolve(length).ok_or(()))
}

fn with_head(status: StatusCode, headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// RFC 9110, section 15.3.7.
fn partial(entry: &Entry, range: Range<u64>, total: u64, piece: Bytes) -> Response<Body> {
    let mut response = with_head(StatusCode::PARTIAL_CONTENT, entry.headers());
    let content_range = ContentRange { first: range.start, last: range.end - 1, total: Some(total) };
    if let Ok(value) = HeaderValue::try_from(content_range.to_string()) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    *response.body_mut() = Body::full(piece);
    response
}

/// RFC 9110, section 15.5.17.
fn unsatisfiable(total: u64) -> Response<Body> {
    let mut response = with_head(StatusCode::RANGE_NOT_SATISFIABLE, HeaderMap::new());
    if let Ok(value) = HeaderValue::try_from(ContentRange::unsatisfied(total)) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

fn slice(body: &Bytes, range: Range<u64>) -> Bytes {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(body.len());
    let range = place(range.start)..place(range.end);
    if body.len() > MAX_COPIED { body.slice(range) } else { Bytes::copy_from_slice(&body[range]) }
}
