use super::*;
use crate::testing::headers;

const EARLY: &str = "Sat, 21 Nov 2026 09:00:00 GMT";
const DATE: &str = "Sat, 21 Nov 2026 10:00:00 GMT";
const LATER_DATE: &str = "Sat, 21 Nov 2026 11:00:00 GMT";
/// 10:00:00 on that day.
const RECEIVED: u64 = 1_795_255_200_000;

const TAG: (&str, &str) = ("etag", "\"a\"");
const WEAK: (&str, &str) = ("etag", "W/\"a\"");
const MODIFIED: (&str, &str) = ("last-modified", EARLY);

fn judged(asked: &[(&str, &str)], stored: &[(&str, &str)]) -> Precondition {
    evaluate(&headers(asked), StatusCode::OK, &headers(stored), RECEIVED)
}

#[test]
fn if_none_match_selects_by_weak_comparison() {
    use Precondition::{Holds, NotModified};
    let list = "if-none-match";
    for (asked, stored, expected) in [
        (&[(list, "\"a\"")][..], TAG, NotModified),
        (&[(list, "\"b\"")], TAG, Holds),
        (&[(list, "W/\"a\"")], TAG, NotModified),
        (&[(list, "\"a\"")], WEAK, NotModified),
        (&[(list, "\"x\", \"a\" ,W/\"y\"")], TAG, NotModified),
        (&[(list, "\"x\""), (list, "\"a\"")], TAG, NotModified),
        (&[(list, "\"x,\"a\",y\"")], TAG, Holds),
        (&[(list, "*")], TAG, NotModified),
        (&[(list, "*")], ("x", "y"), NotModified),
        (&[(list, "a")], TAG, Holds),
        (&[(list, "w/\"a\"")], TAG, Holds),
        (&[(list, "\"A\"")], TAG, Holds),
        (&[(list, "")], TAG, Holds),
        (&[(list, "\"a\"")], MODIFIED, Holds),
        (&[(list, "\"a,b\\\"")], ("etag", "\"a,b\\\""), NotModified),
    ] {
        assert_eq!(judged(asked, &[stored]), expected, "{asked:?}, {stored:?}");
    }
}

#[test]
fn if_modified_since_counts_without_if_none_match() {
    use Precondition::{Holds, NotModified};
    for (since, stored, expected) in [
        (EARLY, &[MODIFIED][..], NotModified),
        (DATE, &[MODIFIED], NotModified),
        ("Sat, 21 Nov 2026 08:59:59 GMT", &[MODIFIED], Holds),
        ("Saturday, 21-Nov-26 09:00:00 GMT", &[MODIFIED], NotModified),
        (DATE, &[("date", DATE)], NotModified),
        (EARLY, &[("date", DATE)], Holds),
        (DATE, &[], NotModified),
        (EARLY, &[], Holds),
        ("x", &[MODIFIED], Precondition::None),
        ("0", &[MODIFIED], Precondition::None),
    ] {
        assert_eq!(judged(&[("if-modified-since", since)], stored), expected, "{since}, {stored:?}");
    }
    let both = |tag| [("if-none-match", tag), ("if-modified-since", LATER_DATE)];
    assert_eq!(judged(&both("\"b\""), &[TAG, MODIFIED]), Holds);
    assert_eq!(judged(&both("\"a\""), &[TAG, MODIFIED]), NotModified);
}

#[test]
fn other_conditions_are_left_to_the_origin() {
    assert_eq!(judged(&[], &[TAG]), Precondition::None);
    assert_eq!(judged(&[("if-match", "\"a\""), ("if-none-match", "\"a\"")], &[TAG]), Precondition::Origins);
    assert_eq!(judged(&[("if-unmodified-since", DATE)], &[TAG]), Precondition::Origins);
    let asked = headers(&[("if-none-match", "\"a\"")]);
    assert_eq!(evaluate(&asked, StatusCode::NOT_FOUND, &headers(&[TAG]), RECEIVED), Precondition::None);
}

#[test]
fn validation_uses_the_stored_validators() {
    let both = validators(&headers(&[WEAK, MODIFIED])).unwrap();
    assert_eq!(both.if_none_match, Some(HeaderValue::from_static("W/\"a\"")));
    assert_eq!(both.if_modified_since, Some(HeaderValue::from_static(EARLY)));
    assert_eq!(validators(&headers(&[("last-modified", "x"), ("date", DATE)])), None);
}

