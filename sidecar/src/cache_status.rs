//! The `Cache-Status` header (RFC 9211).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header's name.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// This pod's memory.
    L1,
    /// Redis.
    L2,
    /// A Postgres source.
    Postgres,
    /// The application.
    Application,
    /// Nobody: it could not be answered.
    Nowhere,
}

impl Tier {
    /// Every tier, in the order of [`Tier::index`].
    pub const ALL: [Self; 5] = [Self::L1, Self::L2, Self::Postgres, Self::Application, Self::Nowhere];

    /// The tier as headers, metrics and logs have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Postgres => "postgres",
            Self::Application => "app",
            Self::Nowhere => "none",
        }
    }

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
    /// Its method is never answered from the cache.
    Method,
    /// The client asked for it.
    Request,
    /// It was not for the cache.
    Bypass(Bypass),
}

/// Why a request was not for the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// There is no policy.
    NoPolicy,
    /// The policy is suspended.
    Suspended,
    /// No route of the policy matches.
    NoRoute,
    /// The route's `bypass` says so.
    Query,
    /// It names a person.
    Credentials,
    /// It asks for a part.
    Range,
    /// It has a body.
    Content,
    /// It asks for another protocol.
    Upgrade,
    /// A header gives it another method or target than its request line.
    Override,
}

impl Bypass {
    /// The reason as `detail` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPolicy => "no-policy",
            Self::Suspended => "suspended",
            Self::NoRoute => "no-route",
            Self::Query => "bypass-query",
            Self::Credentials => "credentials",
            Self::Range => "range",
            Self::Content => "content",
            Self::Upgrade => "upgrade",
            Self::Override => "override",
        }
    }
}

impl Forward {
    const fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
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
        /// How much longer it is fresh.
        ttl: Duration,
    },
    /// It went forward.
    Forwarded {
        /// Why.
        reason: Forward,
        /// Who answered.
        tier: Tier,
        /// Whether the answer goes into the cache when it is complete.
        stored: bool,
    },
}

impl CacheStatus {
    /// Adds it after what caches nearer to the origin have said (RFC 9211, section 2).
    pub fn append_to(self, headers: &mut HeaderMap, status: http::StatusCode) {
        let text = match self {
            Self::Hit { tier, ttl } => {
                format!("larder; hit; ttl={}; detail={}", ttl.as_secs(), tier.as_str())
            }
            Self::Forwarded { reason, tier, stored } => {
                let stored = if stored { "; stored" } else { "" };
                let detail = match (reason, tier) {
                    (Forward::Bypass(bypass), _) => format!("; detail={}", bypass.as_str()),
                    (_, Tier::Application | Tier::Nowhere) => String::new(),
                    (_, tier) => format!("; detail={}", tier.as_str()),
                };
                format!("larder; fwd={}; fwd-status={}{stored}{detail}", reason.as_str(), status.as_u16())
            }
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(status: CacheStatus) -> String {
        let mut headers = HeaderMap::new();
        status.append_to(&mut headers, http::StatusCode::OK);
        headers[CACHE_STATUS].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_hit_or_a_forward_and_never_both() {
        let hit = CacheStatus::Hit { tier: Tier::L1, ttl: Duration::from_millis(117_900) };
        assert_eq!(text(hit), "larder; hit; ttl=117; detail=l1");
        let forwarded = |reason, tier, stored| text(CacheStatus::Forwarded { reason, tier, stored });
        assert_eq!(
            forwarded(Forward::UriMiss, Tier::Application, true),
            "larder; fwd=uri-miss; fwd-status=200; stored"
        );
        assert_eq!(
            forwarded(Forward::Stale, Tier::Postgres, true),
            "larder; fwd=stale; fwd-status=200; stored; detail=postgres"
        );
        assert_eq!(
            forwarded(Forward::Bypass(Bypass::NoRoute), Tier::Application, false),
            "larder; fwd=bypass; fwd-status=200; detail=no-route"
        );
    }

    #[test]
    fn it_comes_after_what_others_said() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        CacheStatus::Hit { tier: Tier::L2, ttl: Duration::ZERO }
            .append_to(&mut headers, http::StatusCode::OK);
        let all: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(all, ["origin; hit", "larder; hit; ttl=0; detail=l2"]);
    }
}
