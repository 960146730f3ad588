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
    read(200, lines).lifetime().map(|life| life.as_secs())
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
    for (status, guessed) in [(203, true), (404, true), (501, true), (201, false), (302, false), (503, false)]
    {
        assert_eq!(read(status, &[MODIFIED]).lifetime().is_some(), guessed, "{status}");
        assert!(read(status, &[MODIFIED, ("cache-control", "public")]).lifetime().is_some(), "{status}");
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

#[test]
fn metadata_is_read_as_it_was_written() {
    let all = "private, no-cache, must-revalidate, max-age=1, s-maxage=2, stale-while-revalidate=3, stale-if-error=4";
    for lines in [
        &[][..],
        &[MODIFIED, EARLIER, ("age", "7")],
        &[("cache-control", all), ("etag", "\"a\"")],
        &[("cache-control", "no-store, proxy-revalidate, must-understand, public"), EXPIRES],
        &[("cdn-cache-control", "max-age=5"), ("cache-control", "max-age=60")],
    ] {
        let (meta, mut written) = (read(200, lines), Vec::new());
        meta.write_fields(&mut written);
        let written = written[..].try_into().unwrap();
        let again = ResponseMeta::from_written(meta.status(), written, meta.times());
        assert_eq!(again, Some(meta), "{lines:?}");
    }
    let unknown = [0xff; ENCODED_LENGTH];
    assert_eq!(ResponseMeta::from_written(StatusCode::OK, &unknown, read(200, &[]).times()), None);
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
