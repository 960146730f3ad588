//! The `Cache-Status` header (RFC 9211).

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use larder_policy::{freshness::State, policy::BypassBy};

/// The header's name.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

larder_api::labelled! {
    /// Where an answer came from.
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
        /// The table of last good answers.
        LastKnownGood = "last-known-good",
        /// The application.
        Application = "app",
        /// Nobody: it could not be answered.
        Nowhere = "none",
    }
}

impl Tier {
    /// Its place in [`Tier::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Why a request went forward (RFC 9211, section 2.2), and, for those that were never looked up, why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Nothing was stored under its key.
    UriMiss,
    /// Something was stored under its key, for other values of the headers that `Vary` names.
    VaryMiss,
    /// What was stored was too old, or purged.
    Stale,
    /// What was stored was not all that it asks for.
    Partial,
    /// Its method is never answered from the cache.
    Method,
    /// The client asked for it.
    Request,
    /// It was not for the cache.
    Bypass(Bypass),
}

larder_api::labelled! {
    /// Why a request was not for the cache.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Bypass {
        /// There is no policy.
        NoPolicy = "no-policy",
        /// The policy is suspended.
        Suspended = "suspended",
        /// A pod without a sidecar takes writes, or may: the operator has not said yet that every pod has one.
        WaitingForPods = "waiting-for-pods",
        /// No route of the policy matches.
        NoRoute = "no-route",
        /// Two servers may read its path differently.
        AmbiguousPath = "ambiguous-path",
        /// Its target has bytes that none may have (RFC 3986): no key is made of it.
        Target = "target",
        /// The route's `bypass` says so, by a parameter of the query.
        Query = "bypass-query",
        /// The route's `bypass` says so, by a header.
        Header = "bypass-header",
        /// The route's `bypass` says so, by a cookie.
        Cookie = "bypass-cookie",
        /// It names a person.
        Credentials = "credentials",
        /// It asks for several parts.
        Range = "range",
        /// It has a body.
        Content = "content",
        /// It asks for another protocol.
        Upgrade = "upgrade",
        /// A header gives it another method or target than its request line.
        Override = "override",
        /// Only the origin can tell whether its precondition holds.
        Precondition = "precondition",
    }
}

impl From<BypassBy> for Bypass {
    fn from(by: BypassBy) -> Self {
        match by {
            BypassBy::Query => Self::Query,
            BypassBy::Header => Self::Header,
            BypassBy::Cookie => Self::Cookie,
        }
    }
}

impl Forward {
    /// The reason as `fwd` has it (RFC 9211, section 2.2).
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
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// It was answered from what was stored.
    Hit {
        /// Where that was.
        tier: Tier,
        /// How many seconds longer it is fresh; less than 0 if it is stale.
        ttl: i64,
    },
    /// It went forward, or would have, had another not gone already.
    Forwarded {
        /// Why.
        reason: Forward,
        /// What the next hop said; `None` if it did not answer.
        status: Option<StatusCode>,
        /// Who answered.
        tier: Tier,
        /// What became of the answer.
        answer: Became,
    },
}

/// What became of an answer that a request went forward for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It was passed on.
    Passed,
    /// It goes into the cache when it is complete.
    Stored,
    /// It is that to another request, which was under way.
    Collapsed,
    /// It was an error, and what was stored took its place (RFC 5861, section 4).
    StaleIfError,
}

impl CacheStatus {
    /// Adds it after what caches nearer to the origin have said (RFC 9211, section 2).
    pub fn append_to(self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

/// How many seconds longer an answer is fresh, as `ttl` has it (RFC 9211, section 2.4): less than 0 if it is not.
pub fn ttl_seconds(state: State) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match state {
        State::Fresh { ttl } => seconds(ttl),
        State::Stale { stale_for, .. } => -seconds(stale_for),
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, status, tier, answer) = match *self {
            Self::Hit { tier, ttl } => {
                return write!(f, "larder; hit; ttl={ttl}; detail={}", tier.as_str());
            }
            Self::Forwarded { reason, status, tier, answer } => (reason, status, tier, answer),
        };
        write!(f, "larder; fwd={}", reason.as_str())?;
        if let Some(status) = status {
            write!(f, "; fwd-status={}", status.as_u16())?;
        }
        match answer {
            Became::Stored => f.write_str("; stored")?,
            Became::Collapsed => f.write_str("; collapsed")?,
            Became::StaleIfError => return f.write_str("; detail=stale-if-error"),
            Became::Passed => {}
        }
        match (reason, tier) {
            (Forward::Bypass(bypass), _) => write!(f, "; detail={}", bypass.as_str()),
            (_, Tier::Application | Tier::Nowhere) => Ok(()),
            (_, tier) => write!(f, "; detail={}", tier.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_status_is_a_hit_or_a_forward_and_never_both() {
        let hit = |ttl| CacheStatus::Hit { tier: Tier::L1, ttl }.to_string();
        assert_eq!(
            (hit(117), hit(-3)),
            ("larder; hit; ttl=117; detail=l1".into(), "larder; hit; ttl=-3; detail=l1".into())
        );
        let forwarded = |reason, tier, answer| {
            CacheStatus::Forwarded { reason, status: Some(StatusCode::OK), tier, answer }.to_string()
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

    #[test]
    fn cache_status_is_appended_to_existing_ones() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        CacheStatus::Hit { tier: Tier::L2, ttl: 0 }.append_to(&mut headers);
        let all: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(all, ["origin; hit", "larder; hit; ttl=0; detail=l2"]);
    }
}
