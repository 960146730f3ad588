//! `Cache-Control` of responses and requests, and targeted fields. The input is field lines.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header::CACHE_CONTROL};
use larder_policy::{
    cache_control::{RequestDirectives, ResponseDirectives},
    response_meta::{ResponseMeta, Times},
    targeted,
};

use crate::input::Message;

const OURS: HeaderName = HeaderName::from_static("larder-cache-control");
const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Fields have the same meaning in any representation, in any case, on one line or several; more of them never allow
/// more.
pub fn check(data: &[u8]) {
    let message = Message::read(data);
    response(&message);
    request(&message);
    targeted_fields(&message);
}

fn response(message: &Message) {
    let parsed = ResponseDirectives::parse(&message.map());
    assert_eq!(parsed, ResponseDirectives::parse(message.lines().as_slice()), "however they are held");
    let upper = message.with_values(<[u8]>::to_ascii_uppercase);
    assert_eq!(parsed, ResponseDirectives::parse(&upper.map()), "in any case");
    if let Some(joined) = joined(message) {
        assert_eq!(parsed, ResponseDirectives::parse(&joined.map()), "on one line or several");
    }
    assert!(times(&parsed).iter().flatten().all(|time| *time <= MAX_DELTA));

    let more = ResponseDirectives::parse(&message.and("cache-control", "no-store, max-age=7, x=\",").map());
    assert_eq!(
        more,
        ResponseDirectives {
            no_store: true,
            max_age: Some(parsed.max_age.map_or(SEVEN, |age| age.min(SEVEN))),
            ..parsed
        }
    );
}

fn request(message: &Message) {
    let parsed = RequestDirectives::parse(&message.map());
    assert_eq!(parsed, RequestDirectives::parse(message.lines().as_slice()), "however they are held");
    let upper = message.with_values(<[u8]>::to_ascii_uppercase);
    assert_eq!(parsed, RequestDirectives::parse(&upper.map()), "in any case");
    if let Some(joined) = joined(message) {
        assert_eq!(parsed, RequestDirectives::parse(&joined.map()), "on one line or several");
    }
    assert_eq!(parsed.is_empty(), parsed == RequestDirectives::default());

    let more = RequestDirectives::parse(&message.and("cache-control", "no-cache, max-age=7").map());
    assert!(more.no_cache && !more.is_empty());
    if !message.values("cache-control").is_empty() {
        let max_age = Some(parsed.max_age.map_or(SEVEN, |age| age.min(SEVEN)));
        assert_eq!(more, RequestDirectives { no_cache: true, max_age, ..parsed });
    }
}

/// The first valid field decides, and the others are ignored.
fn targeted_fields(message: &Message) {
    let headers = message.map();
    let only = |name: HeaderName| targeted::directives(&headers, &[name]);
    let parsed = targeted::directives(&headers, &[OURS, CDN]);
    assert_eq!(parsed, only(OURS).or_else(|| only(CDN)));
    let times = Times { requested_at: 0, received_at: 0 };
    let meta = ResponseMeta::read(StatusCode::OK, &headers, times, &[OURS, CDN]);
    assert_eq!(meta.directives(), parsed.unwrap_or_else(|| ResponseDirectives::parse(&headers)));
    if let Some(parsed) = parsed {
        assert!(self::times(&parsed).iter().flatten().all(|time| *time <= MAX_DELTA));
        let other = message.and("cache-control", "no-store, max-age=1").and("expires", "0").map();
        let with_other = ResponseMeta::read(StatusCode::OK, &other, times, &[OURS, CDN]);
        assert_eq!(with_other.directives(), meta.directives());
        assert_eq!(with_other.is_explicit(), meta.is_explicit());
    }
}

const MAX_DELTA: Duration = Duration::from_secs(1 << 31);
const SEVEN: Duration = Duration::from_secs(7);

fn times(directives: &ResponseDirectives) -> [Option<Duration>; 4] {
    let ResponseDirectives { max_age, s_maxage, stale_while_revalidate, stale_if_error, .. } = *directives;
    [max_age, s_maxage, stale_while_revalidate, stale_if_error]
}

/// `Cache-Control` as one line, if no quotes stay open at the end of one.
fn joined(message: &Message) -> Option<Message> {
    let lines = message.values("cache-control");
    if lines.is_empty() || !lines.iter().all(|line| closes_quotes(line)) {
        return None;
    }
    let mut joined = message.clone();
    joined.0.retain(|(name, _)| *name != CACHE_CONTROL);
    joined.0.push((CACHE_CONTROL, HeaderValue::from_bytes(&lines.join(&b" ,\t"[..])).ok()?));
    Some(joined)
}

fn closes_quotes(line: &[u8]) -> bool {
    let (mut quoted, mut bytes) = (false, line.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted && bytes.next().is_none() => return false,
            _ => {}
        }
    }
    !quoted
}
