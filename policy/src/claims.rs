//! What an answer says of itself, read once when it comes, so that a read needs only arithmetic.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{AGE, DATE, ETAG, EXPIRES, LAST_MODIFIED},
};

use crate::{
    cache_control::{ResponseDirectives, delta_seconds, members},
    date, targeted,
};

/// The longest life that is guessed.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 60 * 60);

/// When an answer was asked for and when its head came, by the wall clock: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When the request was sent: `request_time` (RFC 9111, section 4.2.3).
    pub requested_at: u64,
    /// When the head was received: `response_time`.
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

/// What an answer says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub(crate) status: StatusCode,
    pub(crate) directives: ResponseDirectives,
    /// From the moment when the origin made it; `None` if nothing says so and nothing lets us guess.
    pub(crate) lifetime: Option<Duration>,
    pub(crate) initial_age: Duration,
    pub(crate) explicit: bool,
    pub(crate) validator: bool,
    pub(crate) given_ttl: Option<Duration>,
    pub(crate) delay: Duration,
    pub(crate) spread: u16,
}

impl Claims {
    /// Reads the end-to-end headers of an answer. `targets` are the fields that go before `Cache-Control` (RFC 9213).
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
            given_ttl: None,
            delay: times.delay(),
            spread: 0,
        }
    }

    /// With the TTL that the answer gives itself where its route says.
    pub fn with_given_ttl(self, given_ttl: Option<Duration>) -> Self {
        Self { given_ttl, ..self }
    }

    /// With its place among answers whose TTLs are to end at different times.
    pub fn with_spread(self, spread: u16) -> Self {
        Self { spread, ..self }
    }

    /// The TTL that the answer gives itself where its route says.
    pub fn given_ttl(&self) -> Option<Duration> {
        self.given_ttl
    }

    /// How long it took until it came.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// A TTL, shortened by at most so many hundredths of it: by which part is this answer's own.
    pub(crate) fn jittered(&self, ttl: Duration, percent: u8) -> Duration {
        let most = ttl / 100 * u32::from(percent);
        ttl - most / u32::from(u16::MAX) * u32::from(self.spread)
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The directives that count: those of a targeted field, or of `Cache-Control`.
    pub fn directives(&self) -> &ResponseDirectives {
        &self.directives
    }

    /// How old it was when it came: `corrected_initial_age` (RFC 9111, section 4.2.3).
    pub fn initial_age(&self) -> Duration {
        self.initial_age
    }

    /// Whether it can be validated: an `ETag`, or a `Last-Modified` that is a date (RFC 9111, section 4.3.1).
    pub fn has_validator(&self) -> bool {
        self.validator
    }

    /// Whether it says itself how long it is fresh: `s-maxage`, `max-age` or `Expires` (RFC 9111, section 4.2.1).
    pub fn is_explicit(&self) -> bool {
        self.explicit
    }
}

/// Statuses that a cache may store without being told so (RFC 9110, section 15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// A field that is a date, if it has one line and that is one.
fn date_of(headers: &HeaderMap, name: &HeaderName, now: i64) -> Option<i64> {
    let mut lines = headers.get_all(name).iter();
    let value = lines.next().filter(|_| lines.next().is_none())?;
    date::parse(value.as_bytes(), now)
}

/// From one date to a later one; nothing, if it is not later.
fn between(from: i64, to: i64) -> Duration {
    Duration::from_secs(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

/// `Expires` less `Date` (RFC 9111, sections 4.2.1 and 5.3): one that is no date, as well as several, is in the past.
fn expires(headers: &HeaderMap, made_at: i64, now: i64) -> Option<Duration> {
    headers
        .contains_key(EXPIRES)
        .then(|| date_of(headers, &EXPIRES, now).map_or(Duration::ZERO, |expires| between(made_at, expires)))
}

/// The heuristic that RFC 9111, section 4.2.2, names: a tenth of the time for which it has not changed. At most a day.
fn guess(headers: &HeaderMap, made_at: i64, now: i64) -> Option<Duration> {
    let modified = date_of(headers, &LAST_MODIFIED, now)?;
    Some((between(modified, made_at) / 10).min(LONGEST_GUESS))
}

/// `corrected_initial_age` (RFC 9111, section 4.2.3). Dates are whole seconds, so `apparent_age` is too: the rest of the
/// second in which we received it must not age it.
fn initial_age(headers: &HeaderMap, made_at: Option<i64>, times: Times) -> Duration {
    let apparent = made_at.map_or(Duration::ZERO, |made_at| between(made_at, times.received_second()));
    apparent.max(age(headers).saturating_add(times.delay()))
}

/// The `Age` that an answer came with (RFC 9111, section 5.1): of several values the first counts, an invalid one is
/// ignored.
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

    fn read(status: u16, lines: &[(&str, &str)]) -> Claims {
        let times = Times { requested_at: NOW, received_at: NOW };
        Claims::read(StatusCode::from_u16(status).unwrap(), &headers(lines), times, &TARGETS)
    }

    fn lifetime(lines: &[(&str, &str)]) -> Option<u64> {
        read(200, lines).lifetime.map(|life| life.as_secs())
    }

    #[test]
    fn a_shared_cache_prefers_s_maxage_then_max_age_then_expires() {
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
    fn a_life_is_guessed_where_the_status_lets_us() {
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
    fn the_age_it_came_with() {
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
        let claims = Claims::read(StatusCode::OK, &headers(&[("age", "2"), DATE]), slow, &[]);
        assert_eq!(claims.initial_age(), Duration::from_secs(5));
    }

    #[test]
    fn validators() {
        assert!(read(200, &[("etag", "\"a\"")]).has_validator());
        assert!(read(200, &[MODIFIED]).has_validator());
        assert!(!read(200, &[("last-modified", "x")]).has_validator());
        assert!(!read(200, &[DATE]).has_validator());
    }

    proptest! {
        #[test]
        fn no_headers_and_no_clock_make_it_panic(
            age: String, expires: String, control: String, requested_at: u64, received_at: u64,
        ) {
            let mut map = headers(&[MODIFIED, DATE]);
            for (name, value) in [("age", age), ("expires", expires), ("cache-control", control)] {
                if let Ok(value) = value.parse() {
                    map.insert(name, value);
                }
            }
            Claims::read(StatusCode::OK, &map, Times { requested_at, received_at }, &TARGETS);
        }
    }
}
