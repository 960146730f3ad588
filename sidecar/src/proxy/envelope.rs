//! Responses in an envelope that names their tier (`envelope` of a route).

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, TRAILER,
    },
};
use http_body::Body as _;
use jiff::Timestamp;
use larder_policy::writing::is_json;
use serde_json::json;

use super::{Life, Served};
use crate::{body::Body, cache_status::Tier};

/// Response headers that describe the stored response, and not the envelope.
const CONTENT_HEADERS: [HeaderName; 8] = [
    ACCEPT_RANGES,
    CONTENT_LENGTH,
    ETAG,
    LAST_MODIFIED,
    TRAILER,
    // RFC 9530.
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
];

/// Request headers that are about the stored response, while the client sees its envelope.
const STORED_RESPONSE_HEADERS: [HeaderName; 5] =
    [ACCEPT_ENCODING, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE];

/// Removes the headers from a request that would apply to the stored response instead of its envelope.
pub(super) fn ask_for_whole(headers: &mut HeaderMap) {
    STORED_RESPONSE_HEADERS.iter().for_each(|name| drop(headers.remove(name)));
}

impl Served {
    /// Wraps a 200 whose body is JSON; other responses stay as they are. An empty body becomes `null`.
    pub(super) fn wrapped(mut self: Box<Self>, method: &Method) -> Box<Self> {
        let (status, headers) = (self.response.status(), self.response.headers_mut());
        let is_json = headers.get(CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes()));
        if status != StatusCode::OK || !is_json || headers.contains_key(CONTENT_ENCODING) {
            return self;
        }
        CONTENT_HEADERS.iter().for_each(|name| drop(headers.remove(name)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The length of the response to GET is unknown, because it depends on its tier.
        if *method == Method::HEAD {
            self.response = self.response.map(|_| Body::empty());
            return self;
        }
        let before = format!("{{\"source\":{},\"data\":", json!(source(self.tier)));
        let after = match self.life {
            Some(Life { received_at, left }) => {
                format!(
                    ",\"cached_at\":{},\"expires_in_seconds\":{}}}",
                    json!(rfc3339(received_at)),
                    seconds(left)
                )
            }
            None => ",\"cached_at\":null,\"expires_in_seconds\":0}".to_owned(),
        };
        let (before, after) = (Bytes::from(before), Bytes::from(after));
        self.response = self.response.map(|body| {
            let body = if body.is_end_stream() { Body::full(Bytes::from_static(b"null")) } else { body };
            Body::between(before, body, after)
        });
        self
    }
}

/// Returns the tier's name in an envelope.
const fn source(tier: Tier) -> &'static str {
    match tier {
        Tier::Application => "application",
        Tier::LastKnownGood => "postgres",
        tier => tier.as_str(),
    }
}

/// Returns whole seconds, rounded up: 0 is for stale responses alone.
fn seconds(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

fn rfc3339(received_at: u64) -> Option<String> {
    let milliseconds = i64::try_from(received_at).ok()?;
    Some(Timestamp::from_millisecond(milliseconds).ok()?.to_string())
}
