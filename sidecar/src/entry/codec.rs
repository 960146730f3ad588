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
    // Fields that would make a client, or the next cache, mistake the length of the body are never written.
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
mod tests;
