use http::header;
use proptest::prelude::*;

use super::*;
use crate::entry::{Head, tests::head};

const RULES: Rules<'_> = Rules { targets: &[], set_cookie: false };

fn whole_head() -> Head {
    let stamp = Stamp { generation: 7, order: 3, local: 9, asked_at: 11 };
    let mut head = Head { stamp, ..head("max-age=60", Duration::from_secs(5)) };
    head.meta = head.meta.with_ttl_from_response(Some(Duration::from_millis(1500)));
    head.append("vary", "accept");
    head.append("vary", "accept-language");
    head
}

fn whole() -> Entry {
    Entry::new("", &whole_head(), Content::Whole(Bytes::from_static(b"body")))
}

fn parts() -> Entry {
    let mut pieces = Pieces::new(100);
    assert!(pieces.insert(10, Bytes::from_static(b"ten")) && pieces.insert(50, Bytes::from_static(b"x")));
    Entry::new("", &whole_head(), Content::Parts(Box::new(pieces)))
}

fn read(bytes: Bytes) -> Entry {
    let Record::Entry(entry) = decode(bytes, RULES, "", MetaFrom::Record).unwrap() else {
        panic!("not an entry")
    };
    *entry
}

#[test]
fn entry_round_trips() {
    let (written, read) = (whole(), read(encode(&whole())));
    assert_eq!((read.status(), read.fields()), (written.status(), written.fields()));
    assert_eq!(read.body().map(|body| &body[..]), Some(&b"body"[..]));
    assert!(read.names().eq(written.names()) && read.names().len() == 1);
    assert_eq!(read.meta().ttl_from_response(), Some(Duration::from_millis(1500)));
    let stamp = Stamp { local: 0, asked_at: 0, ..written.stamp() };
    assert_eq!(read.stamp(), stamp, "a pod's own order and clock mean nothing to another");
    let names = vec![header::ACCEPT, header::ACCEPT_ENCODING];
    assert!(
        matches!(decode(encode_vary(&names), RULES, "", MetaFrom::Record).unwrap(), Record::Vary(read) if read == names)
    );
}

#[test]
fn fields_are_read_again_for_another_policy() {
    let mut head = whole_head();
    head.append("cdn-cache-control", "max-age=5");
    let encoded = encode(&Entry::new("", &head, Content::Whole(Bytes::new())));
    let targets = [HeaderName::from_static("cdn-cache-control")];
    let max_age = |meta_from| {
        let rules = Rules { targets: &targets, ..RULES };
        let Ok(Record::Entry(entry)) = decode(encoded.clone(), rules, "key", meta_from) else {
            panic!("not an entry")
        };
        assert_eq!((entry.key(), entry.meta().ttl_from_response()), ("key", head.meta.ttl_from_response()));
        entry.meta().directives().max_age
    };
    assert_eq!(max_age(MetaFrom::Record), Some(Duration::from_secs(60)));
    assert_eq!(max_age(MetaFrom::Fields), Some(Duration::from_secs(5)));
}

#[test]
fn age_of_a_response_round_trips() {
    for (value, age) in [("7", 7), ("7, 9", 7), ("x", 0), ("99999999999999999999", 1 << 31)] {
        let mut head = head("max-age=60", Duration::ZERO);
        head.append("age", value);
        head.append("age", "5");
        let times = head.meta.times();
        head.meta = ResponseMeta::read(StatusCode::OK, &*head.fields, times, &[]);
        let written = Entry::new("", &head, Content::Whole(Bytes::new()));
        let read = read(encode(&written));
        assert_eq!(read.meta(), written.meta(), "{value}");
        assert_eq!(read.meta().initial_age(), Duration::from_secs(age), "{value}");
        assert_eq!((read.fields(), read.sent_fields()), (written.fields(), written.sent_fields()), "{value}");
    }
}

#[test]
fn entry_with_parts_round_trips() {
    let Content::Parts(pieces) = read(encode(&parts())).content else { panic!("not parts") };
    let found: Vec<_> = pieces.iter().map(|(first, piece)| (first, &piece[..])).collect();
    assert_eq!((pieces.total(), found), (100, vec![(10, &b"ten"[..]), (50, &b"x"[..])]));
}

#[test]
fn record_of_another_version_is_a_miss() {
    let mut bytes = encode(&whole()).to_vec();
    bytes[0] = 2;
    assert_eq!(decode(bytes.into(), RULES, "", MetaFrom::Record).unwrap_err(), DecodeError::Version(2));
}

/// Offset of the first occurrence of `wanted`, which must be there.
fn position(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
}

/// A record with fields that are never written.
fn with(status: u16, fields: &[(&str, &str)], body: &'static str) -> Bytes {
    let mut head = head("max-age=60", Duration::ZERO);
    let status = StatusCode::from_u16(status).unwrap();
    head.meta = ResponseMeta::read(status, &*head.fields, head.meta.times(), &[]);
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    with_lines(&head, &lines, body)
}

