//! Answers that say where they come from.

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
use serde_json::json;

use super::{Answered, Life};
use crate::{body::Body, cache_status::Tier};

/// What is true of the answer that is wrapped and not of the wrapped one.
const OF_THE_CONTENT: [HeaderName; 8] = [
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

/// What a request says of the answer as it is stored: the client sees what is made of that.
const ABOUT_THE_ANSWER: [HeaderName; 5] =
    [ACCEPT_ENCODING, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE];

/// Takes from a request what its client can't mean.
pub(super) fn ask_for_whole(headers: &mut HeaderMap) {
    ABOUT_THE_ANSWER.iter().for_each(|name| drop(headers.remove(name)));
}

impl Answered {
    /// The answer to a method in an envelope, if it is one that fits into it: a 200 whose body is JSON. No body is null.
    pub(super) fn wrapped(mut self, method: &Method) -> Self {
        let (status, headers) = (self.response.status(), self.response.headers_mut());
        if status != StatusCode::OK || !is_json(headers) || headers.contains_key(CONTENT_ENCODING) {
            return self;
        }
        OF_THE_CONTENT.iter().for_each(|name| drop(headers.remove(name)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // How long the answer to GET would be is not known: it depends on where that came from.
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

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let essence =
        value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    essence == b"application/json" || essence.ends_with(b"+json")
}

/// The tier as envelopes have it.
const fn source(tier: Tier) -> &'static str {
    match tier {
        Tier::Application => "application",
        Tier::LastKnownGood => "postgres",
        tier => tier.as_str(),
    }
}

/// Whole seconds: what is fresh is never said to be over.
fn seconds(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

fn rfc3339(received_at: u64) -> Option<String> {
    let milliseconds = i64::try_from(received_at).ok()?;
    Some(Timestamp::from_millisecond(milliseconds).ok()?.to_string())
}
