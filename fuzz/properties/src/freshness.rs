//! `Age`, `Expires`, dates and freshness. The input is numbers, the fields of the response, and those of a request. The
//! numbers are: its status, the times of the request and of the response, its time in the cache (all in ms), and the
//! route's `ttl`, `maxTTL`, `staleWhileRevalidate` and `staleIfError` in seconds, or `-`.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header::EXPIRES};
use larder_policy::{
    Lifetimes,
    cache_control::RequestDirectives,
    date,
    freshness::{StaleUse, State, evaluate, keep_for},
    response_meta::{self, ResponseMeta, Times},
    storing::{RequestFacts, storable},
    validation,
};

use crate::input::{Message, blocks, numbers};

/// A response is fresh only while younger than its lifetime, from whatever source; and a usable one is stored.
pub fn check(data: &[u8]) {
    let [numbers_, answer, request] = blocks(data);
    let [status, requested_at, received_at, resident, ttl, max_ttl, revalidating, on_error] =
        numbers(numbers_);
    let status = u16::try_from(status.unwrap_or(0)).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.unwrap_or(StatusCode::OK);
    let received_at = received_at.unwrap_or(0);
    let times = Times { requested_at: requested_at.unwrap_or(received_at), received_at };
    let seconds = |number: Option<u64>| number.map(Duration::from_secs);
    let lifetimes = Lifetimes {
        ttl: seconds(ttl),
        max_ttl: seconds(max_ttl).filter(|_| ttl.is_none()),
        stale_while_revalidate: seconds(revalidating),
        stale_if_error: seconds(on_error),
        ..Lifetimes::default()
    };
    let case = Case {
        headers: Message::read(answer).map(),
        status,
        times,
        lifetimes,
        resident: Duration::from_millis(resident.unwrap_or(0)),
    };
    let request = Message::read(request);
    dates(&case);
    case.check(&RequestDirectives::default());
    case.check(&RequestDirectives::parse(&request.map()));
    case.check_stored();
    validation::evaluate(&request.map(), status, &case.headers, received_at);
    let fresher = validation::freshen(&case.headers, &request.map());
    assert_eq!(validation::freshen(&fresher, &request.map()), fresher, "the same 304 again changes nothing");
}

struct Case {
    headers: HeaderMap,
    status: StatusCode,
    times: Times,
    lifetimes: Lifetimes,
    resident: Duration,
}

/// A parsed date is the date that was written.
fn dates(case: &Case) {
    let now = i64::try_from(case.times.received_at / 1000).expect("a 1000th of it fits");
    for value in case.headers.values() {
        let Some(found) = date::parse(value.as_bytes(), now) else { continue };
        let Ok(seconds) = u64::try_from(found) else { continue };
        let last = date::parse(&date::format(u64::MAX), now).expect("it is a date");
        assert_eq!(date::parse(&date::format(seconds), now), Some(found.min(last)), "{value:?}");
    }
}

impl Case {
    fn meta(&self) -> ResponseMeta {
        ResponseMeta::read(self.status, &self.headers, self.times, &[])
    }

    fn check(&self, asked: &RequestDirectives) {
        let meta = self.meta();
        let Self { lifetimes, resident, .. } = self;
        let directives = meta.directives();
        let freshness = evaluate(&meta, lifetimes, *resident, asked);
        assert_eq!(freshness.age, meta.initial_age().saturating_add(*resident));
        let stated = response_meta::stated_age(&self.headers).unwrap_or_default();
        assert!(meta.initial_age() >= stated, "it is as old as it says");
        match freshness.state {
            State::Fresh { ttl } => {
                assert!(!ttl.is_zero() && !asked.no_cache);
                assert!(asked.max_age.is_none_or(|most| freshness.age <= most));
                assert!(asked.min_fresh.is_none_or(|least| ttl >= least));
                if let Some(most) = lifetimes.ttl {
                    assert_eq!(resident.checked_add(ttl), Some(most));
                } else {
                    assert!(!directives.no_cache);
                    let life = self.life(&meta).expect("fresh without a life");
                    assert!(freshness.age < life, "{freshness:?} {life:?}");
                    assert!(freshness.age + ttl <= life);
                    assert!(lifetimes.max_ttl.is_none_or(|most| *resident + ttl <= most));
                }
            }
            State::Stale { stale_for, use_ } => {
                let forbids =
                    directives.no_cache || directives.must_revalidate || directives.proxy_revalidate;
                if lifetimes.ttl.is_none() && forbids && !stale_for.is_zero() {
                    assert_eq!(use_, StaleUse::No, "it must not be served stale");
                }
                assert!(!asked.no_cache || use_ == StaleUse::No);
            }
        }
        // It only gets older.
        let earlier = evaluate(&meta, lifetimes, *resident / 2, asked).state;
        let served = freshness.state.serves_now();
        if asked.max_stale.is_none() && asked.min_fresh.is_none() {
            assert!(!served || earlier.serves_now(), "{earlier:?} then {freshness:?}");
        }
        if asked.is_empty() {
            assert!(
                !served || *resident < keep_for(&meta, lifetimes),
                "it is kept for as long as it is of use"
            );
        }
    }

    /// Returns the declared lifetime (RFC 9111, section 4.2.1), or the maximum heuristic one.
    fn life(&self, meta: &ResponseMeta) -> Option<Duration> {
        let now = i64::try_from(self.times.received_at / 1000).expect("a 1000th of it fits");
        let date_of = |name: &str| {
            let mut lines = self.headers.get_all(name).iter();
            lines.next().filter(|_| lines.next().is_none()).and_then(|line| date::parse(line.as_bytes(), now))
        };
        let directives = meta.directives();
        if let Some(life) = directives.s_maxage.or(directives.max_age) {
            return Some(life);
        }
        if self.headers.contains_key(EXPIRES) {
            let life = date_of("expires")?.saturating_sub(date_of("date").unwrap_or(now));
            return u64::try_from(life).ok().map(Duration::from_secs);
        }
        date_of("last-modified").map(|_| Duration::from_secs(24 * 60 * 60))
    }

    /// Checks that a stored response is of use.
    fn check_stored(&self) {
        let meta = self.meta();
        let nobody = RequestFacts {
            method: Method::GET,
            authorization: false,
            has_credentials: false,
            no_store: false,
            has_range: false,
        };
        let stored = storable(&nobody, self.status, &self.headers, &meta, &self.lifetimes);
        let somebody = RequestFacts { authorization: true, has_credentials: true, ..nobody.clone() };
        let for_somebody = storable(&somebody, self.status, &self.headers, &meta, &self.lifetimes);
        if let Ok(names) = &stored {
            assert!(!keep_for(&meta, &self.lifetimes).is_zero(), "it is of some use");
            assert!(names.is_sorted_by(|one, other| one.as_str() < other.as_str()));
            let directives = meta.directives();
            assert!(!directives.private && (!directives.no_store || directives.must_understand));
            assert!(!self.headers.contains_key("set-cookie"));
        }
        if let Ok(names) = for_somebody {
            assert_eq!(stored, Ok(names), "what is stored for somebody is stored for everybody");
            let directives = meta.directives();
            assert!(directives.public || directives.must_revalidate || directives.s_maxage.is_some());
        }
    }
}