/// A record with these lines, well-formed or not, in place of those that are written.
fn with_lines(head: &Head, lines: &str, body: &'static str) -> Bytes {
    let written = encode(&Entry::new("", head, Content::Whole(Bytes::from_static(body.as_bytes()))));
    let own = b"cache-control: max-age=60\r\n";
    let at = position(&written, own);
    let mut bytes = written[..at - 4].to_vec();
    put_text(&mut bytes, lines.as_bytes());
    bytes.extend_from_slice(&written[at + own.len()..]);
    bytes.into()
}

#[test]
fn framing_and_hop_by_hop_fields_are_refused() {
    for name in [
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "set-cookie",
    ] {
        let read = decode(with(200, &[(name, "x")], "body"), RULES, "", MetaFrom::Record);
        assert_eq!(read.unwrap_err(), DecodeError::Field("header"), "{name}");
    }
    let cookies = Rules { set_cookie: true, ..RULES };
    assert!(decode(with(200, &[("set-cookie", "a=b")], "body"), cookies, "", MetaFrom::Record).is_ok());
    assert!(decode(with(200, &[("vary", "accept")], "body"), RULES, "", MetaFrom::Record).is_ok());
}

#[test]
fn statuses_that_are_never_stored_are_refused() {
    for status in [100, 101, 103, 199, 304, 600, 999] {
        let read = decode(with(status, &[], ""), RULES, "", MetaFrom::Record);
        assert_eq!(read.unwrap_err(), DecodeError::Field("status"), "{status}");
    }
    for status in [204, 205] {
        assert!(decode(with(status, &[], ""), RULES, "", MetaFrom::Record).is_ok());
        assert_eq!(
            decode(with(status, &[], "x"), RULES, "", MetaFrom::Record).unwrap_err(),
            DecodeError::Field("body")
        );
    }
}

#[test]
fn lines_that_are_not_well_formed_are_refused() {
    let read = |lines: &str| {
        decode(with_lines(&head("max-age=60", Duration::ZERO), lines, "body"), RULES, "", MetaFrom::Record)
    };
    for lines in ["", "a: b\r\n", "a: \r\nb: c: d\te\u{e9}\r\n", "age: 7\r\na: b\r\n"] {
        assert!(read(lines).is_ok(), "{lines:?}");
    }
    for lines in ["a: \r\n".repeat(5_000), format!("{}: b\r\n", "a".repeat(1 << 16))] {
        assert!(read(&lines).is_err(), "a header map takes no more");
    }
    for lines in [
        "a",
        "a: b",
        "a: b\n",
        "a:b\r\n",
        "a\r\n",
        "a: b\r\n\r\n",
        ": b\r\n",
        "a : b\r\n",
        "A: b\r\n",
        "a\n: b\r\n",
        "a\u{e9}: b\r\n",
        "a: b\rc\r\n",
        "a: b\0\r\n",
        "a: b\u{7f}\r\n",
        "a: b\r\nage: 7\r\n",
        "age: 7\r\nage: 7\r\n",
    ] {
        assert_eq!(read(lines).unwrap_err(), DecodeError::Field("header"), "{lines:?}");
    }
}

#[test]
fn a_response_from_the_future_is_refused() {
    let received_in = |ahead: Duration| {
        let mut head = head("max-age=60", Duration::ZERO);
        let mut times = head.meta.times();
        times.received_at += ahead.as_millis() as u64;
        head.meta = ResponseMeta::read(StatusCode::OK, &*head.fields, times, &[]);
        decode(encode(&Entry::new("", &head, Content::Whole(Bytes::new()))), RULES, "", MetaFrom::Record)
    };
    assert!(received_in(MAX_CLOCK_SKEW / 2).is_ok(), "the clocks of pods differ");
    assert_eq!(
        received_in(MAX_CLOCK_SKEW * 2).unwrap_err(),
        DecodeError::Field("time"),
        "it would never age"
    );
}

#[test]
fn too_many_names_in_vary_are_refused() {
    let names = |count| encode_vary(&vec![header::ACCEPT; count]);
    assert!(decode(names(MAX_VARY_NAMES), RULES, "", MetaFrom::Record).is_ok());
    assert_eq!(
        decode(names(MAX_VARY_NAMES + 1), RULES, "", MetaFrom::Record).unwrap_err(),
        DecodeError::Field("vary")
    );
}

proptest! {
    #[test]
    fn broken_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..240_usize, at in 2..140_usize, kind in 0..2) {
        let _ = decode(Bytes::from(noise.clone()), RULES, "", MetaFrom::Record);
        let mut bytes = encode(&if kind == 0 { whole() } else { parts() }).to_vec();
        for (offset, byte) in noise.iter().enumerate() {
            if let Some(place) = bytes.get_mut(at + offset) {
                *place = *byte;
            }
        }
        bytes.truncate(cut.max(1));
        let _ = decode(bytes.into(), RULES, "", MetaFrom::Record);
    }

    #[test]
    fn every_cut_is_noticed(cut in 0..200_usize) {
        for entry in [whole(), parts()] {
            let bytes = encode(&entry);
            prop_assert!(cut >= bytes.len() || decode(bytes.slice(..cut), RULES, "", MetaFrom::Record).is_err());
        }
    }
}
