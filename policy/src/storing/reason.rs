//! The reasons for not storing a response.

/// The reason for not storing a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// The status is not one that is stored.
    Status,
    /// The request's method is not one whose responses are stored.
    Method,
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// The client forbade storing.
    RequestNoStore,
    /// The request has `Authorization`, and the response does not permit sharing.
    Authorization,
    /// The response sets a cookie.
    SetCookie,
    /// `Vary: *`, or by a header that is indistinguishable here.
    VaryAny,
    /// The response is a part of a body without a valid position.
    ContentRange,
    /// Neither the route nor the response declares a lifetime, and the response cannot be validated.
    NoLifetime,
    /// The response arrived stale, and cannot be validated.
    Stale,
    /// The body is larger than `maxObjectSize`.
    TooLarge,
    /// The body was cut off, or the client left before its end.
    Incomplete,
    /// The response was purged while it was in flight.
    Purged,
    /// The response has trailers.
    Trailers,
    /// Too many responses are being stored at this moment.
    Busy,
}

impl NotStored {
    /// Every reason, in the order of metrics.
    pub const ALL: [Self; 16] = [
        Self::Status,
        Self::Method,
        Self::NoStore,
        Self::Private,
        Self::RequestNoStore,
        Self::Authorization,
        Self::SetCookie,
        Self::VaryAny,
        Self::ContentRange,
        Self::NoLifetime,
        Self::Stale,
        Self::TooLarge,
        Self::Incomplete,
        Self::Purged,
        Self::Trailers,
        Self::Busy,
    ];

    /// Returns the reason in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Method => "method",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::RequestNoStore => "request-no-store",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryAny => "vary-any",
            Self::ContentRange => "content-range",
            Self::NoLifetime => "no-lifetime",
            Self::Stale => "stale",
            Self::TooLarge => "too-large",
            Self::Incomplete => "incomplete",
            Self::Purged => "purged",
            Self::Trailers => "trailers",
            Self::Busy => "busy",
        }
    }
}
