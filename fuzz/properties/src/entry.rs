//! Stored entries. The input is a record as Redis holds it; and, read in another way, numbers (status, generation,
//! order, times of the request and of the response), field lines, and a body.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use larder_policy::{
    Fields as _, PurgeName,
    range::Pieces,
    response_meta::{ResponseMeta, Times},
};
use larder_sidecar::{
    barriers::Stamp,
    entry::{
        Content, Entry, Head,
        authentication::{PLACE_LENGTH, RecordKey},
        codec::{
            DecodeError, IDENTITY, MAX_VARY_NAMES, MetaFrom, Record, Rules, decode, encode, encode_vary,
        },
    },
    headers::FieldLines,
};

use crate::input::{Message, blocks, numbers};

static TARGETS: [HeaderName; 1] = [HeaderName::from_static("cdn-cache-control")];
static RULES: Rules<'_> = Rules { targets: &TARGETS, set_cookie: false };

/// Written records are read; other input is read or rejected, and everything that is read can be written, and is a
/// valid response: its head cannot change the length of its body. Nothing that is not authentic is opened.
pub fn check(data: &[u8]) {
    authentic(data);
    match decode(Bytes::copy_from_slice(data), RULES, "", MetaFrom::Record) {
        Ok(Record::Entry(entry)) => check_entry(&entry),
        Ok(Record::Vary(names)) => check_names(&names),
        Err(error) => {
            let is_version = data.first().is_some_and(|version| error == DecodeError::Version(*version));
            assert!(is_version || !matches!(error, DecodeError::Version(_)));
        }
    }
    written(data);
}

fn check_names(names: &[HeaderName]) {
    if names.len() > MAX_VARY_NAMES {
        assert!(decode(encode_vary(names), RULES, "", MetaFrom::Record).is_err());
        return;
    }
    let written = encode_vary(names);
    assert!(
        matches!(decode(written.clone(), RULES, "", MetaFrom::Record), Ok(Record::Vary(read)) if read == names)
    );
    check_cuts(&written);
}

fn authentic(data: &[u8]) {
    let key = RecordKey::from_token(b"token").expect("a token");
    let [place, another] = [[0; PLACE_LENGTH], [1; PLACE_LENGTH]];
    assert_eq!(key.open(&place, Bytes::copy_from_slice(data)), None);
    let sealed = key.seal(&place, data);
    assert_eq!(key.open(&place, sealed.clone()).as_deref(), Some(data));
    assert_eq!(key.open(&another, sealed), None);
}

/// Returns true for contents that no record may have.
fn is_refused(status: StatusCode, headers: &HeaderMap, times: Times, body: Option<&[u8]>) -> bool {
    const REFUSED: [&str; 12] = [
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let code = status.as_u16();
    // Far beyond every clock.
    let is_in_time = times.received_at < 1 << 50 && times.requested_at < 1 << 50;
    !(200..=599).contains(&code)
        || code == 304
        || ([204, 205].contains(&code) && body != Some(b""))
        || headers.keys().any(|name| REFUSED.contains(&name.as_str()))
        || !is_in_time
}

fn check_entry(entry: &Entry) {
    let (status, headers, times) = (entry.status(), entry.headers(), entry.times());
    assert!(!is_refused(status, &headers, times, entry.body().map(|body| &body[..])));
    assert!(!headers.contains_key(header::CONTENT_LENGTH), "the body says it");
    let again = Entry::new("key", &entry.to_head(), entry.content.clone());
    assert_eq!((again.fields(), again.meta(), again.key()), (entry.fields(), entry.meta(), "key"));
    let written = encode(&again);
    let Ok(Record::Entry(read)) = decode(written.clone(), RULES, "", MetaFrom::Record) else {
        panic!("what is written is not read: {entry:?}");
    };
    assert_eq!((read.fields(), read.meta(), read.key()), (entry.fields(), entry.meta(), ""));
    assert_eq!(read.stamp(), Stamp { local: 0, asked_at: 0, ..entry.stamp() });
    assert!(read.names().eq(entry.names()));
    assert_eq!((read.sent_fields(), read.content_length()), (entry.sent_fields(), entry.content_length()));
    match (&read.content, &entry.content) {
        (Content::Whole(read), Content::Whole(body)) => assert_eq!(read, body),
        (Content::Parts(read), Content::Parts(pieces)) => assert_eq!(read, pieces),
        _ => panic!("a whole body is no part, and a part no whole one"),
    }
    // Each record has a number of its own.
    assert_eq!(encode(&read)[IDENTITY..], written[IDENTITY..]);
    check_cuts(&written);
}

/// Every record that is cut off, or has something after it, is noticed.
fn check_cuts(written: &Bytes) {
    for cut in (0..written.len()).step_by(1 + written.len() / 16) {
        assert!(decode(written.slice(..cut), RULES, "", MetaFrom::Record).is_err(), "{cut}");
    }
    let longer = [written, &b"\0"[..]].concat();
    assert!(decode(longer.into(), RULES, "", MetaFrom::Record).is_err());
}

fn check_written(mut head: Head, content: Content) {
    // Neither is written.
    let written = head.fields.lines().filter(|(name, _)| !matches!(*name, b"content-length" | b"trailer"));
    head.fields = Arc::new(written.collect());
    let entry = Entry::new("", &head, content);
    let times = entry.times();
    // The time of day is not known here: whatever is between is not checked.
    let latest = times.received_at.max(times.requested_at);
    if is_refused(entry.status(), &entry.headers(), times, entry.body().map(|body| &body[..])) {
        // Fields about a connection are left out when they are written.
        if let Ok(Record::Entry(read)) = decode(encode(&entry), RULES, "", MetaFrom::Record) {
            check_entry(&read);
        }
    } else if latest < 1_700_000_000_000 {
        check_entry(&entry);
    }
}

fn written(data: &[u8]) {
    let [head, fields, body] = blocks(data);
    let [status, generation, order, requested_at, received_at, first, total] =
        numbers(head).map(Option::unwrap_or_default);
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status else { return };
    let headers = Message::read(fields).map();
    let times = Times { requested_at, received_at };
    let meta = ResponseMeta::read(status, &headers, times, &TARGETS);
    let names = headers.get_all(header::LINK).iter();
    let names = names.map(|name| PurgeName::key(&String::from_utf8_lossy(name.as_bytes()))).collect();
    let listed: Vec<_> = headers.keys().cloned().collect();
    let (fields, stamp) =
        (Arc::new(FieldLines::from(&headers)), Stamp { generation, order, local: 1, asked_at: 1 });
    let head = Head { fields, is_to_head: true, meta, stamp, names };
    let body = Bytes::copy_from_slice(body);
    let mut pieces = Pieces::new(total);
    pieces.insert(first, body.clone());
    check_written(head.clone(), Content::Parts(Box::new(pieces)));
    check_written(head, Content::Whole(body));
    check_names(&listed);
}
