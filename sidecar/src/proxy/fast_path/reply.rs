//! Replies with a whole stored response: all of it, or what a condition, a range or HEAD leaves of it.

use std::{io::Write as _, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE},
};
use larder_policy::{
    Fields, HeaderKinds,
    range::{ContentRange, RangeRequest},
    validation,
};

use crate::{
    cache_status::CacheStatus,
    entry::{Entry, MAX_COPIED},
    head_room,
    headers::{USUAL_ADDED, write_line},
    proxy::response::{has_it_already, range_of},
};

/// The part of a stored response that a client gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The whole response.
    Whole,
    /// The head alone, for HEAD.
    Head,
    /// A 304: the client's own copy is still valid.
    NotModified,
    /// A 206 with these bytes of the body.
    Part(Range<usize>),
}

impl Reply {
    /// Returns the reply to a request, in the order of RFC 9110, section 13.2.2; `None` if the slow path has to reply.
    pub(super) fn of(
        method: &Method,
        fields: &impl Fields,
        kinds: HeaderKinds,
        entry: &Entry,
        body: &[u8],
    ) -> Option<Self> {
        if entry.status() == StatusCode::NO_CONTENT && !body.is_empty() {
            return None;
        }
        if kinds.is_conditional() && has_it_already(fields, &entry.fields(), entry.meta()) {
            return Some(Self::NotModified);
        }
        if *method == Method::HEAD {
            // The slow path does not state the length of an empty body.
            return (!body.is_empty()).then_some(Self::Head);
        }
        let range = if kinds.has_range() { RangeRequest::of(fields) } else { RangeRequest::Whole };
        match range_of(range, fields, entry, body.len() as u64) {
            None => Some(Self::Whole),
            Some(Ok(range)) => Some(Self::Part(range.start.try_into().ok()?..range.end.try_into().ok()?)),
            Some(Err(())) => None,
        }
    }

    /// Returns the status of the reply.
    pub(super) fn status(&self, stored: StatusCode) -> StatusCode {
        match self {
            Self::Whole | Self::Head => stored,
            Self::NotModified => StatusCode::NOT_MODIFIED,
            Self::Part(_) => StatusCode::PARTIAL_CONTENT,
        }
    }

    /// Returns the bytes of the stored body that the reply contains.
    pub(super) fn bytes(&self, body: &[u8]) -> Range<usize> {
        match self {
            Self::Whole => 0..body.len(),
            Self::Head | Self::NotModified => 0..0,
            Self::Part(range) => range.clone(),
        }
    }

    /// Writes the status line and the fields that do not change.
    pub(super) fn write_head(&self, entry: &Entry, output: &mut Vec<u8>) {
        let fields = entry.sent_fields();
        match self {
            Self::Whole | Self::Head => {
                write_status_line(entry.status(), output);
                output.extend_from_slice(fields.as_bytes());
                if let Some(length) = entry.content_length() {
                    output.extend_from_slice(b"content-length: ");
                    output.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
                    output.extend_from_slice(b"\r\n");
                }
            }
            Self::NotModified => {
                output.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
                match entry.fields_of_304() {
                    Some(fields) => output.extend_from_slice(fields.as_bytes()),
                    // It came from Redis.
                    None => write_lines(validation::not_modified_lines(&fields), output),
                }
            }
            Self::Part(range) => {
                output.extend_from_slice(b"HTTP/1.1 206 Partial Content\r\n");
                let of_the_body = [CONTENT_LENGTH, CONTENT_RANGE];
                let is_kept = |name: &[u8]| of_the_body.iter().all(|known| known.as_str().as_bytes() != name);
                write_lines(fields.iter().filter(|(name, _)| is_kept(name)), output);
                let place = ContentRange {
                    first: range.start as u64,
                    last: range.end as u64 - 1,
                    total: Some(entry.content.bytes()),
                };
                write!(output, "content-range: {place}\r\ncontent-length: {}\r\n", range.len())
                    .expect("a buffer takes any write");
            }
        }
    }
}

/// A stored response for a client, written as the fast path writes hits.
#[derive(Debug)]
pub(in crate::proxy) struct StoredReply {
    entry: Arc<Entry>,
    reply: Reply,
    cache_status: CacheStatus,
}

impl StoredReply {
    /// Returns the reply to a request with these fields; `None` if it can't be written so.
    pub(in crate::proxy) fn of(
        method: &Method,
        fields: &impl Fields,
        kinds: HeaderKinds,
        entry: &Arc<Entry>,
        cache_status: CacheStatus,
    ) -> Option<Self> {
        // A large head has its own room.
        if entry.sent_fields().as_bytes().len() > head_room::SMALL {
            return None;
        }
        let reply = Reply::of(method, fields, kinds, entry, entry.body()?)?;
        Some(Self { entry: Arc::clone(entry), reply, cache_status })
    }

    /// Returns the status.
    pub(in crate::proxy) fn status(&self) -> StatusCode {
        self.reply.status(self.entry.status())
    }

    /// Writes the head, and the body if that is small; returns what is left of the body.
    pub(in crate::proxy) fn write(&self, output: &mut Vec<u8>, closes: bool) -> Bytes {
        let Self { entry, reply, cache_status } = self;
        output.reserve(entry.sent_fields().as_bytes().len() + USUAL_ADDED);
        reply.write_head(entry, output);
        write_line(output, b"age", itoa::Buffer::new().format(entry.age().as_secs()).as_bytes());
        cache_status.write_to(output);
        if closes {
            output.extend_from_slice(b"connection: close\r\n");
        }
        output.extend_from_slice(b"\r\n");
        let Some(body) = entry.body() else { return Bytes::new() };
        let bytes = reply.bytes(body);
        if bytes.len() > MAX_COPIED {
            return body.slice(bytes);
        }
        output.extend_from_slice(&body[bytes]);
        Bytes::new()
    }
}

fn write_status_line(status: StatusCode, output: &mut Vec<u8>) {
    if status == StatusCode::OK {
        return output.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        output.extend_from_slice(part.as_bytes());
    }
}

fn write_lines<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>, output: &mut Vec<u8>) {
    for (name, value) in lines {
        output.reserve(name.len() + value.len() + 4);
        write_line(output, name, value);
    }
}
