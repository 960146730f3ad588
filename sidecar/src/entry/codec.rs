//! Encoding of stored responses in Redis.
//!
//! A version byte, a kind byte, a random number that no other record has, then numbers, what the header fields say about
//! caching, the names of purges, these fields as HTTP/1 writes them, in lower case, and the body; integers are big-endian, texts and bodies are preceded by
//! their length. A record that a sidecar can't read, because it is broken or of another version, is a miss.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use http::{HeaderName, StatusCode};
use larder_policy::{
    range::Pieces,
    response_meta::{ENCODED_LENGTH, ResponseMeta, Times},
};

use super::{Block, Content, Entry, StoredFields};
use crate::{barriers::Stamp, clock::wall_ms, headers::write_line};

/// Version of the format, and of how [`ResponseMeta`] is read from header fields. It is part of the keys in Redis, so that releases
/// with different ones never meet.
pub const VERSION: u8 = 7;
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
    /// The fields of targeted cache control (RFC 9213) that the policy obeys, for [`MetaFrom::Fields`].
    pub targets: &'a [HeaderName],
    /// True if stored responses may have `Set-Cookie`, because the route stores it.
    pub set_cookie: bool,
}

/// Source of the metadata of a response that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaFrom {
    /// The record: it was written under the same policy, by whose rules its header fields were read.
    Record,
    /// Header fields, by the rules of the policy in force.
    Fields,
}

/// Encodes a stored response.
pub fn encode(entry: &Entry) -> Bytes {
    let (stamp, times, meta) = (entry.stamp(), entry.times(), entry.meta());
    let (names, fields) = (entry.block.name_bytes(), entry.fields());
    // The body says how long it is, and a `Trailer` that no trailer followed is about a connection that is over.
    let kept = fields.iter().filter(|(name, _)| !is_hop_by_hop(name) && *name != b"content-length");
    let length: usize = kept.clone().map(|(name, value)| name.len() + value.len() + 4).sum();
    // Besides a MAC, a body and the lines, a record has some 110 bytes.
    let mut out = BytesMut::with_capacity(160 + names.len() + length + entry.content.encoded());
    begin(&mut out, if entry.body().is_some() { KIND_WHOLE } else { KIND_PARTS });
    out.put_u64(stamp.generation);
    out.put_u64(stamp.order);
    out.put_u64(times.requested_at);
    out.put_u64(times.received_at);
    out.put_u64(
        meta.ttl_from_response().map_or(NO_TTL, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(NO_TTL)),
    );
    out.put_u16(entry.status().as_u16());
    meta.write_fields(&mut out);
    out.put_u16(count(entry.names().len()));
    out.put_slice(names);
    out.put_u32(u32::try_from(length).expect("a head has at most 128 KiB"));
    for (name, value) in kept {
        write_line(&mut out, name, value);
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

fn put_text(out: &mut impl BufMut, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).expect("a policy's maxObjectSize is 256 MiB at most"));
    out.put_slice(text);
}

/// Reads a record, of which L1 holds a response under `key`. A large body is not copied.
///
/// # Errors
/// If this version did not write it, it is broken, or it would not be a response of its own: with a status that is never stored,
/// with fields that are about one connection (RFC 9110, section 7.6.1) or about framing, or from the future.
pub fn decode(
    mut bytes: Bytes,
    rules: Rules<'_>,
    key: &str,
    meta_from: MetaFrom,
) -> Result<Record, DecodeError> {
    let version = bytes.try_get_u8()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = bytes.try_get_u8()?;
    let _identity = bytes.try_get_u64()?;
    let record = match kind {
        KIND_WHOLE | KIND_PARTS => {
            let (meta, stamp, block) = take_head(&mut bytes, rules, key, meta_from)?;
            let content = if kind == KIND_WHOLE {
                Content::Whole(take_text(&mut bytes)?)
            } else {
                Content::Parts(Box::new(take_pieces(&mut bytes)?))
            };
            let has_no_body = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT].contains(&meta.status());
            if has_no_body && !matches!(&content, Content::Whole(body) if body.is_empty()) {
                return Err(DecodeError::Field("body"));
            }
            Record::Entry(Box::new(Entry::with_block(meta, stamp, block, content)))
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

/// Returns true for fields that are about one connection (RFC 9110, section 7.6.1), or between a client and a proxy (RFC 9111,
/// section 3.1).
fn is_hop_by_hop(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection"
            | b"http2-settings"
            | b"keep-alive"
            | b"proxy-authenticate"
            | b"proxy-authentication-info"
            | b"proxy-authorization"
            | b"proxy-connection"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade"
    )
}

fn take_head(
    bytes: &mut Bytes,
    rules: Rules<'_>,
    key: &str,
    meta_from: MetaFrom,
) -> Result<(ResponseMeta, Stamp, Block), DecodeError> {
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
    let (said, _) = bytes.split_first_chunk().ok_or(DecodeError::Short)?;
    let written = ResponseMeta::from_written(status, said, times).ok_or(DecodeError::Field("directive"))?;
    bytes.advance(ENCODED_LENGTH);
    let names = usize::from(bytes.try_get_u16()?) * Block::NAME;
    let names = take(bytes, names)?;
    let lines = take_text(bytes)?;
    // What would make a client, or the next cache, take the body for longer or shorter than it is is never written.
    let is_refused = |name: &[u8]| {
        is_hop_by_hop(name) || name == b"content-length" || name == b"set-cookie" && !rules.set_cookie
    };
    let fields = StoredFields::checked(&lines, is_refused).ok_or(DecodeError::Field("header"))?;
    let block = Block::from_parts(key, &names, fields);
    let meta = match meta_from {
        MetaFrom::Record => written,
        MetaFrom::Fields => ResponseMeta::read(status, &fields, times, rules.targets),
    };
    let meta = super::spread(meta.with_ttl_from_response(ttl_from_response), block.names().next().as_ref());
    Ok((meta, stamp, block))
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
        head.headers.append("cdn-cache-control", HeaderValue::from_static("max-age=5"));
        let encoded = encode(&Entry::new("", &head, Content::Whole(Bytes::new())));
        let targets = [HeaderName::from_static("cdn-cache-control")];
        let max_age = |meta_from| {
            let rules = Rules { targets: &targets, ..RULES };
            let Ok(Record::Entry(entry)) = decode(encoded.clone(), rules, "key", meta_from) else {
                panic!("not an entry")
            };
            assert_eq!(
                (entry.key(), entry.meta().ttl_from_response()),
                ("key", head.meta.ttl_from_response())
            );
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
            assert_eq!(
                (read.fields(), read.sent_fields()),
                (written.fields(), written.sent_fields()),
                "{value}"
            );
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
            decode(
                with_lines(&head("max-age=60", Duration::ZERO), lines, "body"),
                RULES,
                "",
                MetaFrom::Record,
            )
        };
        for lines in ["", "a: b\r\n", "a: \r\nb: c: d\te\u{e9}\r\n", "age: 7\r\na: b\r\n"] {
            assert!(read(lines).is_ok(), "{lines:?}");
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
}
