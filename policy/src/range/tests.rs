use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::testing::headers;

fn range_request(value: &str) -> RangeRequest {
    RangeRequest::of(&headers(&[("range", value)]))
}

const fn from(first: u64, last: Option<u64>) -> RangeRequest {
    RangeRequest::One(Spec::From { first, last })
}

#[test]
fn range_is_one_part_several_or_all() {
    for (value, expected) in [
        ("bytes=0-9", from(0, Some(9))),
        ("Bytes=5-5", from(5, Some(5))),
        ("bytes=5-", from(5, None)),
        ("bytes=-5", RangeRequest::One(Spec::Last(5))),
        ("bytes=, 0-9 ,", from(0, Some(9))),
        ("bytes= 0-9", from(0, Some(9))),
        ("bytes=0-99999999999999999999999", from(0, Some(u64::MAX))),
        ("bytes=0-1,5-6", RangeRequest::Several),
        ("bytes=0-1, -1", RangeRequest::Several),
        ("bytes=0-1, x", RangeRequest::Whole),
        ("bytes=5-4", RangeRequest::Whole),
        ("bytes=0-1, 5-4", RangeRequest::Whole),
        ("bytes=", RangeRequest::Whole),
        ("bytes", RangeRequest::Whole),
        ("bytes=-", RangeRequest::Whole),
        ("bytes=a-b", RangeRequest::Whole),
        ("bytes=0--1", RangeRequest::Whole),
        ("bytes=+1-2", RangeRequest::Whole),
        ("bytes =0-1", RangeRequest::Whole),
        ("items=0-1", RangeRequest::Whole),
        ("", RangeRequest::Whole),
    ] {
        assert_eq!(range_request(value), expected, "{value}");
    }
    assert_eq!(RangeRequest::of(&headers(&[])), RangeRequest::Whole);
    assert_eq!(
        RangeRequest::of(&headers(&[("range", "bytes=0-1"), ("range", "bytes=0-1")])),
        RangeRequest::Whole
    );
}

#[test]
fn ranges_select_parts_of_ten_bytes() {
    for (spec, expected) in [
        (Spec::From { first: 0, last: Some(0) }, Some(0..1)),
        (Spec::From { first: 2, last: Some(4) }, Some(2..5)),
        (Spec::From { first: 2, last: Some(99) }, Some(2..10)),
        (Spec::From { first: 2, last: Some(u64::MAX) }, Some(2..10)),
        (Spec::From { first: 9, last: None }, Some(9..10)),
        (Spec::From { first: 10, last: None }, None),
        (Spec::Last(3), Some(7..10)),
        (Spec::Last(99), Some(0..10)),
        (Spec::Last(0), None),
    ] {
        assert_eq!(spec.resolve(10), expected, "{spec:?}");
    }
    assert_eq!(Spec::Last(1).resolve(0), None);
}

#[test]
fn content_range_round_trips() {
    for value in ["bytes 0-9/100", "bytes 99-99/100", "bytes 0-9/*"] {
        assert_eq!(ContentRange::parse(value.as_bytes()).unwrap().to_string(), value);
    }
    for value in [
        "bytes */100",
        "bytes 9-0/100",
        "bytes 0-100/100",
        "bytes 0-9",
        "bytes 0-9/",
        "bytes=0-9/100",
        "items 0-9/100",
        "bytes 0-18446744073709551615/*",
        "",
    ] {
        assert_eq!(ContentRange::parse(value.as_bytes()), None, "{value}");
    }
    assert_eq!(ContentRange::unsatisfied(7), "bytes */7");
}

const DATE: (&str, &str) = ("date", "Sat, 21 Nov 2026 10:00:00 GMT");
const MODIFIED: (&str, &str) = ("last-modified", "Sat, 21 Nov 2026 09:00:00 GMT");

#[test]
fn if_range_is_strict() {
    let just_now = ("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT");
    for (asked, stored, holds) in [
        ("\"a\"", &[("etag", "\"a\"")][..], true),
        ("\"a\"", &[("etag", "\"b\"")], false),
        ("\"a\"", &[MODIFIED, DATE], false),
        ("W/\"a\"", &[("etag", "W/\"a\"")], false),
        ("\"a\"", &[("etag", "W/\"a\"")], false),
        (MODIFIED.1, &[MODIFIED, DATE], true),
        (MODIFIED.1, &[MODIFIED], false),
        (just_now.1, &[just_now, DATE], false),
        ("Sat, 21 Nov 2026 09:30:00 GMT", &[MODIFIED, DATE], false),
        ("x", &[MODIFIED, DATE], false),
    ] {
        assert_eq!(if_range_holds(&headers(&[("if-range", asked)]), &headers(stored)), holds, "{asked}");
    }
    assert!(if_range_holds(&headers(&[]), &headers(&[])));
    let twice = headers(&[("if-range", "\"a\""), ("if-range", "\"a\"")]);
    assert!(!if_range_holds(&twice, &headers(&[("etag", "\"a\"")])));
}

