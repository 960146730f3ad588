//! Entries as Redis holds them.
//!
//! A version byte, a kind byte, then the fields in order; integers are big-endian, texts and bodies have their length
//! before them. What a sidecar can't read, a newer version's or a broken one, is a miss.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use larder_policy::{
    PurgeName,
    claims::{Claims, Times},
    range::Pieces,
};

use super::{Content, Entry, Head};
use crate::barriers::Stamp;

const VERSION: u8 = 3;
/// In place of a TTL, where the answer gave itself none.
const NO_TTL: u64 = u64::MAX;
const KIND_WHOLE: u8 = 1;
const KIND_VARY: u8 = 2;
const KIND_PARTS: u8 = 3;

/// What is stored under a key.
#[derive(Debug)]
pub enum Record {
    /// An answer.
    Entry(Box<Entry>),
    /// The names that `Vary` listed: the answers are stored apart, by the values of these headers.
    Vary(Vec<HeaderName>),
}

/// Bytes that are not a record of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unreadable {
    /// Another version wrote it.
    #[error("version {0} is not {VERSION}")]
    Version(u8),
    /// It ends too early.
    #[error("it is cut off")]
    Short,
    /// A field has a value that no sidecar writes.
    #[error("it has a bad {0}")]
    Field(&'static str),
}

impl From<TryGetError> for Unreadable {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

/// Writes an answer.
pub fn encode(entry: &Entry) -> Bytes {
    let Head { status, headers, times, claims, stamp, names } = &entry.head;
    let mut out = BytesMut::with_capacity(entry.weight());
    let kind = match entry.content {
        Content::Whole(_) => KIND_WHOLE,
        Content::Parts(_) => KIND_PARTS,
    };
    out.put_slice(&[VERSION, kind]);
    out.put_u64(stamp.generation);
    out.put_u64(stamp.order);
    out.put_u64(times.requested_at);
    out.put_u64(times.received_at);
    out.put_u64(claims.given_ttl().map_or(NO_TTL, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(NO_TTL)));
    out.put_u16(status.as_u16());
    out.put_u16(count(names.len()));
    names.iter().for_each(|name| out.put_slice(name.as_bytes()));
    out.put_u16(count(headers.len()));
    for (name, value) in headers {
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
    out.put_slice(&[VERSION, KIND_VARY]);
    out.put_u16(count(names.len()));
    names.iter().for_each(|name| put_text(&mut out, name.as_str().as_bytes()));
    out.freeze()
}

fn count(length: usize) -> u16 {
    u16::try_from(length).expect("hyper takes at most 32,768 headers, and tags and parts are fewer")
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).expect("a policy's maxObjectSize is 256 MiB at most"));
    out.put_slice(text);
}

/// Reads a record; `targets` are the fields of targeted cache control that its reader obeys. Bodies and header values are not
/// copied.
///
/// # Errors
/// If this version did not write it, or it is broken.
pub fn decode(mut bytes: Bytes, targets: &[HeaderName]) -> Result<Record, Unreadable> {
    let version = bytes.try_get_u8()?;
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let record = match bytes.try_get_u8()? {
        KIND_WHOLE => {
            let head = take_head(&mut bytes, targets)?;
            Record::Entry(Box::new(Entry::new(head, Content::Whole(take_text(&mut bytes)?))))
        }
        KIND_PARTS => {
            let head = take_head(&mut bytes, targets)?;
            Record::Entry(Box::new(Entry::new(head, Content::Parts(take_pieces(&mut bytes)?))))
        }
        KIND_VARY => {
            let names = (0..bytes.try_get_u16()?).map(|_| take_name(&mut bytes)).collect::<Result<_, _>>()?;
            Record::Vary(names)
        }
        _ => return Err(Unreadable::Field("kind")),
    };
    if bytes.has_remaining() { Err(Unreadable::Field("length")) } else { Ok(record) }
}

