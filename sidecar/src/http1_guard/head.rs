//! Strict parsing of HTTP/1 request heads, before anything else reads them.
//!
//! Requests that two HTTP parsers could interpret differently (request smuggling; RFC 9112, section 11.2) are rejected
//! here, so that neither the cache nor the application ever sees them.

use std::mem::MaybeUninit;

use http::{HeaderValue, Uri, uri::Scheme};
use larder_policy::{Fields, is_named};

use super::{framing::Framing, request_error::RequestError};
use crate::headers::write_line;

/// Maximum length of a head in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;
/// Maximum length of a request target in bytes.
pub(crate) const MAX_TARGET: usize = 32 << 10;
/// Maximum number of field lines.
pub(crate) const MAX_LINES: usize = 100;

/// The field lines of a head, in the buffer that they were read into.
#[derive(Debug)]
pub struct Lines<'a>(&'a [httparse::Header<'a>]);

impl Fields for Lines<'_> {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|line| (line.name.as_bytes(), line.value))
    }
}

/// A parsed head.
#[derive(Debug)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a str,
    /// The request target.
    pub target: &'a str,
    /// The field lines.
    pub lines: Lines<'a>,
    /// True for HTTP/1.1, where connections are persistent by default.
    pub is_http11: bool,
    /// All of it.
    text: &'a [u8],
    decisive: Decisive<'a>,
}

/// The lines that decide how a request is read, found in one pass.
#[derive(Debug, Default)]
struct Decisive<'a> {
    hosts: Values<'a>,
    codings: Values<'a>,
    lengths: Values<'a>,
}

/// The values of a field.
#[derive(Debug, Default)]
struct Values<'a> {
    first: Option<&'a [u8]>,
    has_more: bool,
}

impl<'a> Decisive<'a> {
    fn of(lines: &[httparse::Header<'a>]) -> Self {
        let mut decisive = Self::default();
        for line in lines {
            let name = line.name.as_bytes();
            let values = match name.len() {
                4 if is_named(name, b"host") => &mut decisive.hosts,
                14 if is_named(name, b"content-length") => &mut decisive.lengths,
                17 if is_named(name, b"transfer-encoding") => &mut decisive.codings,
                _ => continue,
            };
            values.has_more = values.first.is_some();
            values.first = values.first.or(Some(line.value));
        }
        decisive
    }
}

/// A rewritten head, and the values of `Expect` that were removed from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) head: Vec<u8>,
    pub(super) expectations: Vec<HeaderValue>,
}

/// Result of scanning the beginning of a buffer.
#[derive(Debug)]
pub(super) enum Scan<T> {
    /// An incomplete head.
    Incomplete,
    /// A head of this length.
    Head(usize, T),
    /// A head that is rejected.
    Refused(RequestError),
}

/// Returns the length of the empty line at the beginning of a buffer: one before a request line is ignored (RFC 9112,
/// section 2.2).
pub(super) fn empty_line(buffer: &[u8]) -> Option<usize> {
    match buffer {
        [b'\r', b'\n', ..] => Some(2),
        [b'\n', ..] => Some(1),
        _ => None,
    }
}

