//! Parts of a head that are hidden from hyper and restored for the application.
//!
//! - hyper responds to `Expect: 100-continue` itself as soon as the body is read. Whether the client may continue is
//!   the application's decision (RFC 9110, section 10.1.1).
//! - hyper and `http::Uri` reject bytes in a target that RFC 3986 does not allow there. Applications accept them, and
//!   old browsers and careless clients send them: `?filter={"a":1}`, `?q=<b>`, bytes that are not UTF-8.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header::EXPECT};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

/// The ASCII characters of a target that are escaped for hyper, because `http::Uri` rejects them in some place. All
/// non-ASCII bytes are escaped, too.
const REFUSED: &AsciiSet = &CONTROLS.add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}');

/// The target of a request as the client sent it, if hyper got an escaped one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTarget(pub Bytes);

impl RawTarget {
    /// Reads a path and query as a connection reads those of a request; `None` if they are rejected.
    pub fn read(target: &str) -> Option<(Uri, Option<Self>)> {
        if let Ok(uri) = target.parse() {
            return (!target.contains('#')).then_some((uri, None));
        }
        let spelled = escaped(target.as_bytes()).filter(|_| target.starts_with('/'))?;
        Some((spelled.parse().ok()?, Some(Self(Bytes::copy_from_slice(target.as_bytes())))))
    }
}

/// Parts that were removed from a head.
#[derive(Debug, Default)]
pub(super) struct Aside {
    pub(super) target: Option<Bytes>,
    pub(super) expectations: Vec<HeaderValue>,
}

impl Aside {
    pub(super) fn is_empty(&self) -> bool {
        let Self { target, expectations } = self;
        target.is_none() && expectations.is_empty()
    }

    /// Puts the parts back into the request.
    pub(super) fn restore<B>(self, request: &mut Request<B>) {
        let Self { target, expectations } = self;
        for expectation in expectations {
            request.headers_mut().append(EXPECT, expectation);
        }
        if let Some(target) = target {
            request.extensions_mut().insert(RawTarget(target));
        }
    }
}

/// A target that is escaped for hyper.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Respelled {
    /// The range of the path and query in the head.
    pub(super) place: Range<usize>,
    /// The escaped path and query.
    pub(super) spelled: Vec<u8>,
    /// The path and query as the client sent them, for the application.
    pub(super) raw: Bytes,
}

/// Escapes the target of a head for hyper; `None` if nothing needs escaping, or if the target is neither a path nor an
/// HTTP URI.
pub(super) fn spelled_for_hyper(head: &[u8]) -> Option<Respelled> {
    let line = &head[..memchr::memchr(b'\n', head)?];
    let start = memchr::memchr(b' ', line)? + 1;
    let end = start + memchr::memchr(b' ', &line[start..])?;
    let start = start + path_from(&line[start..end])?;
    let target = &line[start..end];
    let spelled = escaped(target)?.into_bytes();
    // The path of a URI may be empty; that of a request is not (RFC 9112, section 3.2.1).
    let slash: &[u8] = if target.starts_with(b"/") { b"" } else { b"/" };
    let raw = [slash, target].concat().into();
    Some(Respelled { place: start..end, spelled, raw })
}

/// Escapes a path and query for hyper; `None` if nothing needs escaping. Fragments are left alone because they are
/// rejected, control characters because they delimit requests.
fn escaped(target: &[u8]) -> Option<String> {
    if target.iter().any(|byte| *byte == b'#' || *byte == b' ' || byte.is_ascii_control()) {
        return None;
    }
    Some(percent_encode(target, REFUSED).to_string()).filter(|spelled| spelled.as_bytes() != target)
}

/// Returns the position of the path and query in a target that is a path or an HTTP URI.
fn path_from(target: &[u8]) -> Option<usize> {
    if target.starts_with(b"/") {
        return Some(0);
    }
    let has_scheme =
        |scheme: &&[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let authority = [&b"http://"[..], b"https://"].into_iter().find(has_scheme)?.len();
    Some(authority + memchr::memchr2(b'/', b'?', &target[authority..])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_of_a_connection() {
        for (target, spelled, is_raw) in [
            ("/a?b={c}", Some("/a?b={c}"), false),
            ("/a?q=<b>", Some("/a?q=%3Cb%3E"), true),
            ("/a`\u{e9}", Some("/a%60%C3%A9"), true),
            ("/a?\"", Some("/a?%22"), true),
            ("/a#b", None, false),
            ("/a<#b", None, false),
            ("/a b<", None, false),
            ("/a\n<", None, false),
            ("a<", None, false),
            ("", None, false),
        ] {
            let read = RawTarget::read(target);
            let expected = spelled.map(|spelled| {
                let raw = is_raw.then(|| RawTarget(Bytes::copy_from_slice(target.as_bytes())));
                (spelled.parse().unwrap(), raw)
            });
            assert_eq!(read, expected, "{target:?}");
        }
    }

    #[test]
    fn bytes_that_hyper_refuses_are_escaped() {
        for (target, expected) in [
            (&b"/items?filter={\"a\":1}"[..], Some((0, "/items?filter=%7B%22a%22:1%7D"))),
            (b"/a?q=<b>", Some((0, "/a?q=%3Cb%3E"))),
            (b"/a`b", Some((0, "/a%60b"))),
            (b"/caf\xe9", Some((0, "/caf%E9"))),
            (b"/http://shop/<", Some((0, "/http://shop/%3C"))),
            (b"http://shop/<", Some((11, "/%3C"))),
            (b"HTTPS://shop:80/caf\xe9?\"", Some((15, "/caf%E9?%22"))),
            (b"http://shop?<", Some((11, "?%3C"))),
            // The host stays as it is, and is rejected afterwards.
            (b"http://<shop>/`", Some((13, "/%60"))),
            (b"http://<shop>/", None),
            (b"http://<shop>", None),
            (b"http:///<", Some((7, "/%3C"))),
            (b"ftp://shop/<", None),
            (b"http:/shop/<", None),
            (b"shop/<", None),
            (b"<", None),
            (b"*", None),
            (b"/a|b^c\\d", None),
            (b"/a%20b", None),
            (b"/a<b#c", None),
            (b"http://shop/<#c", None),
            (b"/a\x01<", None),
        ] {
            let head = [b"GET ", target, b" HTTP/1.1\r\n\r\n"].concat();
            let expected = expected.map(|(from, spelled)| {
                let raw = &target[from..];
                let slash: &[u8] = if raw.starts_with(b"?") { b"/" } else { b"" };
                Respelled {
                    place: 4 + from..4 + target.len(),
                    spelled: spelled.as_bytes().to_vec(),
                    raw: [slash, raw].concat().into(),
                }
            });
            assert_eq!(spelled_for_hyper(&head), expected, "{:?}", target.escape_ascii().to_string());
        }
    }
}
