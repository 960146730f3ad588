//! Reasons to reject a request.

use http::StatusCode;
use serde_json::json;

/// Reason to reject a request before it is processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Not HTTP/1 by RFC 9112: obsolete line folding, bare CR, a space before a colon, ...
    Syntax,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// An invalid target, or one with a fragment.
    Target,
    /// A target that is too long.
    TargetTooLong,
    /// A head that is too large, or has too many fields.
    HeadTooLarge,
    /// A head or body that did not arrive in time.
    TooSlow,
    /// No `Host`, several, or one without a host.
    Host,
    /// A `Content-Length` that is not one number.
    ContentLength,
    /// Both `Content-Length` and `Transfer-Encoding`.
    TwoLengths,
    /// A transfer coding other than `chunked` alone.
    TransferCoding,
    /// An invalid chunk in the body.
    Chunking,
    /// A PROXY protocol header before the request.
    ProxyProtocol,
    /// Another protocol than HTTP, which the policy rejects.
    OtherProtocol,
    /// No room for the head, or the connection's place was given to another.
    Overloaded,
    /// Too many requests that the client gave up.
    Resets,
}

impl RequestError {
    /// Every reason, in the order of metrics.
    pub const ALL: [Self; 15] = [
        Self::Syntax,
        Self::Version,
        Self::Target,
        Self::TargetTooLong,
        Self::HeadTooLarge,
        Self::TooSlow,
        Self::Host,
        Self::ContentLength,
        Self::TwoLengths,
        Self::TransferCoding,
        Self::Chunking,
        Self::ProxyProtocol,
        Self::OtherProtocol,
        Self::Overloaded,
        Self::Resets,
    ];

    /// Returns the reason as metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Version => "version",
            Self::Target => "target",
            Self::TargetTooLong => "target-too-long",
            Self::HeadTooLarge => "head-too-large",
            Self::TooSlow => "too-slow",
            Self::Host => "host",
            Self::ContentLength => "content-length",
            Self::TwoLengths => "two-lengths",
            Self::TransferCoding => "transfer-coding",
            Self::Chunking => "chunking",
            Self::ProxyProtocol => "proxy-protocol",
            Self::OtherProtocol => "other-protocol",
            Self::Overloaded => "overloaded",
            Self::Resets => "resets",
        }
    }

    /// Returns the status of the response.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Resets => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the description of the error for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Syntax => "the request is not valid HTTP/1.1",
            Self::Version => "the HTTP version is not supported: send HTTP/1.1 or HTTP/2",
            Self::Target => "the request target must be a path, with or without a query",
            Self::TargetTooLong => "the request target is longer than 32 KiB",
            Self::HeadTooLarge => "the request has more than 100 header fields, or more than 64 KiB of them",
            Self::TooSlow => "the request was not complete in time",
            Self::Host => "the request must have exactly one Host header, with a valid host",
            Self::ContentLength => "Content-Length must be one number",
            Self::TwoLengths => "the request has both Content-Length and Transfer-Encoding: send one of them",
            Self::TransferCoding => "the transfer coding is not supported: send chunked, over HTTP/1.1",
            Self::Chunking => "the chunks of the request body are malformed",
            Self::ProxyProtocol => "the PROXY protocol is not supported: send the request without its header",
            Self::OtherProtocol => "the connection does not use HTTP, and the policy refuses other protocols",
            Self::Overloaded => "too many requests are in progress: try again later",
            Self::Resets => "too many streams were reset: the connection is closed",
        }
    }

    /// Returns the complete response, after which the connection is closed.
    pub fn answer(self) -> Vec<u8> {
        let status = self.status();
        let reason = status.canonical_reason().unwrap_or_default();
        let body = json!({"title": reason, "status": status.as_u16(), "detail": self.detail()}).to_string();
        // RFC 9110, section 10.2.3.
        let retry = if self == Self::Overloaded { "retry-after: 1\r\n" } else { "" };
        format!(
            "HTTP/1.1 {} {reason}\r\n{retry}content-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            status.as_u16(),
            body.len()
        )
        .into_bytes()
    }
}
