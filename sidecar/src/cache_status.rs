//! The `Cache-Status` header (RFC 9211).

use std::{sync::LazyLock, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use larder_policy::{freshness::State, policy::BypassBy};

/// Name of the header.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

larder_api::labelled! {
    /// The origin of a response.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Tier {
        /// This pod's memory.
        L1 = "l1",
        /// Redis.
        L2 = "l2",
        /// A Postgres source.
        Postgres = "postgres",
        /// An HTTP source.
        Http = "http",
        /// The table of last known good responses.
        LastKnownGood = "last-known-good",
        /// The application.
        Application = "app",
        /// None: there was no response.
        Nowhere = "none",
    }
}

impl Tier {
    /// Returns the index in [`Tier::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Reason why a request was forwarded (RFC 9211, section 2.2), or why it was never looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// No response was stored under its key.
    UriMiss,
    /// The stored responses have other values of the headers that `Vary` names.
    VaryMiss,
    /// The stored response was stale or purged.
    Stale,
    /// The stored response lacked a requested part.
    Partial,
    /// The cache never responds to its method.
    Method,
    /// The client demanded it.
    Request,
    /// The request bypassed the cache.
    Bypass(Bypass),
}

larder_api::labelled! {
    /// Reason why a request bypassed the cache.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Bypass {
        /// There is no policy.
        NoPolicy = "no-policy",
        /// The policy is suspended.
        Suspended = "suspended",
        /// A pod without a sidecar takes writes, or may: the operator has not confirmed that every pod has one.
        WaitingForPods = "waiting-for-pods",
        /// No route of the policy matches.
        NoRoute = "no-route",
        /// Two servers may interpret its path differently.
        AmbiguousPath = "ambiguous-path",
        /// A target with bytes that RFC 3986 does not allow: it has no key.
        Target = "target",
        /// The route has `pass: true`.
        Route = "bypass-route",
        /// The route's `bypass`, because of a query parameter.
        Query = "bypass-query",
        /// The route's `bypass`, because of a header.
        Header = "bypass-header",
        /// The route's `bypass`, because of a cookie.
        Cookie = "bypass-cookie",
        /// The request has credentials.
        Credentials = "credentials",
        /// The request asks for several ranges.
        Range = "range",
        /// The request has a body.
        Content = "content",
        /// The request asks for another protocol.
        Upgrade = "upgrade",
        /// A header overrides the method or target of the request line.
        Override = "override",
        /// Only the origin can evaluate its precondition.
        Precondition = "precondition",
    }
}

impl From<BypassBy> for Bypass {
    fn from(by: BypassBy) -> Self {
        match by {
            BypassBy::Route => Self::Route,
            BypassBy::Query => Self::Query,
            BypassBy::Header => Self::Header,
            BypassBy::Cookie => Self::Cookie,
        }
    }
}

impl Forward {
    /// All reasons, each at its [index](Self::index).
    const ALL: [Self; 6 + Bypass::ALL.len()] = {
        use Forward::{Method, Partial, Request, Stale, UriMiss, VaryMiss};
        let mut all = [UriMiss; 6 + Bypass::ALL.len()];
        let others = [UriMiss, VaryMiss, Stale, Partial, Method, Request];
        let mut at = 0;
        while at < all.len() {
            all[at] =
                if at < others.len() { others[at] } else { Self::Bypass(Bypass::ALL[at - others.len()]) };
            at += 1;
        }
        all
    };

    const fn index(self) -> usize {
        match self {
            Self::UriMiss => 0,
            Self::VaryMiss => 1,
            Self::Stale => 2,
            Self::Partial => 3,
            Self::Method => 4,
            Self::Request => 5,
            Self::Bypass(bypass) => 6 + bypass as usize,
        }
    }

