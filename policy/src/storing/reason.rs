//! The reasons for not storing a response.

larder_api::labelled! {
    /// The reason for not storing a response.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum NotStored {
        /// The status is not one that is stored.
        Status = "status",
        /// The request's method is not one whose responses are stored.
        Method = "method",
        /// `Cache-Control: no-store`.
        NoStore = "no-store",
        /// `Cache-Control: private`.
        Private = "private",
        /// The client forbade storing.
        RequestNoStore = "request-no-store",
        /// The request has `Authorization`, and the response does not permit sharing.
        Authorization = "authorization",
        /// The response sets a cookie.
        SetCookie = "set-cookie",
        /// `Vary: *`, or by a header that is indistinguishable here.
        VaryAny = "vary-any",
        /// The response is a part of a body without a valid position.
        ContentRange = "content-range",
        /// Neither the route nor the response declares a lifetime, and the response cannot be validated.
        NoLifetime = "no-lifetime",
        /// The response arrived stale, and cannot be validated.
        Stale = "stale",
        /// The body is larger than `maxObjectSize`.
        TooLarge = "too-large",
        /// The body was cut off, or the client left before its end.
        Incomplete = "incomplete",
        /// The response was purged while it was in flight.
        Purged = "purged",
        /// The response has trailers.
        Trailers = "trailers",
        /// The headers that name tags (`tagsFrom`) name more than are stored.
        TooManyTags = "too-many-tags",
        /// An error that would take the place of stored responses that are of use.
        WouldReplace = "would-replace",
        /// Too many responses are being stored at this moment.
        Busy = "busy",
    }
}