#[test]
fn parts_are_put_together_if_they_share_a_strong_validator() {
    for (one, other, expected) in [
        (&[("etag", "\"a\"")][..], &[("etag", "\"a\"")][..], true),
        (&[("etag", "\"a\"")], &[("etag", "\"b\"")], false),
        (&[("etag", "W/\"a\"")], &[("etag", "W/\"a\"")], false),
        (&[("etag", "\"a\""), MODIFIED, DATE], &[MODIFIED, DATE], false),
        (&[MODIFIED, DATE], &[MODIFIED, DATE], true),
        (&[MODIFIED], &[MODIFIED], false),
        (&[], &[], false),
    ] {
        assert_eq!(may_combine(&headers(one), &headers(other)), expected, "{one:?}, {other:?}");
    }
}

#[test]
fn missing_range_is_found() {
    let pieces = |parts: &[(u64, &'static str)]| {
        let mut pieces = Pieces::new(10);
        for (first, text) in parts {
            assert!(pieces.insert(*first, Bytes::from_static(text.as_bytes())));
        }
        pieces
    };
    for (parts, expected) in [
        (&[(0, "abc")][..], Some(3..10)),
        (&[(7, "hij")], Some(0..7)),
        (&[(0, "abc"), (7, "hij")], Some(3..7)),
        (&[(3, "def")], None),
        (&[(0, "a"), (3, "d")], None),
        (&[], None),
        (&[(0, "abcde"), (5, "fghij")], None),
    ] {
        assert_eq!(pieces(parts).missing(), expected, "{parts:?}");
    }
    let touching = pieces(&[(5, "fg"), (0, "abc"), (3, "de")]);
    assert_eq!(touching.iter().collect::<Vec<_>>(), [(0, &Bytes::from_static(b"abcdefg"))]);
    assert_eq!(touching.bytes(), 7);
    let mut full = pieces(&[]);
    assert!(!full.insert(8, Bytes::from_static(b"abc")));
    assert!(!full.insert(u64::MAX, Bytes::from_static(b"abc")));
    assert_eq!(full, Pieces::new(10));
    assert_eq!(Pieces::new(0).whole(), Some(Bytes::new()));
}

proptest! {
    #[test]
    fn a_part_is_inside_of_the_body(
        first: u64, last in proptest::option::of(any::<u64>()), bytes: u64, length in 0_u64..1000, near in 0_u64..1100,
    ) {
        for spec in [
            Spec::From { first, last },
            Spec::From { first: near, last },
            Spec::Last(bytes),
            Spec::Last(near),
        ] {
            if let Some(range) = spec.resolve(length) {
                prop_assert!(range.start < range.end && range.end <= length);
            }
        }
    }

    #[test]
    fn any_text_is_read(value: Vec<u8>, tail in "[0-9, x-]{0,30}") {
        ContentRange::parse(&value);
        for value in [value, format!("bytes={tail}").into_bytes()] {
            let lines: [(&[u8], &[u8]); 1] = [(b"Range", &value)];
            RangeRequest::of(&lines[..]);
        }
    }

    #[test]
    fn parts_make_the_body_they_come_from(
        body in proptest::collection::vec(any::<u8>(), 0..60),
        parts in proptest::collection::vec((0_usize..60, 0_usize..30), 0..12),
    ) {
        let mut pieces = Pieces::new(body.len() as u64);
        let mut there = vec![false; body.len()];
        for (first, length) in parts {
            let (first, end) = (first.min(body.len()), (first + length).min(body.len()));
            prop_assert!(pieces.insert(first as u64, Bytes::copy_from_slice(&body[first..end])));
            there[first..end].fill(true);
            let ends: Vec<_> =
                pieces.iter().map(|(first, bytes)| (first, first + bytes.len() as u64)).collect();
            prop_assert!(ends.windows(2).all(|two| two[0].1 < two[1].0), "{:?}", ends);
            for from in 0..body.len() {
                for to in from + 1..=body.len() {
                    let expected = there[from..to].iter().all(|there| *there).then(|| &body[from..to]);
                    let slice = pieces.slice(from as u64..to as u64);
                    prop_assert_eq!(slice.as_deref(), expected);
                }
            }
        }
        prop_assert_eq!(pieces.bytes(), there.iter().filter(|there| **there).count() as u64);
        if let Some(missing) = pieces.missing() {
            let rest = &body[missing.start as usize..missing.end as usize];
            pieces.insert(missing.start, Bytes::copy_from_slice(rest));
            there.fill(true);
        }
        let expected = there.iter().all(|there| *there).then_some(&body[..]);
        let whole = pieces.whole();
        prop_assert_eq!(whole.as_deref(), expected);
    }
}
