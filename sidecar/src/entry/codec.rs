//! Entries as Redis holds them.
//!
//! A version byte, a kind byte, then the fields in order; integers are big-endian, texts and bodies have their length
//! before them. What a sidecar can't read, a newer version's or a broken one, is a miss.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use larder_policy::PurgeName;

use super::{Entry, Parts};
use crate::barriers::Stamp;

const VERSION: u8 = 1;
const KIND_ENTRY: u8 = 1;
const KIND_VARY: u8 = 2;

/// What is stored under a key.
#[derive(Debug)]
pub enum Record {
    /// An answer.
    Entry(Entry),
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
    let mut out = BytesMut::with_capacity(entry.weight());
    out.put_slice(&[VERSION, KIND_ENTRY]);
    out.put_u64(entry.stamp.generation);
    out.put_u64(entry.stamp.order);
    out.put_u64(entry.received_at);
    out.put_u16(entry.status.as_u16());
    out.put_u16(count(entry.names.len()));
    entry.names.iter().for_each(|name| out.put_slice(name.as_bytes()));
    out.put_u16(count(entry.headers.len()));
    for (name, value) in &entry.headers {
        put_text(&mut out, name.as_str().as_bytes());
        put_text(&mut out, value.as_bytes());
    }
    put_text(&mut out, &entry.body);
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
    u16::try_from(length).expect("hyper takes at most 32,768 headers, and a policy's tags are fewer")
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).expect("a policy's maxObjectSize is 256 MiB at most"));
    out.put_slice(text);
}

/// Reads a record. Bodies and header values are not copied.
///
/// # Errors
/// If this version did not write it, or it is broken.
pub fn decode(mut bytes: Bytes) -> Result<Record, Unreadable> {
    let version = bytes.try_get_u8()?;
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let record = match bytes.try_get_u8()? {
        KIND_ENTRY => Record::Entry(decode_entry(&mut bytes)?),
        KIND_VARY => {
            let names = (0..bytes.try_get_u16()?).map(|_| take_name(&mut bytes)).collect::<Result<_, _>>()?;
            Record::Vary(names)
        }
        _ => return Err(Unreadable::Field("kind")),
    };
    if bytes.has_remaining() { Err(Unreadable::Field("length")) } else { Ok(record) }
}

fn decode_entry(bytes: &mut Bytes) -> Result<Entry, Unreadable> {
    let stamp = Stamp { generation: bytes.try_get_u64()?, order: bytes.try_get_u64()?, local: 0 };
    let received_at = bytes.try_get_u64()?;
    let status = StatusCode::from_u16(bytes.try_get_u16()?).map_err(|_| Unreadable::Field("status"))?;
    let names = (0..bytes.try_get_u16()?)
        .map(|_| PurgeName::from_bytes(&take(bytes, 16)?).ok_or(Unreadable::Field("name")))
        .collect::<Result<_, _>>()?;
    let mut headers = HeaderMap::new();
    for _ in 0..bytes.try_get_u16()? {
        let name = take_name(bytes)?;
        let value =
            HeaderValue::from_maybe_shared(take_text(bytes)?).map_err(|_| Unreadable::Field("header"))?;
        headers.append(name, value);
    }
    let body = take_text(bytes)?;
    Ok(Entry::new(Parts { status, headers, received_at, stamp, names }, body))
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

    fn entry() -> Entry {
        let mut headers = HeaderMap::new();
        headers.append(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.append(header::LINK, HeaderValue::from_static("a"));
        headers.append(header::LINK, HeaderValue::from_static("b"));
        let parts = Parts {
            status: StatusCode::OK,
            headers,
            received_at: 1_700_000_000_123,
            stamp: Stamp { generation: 7, order: 9, local: 3 },
            names: Box::new([PurgeName::path("/a"), PurgeName::tag("t")]),
        };
        Entry::new(parts, Bytes::from_static(b"body"))
    }

    #[test]
    fn reads_what_it_writes() {
        let written = entry();
        let Record::Entry(read) = decode(encode(&written)).unwrap() else { panic!("not an entry") };
        assert_eq!(
            (read.status, &read.headers, &read.body),
            (written.status, &written.headers, &written.body)
        );
        assert_eq!((read.received_at, &read.names), (written.received_at, &written.names));
        assert_eq!(
            read.stamp,
            Stamp { local: 0, ..written.stamp },
            "a pod's own order means nothing to another"
        );
        let names = vec![header::ACCEPT, header::ACCEPT_ENCODING];
        assert!(matches!(decode(encode_vary(&names)).unwrap(), Record::Vary(read) if read == names));
    }

    #[test]
    fn what_another_version_wrote_is_a_miss() {
        let mut bytes = encode(&entry()).to_vec();
        bytes[0] = 2;
        assert_eq!(decode(bytes.into()).unwrap_err(), Unreadable::Version(2));
    }

    proptest! {
        #[test]
        fn broken_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..200_usize, at in 2..100_usize) {
            let _ = decode(Bytes::from(noise.clone()));
            let mut bytes = encode(&entry()).to_vec();
            for (offset, byte) in noise.iter().enumerate() {
                if let Some(place) = bytes.get_mut(at + offset) {
                    *place = *byte;
                }
            }
            bytes.truncate(cut.max(1));
            let _ = decode(bytes.into());
        }

        #[test]
        fn every_cut_is_noticed(cut in 0..100_usize) {
            let bytes = encode(&entry());
            prop_assume!(cut < bytes.len());
            prop_assert!(decode(bytes.slice(..cut)).is_err());
        }
    }
}