    /// Returns the reason as `fwd` shows it (RFC 9211, section 2.2).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Partial => "partial",
            Self::Method => "method",
            Self::Request => "request",
            Self::Bypass(_) => "bypass",
        }
    }

    /// Returns the reason in one word, such as `uri-miss` or `bypass-cookie`.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Bypass(bypass) => bypass.as_str(),
            reason => reason.as_str(),
        }
    }
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// A stored response was served.
    Hit {
        /// The tier that it was stored in.
        tier: Tier,
        /// Remaining freshness lifetime in seconds; negative if the response is stale.
        ttl: i64,
    },
    /// The request was forwarded, or collapsed into one that was.
    Forwarded {
        /// The reason.
        reason: Forward,
        /// Status of the next hop's response; `None` without one.
        status: Option<StatusCode>,
        /// The tier that responded.
        tier: Tier,
        /// Use of the next hop's response.
        answer: Became,
    },
}

/// Use of a response to a forwarded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// Passed on only.
    Passed,
    /// Stored once it is complete.
    Stored,
    /// Shared with another request that was in progress.
    Collapsed,
    /// Replaced by a stored response because it was an error (RFC 5861, section 4).
    StaleIfError,
}

impl Became {
    const ALL: [Self; 4] = [Self::Passed, Self::Stored, Self::Collapsed, Self::StaleIfError];
}

impl CacheStatus {
    /// Returns the reason why the request was forwarded, if it was.
    pub const fn forward(self) -> Option<Forward> {
        match self {
            Self::Hit { .. } => None,
            Self::Forwarded { reason, .. } => Some(reason),
        }
    }

    /// Appends this cache's entry after those of caches nearer to the origin (RFC 9211, section 2).
    pub fn append_to(self, headers: &mut HeaderMap) {
        headers.append(CACHE_STATUS, self.value());
    }

    /// Writes this cache's entry on a line of its own.
    pub fn write_to(self, output: &mut Vec<u8>) {
        output.extend_from_slice(b"cache-status: ");
        match self.ready() {
            Some(value) => output.extend_from_slice(value.as_bytes()),
            None => output.extend_from_slice(self.text().as_bytes()),
        }
        output.extend_from_slice(b"\r\n");
    }

    fn value(self) -> HeaderValue {
        self.ready().cloned().unwrap_or_else(|| self.written())
    }

    fn ready(self) -> Option<&'static HeaderValue> {
        match self {
            Self::Forwarded { reason, status: Some(StatusCode::OK), tier: Tier::Application, answer } => {
                Some(&READY[reason.index()][answer as usize])
            }
            _ => None,
        }
    }

    fn written(self) -> HeaderValue {
        HeaderValue::try_from(self.text()).expect("all pieces of the text are visible ASCII")
    }

    fn text(self) -> String {
        let mut number = itoa::Buffer::new();
        let (reason, status, tier, answer) = match self {
            Self::Hit { tier, ttl } => {
                return ["larder; hit; ttl=", number.format(ttl), "; detail=", tier.as_str()].concat();
            }
            Self::Forwarded { reason, ref status, tier, answer } => (reason, status, tier, answer),
        };
        let (before_status, status) =
            status.as_ref().map_or(("", ""), |status| ("; fwd-status=", status.as_str()));
        let answered = match answer {
            Became::Stored => "; stored",
            Became::Collapsed => "; collapsed",
            Became::Passed | Became::StaleIfError => "",
        };
        let detail = match (answer, reason, tier) {
            (Became::StaleIfError, ..) => "stale-if-error",
            (_, Forward::Bypass(bypass), _) => bypass.as_str(),
            (.., Tier::Application | Tier::Nowhere) => "",
            (.., tier) => tier.as_str(),
        };
        let before_detail = if detail.is_empty() { "" } else { "; detail=" };
        ["larder; fwd=", reason.as_str(), before_status, status, answered, before_detail, detail].concat()
    }
}

/// The values of the most frequent responses: with status 200 from the application, by reason and use.
static READY: LazyLock<[[HeaderValue; Became::ALL.len()]; Forward::ALL.len()]> = LazyLock::new(|| {
    let (status, tier) = (Some(StatusCode::OK), Tier::Application);
    Forward::ALL.map(|reason| {
        Became::ALL.map(|answer| CacheStatus::Forwarded { reason, status, tier, answer }.written())
    })
});

