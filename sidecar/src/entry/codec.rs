//! Encoding of stored responses in Redis.
//!
//! A version byte, a kind byte, a random number that no other record has, then the fields in order; integers are big-endian, texts and bodies are preceded by
//! their length. A record that a sidecar can't read, because it is broken or of a newer version, is a miss.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{self, CONTENT_LENGTH, SET_COOKIE},
};
use larder_policy::{
    PurgeName,
    range::Pieces,
    response_meta::{ResponseMeta, Times},
};

use super::{Content, Entry, Head};
use crate::{barriers::Stamp, clock::wall_ms};

/// Version of the format. It is part of the keys in Redis, so that releases with different formats never meet.
pub const VERSION: u8 = 5;
/// Length of the beginning of a record that tells it from every other.
pub const IDENTITY: usize = 2 + size_of::<u64>();
/// Value in place of a TTL, if the response stated none.
const NO_TTL: u64 = u64::MAX;
const KIND_WHOLE: u8 = 1;
const KIND_VARY: u8 = 2;
const KIND_PARTS: u8 = 3;
/// Maximum number of names that a record of `Vary` lists.
pub const MAX_VARY_NAMES: usize = 128;
/// Maximum time by which the clock of the pod that stored a response may be ahead.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The value of a record.
#[derive(Debug)]
pub enum Record {
    /// A stored response.
    Entry(Box<Entry>),
    /// The names that `Vary` listed: the variants are stored separately, by the values of these headers.
    Vary(Vec<HeaderName>),
}

/// Bytes that are not a record of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Another version of the format.
    #[error("the record has version {0}, not {VERSION}")]
    Version(u8),
    /// A record that ends too early.
    #[error("the record is truncated")]
    Short,
    /// A field with a value that no sidecar writes.
    #[error("the record has an invalid {0}")]
    Field(&'static str),
}

impl From<TryGetError> for DecodeError {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

/// The rules that a stored response must obey to be used.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The fields of targeted cache control (RFC 9213) that the policy obeys.
    pub targets: &'a [HeaderName],
    /// True if stored responses may have `Set-Cookie`, because the route stores it.
    pub set_cookie: bool,
}

/// Encodes a stored response.
pub fn encode(entry: &Entry) -> Bytes {
    let Head { status, headers, times, meta, stamp, names } = &entry.head;
    let mut out = BytesMut::with_capacity(entry.weight());
    let kind = match entry.content {
        Content::Whole(_) => KIND_WHOLE,
        Content::Parts(_) => KIND_PARTS,
    };
    begin(&mut out, kind);
    out.put_u64(stamp.generation);
    out.put_u64(stamp.order);
    out.put_u64(times.requested_at);
    out.put_u64(times.received_at);
    out.put_u64(
        meta.ttl_from_response().map_or(NO_TTL, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(NO_TTL)),
    );
    out.put_u16(status.as_u16());
    out.put_u16(count(names.len()));
    names.iter().for_each(|name| out.put_slice(name.as_bytes()));
    // The body says how long it is, and a `Trailer` that no trailer followed is about a connection that is over.
    let kept = || headers.iter().filter(|(name, _)| !HOP_BY_HOP.contains(name) && *name != CONTENT_LENGTH);
    out.put_u16(count(kept().count()));
    for (name, value) in kept() {
        put_text(&mut out, name.as_str().as_bytes());
        put_text(&mut out, value.as_bytes());
    }
    match &entry.content {
        Content::Whole(body) => put_text(&mut out, body),
        Content::Parts(pieces) => {
            out.put_u64(pieces.total());
            out.put_u16(count(pieces.iter().count()));
            for (first, piece) in pieces.iter() {
                out.put_u64(first);
                put_text(&mut out, piece);
            }
        }
    }
    out.freeze()
}

/// Writes the names that `Vary` listed.
pub fn encode_vary(names: &[HeaderName]) -> Bytes {
    let mut out = BytesMut::new();
    begin(&mut out, KIND_VARY);
    out.put_u16(count(names.len()));
    names.iter().for_each(|name| put_text(&mut out, name.as_str().as_bytes()));
    out.freeze()
}

