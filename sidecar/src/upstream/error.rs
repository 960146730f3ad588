//! Reasons why the application did not respond.

use std::{error::Error, io, iter, time::Duration};

use super::head::{HeadError, MAX_HEAD, MAX_LINES};

/// Failure of a request or a response on its connection.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Any failure over HTTP/2.
    #[error(transparent)]
    Http2(hyper::Error),
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The connection ended before the response began.
    #[error("the connection ended before the response began")]
    Closed,
    /// The head of the response was rejected.
    #[error("the response has an invalid head")]
    Head(#[from] HeadError),
    /// The connection ended in the middle of the body.
    #[error("the connection ended before the body was complete")]
    ClosedInBody,
    /// The chunks of the body are malformed (RFC 9112, section 7.1).
    #[error("malformed chunks: {0}")]
    MalformedBody(&'static str),
    /// The client broke the request body off.
    #[error("the request body broke off")]
    Upload(#[source] Box<dyn Error + Send + Sync>),
    /// The request body is shorter than its length.
    #[error("the request body is shorter than its length")]
    ShortUpload,
}

/// Failure of an exchange with the application.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection was made. `was_sent`: the application may have seen the request over an earlier one.
    #[error("no connection to the application")]
    #[allow(missing_docs)]
    Connect { source: io::Error, was_sent: bool },
    /// The exchange failed. `was_sent`: the application may have seen the request.
    #[error("the exchange with the application failed")]
    #[allow(missing_docs)]
    Exchange { source: ExchangeError, was_sent: bool },
    /// The body of the response is incomplete, and nothing of the response was passed on.
    #[error("the body of the application's response is incomplete")]
    Body(#[source] ExchangeError),
    /// The application did not begin its response in time.
    #[error("the application did not respond within {0:?}")]
    Timeout(Duration),
    /// The request was cancelled before it was sent.
    #[error("no client waits for the response")]
    Abandoned,
    /// The application switched to another protocol without a request to do so.
    #[error("the application switched protocols without a request to do so")]
    UnexpectedUpgrade,
}

larder_api::labelled! {
    /// Kind of failure of an exchange with the application, in metrics, problem details and the log.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum UpstreamReason {
        /// The application refused the connection: nothing listens.
        Refused = "refused",
        /// The application did not accept the connection in time.
        ConnectTimeout = "connect-timeout",
        /// The application can't be reached.
        Unreachable = "unreachable",
        /// The application closed the connection before its response began.
        ClosedEarly = "closed-early",
        /// The application reset the connection or the stream.
        Reset = "reset",
        /// The application refused the request over HTTP/2 without processing it (RFC 9113, section 8.7).
        NotProcessed = "not-processed",
        /// The response has too many header lines.
        TooManyHeaders = "too-many-headers",
        /// The head of the response is too large.
        HeadTooLarge = "head-too-large",
        /// There is no memory for the large head of the response.
        NoRoom = "no-room",
        /// The response does not begin with an HTTP/1 status line.
        MalformedStatusLine = "malformed-status-line",
        /// A header line of the response is invalid.
        MalformedHeader = "malformed-header",
        /// The response's `Content-Length` is not one number.
        MalformedLength = "malformed-length",
        /// The response has a transfer coding other than `chunked`.
        TransferCoding = "transfer-coding",
        /// The application ended the connection or the stream in the middle of a body.
        ClosedInBody = "closed-in-body",
        /// The chunks of a body are malformed (RFC 9112, section 7.1).
        MalformedBody = "malformed-body",
        /// The application did not begin its response, or continue its body, in time.
        Timeout = "timeout",
        /// The application switched protocols without a request to do so: a 101 (RFC 9110, section 15.2.2).
        UnexpectedUpgrade = "unexpected-upgrade",
        /// The client did not complete the request body.
        Request = "request",
        /// Any other failure.
        Other = "other",
    }
}

impl UpstreamReason {
    /// Returns the reason why a response body is incomplete.
    pub const fn of_body(error: &ExchangeError) -> Self {
        match error {
            ExchangeError::MalformedBody(_) => Self::MalformedBody,
            _ => Self::ClosedInBody,
        }
    }

    /// Returns the description for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Refused => "the application refused the connection: nothing listens on its port",
            Self::ConnectTimeout => "connecting to the application timed out",
            Self::Unreachable => "the application can't be reached",
            Self::ClosedEarly => "the application closed the connection before its response had begun",
            Self::Reset => "the application reset the connection before its response had begun",
            Self::NotProcessed => {
                "the application refused the HTTP/2 stream and has not processed the request"
            }
            Self::TooManyHeaders => TOO_MANY_HEADERS,
            Self::HeadTooLarge => HEAD_TOO_LARGE,
            Self::NoRoom => {
                "there is not enough memory for the large head of the application's response: try again later"
            }
            Self::MalformedStatusLine => {
                "the application's response is malformed: it does not begin with an HTTP/1 status line"
            }
            Self::MalformedHeader => "the application's response is malformed: it has an invalid header line",
            Self::MalformedLength => {
                "the application's response is malformed: its Content-Length is not one number"
            }
            Self::TransferCoding => {
                "the application's response has an unsupported transfer coding: only chunked is supported, over HTTP/1.1"
            }
            Self::ClosedInBody => "the application ended its response before the body was complete",
            Self::MalformedBody => "the body of the application's response is malformed",
            Self::Timeout => "the application did not respond in time",
            Self::UnexpectedUpgrade => {
                "the application responded with an unexpected 101: the request did not ask to switch protocols"
            }
            Self::Request => "the request body is incomplete",
            Self::Other => "the exchange with the application failed",
        }
    }
}

