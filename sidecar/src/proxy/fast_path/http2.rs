//! The fast path of HTTP/2: the response of HTTP/1, with its head in the form of HTTP/2.

use std::sync::Arc;

use bytes::Bytes;

use super::{Asked, FastPath};
use crate::{
    http2_guard::{Http2Responder, MAX_BLOCK, PlainRequest, field, status},
    proxy::Proxy,
};

/// Maximum length of a stored head: a header block, where the length of a name or value takes up to three bytes, is less
/// than twice as long.
const MAX_HEAD: usize = MAX_BLOCK / 2 - 256;
/// Size of the buffer that is kept for heads.
const KEPT_BYTES: usize = 8 << 10;
/// Fields of a connection, which HTTP/2 has not (RFC 9113, section 8.2.2).
const OF_CONNECTION: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// Responds to plain GETs over HTTP/2 as [`FastPath`] does over HTTP/1.
#[derive(Debug)]
pub struct FastPath2 {
    path: FastPath,
    /// The head in the form of HTTP/1.
    head: Vec<u8>,
}

impl FastPath2 {
    /// Creates the fast path of one connection.
    pub fn new(proxy: Arc<Proxy>) -> Self {
        Self { path: FastPath::new(proxy), head: Vec::new() }
    }
}

impl Http2Responder for FastPath2 {
    fn respond(&mut self, request: &PlainRequest<'_>, max_body: usize, block: &mut Vec<u8>) -> Option<Bytes> {
        // The slow path tells the client to turn to another pod.
        if self.path.proxy.upstream.is_gone() {
            return None;
        }
        let asked = Asked {
            method: "GET",
            target: request.path,
            uri_host: Some(request.authority),
            lines: &request.lines,
            max_head: MAX_HEAD,
            max_body,
            max_copied: 0,
        };
        self.head.clear();
        self.head.shrink_to(KEPT_BYTES);
        let body = self.path.respond_to(&asked, &mut self.head)?;
        encode_head(&self.head, block);
        Some(body)
    }
}

/// Appends the header block of a head in the form of HTTP/1.
fn encode_head(head: &[u8], block: &mut Vec<u8>) {
    let mut rest = head;
    let mut next_line = || {
        let end = memchr::memchr(b'\n', rest)?;
        let line = &rest[..end.saturating_sub(1)];
        rest = &rest[end + 1..];
        (!line.is_empty()).then_some(line)
    };
    // "HTTP/1.1 200 OK"
    status(block, next_line().and_then(|line| line.get(9..12)).unwrap_or(b"500"));
    while let Some(line) = next_line() {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], line.get(colon + 2..).unwrap_or_default());
        if !OF_CONNECTION.contains(&name) {
            field(block, name, value);
        }
    }
}