/// Returns the end of the head at the beginning of a buffer without an empty first line. No head ends before `from`.
pub(super) fn end(buffer: &[u8], from: usize) -> Option<usize> {
    let mut at = from.saturating_sub(3);
    while let Some(found) = memchr::memchr(b'\n', &buffer[at..]) {
        at += found + 1;
        match &buffer[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// Parses the head at the beginning of `buffer`, if it is complete, and passes it to `use_it`.
pub(super) fn scan<T>(buffer: &[u8], use_it: impl FnOnce(&Head<'_>) -> T) -> Scan<T> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(buffer, &mut lines) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Scan::Incomplete,
        Err(httparse::Error::TooManyHeaders) => return Scan::Refused(RequestError::HeadTooLarge),
        Err(httparse::Error::Version) => return Scan::Refused(RequestError::Version),
        Err(_) => return Scan::Refused(RequestError::Syntax),
    };
    match request {
        httparse::Request { method: Some(method), path: Some(target), version: Some(version), headers } => {
            let (decisive, is_http11) = (Decisive::of(headers), version == 1);
            let text = &buffer[..length];
            let head = Head { method, target, lines: Lines(headers), is_http11, text, decisive };
            Scan::Head(length, use_it(&head))
        }
        _ => Scan::Refused(RequestError::Syntax),
    }
}

/// Hands the head that `buffer` begins with to `use_it` if it is complete and valid.
#[cfg(test)]
pub(crate) fn with_valid_head<T>(buffer: &[u8], use_it: impl FnOnce(&Head<'_>) -> T) -> Option<T> {
    match scan(buffer, |head| head.check().is_ok().then(|| use_it(head))) {
        Scan::Head(_, result) => result,
        Scan::Incomplete | Scan::Refused(_) => None,
    }
}

impl Head<'_> {
    /// Checks the head completely, and returns the framing of the body.
    pub(super) fn check(&self) -> Result<Framing, RequestError> {
        self.check_first()?;
        self.check_rest()
    }

    /// Checks every head, even of a request with a response in memory. Costs one look at the target and one at each
    /// line.
    pub(super) fn check_first(&self) -> Result<(), RequestError> {
        if self.target.len() > MAX_TARGET {
            return Err(RequestError::TargetTooLong);
        }
        // Clients never send a fragment (RFC 9110, section 7.1); a server may drop it or not.
        if memchr::memchr(b'#', self.target.as_bytes()).is_some() {
            return Err(RequestError::Target);
        }
        self.check_host()
    }

    /// Does the remaining checks, and returns the framing of the body.
    pub(super) fn check_rest(&self) -> Result<Framing, RequestError> {
        self.check_target()?;
        self.framing()
    }

    /// Returns the text without its empty line, if it is written as a proxy would write it: each line with one space behind the
    /// colon and CRLF at its end.
    pub fn usual_text(&self) -> Option<&[u8]> {
        let request_line = [self.method, self.target, "HTTP/1.1"].map(str::len).iter().sum::<usize>() + 2;
        let mut rest = self.text.get(request_line..)?.strip_prefix(b"\r\n")?;
        for (name, value) in self.lines.lines() {
            rest = rest.get(name.len()..)?.strip_prefix(b": ")?;
            rest = rest.get(value.len()..)?.strip_prefix(b"\r\n")?;
        }
        self.text.strip_suffix(b"\r\n").filter(|_| rest == b"\r\n")
    }

    /// Returns the head as hyper must get it, if it has to differ:
    /// - an absolute target without a path, in a request about the server itself, becomes `*` (RFC 9112, section
    ///   3.2.4),
    /// - expectations are removed. Those of HTTP/1.0 are ignored (RFC 9110, section 10.1.1).
    pub(super) fn rewritten(&self) -> Option<Rewritten> {
        let server = self.server_asked_about();
        let expectations: Vec<_> = self.lines.values("expect").collect();
        if server.is_none() && expectations.is_empty() {
            return None;
        }
        let (target, version) =
            (server.map_or(self.target, |_| "*"), if self.is_http11 { "1.1" } else { "1.0" });
        let mut head = format!("{} {target} HTTP/{version}\r\n", self.method).into_bytes();
        if let Some(host) = server {
            head.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
        }
        for (name, value) in self.lines.lines() {
            let is_said = name.eq_ignore_ascii_case(b"host") && server.is_some();
            if !is_said && !name.eq_ignore_ascii_case(b"expect") {
                write_line(&mut head, name, value);
            }
        }
        head.extend_from_slice(b"\r\n");
        let restored = expectations.into_iter().filter(|_| self.is_http11);
        let expectations = restored.filter_map(|value| HeaderValue::from_bytes(value).ok()).collect();
        Some(Rewritten { head, expectations })
    }

    fn server_asked_about(&self) -> Option<&str> {
        if self.method != "OPTIONS" || self.target.starts_with('/') {
            return None;
        }
        let (_, host) = self.target.split_once("://").filter(|(_, host)| !host.contains(['/', '?']))?;
        Some(host)
    }

    /// Accepts a path, an HTTP URI, `*`, or, for CONNECT, an authority (RFC 9112, section 3.2). Servers use the path of
    /// any other URI as that of a request.
    fn check_target(&self) -> Result<(), RequestError> {
        if self.target.starts_with('/') && self.target.bytes().all(|byte| USUAL[byte as usize]) {
            return Ok(());
        }
        let target = Uri::try_from(self.target).map_err(|_| RequestError::Target)?;
        let has_form = match target.scheme() {
            Some(scheme) => *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS,
            None => self.method == "CONNECT" || self.target == "*" || self.target.starts_with('/'),
        };
        if !has_form {
            return Err(RequestError::Target);
        }
        // User information before an `@` may be mistaken for the host (RFC 9110, section 4.2.4).
        match target.authority() {
            Some(authority) if !authority.as_str().bytes().all(in_host) => Err(RequestError::Target),
            _ => Ok(()),
        }
    }

    /// Requires exactly one `Host` for HTTP/1.1 (RFC 9112, section 3.2).
    fn check_host(&self) -> Result<(), RequestError> {
        match &self.decisive.hosts {
            Values { first: None, .. } if self.is_http11 => Err(RequestError::Host),
            Values { has_more: true, .. } => Err(RequestError::Host),
            Values { first: Some(host), .. } if !host.iter().copied().all(in_host) => Err(RequestError::Host),
            Values { .. } => Ok(()),
        }
    }

    /// Determines the framing by RFC 9112, section 6.3, without its optional leniency.
    fn framing(&self) -> Result<Framing, RequestError> {
        let Decisive { codings, lengths, .. } = &self.decisive;
        match (codings.first, lengths.first) {
            (None, None) => Ok(Framing::None),
            (None, Some(_)) if lengths.has_more => Err(RequestError::ContentLength),
            (None, Some(length)) => content_length(length).map(Framing::Length),
            (Some(_), Some(_)) => Err(RequestError::TwoLengths),
            (Some(coding), None)
                if self.is_http11 && !codings.has_more && coding.eq_ignore_ascii_case(b"chunked") =>
            {
                Ok(Framing::chunked())
            }
            (Some(_), None) => Err(RequestError::TransferCoding),
        }
    }
}

pub(crate) fn in_host(byte: u8) -> bool {
    HOST[byte as usize]
}

/// The bytes of a host with a port.
const HOST: [bool; 256] = {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < table.len() {
        let is_excluded = matches!(
            byte as u8,
            b'"' | b'#' | b'/' | b'<' | b'>' | b'?' | b'@' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
        );
        table[byte] = (byte as u8).is_ascii_graphic() && !is_excluded;
        byte += 1;
    }
    table
};

/// The bytes of usual targets, each of which may be anywhere in a path and its query.
const USUAL: [bool; 256] = {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < table.len() {
        let is_mark = matches!(
            byte as u8,
            b'-' | b'.' | b'_' | b'~' | b'/' | b'?' | b'&' | b'=' | b'%' | b'+' | b',' | b':'
        );
        table[byte] = is_mark || (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

pub(super) fn content_length(text: &[u8]) -> Result<u64, RequestError> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let parsed = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    parsed.ok_or(RequestError::ContentLength)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Framing, RequestError> {
        match scan(text.as_bytes(), |head| head.check()) {
            Scan::Head(length, checked) => {
                assert_eq!(end(text.as_bytes(), 0), Some(length), "{text:?}");
                checked
            }
            Scan::Refused(error) => Err(error),
            Scan::Incomplete => panic!("incomplete: {text:?}"),
        }
    }

    #[test]
    fn bytes_of_a_host_are_visible_and_delimit_no_other_part_of_a_uri() {
        for byte in 0..=u8::MAX {
            let is_other = b"\"#/<>?@\\^`{|}".contains(&byte);
            assert_eq!(in_host(byte), byte.is_ascii_graphic() && !is_other, "{byte}");
        }
    }

    #[test]
    fn usual_bytes_of_a_target_are_valid_anywhere() {
        for byte in (0..128).filter(|&byte| USUAL[byte as usize]).map(char::from) {
            for target in [format!("/{byte}"), format!("/a{byte}b"), format!("/a?{byte}b{byte}")] {
                let target = Uri::try_from(target).unwrap();
                assert!(target.scheme().is_none() && target.authority().is_none(), "{target}");
            }
        }
        assert!(USUAL[128..].iter().all(|is_usual| !is_usual));
    }

    #[test]
    fn only_text_in_the_usual_form_is_copied() {
        for (line, is_usual) in [
            ("A: b\r\n", true),
            ("", true),
            ("A: \r\n", true),
            ("A: b: c \t d\r\nE: f\r\n", true),
            ("A:\r\n", false),
            ("A:b\r\n", false),
            ("A:  b\r\n", false),
            ("A:\tb\r\n", false),
            ("A: b \r\n", false),
            ("A: b\n", false),
            ("A:  b\nC:d\r\n", false),
        ] {
            let head = format!("GET /a HTTP/1.1\r\nHost: shop\r\n{line}");
            let text = format!("{head}\r\nmore");
            let Scan::Head(_, usual) = scan(text.as_bytes(), |head| head.usual_text().map(<[u8]>::to_vec))
            else {
                panic!("{text:?}")
            };
            assert_eq!(usual, is_usual.then(|| head.into_bytes()), "{text:?}");
        }
        for text in ["GET /a HTTP/1.1\nHost: shop\r\n\r\n", "GET /a HTTP/1.1\r\nHost: shop\r\n\n"] {
            assert!(matches!(scan(text.as_bytes(), |head| head.usual_text().is_none()), Scan::Head(_, true)));
        }
    }

    #[test]
    fn framing_of_a_body_is_read() {
        let request = |lines: &str| check(&format!("POST /a HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"));
        assert_eq!(request(""), Ok(Framing::None));
        assert_eq!(request("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(request("transfer-encoding: Chunked\r\n"), Ok(Framing::chunked()));
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let request = |lines: &str| check(&format!("POST /a HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"));
        for (lines, error) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", RequestError::TwoLengths),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", RequestError::ContentLength),
            ("Content-Length: 5, 5\r\n", RequestError::ContentLength),
            ("Content-Length: +5\r\n", RequestError::ContentLength),
            ("Content-Length: 99999999999999999999\r\n", RequestError::ContentLength),
            ("Content-Length:\r\n", RequestError::ContentLength),
            ("Transfer-Encoding: gzip, chunked\r\n", RequestError::TransferCoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", RequestError::TransferCoding),
            ("Transfer-Encoding: xchunked\r\n", RequestError::TransferCoding),
            ("Transfer-Encoding : chunked\r\n", RequestError::Syntax),
            ("X: a\r\n b\r\n", RequestError::Syntax),
            ("X: a\rb\r\n", RequestError::Syntax),
            ("X: a\0b\r\n", RequestError::Syntax),
            ("Host: other\r\n", RequestError::Host),
        ] {
            assert_eq!(request(lines), Err(error), "{lines:?}");
        }
        for (text, error) in [
            ("GET /a HTTP/1.1\r\n\r\n", RequestError::Host),
            ("GET /a HTTP/1.1\r\nHost: a b\r\n\r\n", RequestError::Host),
            ("GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n", RequestError::Host),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("GET http://me@a/b HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("GET http://me:secret@a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("GET http://a\"b/ HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("GET /a HTTP/2.0\r\nHost: a\r\n\r\n", RequestError::Version),
            ("POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", RequestError::TransferCoding),
            ("GET  /a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Syntax),
            ("\rPUT /a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Syntax),
            (" PUT /a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Syntax),
            ("\0PUT /a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Syntax),
            ("PUT\x0b/a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Syntax),
            ("PUT /a http/1.1\r\nHost: a\r\n\r\n", RequestError::Version),
            ("PUT ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("PUT a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("PUT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
            ("PUT ?a HTTP/1.1\r\nHost: a\r\n\r\n", RequestError::Target),
        ] {
            assert_eq!(check(text), Err(error), "{text:?}");
        }
        assert_eq!(check("GET /a HTTP/1.0\r\n\r\n"), Ok(Framing::None));
        assert_eq!(check("GET http://a:80/me@b HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::None));
        assert_eq!(check("GET http://[::1]:80/ HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::None));
    }

    #[test]
    fn options_for_a_server_names_no_path() {
        for (target, is_one) in [
            ("http://shop:80", true),
            ("http://shop:80/", false),
            ("http://shop:80?a", false),
            ("/http://shop:80", false),
            ("*", false),
        ] {
            let text = format!("OPTIONS {target} HTTP/1.1\r\nHOST: a\r\nX: b\r\n\r\n");
            let Scan::Head(_, asked) = scan(text.as_bytes(), |head| head.rewritten()) else {
                panic!("{text:?}")
            };
            let asked = asked.map(|rewritten| rewritten.head);
            let expected = b"OPTIONS * HTTP/1.1\r\nHost: shop:80\r\nX: b\r\n\r\n";
            assert_eq!(asked, is_one.then(|| expected.to_vec()), "{target}");
        }
    }

    #[test]
    fn expectations_are_taken_out() {
        for (version, expectations) in [("1.1", &["100-continue", "x"][..]), ("1.0", &[])] {
            let text = format!(
                "PUT /a HTTP/{version}\r\nHost: a\r\nexpect: 100-continue\r\nX: b\r\nExpect: x\r\n\r\n"
            );
            let Scan::Head(_, rewritten) = scan(text.as_bytes(), |head| head.rewritten()) else {
                panic!("{text:?}")
            };
            let head = format!("PUT /a HTTP/{version}\r\nHost: a\r\nX: b\r\n\r\n").into_bytes();
            let expectations = expectations.iter().map(|value| HeaderValue::from_static(value)).collect();
            assert_eq!(rewritten, Some(Rewritten { head, expectations }));
        }
    }

    #[test]
    fn end_of_a_request_head_is_found_in_any_segmentation() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nmore";
        for cut in 0..=text.len() {
            let expected = (cut >= text.len() - 4).then_some(text.len() - 4);
            let searched = cut.saturating_sub(1).min(text.len() - 5);
            assert_eq!(end(&text[..cut], searched), expected, "{cut}");
        }
    }
}