const TOO_MANY_HEADERS: &str = "the application's response has too many header lines: more than 1000";
const HEAD_TOO_LARGE: &str = "the head of the application's response is too large: more than 128 KiB";
const _: () = assert!(MAX_LINES == 1_000 && MAX_HEAD == 128 << 10, "the details name these");

impl UpstreamError {
    pub(super) const fn connect(source: io::Error) -> Self {
        Self::Connect { source, was_sent: false }
    }

    /// Returns the failure of a request that was sent before.
    pub(super) fn of_repetition(self) -> Self {
        match self {
            Self::Connect { source, .. } => Self::Connect { source, was_sent: true },
            Self::Exchange { source, .. } => Self::Exchange { source, was_sent: true },
            other @ (Self::Body(_) | Self::Timeout(_) | Self::Abandoned | Self::UnexpectedUpgrade) => other,
        }
    }

    /// Returns the kind of failure.
    pub fn reason(&self) -> UpstreamReason {
        match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => UpstreamReason::Refused,
                io::ErrorKind::TimedOut => UpstreamReason::ConnectTimeout,
                _ => UpstreamReason::Unreachable,
            },
            Self::Exchange { source, .. } => source.reason(),
            Self::Body(source) => UpstreamReason::of_body(source),
            Self::Timeout(_) | Self::Abandoned => UpstreamReason::Timeout,
            Self::UnexpectedUpgrade => UpstreamReason::UnexpectedUpgrade,
        }
    }

    /// Returns true if the application may have seen the request, and may have acted on it.
    pub const fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Connect { was_sent, .. } | Self::Exchange { was_sent, .. } => *was_sent,
            // The request may have been sent over an earlier connection.
            Self::Body(_) | Self::Timeout(_) | Self::Abandoned | Self::UnexpectedUpgrade => true,
        }
    }

    /// Returns the error and its causes in one line.
    pub fn chain(&self) -> String {
        let causes: Vec<_> = causes(self).map(ToString::to_string).collect();
        causes.join(": ")
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// Returns the error of a response head that was rejected.
fn head_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a HeadError> {
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}

/// Returns true if a response has a transfer coding that is not decoded here.
pub(crate) fn blames_transfer_coding(error: &(dyn Error + 'static)) -> bool {
    head_error(error) == Some(&HeadError::TransferCoding)
}

impl ExchangeError {
    /// Returns the kind of failure.
    fn reason(&self) -> UpstreamReason {
        match self {
            Self::Http2(error) => reason_over_http2(error),
            Self::Io(_) => UpstreamReason::Reset,
            Self::Closed => UpstreamReason::ClosedEarly,
            Self::Head(HeadError::TooManyLines) => UpstreamReason::TooManyHeaders,
            Self::Head(HeadError::TooLarge) => UpstreamReason::HeadTooLarge,
            Self::Head(HeadError::NoRoom) => UpstreamReason::NoRoom,
            Self::Head(HeadError::StatusLine) => UpstreamReason::MalformedStatusLine,
            Self::Head(HeadError::Field) => UpstreamReason::MalformedHeader,
            Self::Head(HeadError::Length) => UpstreamReason::MalformedLength,
            Self::Head(HeadError::TransferCoding) => UpstreamReason::TransferCoding,
            Self::ClosedInBody => UpstreamReason::ClosedInBody,
            Self::MalformedBody(_) => UpstreamReason::MalformedBody,
            Self::Upload(_) | Self::ShortUpload => UpstreamReason::Request,
        }
    }

    /// Returns true if a request over HTTP/1 failed because its connection failed, possibly before the request.
    pub(super) fn may_have_been_dead(&self) -> bool {
        match self {
            Self::Io(error) => is_reset(error.kind()),
            Self::Closed => true,
            _ => false,
        }
    }
}

fn reason_over_http2(error: &hyper::Error) -> UpstreamReason {
    let io = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        _ if was_not_processed(error) => UpstreamReason::NotProcessed,
        _ if error.is_user() => UpstreamReason::Request,
        _ if error.is_parse() => UpstreamReason::MalformedHeader,
        Some(kind) if is_reset(kind) => UpstreamReason::Reset,
        Some(io::ErrorKind::UnexpectedEof) => UpstreamReason::ClosedEarly,
        _ if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => {
            UpstreamReason::ClosedEarly
        }
        // A stream or the connection was closed with an error code.
        _ if error.source().is_some() => UpstreamReason::Reset,
        _ => UpstreamReason::Other,
    }
}

const fn is_reset(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
}

/// Returns true if the application has declared that it did not process a request, which may then be sent again with any method
/// (RFC 9113, section 8.7): it refused the stream, or sent a GOAWAY before it. h2 fails only streams above the last one that the
/// GOAWAY names.
pub(super) fn was_not_processed(error: &(dyn Error + 'static)) -> bool {
    is_going_away(error)
        || http2_errors(error)
            .any(|error| error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Returns true if a request failed because the application accepts no further requests on its connection.
pub(super) fn is_going_away(error: &(dyn Error + 'static)) -> bool {
    http2_errors(error).any(|error| error.is_remote() && error.is_go_away())
}

fn http2_errors<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a h2::Error> {
    causes(error).filter_map(|error| error.downcast_ref::<h2::Error>())
}

/// Returns true if a request failed because its connection failed, possibly before the request, rather than because the response
/// was invalid.
pub(crate) fn may_have_been_dead(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|error| {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            error.is_incomplete_message() || error.is_canceled() || error.is_closed()
        } else if let Some(error) = error.downcast_ref::<io::Error>() {
            is_reset(error.kind()) || error.kind() == io::ErrorKind::UnexpectedEof
        } else {
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_each_in_its_place() {
        for (place, reason) in UpstreamReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{}", reason.as_str());
        }
    }
}
