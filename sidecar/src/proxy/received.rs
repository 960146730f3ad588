//! Responses as they came from an origin.

use std::{slice, sync::Arc};

use http::{Extensions, Response, StatusCode, response::Parts};
use larder_policy::{
    Fields as _, PurgeName, date, response_meta::Times, storing::NotStored, tags::ResponseTags, validation,
};

use super::request::CacheRequest;
use crate::{
    body::{Body, IncomingBody},
    cache_status::CacheStatus,
    entry::Entry,
    head_room,
    headers::{FieldLines, LARDER_PURGE},
};

/// Response of an origin as it came.
pub(super) struct Received {
    pub(super) head: ReceivedHead,
    pub(super) body: IncomingBody,
    pub(super) times: Times,
}

/// Head of a response as it came.
pub(super) struct ReceivedHead {
    pub(super) status: StatusCode,
    /// The end-to-end fields, of which one is `Date`.
    pub(super) fields: Arc<FieldLines>,
    /// Tags that fields name, if the route takes tags from them.
    tags: Option<Box<ResponseTags>>,
    /// The unusual reason of the status, and the room of a large head.
    extensions: Extensions,
}

/// A received response for a client, whose head the guard writes.
#[derive(Debug)]
pub(super) struct ReceivedReply {
    pub(super) fields: Arc<FieldLines>,
    pub(super) cache_status: CacheStatus,
}

impl Received {
    /// Returns a response with these fields to a request, which has a `Date` from now on (RFC 9110, section 6.6.1), and none of the
    /// fields that the policy removes, nor `Larder-Purge`.
    pub(super) fn new<B>(
        request: &CacheRequest,
        response: Response<B>,
        mut fields: FieldLines,
        times: Times,
        body: impl FnOnce(B) -> IncomingBody,
    ) -> Self {
        let (Parts { status, extensions, .. }, content) = response.into_parts();
        if !fields.lines().any(|(name, _)| name == b"date") {
            fields.push(b"date", &date::format(times.received_at / 1000));
        }
        fields.remove(slice::from_ref(&LARDER_PURGE));
        let tags = request.route.tags_from.as_ref().map(|from| Box::new(from.read(&fields)));
        fields.remove(request.snapshot.policy().removed_headers());
        let head = ReceivedHead { status, fields: Arc::new(fields), tags, extensions };
        Self { head, body: body(content), times }
    }

    /// Returns a response whose end-to-end fields are in a map.
    pub(super) fn with_map<B>(
        request: &CacheRequest,
        response: Response<B>,
        times: Times,
        body: impl FnOnce(B) -> IncomingBody,
    ) -> Self {
        let fields = FieldLines::from(response.headers());
        Self::new(request, response, fields, times, body)
    }
}

impl ReceivedHead {
    /// Returns the names under which the response can be purged once it is stored, and has updated `stored` if that is given.
    ///
    /// # Errors
    /// If it has more tags than are stored.
    pub(super) fn names(
        &self,
        of_request: &[PurgeName],
        stored: Option<&Arc<Entry>>,
    ) -> Result<Box<[PurgeName]>, NotStored> {
        match &self.tags {
            None => Ok(of_request.into()),
            Some(tags) => tags.names(of_request, stored.into_iter().flat_map(|stored| stored.names())),
        }
    }

    /// Turns it into a 304.
    pub(super) fn into_not_modified(self) -> Self {
        let fields = Arc::new(validation::not_modified_lines(&*self.fields).collect());
        Self { status: StatusCode::NOT_MODIFIED, fields, ..self }
    }

    /// Returns the response for a client, and what the guard writes in place of its fields, if the client is the guard's.
    pub(super) fn into_response(
        self,
        body: Body,
        cache_status: CacheStatus,
        is_for_guard: bool,
    ) -> (Response<Body>, Option<ReceivedReply>) {
        let Self { status, fields, tags: _, extensions } = self;
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.extensions_mut() = extensions;
        // The reservation of a large head is in the extensions, and its fields go through the map.
        if is_for_guard && fields.as_bytes().len() <= head_room::SMALL {
            return (response, Some(ReceivedReply { fields, cache_status }));
        }
        *response.headers_mut() = fields.to_map();
        cache_status.append_to(response.headers_mut());
        (response, None)
    }
}