fn begin(out: &mut BytesMut, kind: u8) {
    out.put_slice(&[VERSION, kind]);
    out.put_u64(fastrand::u64(..));
}

fn count(length: usize) -> u16 {
    u16::try_from(length).expect("hyper takes at most 32,768 headers, and tags and parts are fewer")
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).expect("a policy's maxObjectSize is 256 MiB at most"));
    out.put_slice(text);
}

/// Reads a record. Bodies and header values are not copied.
///
/// # Errors
/// If this version did not write it, it is broken, or it would not be a response of its own: with a status that is never stored,
/// with fields that are about one connection (RFC 9110, section 7.6.1) or about framing, or from the future.
pub fn decode(mut bytes: Bytes, rules: Rules<'_>) -> Result<Record, DecodeError> {
    let version = bytes.try_get_u8()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = bytes.try_get_u8()?;
    let _identity = bytes.try_get_u64()?;
    let record = match kind {
        KIND_WHOLE => {
            let head = take_head(&mut bytes, rules)?;
            let body = take_text(&mut bytes)?;
            check_framing(&head, Some(&body))?;
            Record::Entry(Box::new(Entry::new(head, Content::Whole(body))))
        }
        KIND_PARTS => {
            let head = take_head(&mut bytes, rules)?;
            let pieces = take_pieces(&mut bytes)?;
            check_framing(&head, None)?;
            Record::Entry(Box::new(Entry::new(head, Content::Parts(pieces))))
        }
        KIND_VARY => {
            let count = usize::from(bytes.try_get_u16()?);
            if count > MAX_VARY_NAMES {
                return Err(DecodeError::Field("vary"));
            }
            Record::Vary((0..count).map(|_| take_name(&mut bytes)).collect::<Result<_, _>>()?)
        }
        _ => return Err(DecodeError::Field("kind")),
    };
    if bytes.has_remaining() { Err(DecodeError::Field("length")) } else { Ok(record) }
}

/// Returns true if a record may hold responses with this status: final ones, besides 304, which has no content of its
/// own.
fn is_stored_status(status: StatusCode) -> bool {
    (200..600).contains(&status.as_u16()) && status != StatusCode::NOT_MODIFIED
}

/// Fields that are about one connection (RFC 9110, section 7.6.1), or between a client and a proxy (RFC 9111, section 3.1).
const HOP_BY_HOP: [HeaderName; 11] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
];

/// Refuses what would make a client, or the next cache, take the body for longer or shorter than it is.
fn check_framing(head: &Head, body: Option<&Bytes>) -> Result<(), DecodeError> {
    let has_no_body = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT].contains(&head.status);
    if has_no_body && body.is_none_or(|body| !body.is_empty()) {
        return Err(DecodeError::Field("body"));
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let fits = |length: &HeaderValue| {
        body.is_some_and(|body| length.as_bytes() == body.len().to_string().as_bytes())
    };
    let is_right = match lengths.next() {
        None => true,
        Some(length) => fits(length) && !has_no_body && lengths.next().is_none(),
    };
    if is_right { Ok(()) } else { Err(DecodeError::Field("content-length")) }
}

fn take_head(bytes: &mut Bytes, rules: Rules<'_>) -> Result<Head, DecodeError> {
    let stamp = Stamp { generation: bytes.try_get_u64()?, order: bytes.try_get_u64()?, ..Stamp::default() };
    let times = Times { requested_at: bytes.try_get_u64()?, received_at: bytes.try_get_u64()? };
    let ttl_from_response =
        Some(bytes.try_get_u64()?).filter(|ttl| *ttl != NO_TTL).map(Duration::from_millis);
    let latest = wall_ms().saturating_add(MAX_CLOCK_SKEW.as_millis() as u64);
    if times.received_at > latest || times.requested_at > latest {
        return Err(DecodeError::Field("time"));
    }
    let status = StatusCode::from_u16(bytes.try_get_u16()?).ok().filter(|status| is_stored_status(*status));
    let status = status.ok_or(DecodeError::Field("status"))?;
    let names = (0..bytes.try_get_u16()?)
        .map(|_| PurgeName::from_bytes(&take(bytes, 16)?).ok_or(DecodeError::Field("name")))
        .collect::<Result<_, _>>()?;
    let mut headers = HeaderMap::new();
    for _ in 0..bytes.try_get_u16()? {
        let name = take_name(bytes)?;
        if HOP_BY_HOP.contains(&name) || name == SET_COOKIE && !rules.set_cookie {
            return Err(DecodeError::Field("header"));
        }
        let value =
            HeaderValue::from_maybe_shared(take_text(bytes)?).map_err(|_| DecodeError::Field("header"))?;
        headers.try_append(name, value).map_err(|_| DecodeError::Field("header"))?;
    }
    let meta =
        ResponseMeta::read(status, &headers, times, rules.targets).with_ttl_from_response(ttl_from_response);
    Ok(Head { status, headers, times, meta, stamp, names })
}

