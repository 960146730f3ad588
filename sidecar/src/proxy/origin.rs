//! The stage that asks the application.

use std::{
    ops::{
        ControlFlow::{self, Break, Continue},
        Range,
    },
    sync::Arc,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, SET_COOKIE},
};
use http_body::Body as _;
use larder_policy::{
    Fields as _,
    range::{self, ContentRange, RangeRequest},
    response_meta::{ResponseMeta, Times},
    storing::{NotStored, storable},
    validation, vary,
};

use super::{
    Proxy, Served,
    fetch::Fetch,
    received::{Received, ReceivedHead},
    request::{CacheRequest, OriginRequest},
};
use crate::{
    body::{IncomingBody, Source},
    cache_key::CacheKey,
    cache_status::{Became, CacheStatus, Tier},
    clock::wall_ms,
    entry::{Content, Entry, Head},
    headers::FieldLines,
    stats::Outcome,
    store::{fill::ttl_from_response, in_flight::FetchOutcome},
    upstream::{UpstreamError, WhenRefused},
};

/// Failure of the last origin that was asked.
pub(super) enum Failure {
    /// A source failed and no other had a response.
    Sources,
    /// The application did not respond.
    NoResponse(UpstreamError),
    /// The application responded with an error of its own.
    Response(Received),
}

impl Proxy {
    /// Responds from the application, or passes its failure on. Without the application, the failure is that of the sources.
    pub(super) async fn ask_application(
        self: &Arc<Self>,
        mut fetch: Box<Fetch>,
    ) -> ControlFlow<Box<Served>, (Box<Fetch>, Failure)> {
        if !fetch.request.route.asks_application {
            return Continue((fetch, Failure::Sources));
        }
        fetch.tier = Tier::Application;
        let mut kind = fetch.request_to_origin();
        loop {
            let refused =
                if fetch.may_serve_stale_if_error() { WhenRefused::Fail } else { WhenRefused::Retry };
            let received = match self.exchange(&fetch.request, &kind, refused).await {
                Ok(received) => received,
                Err(error) => return Continue((fetch, Failure::NoResponse(error))),
            };
            let status = received.head.status;
            match &kind {
                OriginRequest::Revalidation(_) if status == StatusCode::NOT_MODIFIED => {
                    match fetch.freshened(&received) {
                        Some(entry) => return Break(fetch.revalidated(entry, &received)),
                        // The 304 is of no use for the stored response.
                        None => kind = OriginRequest::Whole,
                    }
                }
                OriginRequest::Rest { .. } if status == StatusCode::PARTIAL_CONTENT => {
                    match fetch.completed(received) {
                        Some(((head, times), source)) => {
                            return Break(fetch.deliver(status, head, source, times));
                        }
                        None => kind = OriginRequest::Whole,
                    }
                }
                OriginRequest::Rest { .. } if status == StatusCode::RANGE_NOT_SATISFIABLE => {
                    kind = OriginRequest::Whole;
                }
                _ if is_failure(status) => return Continue((fetch, Failure::Response(received))),
                _ => return Break(fetch.deliver_received(received)),
            }
        }
    }

    async fn exchange(
        &self,
        request: &CacheRequest,
        kind: &OriginRequest,
        refused: WhenRefused,
    ) -> Result<Received, UpstreamError> {
        let requested_at = wall_ms();
        let times = || Times { requested_at, received_at: wall_ms() };
        let text = request.text(kind).filter(|_| refused == WhenRefused::Retry);
        Ok(if let Some(text) = text {
            let (response, fields) = self.forward_text(request, text).await?;
            Received::new(request, response, fields, times(), IncomingBody::Application)
        } else {
            // On the heap, so that requests which are sent as text have no room for it.
            let response =
                Box::pin(self.forward(request.outgoing(kind), &request.client, None, refused)).await?;
            Received::with_map(request, response, times(), IncomingBody::Application)
        })
    }
}

impl Fetch {
    fn request_to_origin(&self) -> OriginRequest {
        let request = &self.request;
        if request.is_head() {
            return OriginRequest::Unchanged;
        }
        let stale = self.known.stored();
        // Of POST, a condition that fails is an error (RFC 9110, section 13.1.2).
        let revalidated = stale.filter(|_| request.method == Method::GET);
        if let Some(validators) = revalidated.and_then(|entry| validators_of(entry)) {
            return OriginRequest::Revalidation(validators);
        }
        if let Some(rest) = self.known.part.as_ref().and_then(|part| request.request_for_rest(part)) {
            return rest;
        }
        if self.lead.is_some() || stale.is_some() { OriginRequest::Whole } else { OriginRequest::Unchanged }
    }

