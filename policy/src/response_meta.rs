//! The cache metadata of a response, read once when it arrives, so that a lookup needs only arithmetic.

use std::time::Duration;

use bytes::{Buf, BufMut};
use http::{HeaderName, StatusCode, header::AGE};

use crate::{
    cache_control::{ResponseDirectives, delta_seconds, members},
    date,
    fields::{Fields, is_named},
    targeted,
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

/// The cache metadata of a response, in 64 bytes: each stored response has its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseMeta {
    times: Times,
    /// Freshness lifetime from the moment when the origin generated the response; none if it is neither explicit nor
    /// can be derived heuristically.
    lifetime: Millis,
    initial_age: Millis,
    ttl_from_response: Millis,
    max_age: Seconds,
    s_maxage: Seconds,
    stale_while_revalidate: Seconds,
    stale_if_error: Seconds,
    status: StatusCode,
    flags: u16,
    pub(crate) spread: u16,
}

/// Milliseconds; the largest number stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Millis(u64);

impl Millis {
    fn new(duration: Option<Duration>) -> Self {
        let most = u64::MAX - 1;
        Self(
            duration
                .map_or(u64::MAX, |duration| u64::try_from(duration.as_millis()).unwrap_or(most).min(most)),
        )
    }

    fn get(self) -> Option<Duration> {
        (self.0 != u64::MAX).then(|| Duration::from_millis(self.0))
    }
}

/// Whole seconds, as directives have them; the largest number stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seconds(u32);

impl Seconds {
    fn new(duration: Option<Duration>) -> Self {
        let most = u32::MAX - 1;
        Self(
            duration.map_or(u32::MAX, |duration| u32::try_from(duration.as_secs()).unwrap_or(most).min(most)),
        )
    }

    fn get(self) -> Option<Duration> {
        (self.0 != u32::MAX).then(|| Duration::from_secs(self.0.into()))
    }
}

// Directives without an argument, and what else is true or false of a response.
const NO_STORE: u16 = 1;
const PRIVATE: u16 = 1 << 1;
const NO_CACHE: u16 = 1 << 2;
const MUST_REVALIDATE: u16 = 1 << 3;
const PROXY_REVALIDATE: u16 = 1 << 4;
const MUST_UNDERSTAND: u16 = 1 << 5;
const PUBLIC: u16 = 1 << 6;
const EXPLICIT: u16 = 1 << 7;
const VALIDATOR: u16 = 1 << 8;
const ALL_FLAGS: u16 = (VALIDATOR << 1) - 1;

/// Length in bytes of what [`ResponseMeta::write_fields`] writes.
pub const ENCODED_LENGTH: usize = size_of::<u16>() + 2 * size_of::<u64>() + 4 * size_of::<u32>();

impl ResponseMeta {
    /// Reads the end-to-end headers of a response. `targets` are the fields that take precedence over `Cache-Control`
    /// (RFC 9213).
    pub fn read(
        status: StatusCode,
        headers: &(impl Fields + ?Sized),
        times: Times,
        targets: &[HeaderName],
    ) -> Self {
        let lines = Lines::find(headers, targets);
        let targeted = lines.has_target.then(|| targeted::directives(headers, targets)).flatten();
        let directives = targeted.unwrap_or(lines.directives);
        let now = times.received_second();
        // An invalid Date is none, and what has none was made when it came (RFC 9110, section 6.6.1).
        let made_at = lines.date.parse(now);
        let explicit = directives.s_maxage.or(directives.max_age).or_else(|| {
            lines.lifetime_by_expires(made_at.unwrap_or(now), now).filter(|_| targeted.is_none())
        });
        let may_guess = is_heuristically_cacheable(status) || directives.public;
        let guess = || lines.guess(made_at.unwrap_or(now), now).filter(|_| may_guess);
        let has_validator = lines.has_etag || lines.last_modified.parse(now).is_some();
        let flags = [(EXPLICIT, explicit.is_some()), (VALIDATOR, has_validator)];
        let lifetime = explicit.or_else(guess);
        let read = Self::of(status, &directives, lifetime, lines.initial_age(made_at, times));
        Self { times, flags: read.flags | sum(&flags), ..read }
    }

