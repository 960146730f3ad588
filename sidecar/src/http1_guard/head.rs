//! The head of an HTTP/1 request, checked before anything else reads it.
//!
//! What two servers could read differently is refused here (RFC 9112, section 11.2), so that neither the cache nor the
//! application ever sees it.

use std::mem::MaybeUninit;

use http::{HeaderValue, Uri, uri::Scheme};
use larder_policy::Fields;

use super::{framing::Framing, request_error::RequestError};

/// The longest head that is read.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;
/// The longest request target.
pub(super) const MAX_TARGET: usize = 32 << 10;
/// The most field lines.
pub(super) const MAX_LINES: usize = 100;

/// The field lines of a head, where they were read.
#[derive(Debug)]
pub struct Lines<'a>(&'a [httparse::Header<'a>]);

impl Fields for Lines<'_> {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|line| (line.name.as_bytes(), line.value))
    }
}

/// A head as it was read.
#[derive(Debug)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a str,
    /// The request target.
    pub target: &'a str,
    /// The field lines.
    pub lines: Lines<'a>,
    /// Whether it is HTTP/1.1, and so persistent unless it says otherwise.
    pub is_http11: bool,
}

/// A head in another form, and the values of `Expect` that it has no longer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) head: Vec<u8>,
    pub(super) expectations: Vec<HeaderValue>,
}

/// What a buffer begins with.
#[derive(Debug)]
pub(super) enum Scan<T> {
    /// Less than a head.
    Incomplete,
    /// A head of so many bytes.
    Head(usize, T),
    /// Something that is refused.
    Refused(RequestError),
}

/// The length of the empty line that a buffer begins with: one before a request line means nothing (RFC 9112, section 2.2).
pub(super) fn empty_line(buffer: &[u8]) -> Option<usize> {
    match buffer {
        [b'\r', b'\n', ..] => Some(2),
        [b'\n', ..] => Some(1),
        _ => None,
    }
}

/// Where the head ends that a buffer begins with, which is not with an empty line; nothing before `from` ends one.
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

/// Reads the head that `buffer` begins with, if it is whole, and hands it to `use_it` before it is gone.
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
            let head = Head { method, target, lines: Lines(headers), is_http11: version == 1 };
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
    /// How the body is framed, if there is nothing wrong with the head.
    pub(super) fn check(&self) -> Result<Framing, RequestError> {
        self.check_first()?;
        self.check_rest()
    }

    /// What is checked of every head, even of one that memory answers: it costs a look at the target, and one at each line.
    pub(super) fn check_first(&self) -> Result<(), RequestError> {
        if self.target.len() > MAX_TARGET {
            return Err(RequestError::TargetTooLong);
        }
        // A fragment is never sent (RFC 9110, section 7.1); who reads one may drop it or not.
        if memchr::memchr(b'#', self.target.as_bytes()).is_some() {
            return Err(RequestError::Target);
        }
        self.check_host()
    }

    /// The rest; how the body is framed.
    pub(super) fn check_rest(&self) -> Result<Framing, RequestError> {
        self.check_target()?;
        self.framing()
    }

    /// The head in the form that hyper is to get it in, where that is another one:
    /// - a question about the server that an absolute target without a path names has `*` for its target (RFC 9112, section
    ///   3.2.4),
    /// - expectations are taken out. Those of HTTP/1.0 mean nothing (RFC 9110, section 10.1.1).
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
                for part in [name, b": ", value, b"\r\n"] {
                    head.extend_from_slice(part);
                }
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

    /// A path, an HTTP URI, `*`, or, for CONNECT, a host (RFC 9112, section 3.2). Servers read the path of any other URI as
    /// that of a request.
    fn check_target(&self) -> Result<(), RequestError> {
        let target = Uri::try_from(self.target).map_err(|_| RequestError::Target)?;
        let has_form = match target.scheme() {
            Some(scheme) => *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS,
            None => self.method == "CONNECT" || self.target == "*" || self.target.starts_with('/'),
        };
        if !has_form {
            return Err(RequestError::Target);
        }
        // Who is named before an `@` may be taken for the host (RFC 9110, section 4.2.4).
        match target.authority() {
            Some(authority) if !authority.as_str().bytes().all(in_host) => Err(RequestError::Target),
            _ => Ok(()),
        }
    }

    /// One `Host`, for HTTP/1.1 (RFC 9112, section 3.2).
    fn check_host(&self) -> Result<(), RequestError> {
        let mut hosts = self.lines.values("host");
        match (hosts.next(), hosts.next()) {
            (None, _) if self.is_http11 => Err(RequestError::Host),
            (_, Some(_)) => Err(RequestError::Host),
            (Some(host), None) if !host.iter().copied().all(in_host) => Err(RequestError::Host),
            _ => Ok(()),
        }
    }

    /// RFC 9112, section 6.3, without what a server may tolerate there.
    fn framing(&self) -> Result<Framing, RequestError> {
        let mut codings = self.lines.values("transfer-encoding");
        let mut lengths = self.lines.values("content-length");
        match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
            (None, _, None, _) => Ok(Framing::None),
            (None, _, Some(length), None) => content_length(length).map(Framing::Length),
            (None, _, Some(_), Some(_)) => Err(RequestError::ContentLength),
            (Some(_), _, Some(_), _) => Err(RequestError::TwoLengths),
            (Some(coding), None, None, _) if self.is_http11 && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Framing::chunked())
            }
            (Some(_), _, None, _) => Err(RequestError::TransferCoding),
        }
    }
}

pub(super) fn in_host(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"#/<>?@\\^`{|}".contains(&byte)
}

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