fn take_head(bytes: &mut Bytes, targets: &[HeaderName]) -> Result<Head, Unreadable> {
    let stamp = Stamp { generation: bytes.try_get_u64()?, order: bytes.try_get_u64()?, local: 0 };
    let times = Times { requested_at: bytes.try_get_u64()?, received_at: bytes.try_get_u64()? };
    let given_ttl = Some(bytes.try_get_u64()?).filter(|ttl| *ttl != NO_TTL).map(Duration::from_millis);
    let status = StatusCode::from_u16(bytes.try_get_u16()?).map_err(|_| Unreadable::Field("status"))?;
    let names = (0..bytes.try_get_u16()?)
        .map(|_| PurgeName::from_bytes(&take(bytes, 16)?).ok_or(Unreadable::Field("name")))
        .collect::<Result<_, _>>()?;
    let mut headers = HeaderMap::new();
    for _ in 0..bytes.try_get_u16()? {
        let name = take_name(bytes)?;
        let value =
            HeaderValue::from_maybe_shared(take_text(bytes)?).map_err(|_| Unreadable::Field("header"))?;
        headers.try_append(name, value).map_err(|_| Unreadable::Field("header"))?;
    }
    let claims = Claims::read(status, &headers, times, targets).with_given_ttl(given_ttl);
    Ok(Head { status, headers, times, claims, stamp, names })
}

fn take_pieces(bytes: &mut Bytes) -> Result<Pieces, Unreadable> {
    let mut pieces = Pieces::new(bytes.try_get_u64()?);
    for _ in 0..bytes.try_get_u16()? {
        let first = bytes.try_get_u64()?;
        if !pieces.insert(first, take_text(bytes)?) {
            return Err(Unreadable::Field("part"));
        }
    }
    Ok(pieces)
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, Unreadable> {
    if bytes.len() < length { Err(Unreadable::Short) } else { Ok(bytes.split_to(length)) }
}

fn take_text(bytes: &mut Bytes) -> Result<Bytes, Unreadable> {
    let length = bytes.try_get_u32()? as usize;
    take(bytes, length)
}

fn take_name(bytes: &mut Bytes) -> Result<HeaderName, Unreadable> {
    HeaderName::from_bytes(&take_text(bytes)?).map_err(|_| Unreadable::Field("header"))
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;
    use crate::entry::tests::head;

    fn whole() -> Entry {
        let stamp = Stamp { generation: 7, order: 3, local: 9 };
        let mut head = Head { stamp, ..head("max-age=60", Duration::from_secs(5)) };
        head.claims = head.claims.with_given_ttl(Some(Duration::from_millis(1500)));
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
        let Record::Entry(entry) = decode(bytes, &[]).unwrap() else { panic!("not an entry") };
        *entry
    }

    #[test]
    fn reads_what_it_writes() {
        let (written, read) = (whole(), read(encode(&whole())));
        assert_eq!((read.head.status, &read.head.headers), (written.head.status, &written.head.headers));
        assert_eq!(read.rendered().map(|(_, body)| &body[..]), Some(&b"body"[..]));
        assert_eq!(read.head.names, written.head.names);
        assert_eq!(read.head.claims.given_ttl(), Some(Duration::from_millis(1500)));
        let stamp = Stamp { local: 0, ..written.head.stamp };
        assert_eq!(read.head.stamp, stamp, "a pod's own order means nothing to another");
        let names = vec![header::ACCEPT, header::ACCEPT_ENCODING];
        assert!(matches!(decode(encode_vary(&names), &[]).unwrap(), Record::Vary(read) if read == names));
    }

    #[test]
    fn reads_parts() {
        let Content::Parts(pieces) = read(encode(&parts())).content else { panic!("not parts") };
        let found: Vec<_> = pieces.iter().map(|(first, piece)| (first, &piece[..])).collect();
        assert_eq!((pieces.total(), found), (100, vec![(10, &b"ten"[..]), (50, &b"x"[..])]));
    }

    #[test]
    fn what_another_version_wrote_is_a_miss() {
        let mut bytes = encode(&whole()).to_vec();
        bytes[0] = 2;
        assert_eq!(decode(bytes.into(), &[]).unwrap_err(), Unreadable::Version(2));
    }

    proptest! {
        #[test]
        fn broken_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..200_usize, at in 2..100_usize, kind in 0..2) {
            let _ = decode(Bytes::from(noise.clone()), &[]);
            let mut bytes = encode(&if kind == 0 { whole() } else { parts() }).to_vec();
            for (offset, byte) in noise.iter().enumerate() {
                if let Some(place) = bytes.get_mut(at + offset) {
                    *place = *byte;
                }
            }
            bytes.truncate(cut.max(1));
            let _ = decode(bytes.into(), &[]);
        }

        #[test]
        fn every_cut_is_noticed(cut in 0..160_usize) {
            for entry in [whole(), parts()] {
                let bytes = encode(&entry);
                prop_assert!(cut >= bytes.len() || decode(bytes.slice(..cut), &[]).is_err());
            }
        }
    }
}
