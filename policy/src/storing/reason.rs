//! Why an answer is not stored.

/// Why an answer is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// Its status is not one that is stored.
    Status,
    /// The request's method is not one whose answers are stored.
    Method,
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// The client asked that nothing be stored.
    RequestNoStore,
    /// The request has `Authorization`, and the answer does not say that it is for everybody.
    Authorization,
    /// It sets a cookie.
    SetCookie,
    /// `Vary: *`, or by a header that can't be told apart here.
    VaryAny,
    /// It is a part of a body that does not say of what, or not truly.
    ContentRange,
    /// Neither the route nor the answer says how long it is fresh, and it can't be validated.
    NoLifetime,
    /// It came stale, and it can't be validated.
    Stale,
    /// Its body is larger than `maxObjectSize`.
    TooLarge,
    /// Its body was cut off, or the client left before its end.
    Incomplete,
    /// It was purged while it was on its way.
    Purged,
    /// It carries trailers.
    Trailers,
    /// Too many are being stored at this moment.
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

    /// The reason as metrics and logs have it.
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