    /// Returns the stored response, freshened by a 304 (RFC 9111, section 4.3.4), unless that is about another, or brings too many tags.
    fn freshened(&self, received: &Received) -> Option<Entry> {
        let stored = self.known.stored()?;
        if !validation::selects(&*received.head.fields, &stored.fields()) {
            return None;
        }
        let names = received.head.names(self.request.names(), Some(stored)).ok()?;
        let headers = validation::freshen(&stored.headers(), &received.head.fields.to_map());
        let status = stored.status();
        let ttl = ttl_from_response(self.request.lifetimes(), &headers, Some(&stored.content));
        let meta =
            ResponseMeta::read(status, &headers, received.times, self.request.snapshot.policy().targets())
                .with_ttl_from_response(ttl);
        let request = &self.request;
        let vary = self.vary_to_store(status, vary::names_to_store(&headers)).ok()?;
        let key = CacheKey::new(request.key.as_str(), vary, &request.headers);
        let fields = Arc::new(FieldLines::from(&headers));
        let head = Head { fields, is_to_head: false, meta, stamp: self.known.stamp, names };
        Some(Entry::new(key.whole(), &head, stored.content.clone()))
    }

    /// Responds with a stored response that the application has revalidated by this 304. A cookie that the 304 sets and that is not
    /// stored is for this client alone.
    fn revalidated(mut self: Box<Self>, entry: Entry, by: &Received) -> Box<Served> {
        let entry = Arc::new(entry);
        let request = &self.request;
        let status = entry.status();
        let store = request.store();
        let stored =
            match storable(&request.facts, status, &entry.fields(), entry.meta(), request.lifetimes()) {
                Ok(_) if store.barriers.covers(entry.names(), entry.path(), entry.stamp()) => {
                    Err(NotStored::Purged)
                }
                other => other.and_then(|vary| self.vary_to_store(status, vary)),
            };
        let not_stored = stored.as_ref().err().copied();
        let (became, outcome) = match stored {
            Ok(vary) => {
                let slot = request.slot(vary);
                slot.clone().store(Arc::clone(&entry), self.lease.take());
                (Became::Stored, FetchOutcome::Stored(Arc::clone(&entry), Tier::Application, slot))
            }
            Err(reason) => {
                store.not_stored(&request.route, reason);
                (Became::Passed, FetchOutcome::Unshared)
            }
        };
        let (reason, tier) = (self.reason, Tier::Application);
        let status = Some(StatusCode::NOT_MODIFIED);
        let status = CacheStatus::Forwarded { reason, status, tier, answer: became };
        let has_cookies = by.head.fields.has(SET_COOKIE.as_str()) && !entry.fields().has(SET_COOKIE.as_str());
        let mut served = if has_cookies {
            let mut served = request.response_in_map(&entry, status, Outcome::Revalidated, tier);
            append_cookies(served.response.headers_mut(), &by.head.fields);
            served
        } else {
            request.response_with(&entry, status, Outcome::Revalidated, tier)
        };
        served.not_stored = not_stored;
        self.finish(outcome);
        served
    }

    /// Returns the missing part of a stored response with the stored parts around it.
    fn completed(&self, received: Received) -> Option<((ReceivedHead, Times), Source)> {
        let Received { mut head, body, times } = received;
        let stored = self.known.part.as_ref()?;
        let Content::Parts(pieces) = &stored.content else { return None };
        let missing = pieces.missing()?;
        let range = ContentRange::of(&*head.fields)?;
        let fits = (range.first, range.last + 1) == (missing.start, missing.end)
            && range.total == Some(pieces.total())
            && body.size_hint().exact().is_none_or(|length| length == missing.end - missing.start)
            && range::may_combine(&stored.fields(), &*head.fields);
        if !fits {
            return None;
        }
        let slice =
            |range: Range<u64>| if range.is_empty() { Some(Bytes::new()) } else { pieces.slice(range) };
        let (before, after) = (slice(0..missing.start)?, slice(missing.end..pieces.total())?);
        head.status = StatusCode::OK;
        let mut headers = validation::freshen(&stored.headers(), &head.fields.to_map());
        headers.remove(CONTENT_RANGE);
        headers.remove(CONTENT_LENGTH);
        if !headers.contains_key(SET_COOKIE) {
            append_cookies(&mut headers, &head.fields);
        }
        head.fields = Arc::new(FieldLines::from(&headers));
        Some(((head, times), Source::between(before, body, missing.end - missing.start, after)))
    }
}

impl CacheRequest {
    /// Returns the request for the missing part of a response of which parts are stored (RFC 9111, section 3.3).
    fn request_for_rest(&self, part: &Entry) -> Option<OriginRequest> {
        let Content::Parts(pieces) = &part.content else { return None };
        let missing = pieces.missing().filter(|_| matches!(self.range, RangeRequest::Whole))?;
        let if_range = validation::validators(&part.fields())?.if_none_match?;
        if if_range.as_bytes().starts_with(b"W/") {
            return None;
        }
        let range = format!("bytes={}-{}", missing.start, missing.end - 1);
        Some(OriginRequest::Rest { range: HeaderValue::try_from(range).ok()?, if_range })
    }
}

fn append_cookies(headers: &mut HeaderMap, from: &FieldLines) {
    let lines = from.values(SET_COOKIE.as_str());
    for value in lines.filter_map(|value| HeaderValue::from_bytes(value).ok()) {
        headers.append(SET_COOKIE, value);
    }
}

/// Returns true for the statuses in place of which a stale response may be served (RFC 5861, section 4).
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn validators_of(entry: &Entry) -> Option<validation::Validators> {
    match entry.content {
        Content::Whole(_) => validation::validators(&entry.fields()),
        Content::Parts(_) => None,
    }
}
