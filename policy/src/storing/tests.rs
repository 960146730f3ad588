use std::time::Duration;

use super::*;
use crate::{StatusPattern, lifetimes::StoreDespite, response_meta::Times, testing::headers};

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));
const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const ETAG: (&str, &str) = ("etag", "\"a\"");
const MODIFIED: (&str, &str) = ("last-modified", "Sat, 21 Nov 2020 09:00:00 GMT");

fn anybody() -> RequestFacts {
    RequestFacts {
        method: Method::GET,
        authorization: false,
        has_credentials: false,
        no_store: false,
        has_range: false,
    }
}

fn try_store(
    facts: &RequestFacts,
    status: u16,
    lines: &[(&str, &str)],
    route: &Lifetimes,
) -> Result<Vec<HeaderName>, NotStored> {
    let (status, headers) = (StatusCode::from_u16(status).unwrap(), headers(lines));
    let times = Times { requested_at: 1_795_255_200_000, received_at: 1_795_255_200_000 };
    let targets = [HeaderName::from_static("cdn-cache-control")];
    storable(facts, status, &headers, &ResponseMeta::read(status, &headers, times, &targets), route)
}

fn reason(facts: &RequestFacts, status: u16, lines: &[(&str, &str)], route: &Lifetimes) -> Option<NotStored> {
    try_store(facts, status, lines, route).err()
}

fn control(value: &str) -> [(&str, &str); 1] {
    [("cache-control", value)]
}

