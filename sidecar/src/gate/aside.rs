//! Parts of a head that hyper must not see, and that the application is to get all the same.
//!
//! - hyper answers `Expect: 100-continue` itself as soon as somebody reads the body. Whether the client is to go on is the
//!   application's to say (RFC 9110, section 10.1.1).
//! - hyper and `http::Uri` refuse bytes in a target that RFC 3986 does not allow there. Applications take them, browsers of old and
//!   careless clients send them: `?filter={"a":1}`, `?q=<b>`, bytes that are no UTF-8.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderValue, Request, header::EXPECT};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

/// The bytes of a target that are escaped for hyper: what `http::Uri` refuses somewhere in it, and all that is not ASCII.
const REFUSED: &AsciiSet = &CONTROLS.add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}');

/// The target of a request as the client sent it, where hyper has another spelling of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTarget(pub Bytes);

/// What was taken out of a head.
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

    /// Puts it back.
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

/// The place of the target in a head, and how it is spelled for hyper; `None` if that makes no difference, or if it is no
/// path.
pub(super) fn spelled_for_hyper(head: &[u8]) -> Option<(Range<usize>, Vec<u8>)> {
    let line = &head[..memchr::memchr(b'\n', head)?];
    let start = memchr::memchr(b' ', line)? + 1;
    let end = start + memchr::memchr(b' ', &line[start..])?;
    let target = &line[start..end];
    let is_path = target.starts_with(b"/");
    // A fragment is refused, and control characters are what requests are split by.
    if !is_path || target.iter().any(|byte| *byte == b'#' || byte.is_ascii_control()) {
        return None;
    }
    let spelled = percent_encode(target, REFUSED).to_string().into_bytes();
    (spelled != target).then_some((start..end, spelled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hyper_refuses_is_escaped() {
        for (target, spelled) in [
            (&b"/items?filter={\"a\":1}"[..], Some("/items?filter=%7B%22a%22:1%7D")),
            (b"/a?q=<b>", Some("/a?q=%3Cb%3E")),
            (b"/a`b", Some("/a%60b")),
            (b"/caf\xe9", Some("/caf%E9")),
            (b"/a|b^c\\d", None),
            (b"/a%20b", None),
            (b"/a<b#c", None),
            (b"/a\x01<", None),
            (b"http://shop/<", None),
        ] {
            let head = [b"GET ", target, b" HTTP/1.1\r\n\r\n"].concat();
            let expected = spelled.map(|text| (4..4 + target.len(), text.as_bytes().to_vec()));
            assert_eq!(spelled_for_hyper(&head), expected, "{:?}", target.escape_ascii().to_string());
        }
    }
}