fn take_pieces(bytes: &mut Bytes) -> Result<Pieces, DecodeError> {
    let mut pieces = Pieces::new(bytes.try_get_u64()?);
    for _ in 0..bytes.try_get_u16()? {
        let first = bytes.try_get_u64()?;
        if !pieces.insert(first, take_text(bytes)?) {
            return Err(DecodeError::Field("part"));
        }
    }
    Ok(pieces)
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, DecodeError> {
    if bytes.len() < length { Err(DecodeError::Short) } else { Ok(bytes.split_to(length)) }
}

fn take_text(bytes: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = bytes.try_get_u32()? as usize;
    take(bytes, length)
}

fn take_name(bytes: &mut Bytes) -> Result<HeaderName, DecodeError> {
    HeaderName::from_bytes(&take_text(bytes)?).map_err(|_| DecodeError::Field("header"))
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;
    use crate::entry::tests::head;

    const RULES: Rules<'_> = Rules { targets: &[], set_cookie: false };

    fn whole() -> Entry {
        let stamp = Stamp { generation: 7, order: 3, local: 9, asked_at: 11 };
        let mut head = Head { stamp, ..head("max-age=60", Duration::from_secs(5)) };
        head.meta = head.meta.with_ttl_from_response(Some(Duration::from_millis(1500)));
        head.headers.append(header::VARY, HeaderValue::from_static("accept"));
        head.headers.append(header::VARY, HeaderValue::from_static("accept-language"));
        Entry::new(head, Content::Whole(Bytes::from_static(b"body")))
    }

    fn parts() -> Entry {
        let mut pieces = Pieces::new(100);
        assert!(pieces.insert(10, Bytes::from_static(b"ten")) && pieces.insert(50, Bytes::from_static(b"x")));
        Entry::new(whole().head, Content::Parts(pieces))
    }

    fn read(bytes: Bytes) -> Entry {
        let Record::Entry(entry) = decode(bytes, RULES).unwrap() else { panic!("not an entry") };
        *entry
    }

    #[test]
    fn entry_round_trips() {
        let (written, read) = (whole(), read(encode(&whole())));
        assert_eq!((read.head.status, &read.head.headers), (written.head.status, &written.head.headers));
        assert_eq!(read.rendered().map(|(_, body)| &body[..]), Some(&b"body"[..]));
        assert_eq!(read.head.names, written.head.names);
        assert_eq!(read.head.meta.ttl_from_response(), Some(Duration::from_millis(1500)));
        let stamp = Stamp { local: 0, asked_at: 0, ..written.head.stamp };
        assert_eq!(read.head.stamp, stamp, "a pod's own order and clock mean nothing to another");
        let names = vec![header::ACCEPT, header::ACCEPT_ENCODING];
        assert!(matches!(decode(encode_vary(&names), RULES).unwrap(), Record::Vary(read) if read == names));
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
        assert_eq!(decode(bytes.into(), RULES).unwrap_err(), DecodeError::Version(2));
    }

    /// Offset of the first occurrence of `wanted`, which must be there.
    fn position(bytes: &[u8], wanted: &[u8]) -> usize {
        bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
    }

    /// A record with fields that are never written.
    fn with(status: u16, fields: &[(&'static str, &'static str)], body: &'static str) -> Bytes {
        let mut head = head("max-age=60", Duration::ZERO);
        head.status = StatusCode::from_u16(status).unwrap();
        // Names of the same length stand for them until it is written.
        let stand_ins = fields.iter().map(|(name, _)| "z".repeat(name.len()));
        for ((_, value), name) in fields.iter().zip(stand_ins.clone()) {
            head.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(value));
        }
        let mut bytes =
            encode(&Entry::new(head, Content::Whole(Bytes::from_static(body.as_bytes())))).to_vec();
        // The random number and the times before the fields may hold the bytes of a stand-in, too.
        let mut after = position(&bytes, b"max-age=60");
        for ((name, _), stand_in) in fields.iter().zip(stand_ins) {
            after += position(&bytes[after..], stand_in.as_bytes());
            bytes[after..after + name.len()].copy_from_slice(name.as_bytes());
        }
        bytes.into()
    }

    #[test]
    fn framing_and_hop_by_hop_fields_are_refused() {
        for name in [
            "connection",
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
            let read = decode(with(200, &[(name, "x")], "body"), RULES);
            assert_eq!(read.unwrap_err(), DecodeError::Field("header"), "{name}");
        }
        let cookies = Rules { set_cookie: true, ..RULES };
        assert!(decode(with(200, &[("set-cookie", "a=b")], "body"), cookies).is_ok());
        for (fields, is_read) in [
            (&[("content-length", "4")][..], true),
            (&[("content-length", "5")], false),
            (&[("content-length", "+4")], false),
            (&[("content-length", "4, 4")], false),
            (&[("content-length", "4"), ("content-length", "4")], false),
        ] {
            assert_eq!(decode(with(200, fields, "body"), RULES).is_ok(), is_read, "{fields:?}");
        }
    }

    #[test]
    fn statuses_that_are_never_stored_are_refused() {
        for status in [100, 101, 103, 199, 304, 600, 999] {
            let read = decode(with(status, &[], ""), RULES);
            assert_eq!(read.unwrap_err(), DecodeError::Field("status"), "{status}");
        }
        for status in [204, 205] {
            assert!(decode(with(status, &[], ""), RULES).is_ok());
            assert_eq!(decode(with(status, &[], "x"), RULES).unwrap_err(), DecodeError::Field("body"));
            assert!(decode(with(status, &[("content-length", "0")], ""), RULES).is_err());
        }
    }

    #[test]
    fn line_ends_in_names_and_values_are_refused() {
        let written = with(200, &[("x-name", "x-value")], "body");
        for (text, bad) in
            [("x-name", b'\n'), ("x-name", b':'), ("x-value", b'\r'), ("x-value", b'\n'), ("x-value", 0)]
        {
            let mut bytes = written.to_vec();
            let at = position(&bytes, text.as_bytes());
            bytes[at + 1] = bad;
            assert_eq!(
                decode(bytes.into(), RULES).unwrap_err(),
                DecodeError::Field("header"),
                "{text} {bad}"
            );
        }
    }

    #[test]
    fn a_response_from_the_future_is_refused() {
        let received_in = |ahead: Duration| {
            let mut head = head("max-age=60", Duration::ZERO);
            head.times.received_at += ahead.as_millis() as u64;
            decode(encode(&Entry::new(head, Content::Whole(Bytes::new()))), RULES)
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
        assert!(decode(names(MAX_VARY_NAMES), RULES).is_ok());
        assert_eq!(decode(names(MAX_VARY_NAMES + 1), RULES).unwrap_err(), DecodeError::Field("vary"));
    }

    proptest! {
        #[test]
        fn broken_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..200_usize, at in 2..100_usize, kind in 0..2) {
            let _ = decode(Bytes::from(noise.clone()), RULES);
            let mut bytes = encode(&if kind == 0 { whole() } else { parts() }).to_vec();
            for (offset, byte) in noise.iter().enumerate() {
                if let Some(place) = bytes.get_mut(at + offset) {
                    *place = *byte;
                }
            }
            bytes.truncate(cut.max(1));
            let _ = decode(bytes.into(), RULES);
        }

        #[test]
        fn every_cut_is_noticed(cut in 0..160_usize) {
            for entry in [whole(), parts()] {
                let bytes = encode(&entry);
                prop_assert!(cut >= bytes.len() || decode(bytes.slice(..cut), RULES).is_err());
            }
        }
    }
}