    /// Returns the metadata of a response that came at once.
    pub(crate) fn of(
        status: StatusCode,
        directives: &ResponseDirectives,
        lifetime: Option<Duration>,
        initial_age: Duration,
    ) -> Self {
        let flags = [
            (NO_STORE, directives.no_store),
            (PRIVATE, directives.private),
            (NO_CACHE, directives.no_cache),
            (MUST_REVALIDATE, directives.must_revalidate),
            (PROXY_REVALIDATE, directives.proxy_revalidate),
            (MUST_UNDERSTAND, directives.must_understand),
            (PUBLIC, directives.public),
        ];
        Self {
            times: Times { requested_at: 0, received_at: 0 },
            lifetime: Millis::new(lifetime),
            initial_age: Millis::new(Some(initial_age)),
            ttl_from_response: Millis::new(None),
            max_age: Seconds::new(directives.max_age),
            s_maxage: Seconds::new(directives.s_maxage),
            stale_while_revalidate: Seconds::new(directives.stale_while_revalidate),
            stale_if_error: Seconds::new(directives.stale_if_error),
            status,
            flags: sum(&flags),
            spread: 0,
        }
    }

    /// Writes what was read from the header fields.
    pub fn write_fields(&self, out: &mut impl BufMut) {
        out.put_u16(self.flags);
        [self.lifetime, self.initial_age].iter().for_each(|time| out.put_u64(time.0));
        [self.max_age, self.s_maxage, self.stale_while_revalidate, self.stale_if_error]
            .iter()
            .for_each(|time| out.put_u32(time.0));
    }

    /// Returns the metadata of a response whose header fields were read before, from what [`Self::write_fields`] wrote; `None` if it
    /// did not write this.
    pub fn from_written(status: StatusCode, written: &[u8; ENCODED_LENGTH], times: Times) -> Option<Self> {
        let mut written = &written[..];
        let flags = written.get_u16();
        (flags & !ALL_FLAGS == 0).then(|| Self {
            times,
            lifetime: Millis(written.get_u64()),
            initial_age: Millis(written.get_u64()),
            ttl_from_response: Millis::new(None),
            max_age: Seconds(written.get_u32()),
            s_maxage: Seconds(written.get_u32()),
            stale_while_revalidate: Seconds(written.get_u32()),
            stale_if_error: Seconds(written.get_u32()),
            status,
            flags,
            spread: 0,
        })
    }

    /// Adds the TTL that the response states where its route looks for one.
    pub fn with_ttl_from_response(self, ttl_from_response: Option<Duration>) -> Self {
        Self { ttl_from_response: Millis::new(ttl_from_response), ..self }
    }

    /// Adds the response's position among responses whose TTLs are to end at different times.
    pub fn with_spread(self, spread: u16) -> Self {
        Self { spread, ..self }
    }

    /// Returns the TTL that the response states where its route looks for one.
    pub fn ttl_from_response(&self) -> Option<Duration> {
        self.ttl_from_response.get()
    }

    /// Returns the time from the request to the response's head.
    pub fn delay(&self) -> Duration {
        self.times.delay()
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

    /// Returns the times of the request and of the response.
    pub fn times(&self) -> Times {
        self.times
    }

    /// Returns the effective directives: those of a targeted field, otherwise of `Cache-Control`.
    pub fn directives(&self) -> ResponseDirectives {
        ResponseDirectives {
            no_store: self.is(NO_STORE),
            private: self.is(PRIVATE),
            no_cache: self.is(NO_CACHE),
            must_revalidate: self.is(MUST_REVALIDATE),
            proxy_revalidate: self.is(PROXY_REVALIDATE),
            must_understand: self.is(MUST_UNDERSTAND),
            public: self.is(PUBLIC),
            max_age: self.max_age.get(),
            s_maxage: self.s_maxage.get(),
            stale_while_revalidate: self.stale_while_revalidate.get(),
            stale_if_error: self.stale_if_error.get(),
        }
    }

    fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Returns true if the response must never be served stale (RFC 9111, section 4.2.4).
    ///
    /// `s-maxage` does not count here. It implies `proxy-revalidate` (section 5.2.2.10), and so overrules a client's
    /// directives; but a stale window beside it, in the response or the route, would mean nothing if it did.
    pub(crate) fn forbids_stale(&self) -> bool {
        self.is(NO_CACHE | MUST_REVALIDATE | PROXY_REVALIDATE)
    }

    /// Returns true if the directive `no-cache` is set.
    pub(crate) fn is_no_cache(&self) -> bool {
        self.is(NO_CACHE)
    }

    /// Returns the freshness lifetime from the moment when the origin generated the response; `None` if it is neither
    /// explicit nor can be derived heuristically.
    pub(crate) fn lifetime(&self) -> Option<Duration> {
        self.lifetime.get()
    }

    /// Returns the age of the response on arrival: `corrected_initial_age` (RFC 9111, section 4.2.3).
    pub fn initial_age(&self) -> Duration {
        self.initial_age.get().unwrap_or_default()
    }

    /// Returns true if the response can be validated: an `ETag`, or a `Last-Modified` that is a date (RFC 9111, section
    /// 4.3.1).
    pub fn has_validator(&self) -> bool {
        self.is(VALIDATOR)
    }

    /// Returns true if the response declares its freshness: `s-maxage`, `max-age` or `Expires` (RFC 9111, section
    /// 4.2.1).
    pub fn is_explicit(&self) -> bool {
        self.is(EXPLICIT)
    }
}

/// Returns the flags that are set.
fn sum(flags: &[(u16, bool)]) -> u16 {
    flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag).sum()
}