#[test]
fn plain_cache_follows_the_headers() {
    for (lines, expected) in [
        (&control("max-age=60")[..], None),
        (&control("s-maxage=60, private=\"x\""), Some(NotStored::Private)),
        (&control("Private, max-age=60"), Some(NotStored::Private)),
        (&control("max-age=60, No-Store"), Some(NotStored::NoStore)),
        (&control("max-age=0"), Some(NotStored::Stale)),
        (&control("max-age=60, no-cache"), Some(NotStored::Stale)),
        (&control("max-age=0, stale-while-revalidate=5"), None),
        (&control("max-age=0, must-revalidate, stale-while-revalidate=5"), Some(NotStored::Stale)),
        (&[FRESH, ("age", "60")], Some(NotStored::Stale)),
        (&[("cache-control", "max-age=0"), ETAG], None),
        (&[("cache-control", "no-cache"), ETAG], None),
        (&[FRESH, ("set-cookie", "a=b")], Some(NotStored::SetCookie)),
        (&[FRESH, ("vary", "accept, *")], Some(NotStored::VaryAny)),
        (&[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store")], None),
        (&[("cdn-cache-control", "no-store"), FRESH], Some(NotStored::NoStore)),
        (&[("cdn-cache-control", ""), FRESH], None),
        (&[MODIFIED], None),
        (&[ETAG], None),
        (&[("x", "y")], Some(NotStored::NoLifetime)),
    ] {
        assert_eq!(reason(&anybody(), 200, lines, &Lifetimes::default()), expected, "{lines:?}");
    }
}

#[test]
fn status_is_stored_with_an_explicit_directive() {
    let plain = Lifetimes::default();
    for status in [200, 201, 204, 299, 302, 400, 404, 418, 499, 500, 503, 599] {
        assert_eq!(reason(&anybody(), status, &[FRESH], &plain), None, "{status}");
    }
    for status in [100, 101, 103, 304, 600, 999] {
        assert_eq!(reason(&anybody(), status, &[FRESH], &plain), Some(NotStored::Status), "{status}");
    }
    for (status, lines, expected) in [
        (404, &[MODIFIED][..], None),
        (404, &[ETAG], None),
        (299, &[MODIFIED], Some(NotStored::Status)),
        (500, &[ETAG], Some(NotStored::Status)),
        (299, &[MODIFIED, ("cache-control", "public")], None),
        (500, &[("expires", "0"), ETAG], None),
    ] {
        assert_eq!(reason(&anybody(), status, lines, &plain), expected, "{status}, {lines:?}");
    }
}

/// Statuses that refer to the preconditions, the range or the expectation of one request, and those that RFC 6585 forbids to store.
#[test]
fn response_specific_to_one_request_is_never_stored() {
    let statuses = [412, 416, 417, 428, 429, 431, 511];
    let routes = [
        Lifetimes::default(),
        Lifetimes {
            statuses: statuses.map(|code| (StatusPattern::Code(code), MINUTE)).into(),
            ..Default::default()
        },
    ];
    for (status, route) in statuses.iter().flat_map(|status| routes.iter().map(move |route| (*status, route)))
    {
        for lines in [&[FRESH][..], &[ETAG, ("cache-control", "public, max-age=60")]] {
            assert_eq!(reason(&anybody(), status, lines, route), Some(NotStored::Status), "{status}");
        }
    }
}

#[test]
fn response_to_a_range_is_stored_if_part_or_whole() {
    let facts = RequestFacts { has_range: true, ..anybody() };
    let part = [FRESH, ("content-range", "bytes 0-9/100")];
    let statuses = [200, 206, 404].map(|code| (StatusPattern::Code(code), MINUTE));
    let listed = Lifetimes { statuses: statuses.into(), ..Default::default() };
    for route in [&Lifetimes::default(), &listed] {
        assert_eq!(reason(&facts, 200, &[FRESH], route), None);
        assert_eq!(reason(&facts, 206, &part, route), None);
        for status in [203, 204, 301, 404, 416, 500] {
            assert_eq!(reason(&facts, status, &[FRESH], route), Some(NotStored::Status), "{status}");
        }
    }
}

#[test]
fn must_understand_requires_a_known_status() {
    for (status, value, expected) in [
        (200, "max-age=60, must-understand, no-store", None),
        (200, "max-age=60, must-understand", None),
        (503, "max-age=60, must-understand, no-store", None),
        (299, "max-age=60, must-understand, no-store", Some(NotStored::Status)),
        (299, "max-age=60, must-understand", Some(NotStored::Status)),
        (499, "max-age=60, must-understand", Some(NotStored::Status)),
        (200, "max-age=60, must-understand, no-store, private", Some(NotStored::Private)),
    ] {
        assert_eq!(reason(&anybody(), status, &control(value), &Lifetimes::default()), expected, "{value}");
    }
}

#[test]
fn credentials_prevent_storing() {
    let authorized = RequestFacts { authorization: true, ..anybody() };
    let known = RequestFacts { has_credentials: true, ..anybody() };
    let secretive = RequestFacts { no_store: true, ..anybody() };
    let post = RequestFacts { method: Method::POST, ..anybody() };
    let put = RequestFacts { method: Method::PUT, ..anybody() };
    for (facts, lines, expected) in [
        (&authorized, &control("max-age=60")[..], Some(NotStored::Authorization)),
        (&authorized, &control("max-age=60, public"), None),
        (&authorized, &control("max-age=60, must-revalidate"), None),
        (&authorized, &control("s-maxage=60"), None),
        (&authorized, &control("max-age=60, proxy-revalidate"), Some(NotStored::Authorization)),
        (&known, &[FRESH], None),
        (&known, &[MODIFIED], Some(NotStored::NoLifetime)),
        (&known, &[ETAG], Some(NotStored::NoLifetime)),
        (&secretive, &[FRESH], Some(NotStored::RequestNoStore)),
        (&post, &[FRESH], None),
        (&post, &[MODIFIED], Some(NotStored::NoLifetime)),
        (&put, &[FRESH], Some(NotStored::Method)),
    ] {
        assert_eq!(reason(facts, 200, lines, &Lifetimes::default()), expected, "{facts:?}, {lines:?}");
    }
}

#[test]
fn a_ttl_replaces_lifetimes_and_no_cache_and_nothing_else() {
    let route = Lifetimes { ttl: MINUTE, ..Default::default() };
    for value in ["max-age=0", "no-cache", "s-maxage=0", "must-revalidate", "x"] {
        assert_eq!(reason(&anybody(), 200, &control(value), &route), None, "{value}");
    }
    for (line, expected) in [
        (("cache-control", "no-store"), NotStored::NoStore),
        (("cache-control", "private"), NotStored::Private),
        (("set-cookie", "a=b"), NotStored::SetCookie),
        (("vary", "*"), NotStored::VaryAny),
    ] {
        assert_eq!(reason(&anybody(), 200, &[line], &route), Some(expected));
    }
    assert_eq!(reason(&anybody(), 404, &[FRESH], &route), Some(NotStored::Status));
    let none = Lifetimes { ttl: Some(Duration::ZERO), ..Default::default() };
    assert_eq!(reason(&anybody(), 200, &[FRESH], &none), Some(NotStored::Stale));
}

#[test]
fn a_route_lists_statuses() {
    let statuses = vec![
        (StatusPattern::Code(404), MINUTE),
        (StatusPattern::Code(301), None),
        (StatusPattern::Class(5), MINUTE),
    ];
    let route = Lifetimes { statuses, ..Default::default() };
    for (status, lines, expected) in [
        (404, &[("x", "y")][..], None),
        (301, &[FRESH], None),
        (301, &[("x", "y")], Some(NotStored::NoLifetime)),
        (200, &[FRESH], Some(NotStored::Status)),
        (503, &[("x", "y")], None),
        (505, &[FRESH], Some(NotStored::Status)),
    ] {
        assert_eq!(reason(&anybody(), status, lines, &route), expected, "{status}");
    }
}

#[test]
fn route_overrides_the_named_restrictions() {
    let despite = StoreDespite { no_store: true, private: true, vary_any: true };
    let set_cookie = SetCookie::Store;
    let route = Lifetimes { ttl: MINUTE, store_despite: despite, set_cookie, ..Default::default() };
    let lines = [("cache-control", "no-store, private"), ("set-cookie", "a=b"), ("vary", "b, *, via, a")];
    let names = try_store(&anybody(), 200, &lines, &route).unwrap();
    assert_eq!(names, [HeaderName::from_static("a"), HeaderName::from_static("b")]);
}

#[test]
fn part_requires_a_valid_content_range() {
    let part = |range, length| [FRESH, ("content-range", range), ("content-length", length)];
    let plain = Lifetimes::default();
    for (range, length, stored) in [
        ("bytes 0-9/100", "10", true),
        ("bytes 90-99/100", "10", true),
        ("bytes 0-9/100", "11", false),
        ("bytes 0-9/*", "10", false),
        ("bytes 9-0/100", "10", false),
        ("bytes 95-104/100", "10", false),
        ("items 0-9/100", "10", false),
    ] {
        let expected = (!stored).then_some(NotStored::ContentRange);
        assert_eq!(reason(&anybody(), 206, &part(range, length), &plain), expected, "{range}");
    }
    assert_eq!(reason(&anybody(), 206, &[FRESH], &plain), Some(NotStored::ContentRange));
    assert_eq!(reason(&anybody(), 206, &[FRESH, ("content-range", "bytes 0-9/100")], &plain), None);
    let route = Lifetimes { ttl: MINUTE, ..Default::default() };
    assert_eq!(reason(&anybody(), 206, &part("bytes 0-9/100", "10"), &route), None);
}

#[test]
fn proxy_headers_are_not_stored() {
    let all = headers(&[
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("proxy-authorization", "x"),
        ("x", "1"),
        ("x", "2"),
    ]);
    let kept: Vec<_> = all.lines().filter(|(name, _)| is_kept(name)).map(|(_, value)| value).collect();
    assert_eq!(kept, [b"1", b"2"]);
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let names: std::collections::HashSet<_> = NotStored::ALL.map(NotStored::as_str).into();
    assert_eq!(names.len(), NotStored::ALL.len());
}
