//! The cache metadata of a response, read once when it arrives, so that a lookup needs only arithmetic.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{AGE, DATE, ETAG, EXPIRES, LAST_MODIFIED},
};

use crate::{
    cache_control::{ResponseDirectives, delta_seconds, members},
    date, targeted,
};

/// Maximum heuristic freshness lifetime.
const MAX_HEURISTIC_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Wall-clock times of a request and of its response's head, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Time at which the request was sent: `request_time` (RFC 9111, section 4.2.3).
    pub requested_at: u64,
    /// Time at which the head was received: `response_time`.
    pub received_at: u64,
}

impl Times {
    fn received_second(self) -> i64 {
        i64::try_from(self.received_at / 1000).unwrap_or(i64::MAX)
    }

    fn delay(self) -> Duration {
        Duration::from_millis(self.received_at.saturating_sub(self.requested_at))
    }
}

/// The cache metadata of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseMeta {
    pub(crate) status: StatusCode,
    pub(crate) directives: ResponseDirectives,
    /// Freshness lifetime from the moment when the origin generated the response; `None` if it is neither explicit nor
    /// can be derived heuristically.
    pub(crate) lifetime: Option<Duration>,
    pub(crate) initial_age: Duration,
    pub(crate) explicit: bool,
    pub(crate) validator: bool,
    pub(crate) ttl_from_response: Option<Duration>,
    pub(crate) delay: Duration,
    pub(crate) spread: u16,
}

impl ResponseMeta {
    /// Reads the end-to-end headers of a response. `targets` are the fields that take precedence over `Cache-Control`
    /// (RFC 9213).
    pub fn read(status: StatusCode, headers: &HeaderMap, times: Times, targets: &[HeaderName]) -> Self {
        let targeted = targeted::directives(headers, targets);
        let directives = targeted.unwrap_or_else(|| ResponseDirectives::parse(headers));
        let now = times.received_second();
        // An invalid Date is none, and what has none was made when it came (RFC 9110, section 6.6.1).
        let made_at = date_of(headers, &DATE, now);
        let explicit = directives
            .s_maxage
            .or(directives.max_age)
            .or_else(|| expires(headers, made_at.unwrap_or(now), now).filter(|_| targeted.is_none()));
        let may_guess = is_heuristically_cacheable(status) || directives.public;
        let guess = || guess(headers, made_at.unwrap_or(now), now).filter(|_| may_guess);
        Self {
            status,
            directives,
            lifetime: explicit.or_else(guess),
            initial_age: initial_age(headers, made_at, times),
            explicit: explicit.is_some(),
            validator: headers.contains_key(ETAG) || date_of(headers, &LAST_MODIFIED, now).is_some(),
            ttl_from_response: None,
            delay: times.delay(),
            spread: 0,
        }
    }

    /// Adds the TTL that the response states where its route looks for one.
    pub fn with_ttl_from_response(self, ttl_from_response: Option<Duration>) -> Self {
        Self { ttl_from_response, ..self }
    }

    /// Adds the response's position among responses whose TTLs are to end at different times.
    pub fn with_spread(self, spread: u16) -> Self {
        Self { spread, ..self }
    }

    /// Returns the TTL that the response states where its route looks for one.
    pub fn ttl_from_response(&self) -> Option<Duration> {
        self.ttl_from_response
    }

