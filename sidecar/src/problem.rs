//! Error responses of the sidecar itself, as problem details (RFC 9457).

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::{body::Body, http1_guard::RequestError, upstream::UpstreamReason};

/// Media type of problem details.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error, as reported to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The application gave no response that can be passed on.
    Upstream(UpstreamReason),
    /// No source of the route responded.
    SourcesFailed,
    /// The sources have no such resource.
    NotFound,
    /// No usable stored response, and the request is only-if-cached (RFC 9111, section 5.2.1.7).
    OnlyIfCached,
    /// The request's body broke off.
    BrokenOff,
    /// The request was rejected while its body arrived.
    Refused(RequestError),
    /// No room for the request.
    Overloaded,
    /// The purge of a write could not be made to hold in every pod.
    NotPurgeable,
    /// The sidecar is not a forward proxy.
    NoTunnel,
    /// The request may not be forwarded any more (RFC 9110, section 7.6.2): the sidecar must respond to it.
    LastForward,
    /// A TRACE that may not be forwarded any more; responding to it would reveal fields that proxies added.
    NoTrace,
}

impl Problem {
    const fn status(self) -> StatusCode {
        match self {
            Self::Upstream(UpstreamReason::Request) | Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::Upstream(UpstreamReason::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(UpstreamReason::NoRoom) | Self::Overloaded | Self::NotPurgeable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Upstream(_) | Self::SourcesFailed => StatusCode::BAD_GATEWAY,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::OnlyIfCached => StatusCode::GATEWAY_TIMEOUT,
            Self::Refused(error) => error.status(),
            Self::NoTunnel => StatusCode::NOT_IMPLEMENTED,
            Self::LastForward => StatusCode::OK,
            Self::NoTrace => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Self::Upstream(reason) => reason.detail(),
            Self::SourcesFailed => "every source of this route failed",
            Self::NotFound => "no source has this resource",
            Self::OnlyIfCached => "no usable stored response, and the request is only-if-cached",
            Self::BrokenOff => "the request body is incomplete",
            Self::Refused(error) => error.detail(),
            Self::Overloaded => "too many requests are in progress: try again later",
            Self::NotPurgeable => {
                "responses that this write makes stale could not be purged in every pod: try again later"
            }
            Self::NoTunnel => "CONNECT is not supported: the sidecar is not a forward proxy",
            Self::NoTrace => "TRACE is not supported",
            Self::LastForward => "Max-Forwards is 0: this response is from Larder's sidecar",
        }
    }

    /// Returns the response without content, which takes no memory while a client's window is closed (RFC 9113, section 5.2).
    pub fn response_without_content(self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status();
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// Returns the content of the response, as JSON.
    pub fn content(self) -> Bytes {
        content(self.status(), self.detail())
    }

    /// Returns the response. It has no `Cache-Status`, because no cache took part in it.
    pub fn response(self) -> Response<Body> {
        self.head().map(|()| Body::full(self.content()))
    }

    /// Returns the head of the response.
    pub fn head(self) -> Response<()> {
        let mut response = self.response_without_content();
        response.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
        response
    }
}

/// Returns the response to a request that is refused for a reason of its own.
pub fn refusal(status: StatusCode, detail: &str) -> Response<Body> {
    let mut response = Response::new(Body::full(content(status, detail)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
    response
}

fn content(status: StatusCode, detail: &str) -> Bytes {
    let text = json!({"title": status.canonical_reason(), "status": status.as_u16(), "detail": detail});
    text.to_string().into()
}
