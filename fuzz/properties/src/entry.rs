//! Stored entries. The input is a record as Redis holds it; and, read in another way, numbers (status, generation, order,
//! when it was asked for and received), field lines, and a body.

use bytes::Bytes;
use http::{HeaderName, StatusCode, header};
use larder_policy::{
    PurgeName,
    claims::{Claims, Times},
    range::Pieces,
};
use larder_sidecar::{
    barriers::Stamp,
    entry::{
        Content, Entry, Head,
        codec::{Record, Unreadable, decode, encode, encode_vary},
    },
};

use crate::input::{Message, blocks, numbers};

const TARGETS: [HeaderName; 1] = [HeaderName::from_static("cdn-cache-control")];

/// What is written is read; whatever else is there is read or refused, and what is read can be written.
pub fn check(data: &[u8]) {
    match decode(Bytes::copy_from_slice(data), &TARGETS) {
        Ok(Record::Entry(entry)) => check_entry(&entry),
        Ok(Record::Vary(names)) => check_names(&names),
        Err(error) => {
            let is_version = data.first().is_some_and(|version| error == Unreadable::Version(*version));
            assert!(is_version || !matches!(error, Unreadable::Version(_)));
        }
    }
    written(data);
}

fn check_names(names: &[HeaderName]) {
    let written = encode_vary(names);
    assert!(matches!(decode(written.clone(), &TARGETS), Ok(Record::Vary(read)) if read == names));
    check_cuts(&written);
}

fn check_entry(entry: &Entry) {
    let written = encode(entry);
    let Ok(Record::Entry(read)) = decode(written.clone(), &TARGETS) else {
        panic!("what is written is not read: {entry:?}");
    };
    let (Head { status, headers, times, claims, stamp, names }, head) = (&entry.head, &read.head);
    assert_eq!((head.status, &head.headers, head.times), (*status, headers, *times));
    assert_eq!((&head.claims, head.stamp, &head.names), (claims, Stamp { local: 0, ..*stamp }, names));
    assert_eq!(read.rendered(), entry.rendered());
    match (&read.content, &entry.content) {
        (Content::Whole(read), Content::Whole(body)) => assert_eq!(read, body),
        (Content::Parts(read), Content::Parts(pieces)) => assert_eq!(read, pieces),
        _ => panic!("a whole body is no part, and a part no whole one"),
    }
    assert_eq!(encode(&read), written);
    check_cuts(&written);
}

/// Every record that is cut off, or has something after it, is noticed.
fn check_cuts(written: &Bytes) {
    for cut in (0..written.len()).step_by(1 + written.len() / 16) {
        assert!(decode(written.slice(..cut), &TARGETS).is_err(), "{cut}");
    }
    let longer = [written, &b"\0"[..]].concat();
    assert!(decode(longer.into(), &TARGETS).is_err());
}

fn written(data: &[u8]) {
    let [head, fields, body] = blocks(data);
    let [status, generation, order, requested_at, received_at, first, total] =
        numbers(head).map(Option::unwrap_or_default);
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status else { return };
    let headers = Message::read(fields).map();
    let times = Times { requested_at, received_at };
    let claims = Claims::read(status, &headers, times, &TARGETS);
    let names = headers.get_all(header::LINK).iter();
    let names = names.map(|name| PurgeName::key(&String::from_utf8_lossy(name.as_bytes()))).collect();
    let listed: Vec<_> = headers.keys().cloned().collect();
    let head = Head { status, headers, times, claims, stamp: Stamp { generation, order, local: 1 }, names };
    let body = Bytes::copy_from_slice(body);
    let mut pieces = Pieces::new(total);
    pieces.insert(first, body.clone());
    check_entry(&Entry::new(head.clone(), Content::Parts(pieces)));
    check_entry(&Entry::new(head, Content::Whole(body)));
    check_names(&listed);
}
