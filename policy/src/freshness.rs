//! Which answers are stored, and for how long they are fresh (RFC 9111, sections 3 and 4.2).
//!
//! This is the safe subset: explicit lifetimes only, 200 only.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{
    HeaderMap, StatusCode,
    header::{AGE, DATE, EXPIRES, SET_COOKIE, VARY},
};

use crate::cache_control::{CacheControl, delta_seconds};

/// Why an answer is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// Its status is not 200.
    Status,
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// It sets a cookie.
    SetCookie,
    /// `Vary: *`.
    VaryAny,
    /// Neither the route nor the answer says how long it is fresh, or it is not fresh at all.
    NoLifetime,
    /// Its body is larger than `maxObjectSize`.
    TooLarge,
    /// Its body was cut off, or the client left before its end.
    Incomplete,
    /// It was purged while it was on its way.
    Purged,
    /// It carries trailers.
    Trailers,
}

impl NotStored {
    /// Every reason, in the order of metrics.
    pub const ALL: [Self; 10] = [
        Self::Status,
        Self::NoStore,
        Self::Private,
        Self::SetCookie,
        Self::VaryAny,
        Self::NoLifetime,
        Self::TooLarge,
        Self::Incomplete,
        Self::Purged,
        Self::Trailers,
    ];

    /// The reason as metrics and logs have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::SetCookie => "set-cookie",
            Self::VaryAny => "vary-any",
            Self::NoLifetime => "no-lifetime",
            Self::TooLarge => "too-large",
            Self::Incomplete => "incomplete",
            Self::Purged => "purged",
            Self::Trailers => "trailers",
        }
    }
}

/// How long an answer is fresh from the moment it was received: the route's `ttl`, or what its headers say less the age it
/// came with. `None` if nothing says so, or if it must not be served without asking the origin.
///
/// A `ttl` replaces `max-age`, `s-maxage`, `Expires` and `no-cache`; it is computed at every read, so that a changed
/// policy changes what is stored already.
pub fn lifetime(headers: &HeaderMap, ttl: Option<Duration>) -> Option<Duration> {
    if let Some(ttl) = ttl {
        return Some(ttl);
    }
    let control = CacheControl::parse(headers);
    if control.no_cache {
        return None;
    }
    let lifetime = control.s_maxage.or(control.max_age).or_else(|| expires(headers))?;
    lifetime.checked_sub(age(headers)).filter(|left| !left.is_zero())
}

/// Whether an answer may be stored, and the names its `Vary` lists, in lower case, sorted, each once.
///
/// # Errors
/// The reason why not.
pub fn storable(
    status: StatusCode,
    headers: &HeaderMap,
    ttl: Option<Duration>,
) -> Result<Vec<String>, NotStored> {
    if status != StatusCode::OK {
        return Err(NotStored::Status);
    }
    let control = CacheControl::parse(headers);
    if control.no_store {
        return Err(NotStored::NoStore);
    }
    if control.private {
        return Err(NotStored::Private);
    }
    if headers.contains_key(SET_COOKIE) {
        return Err(NotStored::SetCookie);
    }
    let vary = vary(headers).ok_or(NotStored::VaryAny)?;
    lifetime(headers, ttl).map(|_| vary).ok_or(NotStored::NoLifetime)
}

/// The names that `Vary` lists on all its lines; `None` for one that is `*` or unreadable (RFC 9110, section 12.5.5).
fn vary(headers: &HeaderMap) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for line in headers.get_all(VARY) {
        for name in line.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if name == "*" {
                return None;
            }
            names.push(name.to_ascii_lowercase());
        }
    }
    names.sort();
    names.dedup();
    Some(names)
}