/// Returns the remaining freshness lifetime in seconds for `ttl` (RFC 9211, section 2.4), negative for stale responses.
pub fn ttl_seconds(state: State) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match state {
        State::Fresh { ttl } => seconds(ttl),
        State::Stale { stale_for, .. } => -seconds(stale_for),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_status_is_a_hit_or_a_forward_and_never_both() {
        let hit = |ttl| CacheStatus::Hit { tier: Tier::L1, ttl }.text();
        assert_eq!(
            (hit(117), hit(-3)),
            ("larder; hit; ttl=117; detail=l1".into(), "larder; hit; ttl=-3; detail=l1".into())
        );
        let forwarded = |reason, tier, answer| {
            CacheStatus::Forwarded { reason, status: Some(StatusCode::OK), tier, answer }.text()
        };
        for (text, expected) in [
            (
                forwarded(Forward::UriMiss, Tier::Application, Became::Stored),
                "larder; fwd=uri-miss; fwd-status=200; stored",
            ),
            (
                forwarded(Forward::Stale, Tier::Postgres, Became::Stored),
                "larder; fwd=stale; fwd-status=200; stored; detail=postgres",
            ),
            (
                forwarded(Forward::Bypass(Bypass::NoRoute), Tier::Application, Became::Passed),
                "larder; fwd=bypass; fwd-status=200; detail=no-route",
            ),
            (
                forwarded(Forward::UriMiss, Tier::Application, Became::Collapsed),
                "larder; fwd=uri-miss; fwd-status=200; collapsed",
            ),
            (
                forwarded(Forward::Stale, Tier::Application, Became::StaleIfError),
                "larder; fwd=stale; fwd-status=200; detail=stale-if-error",
            ),
        ] {
            assert_eq!(text, expected);
        }
    }

    /// Returns the value as the first version wrote it, member by member.
    fn by_members(status: CacheStatus) -> String {
        let (reason, status, tier, answer) = match status {
            CacheStatus::Hit { tier, ttl } => {
                return format!("larder; hit; ttl={ttl}; detail={}", tier.as_str());
            }
            CacheStatus::Forwarded { reason, status, tier, answer } => (reason, status, tier, answer),
        };
        let mut members = vec!["larder".to_owned(), format!("fwd={}", reason.as_str())];
        members.extend(status.map(|status| format!("fwd-status={}", status.as_u16())));
        match answer {
            Became::Stored => members.push("stored".to_owned()),
            Became::Collapsed => members.push("collapsed".to_owned()),
            Became::Passed | Became::StaleIfError => {}
        }
        let detail = match (reason, tier) {
            _ if answer == Became::StaleIfError => Some("stale-if-error"),
            (Forward::Bypass(bypass), _) => Some(bypass.as_str()),
            (_, Tier::Application | Tier::Nowhere) => None,
            (_, tier) => Some(tier.as_str()),
        };
        members.extend(detail.map(|detail| format!("detail={detail}")));
        members.join("; ")
    }

    #[test]
    fn every_value_has_the_same_bytes_ready_or_written() {
        for (at, reason) in Forward::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), at);
            for (answer, tier) in Became::ALL.into_iter().flat_map(|a| Tier::ALL.map(|tier| (a, tier))) {
                let codes = [200, 204, 304, 404, 503, 999].map(|code| StatusCode::from_u16(code).ok());
                for status in codes.into_iter().chain([None]) {
                    let status = CacheStatus::Forwarded { reason, status, tier, answer };
                    assert_eq!(status.value(), by_members(status), "{status:?}");
                }
            }
        }
        for ttl in [0, 1, -1, 117, i64::MAX, i64::MIN] {
            let status = CacheStatus::Hit { tier: Tier::L2, ttl };
            assert_eq!(status.value(), by_members(status));
        }
    }

    #[test]
    fn cache_status_is_appended_to_existing_ones() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        CacheStatus::Hit { tier: Tier::L2, ttl: 0 }.append_to(&mut headers);
        let all: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(all, ["origin; hit", "larder; hit; ttl=0; detail=l2"]);
    }
}