    /// Returns the time from the request to the response's head.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Shortens a TTL by up to this many percent, by a fraction that is specific to the response.
    pub(crate) fn jittered(&self, ttl: Duration, percent: u8) -> Duration {
        let most = ttl / 100 * u32::from(percent);
        ttl - most / u32::from(u16::MAX) * u32::from(self.spread)
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the effective directives: those of a targeted field, otherwise of `Cache-Control`.
    pub fn directives(&self) -> &ResponseDirectives {
        &self.directives
    }

    /// Returns the age of the response on arrival: `corrected_initial_age` (RFC 9111, section 4.2.3).
    pub fn initial_age(&self) -> Duration {
        self.initial_age
    }

    /// Returns true if the response can be validated: an `ETag`, or a `Last-Modified` that is a date (RFC 9111, section
    /// 4.3.1).
    pub fn has_validator(&self) -> bool {
        self.validator
    }

    /// Returns true if the response declares its freshness: `s-maxage`, `max-age` or `Expires` (RFC 9111, section
    /// 4.2.1).
    pub fn is_explicit(&self) -> bool {
        self.explicit
    }
}

/// Returns true for the statuses that are heuristically cacheable (RFC 9110, section 15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Parses a date field that has exactly one line.
fn date_of(headers: &HeaderMap, name: &HeaderName, now: i64) -> Option<i64> {
    let mut lines = headers.get_all(name).iter();
    let value = lines.next().filter(|_| lines.next().is_none())?;
    date::parse(value.as_bytes(), now)
}

/// Returns the time from one date to a later one, zero if it is not later.
fn between(from: i64, to: i64) -> Duration {
    Duration::from_secs(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

/// Returns `Expires` minus `Date` (RFC 9111, sections 4.2.1 and 5.3): an invalid date, or several, counts as past.
fn expires(headers: &HeaderMap, made_at: i64, now: i64) -> Option<Duration> {
    headers
        .contains_key(EXPIRES)
        .then(|| date_of(headers, &EXPIRES, now).map_or(Duration::ZERO, |expires| between(made_at, expires)))
}

/// Returns the heuristic lifetime of RFC 9111, section 4.2.2: a tenth of the time since the last modification, at most
/// a day.
fn guess(headers: &HeaderMap, made_at: i64, now: i64) -> Option<Duration> {
    let modified = date_of(headers, &LAST_MODIFIED, now)?;
    Some((between(modified, made_at) / 10).min(MAX_HEURISTIC_TTL))
}

/// Computes `corrected_initial_age` (RFC 9111, section 4.2.3). Dates are whole seconds, and so is `apparent_age`: the
/// fraction of the second in which the response was received must not age it.
fn initial_age(headers: &HeaderMap, made_at: Option<i64>, times: Times) -> Duration {
    let apparent = made_at.map_or(Duration::ZERO, |made_at| between(made_at, times.received_second()));
    apparent.max(age(headers).saturating_add(times.delay()))
}

/// Returns the `Age` that a response arrived with (RFC 9111, section 5.1): of several values the first counts, an
/// invalid one is ignored.
pub fn age(headers: &HeaderMap) -> Duration {
    let first = headers.get(AGE).and_then(|line| members(line.as_bytes()).next());
    first.and_then(delta_seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::headers;

    const TARGETS: [HeaderName; 1] = [HeaderName::from_static("cdn-cache-control")];
    /// Sat, 21 Nov 2026 10:00:00 GMT, and 900 ms.
    const NOW: u64 = 1_795_255_200_900;
    const DATE: (&str, &str) = ("date", "Sat, 21 Nov 2026 10:00:00 GMT");
    const EARLIER: (&str, &str) = ("date", "Sat, 21 Nov 2026 09:59:00 GMT");
    const EXPIRES: (&str, &str) = ("expires", "Sat, 21 Nov 2026 10:00:30 GMT");
    const MODIFIED: (&str, &str) = ("last-modified", "Sat, 21 Nov 2026 09:00:00 GMT");

    fn read(status: u16, lines: &[(&str, &str)]) -> ResponseMeta {
        let times = Times { requested_at: NOW, received_at: NOW };
        ResponseMeta::read(StatusCode::from_u16(status).unwrap(), &headers(lines), times, &TARGETS)
    }

    fn lifetime(lines: &[(&str, &str)]) -> Option<u64> {
        read(200, lines).lifetime.map(|life| life.as_secs())
    }

    #[test]
    fn s_maxage_precedes_max_age_precedes_expires() {
        for (lines, expected) in [
            (&[("cache-control", "max-age=10, s-maxage=60"), EXPIRES, DATE][..], Some(60)),
            (&[("cache-control", "max-age=60"), EXPIRES, DATE], Some(60)),
            (&[("cache-control", "max-age=0"), EXPIRES, DATE], Some(0)),
            (&[("cache-control", "x"), EXPIRES, DATE], Some(30)),
            (&[EXPIRES, EARLIER], Some(90)),
            (&[EXPIRES], Some(30)),
            (&[EXPIRES, ("date", "today")], Some(30)),
            (&[DATE, ("expires", "Sat, 21 Nov 2026 10:00:00 GMT")], Some(0)),
            (&[("expires", "0")], Some(0)),
            (&[EXPIRES, EXPIRES], Some(0)),
            (&[("expires", "0"), MODIFIED], Some(0)),
            (&[DATE], None),
            (&[("cdn-cache-control", "max-age=5"), ("cache-control", "max-age=60"), EXPIRES], Some(5)),
            (&[("cdn-cache-control", "foo"), ("cache-control", "max-age=60"), EXPIRES], None),
        ] {
            assert_eq!(lifetime(lines), expected, "{lines:?}");
            assert_eq!(read(200, lines).is_explicit(), expected.is_some(), "{lines:?}");
        }
    }

    #[test]
    fn lifetime_is_heuristic_for_cacheable_statuses() {
        assert_eq!(lifetime(&[MODIFIED, DATE]), Some(360));
        assert!(!read(200, &[MODIFIED, DATE]).is_explicit());
        assert_eq!(lifetime(&[("last-modified", "Sat, 21 Nov 2020 09:00:00 GMT")]), Some(86_400));
        assert_eq!(lifetime(&[("last-modified", "Sat, 21 Nov 2030 09:00:00 GMT")]), Some(0));
        assert_eq!(lifetime(&[("last-modified", "x")]), None);
        for (status, guessed) in
            [(203, true), (404, true), (501, true), (201, false), (302, false), (503, false)]
        {
            assert_eq!(read(status, &[MODIFIED]).lifetime.is_some(), guessed, "{status}");
            assert!(read(status, &[MODIFIED, ("cache-control", "public")]).lifetime.is_some(), "{status}");
        }
    }

    #[test]
    fn age_header_counts() {
        for (lines, expected) in [
            (&[("age", "10")][..], 10),
            (&[("age", "10"), DATE], 10),
            (&[("age", "10"), EARLIER], 60),
            (&[("age", "70"), EARLIER], 70),
            (&[("date", "Sat, 21 Nov 2026 11:00:00 GMT")], 0),
            (&[("age", "7, 0")], 7),
            (&[("age", "7"), ("age", "0")], 7),
            (&[("age", "0, 7")], 0),
            (&[("age", "x, 7")], 0),
            (&[("age", "-7")], 0),
            (&[("age", "7.5")], 0),
            (&[("age", "7;x=1")], 0),
            (&[("age", "\"7\"")], 0),
            (&[("age", "")], 0),
            (&[("age", "99999999999999999999")], 1 << 31),
        ] {
            assert_eq!(read(200, lines).initial_age().as_secs(), expected, "{lines:?}");
        }
        let slow = Times { requested_at: NOW - 3_000, received_at: NOW };
        let meta = ResponseMeta::read(StatusCode::OK, &headers(&[("age", "2"), DATE]), slow, &[]);
        assert_eq!(meta.initial_age(), Duration::from_secs(5));
    }

    #[test]
    fn validators_are_recognised() {
        assert!(read(200, &[("etag", "\"a\"")]).has_validator());
        assert!(read(200, &[MODIFIED]).has_validator());
        assert!(!read(200, &[("last-modified", "x")]).has_validator());
        assert!(!read(200, &[DATE]).has_validator());
    }

    proptest! {
        #[test]
        fn claims_never_panic(
            age: String, expires: String, control: String, requested_at: u64, received_at: u64,
        ) {
            let mut map = headers(&[MODIFIED, DATE]);
            for (name, value) in [("age", age), ("expires", expires), ("cache-control", control)] {
                if let Ok(value) = value.parse() {
                    map.insert(name, value);
                }
            }
            ResponseMeta::read(StatusCode::OK, &map, Times { requested_at, received_at }, &TARGETS);
        }
    }
}