/// `Expires` less `Date` (RFC 9111, section 5.3): one that can't be read, or several, means stale.
fn expires(headers: &HeaderMap) -> Option<Duration> {
    let mut lines = headers.get_all(EXPIRES).iter();
    let expires = lines.next()?;
    let parsed = expires.to_str().ok().and_then(parse_date).filter(|_| lines.next().is_none());
    let date = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(parse_date);
    let date = date.unwrap_or_else(SystemTime::now);
    Some(parsed.and_then(|expires| expires.duration_since(date).ok()).unwrap_or(Duration::ZERO))
}

/// The age that an answer came with (RFC 9111, section 5.1): the first value counts, an invalid one is ignored.
pub fn age(headers: &HeaderMap) -> Duration {
    let text = headers.get(AGE).and_then(|age| age.to_str().ok()).unwrap_or("");
    let first = text.split(',').next().unwrap_or(text).trim();
    Duration::from_secs(delta_seconds(first).unwrap_or(0))
}

/// IMF-fixdate, the one form that senders may generate (RFC 9110, section 5.6.7).
fn parse_date(text: &str) -> Option<SystemTime> {
    let date =
        jiff::fmt::strtime::parse("%a, %d %b %Y %H:%M:%S GMT", text.trim()).ok()?.to_datetime().ok()?;
    let seconds = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn a_shared_cache_prefers_s_maxage_then_max_age_then_expires() {
        let date = ("date", "Sat, 21 Nov 2026 10:00:00 GMT");
        let expires = ("expires", "Sat, 21 Nov 2026 10:00:30 GMT");
        assert_eq!(lifetime(&headers(&[("cache-control", "max-age=10, s-maxage=60")]), None), MINUTE);
        assert_eq!(lifetime(&headers(&[date, expires, ("cache-control", "max-age=60")]), None), MINUTE);
        assert_eq!(lifetime(&headers(&[date, expires]), None), Some(Duration::from_secs(30)));
        assert_eq!(lifetime(&headers(&[date, ("expires", "0")]), None), None);
        assert_eq!(lifetime(&headers(&[date]), None), None);
    }

    #[test]
    fn the_age_that_it_came_with_counts() {
        assert_eq!(lifetime(&headers(&[("cache-control", "max-age=70"), ("age", "10")]), None), MINUTE);
        assert_eq!(lifetime(&headers(&[("cache-control", "max-age=10"), ("age", "10")]), None), None);
        assert_eq!(lifetime(&headers(&[("cache-control", "max-age=60"), ("age", "x")]), None), MINUTE);
    }

    #[test]
    fn a_ttl_replaces_lifetimes_and_no_cache_and_nothing_else() {
        let ttl = Some(Duration::from_secs(5));
        for control in ["max-age=60", "no-cache", "s-maxage=0", "must-revalidate"] {
            let headers = headers(&[("cache-control", control)]);
            assert_eq!(lifetime(&headers, ttl), ttl, "{control}");
            assert_eq!(storable(StatusCode::OK, &headers, ttl), Ok(vec![]), "{control}");
        }
        for (header, reason) in [
            (("cache-control", "max-age=60, no-store"), NotStored::NoStore),
            (("cache-control", "Private"), NotStored::Private),
            (("set-cookie", "a=b"), NotStored::SetCookie),
            (("vary", "accept, *"), NotStored::VaryAny),
        ] {
            assert_eq!(storable(StatusCode::OK, &headers(&[header]), ttl), Err(reason));
        }
        assert_eq!(storable(StatusCode::NOT_FOUND, &headers(&[]), ttl), Err(NotStored::Status));
    }

    #[test]
    fn without_a_ttl_something_must_say_how_long() {
        assert_eq!(storable(StatusCode::OK, &headers(&[]), None), Err(NotStored::NoLifetime));
        assert_eq!(
            storable(StatusCode::OK, &headers(&[("cache-control", "max-age=9, no-cache")]), None),
            Err(NotStored::NoLifetime)
        );
        assert_eq!(
            storable(
                StatusCode::OK,
                &headers(&[("cache-control", "max-age=9"), ("vary", "B, a"), ("vary", "A")]),
                None
            ),
            Ok(vec!["a".into(), "b".into()])
        );
    }
}