/// Returns true for the statuses that are heuristically cacheable (RFC 9110, section 15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// The lines that the metadata is read from, found in one pass.
#[derive(Default)]
struct Lines<'a> {
    /// The directives of `Cache-Control`.
    directives: ResponseDirectives,
    age: Option<&'a [u8]>,
    date: DateField<'a>,
    expires: DateField<'a>,
    last_modified: DateField<'a>,
    has_etag: bool,
    /// True if there is a field of targeted cache control.
    has_target: bool,
}

impl<'a> Lines<'a> {
    fn find(headers: &'a (impl Fields + ?Sized), targets: &[HeaderName]) -> Self {
        let mut found = Self::default();
        for (name, value) in headers.lines() {
            let is_named_as = |target: &HeaderName| target.as_str().as_bytes().eq_ignore_ascii_case(name);
            found.has_target |= targets.iter().any(is_named_as);
            // By the length first: most lines are none of these.
            match name.len() {
                3 if is_named(name, b"age") => _ = found.age.get_or_insert(value),
                4 if is_named(name, b"date") => found.date.add(value),
                4 if is_named(name, b"etag") => found.has_etag = true,
                7 if is_named(name, b"expires") => found.expires.add(value),
                13 if is_named(name, b"cache-control") => found.directives.add(value),
                13 if is_named(name, b"last-modified") => found.last_modified.add(value),
                _ => {}
            }
        }
        found
    }

    /// Returns `Expires` minus `Date` (RFC 9111, sections 4.2.1 and 5.3): an invalid date, or several, counts as past.
    fn lifetime_by_expires(&self, made_at: i64, now: i64) -> Option<Duration> {
        let is_there = !matches!(self.expires, DateField::Absent);
        is_there.then(|| self.expires.parse(now).map_or(Duration::ZERO, |expires| between(made_at, expires)))
    }

    /// Returns the heuristic lifetime of RFC 9111, section 4.2.2: a tenth of the time since the last modification, at most
    /// a day.
    fn guess(&self, made_at: i64, now: i64) -> Option<Duration> {
        let modified = self.last_modified.parse(now)?;
        Some((between(modified, made_at) / 10).min(MAX_HEURISTIC_TTL))
    }

    /// Computes `corrected_initial_age` (RFC 9111, section 4.2.3). Dates are whole seconds, and so is `apparent_age`: the
    /// fraction of the second in which the response was received must not age it.
    fn initial_age(&self, made_at: Option<i64>, times: Times) -> Duration {
        let apparent = made_at.map_or(Duration::ZERO, |made_at| between(made_at, times.received_second()));
        let stated = self.age.and_then(seconds_of_age).unwrap_or_default();
        apparent.max(stated.saturating_add(times.delay()))
    }
}

/// A field with a date, of which a message has one line.
#[derive(Clone, Copy, Default)]
enum DateField<'a> {
    #[default]
    Absent,
    Once(&'a [u8]),
    Repeated,
}

impl<'a> DateField<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = if matches!(self, Self::Absent) { Self::Once(value) } else { Self::Repeated };
    }

    /// Returns the date, if there is one line and it is valid.
    fn parse(self, now: i64) -> Option<i64> {
        match self {
            Self::Once(value) => date::parse(value, now),
            Self::Absent | Self::Repeated => None,
        }
    }
}

/// Returns the time from one date to a later one, zero if it is not later.
fn between(from: i64, to: i64) -> Duration {
    Duration::from_secs(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

/// Returns the `Age` that a response arrived with (RFC 9111, section 5.1), if it is a valid one: of several values the first
/// counts.
pub fn stated_age(headers: &(impl Fields + ?Sized)) -> Option<Duration> {
    headers.value(AGE.as_str()).and_then(seconds_of_age)
}

fn seconds_of_age(line: &[u8]) -> Option<Duration> {
    members(line).next().and_then(delta_seconds)
}

#[cfg(test)]
mod tests;