#[test]
fn a_304_selects_by_validator() {
    let other = ("last-modified", LATER_DATE);
    for (newer, stored, expected) in [
        (&[TAG][..], &[TAG][..], true),
        (&[TAG], &[("etag", "\"b\"")], false),
        (&[TAG], &[WEAK], false),
        (&[TAG], &[MODIFIED], false),
        (&[WEAK], &[TAG], true),
        (&[WEAK], &[WEAK], true),
        (&[WEAK, MODIFIED], &[MODIFIED], true),
        (&[WEAK], &[MODIFIED], false),
        (&[TAG, other], &[TAG, MODIFIED], true),
        (&[MODIFIED], &[TAG, MODIFIED], true),
        (&[other], &[TAG, MODIFIED], false),
        (&[], &[TAG], true),
        (&[], &[], true),
    ] {
        assert_eq!(selects(&headers(newer), &headers(stored)), expected, "{newer:?}, {stored:?}");
    }
}

#[test]
fn a_304_updates_headers_that_do_not_describe_the_bytes() {
    let stored = headers(&[
        ("etag", "W/\"a\""),
        ("content-length", "10"),
        ("content-encoding", "gzip"),
        ("content-type", "text/plain"),
        ("x", "old"),
        ("x", "older"),
        ("y", "kept"),
    ]);
    let newer = headers(&[
        ("etag", "\"a\""),
        ("content-length", "0"),
        ("content-encoding", "br"),
        ("content-range", "bytes 0-1/2"),
        ("content-md5", "x"),
        ("content-type", "text/html"),
        ("x", "new"),
        ("x", "newer"),
        ("set-cookie", "person=1"),
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("transfer-encoding", "chunked"),
        ("proxy-authenticate", "Basic"),
        ("cache-control", "max-age=5"),
    ]);
    let expected = headers(&[
        ("etag", "W/\"a\""),
        ("content-length", "10"),
        ("content-encoding", "gzip"),
        ("content-type", "text/html"),
        ("x", "new"),
        ("x", "newer"),
        ("y", "kept"),
        ("cache-control", "max-age=5"),
    ]);
    assert_eq!(freshen(&stored, &newer), expected);
    let old = headers(&[("age", "9"), ("date", EARLY), ("x", "1")]);
    assert_eq!(freshen(&old, &headers(&[])), headers(&[("x", "1")]));
    let again = headers(&[("age", "1"), ("date", DATE), ("x", "1")]);
    assert_eq!(freshen(&old, &headers(&[("age", "1"), ("date", DATE)])), again);
    let cookie = |value| headers(&[("set-cookie", value)]);
    assert_eq!(freshen(&cookie("a=1"), &cookie("a=2")), cookie("a=2"));
    assert_eq!(freshen(&headers(&[MODIFIED]), &headers(&[WEAK])), headers(&[MODIFIED, WEAK]));
}

#[test]
fn generated_304_describes_no_body() {
    let stored = headers(&[
        TAG,
        MODIFIED,
        ("content-type", "x"),
        ("content-length", "1"),
        ("content-encoding", "gzip"),
        ("content-location", "/a"),
        ("cache-control", "max-age=5"),
        ("access-control-allow-origin", "*"),
        ("vary", "x"),
    ]);
    let expected = headers(&[
        TAG,
        ("content-location", "/a"),
        ("cache-control", "max-age=5"),
        ("access-control-allow-origin", "*"),
        ("vary", "x"),
    ]);
    assert_eq!(not_modified_headers(&stored), expected);
    assert_eq!(not_modified_headers(&headers(&[MODIFIED])), headers(&[MODIFIED]));
    for name in DESCRIBED {
        let described = headers(&[TAG, (name, "x"), ("x", "y"), ("x", "z")]);
        assert_eq!(not_modified_headers(&described), headers(&[TAG, ("x", "y"), ("x", "z")]), "{name}");
    }
}

/// Fields that describe a body.
const DESCRIBED: [&str; 9] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "content-digest",
    "content-md5",
    "digest",
    "repr-digest",
];

#[test]
fn lines_of_a_304_are_those_of_its_headers() {
    let mut lines = vec![MODIFIED, ("vary", "x"), ("vary", "y"), ("age", "1"), ("date", "x"), ("link", "x")];
    lines.extend(DESCRIBED.map(|name| (name, "x")));
    for has_tag in [false, true] {
        lines.extend(has_tag.then_some(TAG));
        let stored = headers(&lines);
        let expected = not_modified_headers(&stored);
        let expected: Vec<_> = expected.lines().collect();
        assert_eq!(not_modified_lines(&stored).collect::<Vec<_>>(), expected);
        // Names are equal in any case.
        let upper: Vec<_> = lines.iter().map(|(name, value)| (name.to_uppercase(), *value)).collect();
        let upper: Vec<_> = upper.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        assert_eq!(not_modified_lines(upper.as_slice()).count(), expected.len());
    }
}
