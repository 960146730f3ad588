//! Parsing and repair of response heads, so that what applications send is accepted.
//!
//! Browsers and curl accept more than RFC 9112 allows, so applications that send it work. Unambiguous deviations are repaired. A
//! head that clients could interpret in different ways, or that would lose a caching directive, is an error with the reason.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;
use larder_policy::is_named;
use memchr::memchr_iter;

use crate::headers::TransferCoding;

mod clean;
mod repair;

use clean::Clean;
pub use clean::FieldLine;
pub(super) use clean::Lines;
use repair::repair;

/// Maximum number of header lines of a response.
pub(crate) const MAX_LINES: usize = 1_000;
/// Maximum size of the head of a response, in bytes.
pub(crate) const MAX_HEAD: usize = 128 << 10;

/// Reason why a response head is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// More than [`MAX_LINES`] header lines.
    #[error("more than {MAX_LINES} header lines")]
    TooManyLines,
    /// More than [`MAX_HEAD`] bytes.
    #[error("a head of more than {MAX_HEAD} bytes")]
    TooLarge,
    /// Too large for the memory that is left.
    #[error("not enough memory for a large head")]
    NoRoom,
    /// The first line is not an HTTP/1 status line (RFC 9112, section 4).
    #[error("no HTTP/1 status line")]
    StatusLine,
    /// A NUL or a bare CR, or a required line without a valid name (RFC 9112, section 5).
    #[error("an invalid header line")]
    Field,
    /// `Content-Length` is not a number, or several different ones (RFC 9112, section 6.3).
    #[error("a Content-Length that is not one number")]
    Length,
    /// A transfer coding other than `chunked`, or one in HTTP/1.0 (RFC 9112, section 6.1).
    #[error("a transfer coding other than chunked")]
    TransferCoding,
}

/// A parsed head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResponseHead<'a> {
    pub(super) status: u16,
    pub(super) framing: BodyFraming,
    /// True if a field says that the connection ends.
    pub(super) ends: bool,
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) lines: Lines,
}

/// Framing of a response's body (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// A number of bytes, 0 if there is no body.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All bytes until the connection ends.
    UntilClose,
}

impl BodyFraming {
    /// Returns true if the body is chunked where it is passed on over HTTP/1.1, because its length is not known in advance.
    pub const fn is_chunked_for_client(self) -> bool {
        matches!(self, Self::Chunked | Self::UntilClose)
    }
}

/// Returns the end of a head, after its empty line. The first `searched` bytes were searched before.
pub(super) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(2);
    memchr_iter(b'\n', &bytes[from..]).find_map(|at| {
        let after = from + at + 1;
        match &bytes[after..] {
            [b'\n', ..] => Some(after + 1),
            [b'\r', b'\n', ..] => Some(after + 2),
            _ => None,
        }
    })
}

/// Returns true if the bytes received so far can be the beginning of a head, so that other data fails at once.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    const VERSION: &[u8] = b"HTTP/1.";
    let seen = bytes.len().min(VERSION.len());
    bytes[..seen] == VERSION[..seen]
}

/// Parses the head at the beginning of `bytes`, if it is complete and needs no repair. `to_head` is true for the response to a HEAD
/// request, which has no body.
pub(super) fn clean(bytes: &[u8], to_head: bool) -> Option<Result<ResponseHead<'_>, HeadError>> {
    let Clean { status_line, framing, lines, length } = Clean::read(bytes)?;
    if lines.len() > MAX_LINES || framing.coding == TransferCoding::Identity {
        return None;
    }
    let ends = framing.ends_connection();
    let framing = framing.of_body(&status_line, to_head);
    Some(framing.map(|framing| ResponseHead {
        status: status_line.status,
        framing,
        ends,
        bytes: Cow::Borrowed(&bytes[..length]),
        lines,
    }))
}

/// Parses a complete head, and repairs it if necessary. `to_head` is true for the response to a HEAD request, which has no body.
///
/// # Errors
/// If the head is ambiguous or has too many lines.
pub(super) fn understand(head: &[u8], to_head: bool) -> Result<ResponseHead<'_>, HeadError> {
    if let Some(head) = clean(head, to_head) {
        return head;
    }
    let status_line = StatusLine::parse(lines(head).next().unwrap_or_default())?;
    if lines(head).skip(1).count() > MAX_LINES {
        return Err(HeadError::TooManyLines);
    }
    let (repaired, framing) = repair(head, &status_line)?;
    let framing = framing.of_body(&status_line, to_head)?;
    // The repair may have added a field which says that the connection ends.
    let Clean { framing: stated, lines, .. } = Clean::read(&repaired).ok_or(HeadError::Field)?;
    let (status, ends) = (status_line.status, stated.ends_connection());
    Ok(ResponseHead { status, framing, ends, bytes: Cow::Owned(repaired), lines })
}

/// Reads the status line of a head that was understood, as a response without fields.
///
/// # Errors
/// If there is no status line.
pub(super) fn status_line(head: &[u8]) -> Result<Response<()>, HeadError> {
    let StatusLine { minor, status, reason, .. } = StatusLine::parse(lines(head).next().unwrap_or_default())?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| HeadError::StatusLine)?;
    *response.version_mut() = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let reason = reason.strip_prefix(b" ").unwrap_or(reason);
    if response.status().canonical_reason().is_none_or(|canonical| canonical.as_bytes() != reason)
        && let Ok(reason) = ReasonPhrase::try_from(reason)
    {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// Reads the status line and the fields of a head that was understood. Values share its memory.
///
/// # Errors
/// If a name is too long.
pub(super) fn read(head: &Bytes, field_lines: &Lines) -> Result<Response<()>, HeadError> {
    let mut response = status_line(head)?;
    let headers = response.headers_mut();
    // More than there are fields: what is stored and served gets some.
    headers.reserve(field_lines.len() + 2);
    for FieldLine { name, value, .. } in field_lines.of(head) {
        let name = HeaderName::from_bytes(name).map_err(|_| HeadError::Field)?;
        let value = head.slice_ref(value);
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| HeadError::Field)?);
    }
    Ok(response)
}

/// Returns the lines of a head, without line ends and the final empty line.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    let lines = memchr_iter(b'\n', head).map(move |end| {
        let line = &head[start..end];
        start = end + 1;
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    lines.enumerate().take_while(|(number, line)| *number == 0 || !line.is_empty()).map(|(_, line)| line)
}

/// Returns true for the bytes of a field value. All of them are looked at, because a loop without an exit is done many at a time.
fn is_value(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |so_far, &byte| so_far & is_text(byte))
}

/// Returns true for a byte of a field value (RFC 9110, section 5.5).
const fn is_text(byte: u8) -> bool {
    (byte == b'\t') | (byte >= b' ') & (byte != 0x7f)
}

/// Returns a value with each control character replaced by a space (RFC 9110, section 5.5).
fn printable(value: &[u8]) -> Result<Vec<u8>, HeadError> {
    if value.iter().any(|byte| matches!(byte, 0 | b'\r')) {
        return Err(HeadError::Field);
    }
    let spaced = value.trim_ascii().iter().map(|&byte| if is_text(byte) { byte } else { b' ' });
    Ok(spaced.collect())
}

/// The status line of a response.
struct StatusLine<'a> {
    /// The minor version of HTTP/1: 0 or 1.
    minor: u8,
    status: u16,
    reason: &'a [u8],
    /// True if the line needs no repair.
    is_clean: bool,
}

impl<'a> StatusLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, HeadError> {
        let (version, rest) = line.split_at_checked(8).ok_or(HeadError::StatusLine)?;
        let minor = match version {
            b"HTTP/1.0" => 0,
            // A later minor version is a superset of earlier ones (RFC 9110, section 2.5).
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => 1,
            _ => return Err(HeadError::StatusLine),
        };
        let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
        let (code, reason) = rest[spaces..].split_at_checked(3).ok_or(HeadError::StatusLine)?;
        let is_code = code.iter().all(u8::is_ascii_digit) && code[0] != b'0';
        if !is_code || spaces == 0 || !matches!(reason.first(), None | Some(b' ' | b'\t')) {
            return Err(HeadError::StatusLine);
        }
        let status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        let is_clean = matches!(version[7], b'0' | b'1')
            && spaces == 1
            && reason.first().is_none_or(|&byte| byte == b' ')
            && is_value(reason);
        Ok(Self { minor, status, reason, is_clean })
    }

    fn written(&self) -> Result<Vec<u8>, HeadError> {
        let mut line = format!("HTTP/1.{} {} ", self.minor, self.status).into_bytes();
        line.extend(printable(self.reason).map_err(|_| HeadError::StatusLine)?.trim_ascii());
        line.extend(b"\r\n");
        Ok(line)
    }
}

/// Body framing stated by a head (RFC 9112, section 6.3), and the end of its connection.
#[derive(Default)]
struct ResponseFraming {
    coding: TransferCoding,
    length: Length,
    /// True if an option of `Connection` closes it.
    closes: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Length {
    #[default]
    Unknown,
    Known(u64),
    Invalid,
}

impl ResponseFraming {
    /// Returns true if a name of this length may be one that is seen.
    const fn may_see(length: usize) -> bool {
        matches!(length, 10 | 14 | 17)
    }

    fn see(&mut self, name: &[u8], value: &[u8]) {
        if is_named(name, b"transfer-encoding") {
            self.coding = self.coding.followed_by(value);
        } else if is_named(name, b"content-length") {
            for item in value.split(|&byte| byte == b',') {
                self.length = match (&self.length, number(item.trim_ascii())) {
                    (Length::Unknown, Some(length)) => Length::Known(length),
                    (Length::Known(known), Some(length)) if *known == length => Length::Known(length),
                    _ => Length::Invalid,
                };
            }
        } else if is_named(name, b"connection") {
            let mut options = value.split(|&byte| byte == b',');
            self.closes |= options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
        }
    }

    /// Returns true if the connection ends after the response: a field says so, or others would delimit the body by its length
    /// (RFC 9112, section 6.3).
    fn ends_connection(&self) -> bool {
        self.closes || self.length != Length::Unknown && self.coding == TransferCoding::Chunked
    }

    /// Returns the framing of the body of a response, which the one to a HEAD request and some others do not have.
    fn of_body(&self, status_line: &StatusLine<'_>, to_head: bool) -> Result<BodyFraming, HeadError> {
        let has_body = !to_head && !matches!(status_line.status, 100..=199 | 204 | 304);
        if has_body { self.check(status_line.minor) } else { Ok(BodyFraming::Length(0)) }
    }

    fn check(&self, minor: u8) -> Result<BodyFraming, HeadError> {
        match (&self.coding, &self.length) {
            (TransferCoding::Chunked, _) if minor == 1 => Ok(BodyFraming::Chunked),
            (TransferCoding::Chunked | TransferCoding::Unsupported, _) => Err(HeadError::TransferCoding),
            (TransferCoding::None | TransferCoding::Identity, Length::Invalid) => Err(HeadError::Length),
            (TransferCoding::None | TransferCoding::Identity, Length::Known(length)) => {
                Ok(BodyFraming::Length(*length))
            }
            (TransferCoding::None | TransferCoding::Identity, Length::Unknown) => Ok(BodyFraming::UntilClose),
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let more = |number: u64, digit: &u8| {
        digit.is_ascii_digit().then_some(())?;
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    };
    digits.first()?;
    digits.iter().try_fold(0, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(text: &str) -> Result<String, HeadError> {
        understand(text.as_bytes(), false).map(|head| String::from_utf8(head.bytes.into_owned()).unwrap())
    }

    #[test]
    fn clean_heads_stay_as_they_are() {
        for head in [
            "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.0 404 Not Found\r\n\r\n",
            "HTTP/1.1 200\r\nA:b\r\nA:\r\n\r\n",
            "HTTP/1.1 200 \nA: b\tc\n\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding:  Chunked \r\n\r\n",
            "HTTP/1.1 200 \u{fc}blich\r\nX: \u{fc}\r\nContent-Length: 2, 2\r\n\r\n",
        ] {
            let head = head.as_bytes();
            let ResponseHead { bytes, .. } = understand(head, false).unwrap();
            assert!(matches!(bytes, Cow::Borrowed(bytes) if bytes == head));
        }
    }

    #[test]
    fn faults_with_one_meaning_are_repaired() {
        for (head, repaired) in [
            ("HTTP/1.1 200 OK\r\nX-Legacy : a\r\n\r\n", "HTTP/1.1 200 OK\r\nX-Legacy: a\r\n\r\n"),
            ("HTTP/1.1 200 OK\r\nA: b\x01c\x7f\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b c\r\n\r\n"),
            (
                "HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\td\r\nE: f\r\n\r\n",
                "HTTP/1.1 200 OK\r\nA: b c d\r\nE: f\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\n: x\r\nA: b\r\n\r\n",
                "HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nnonsense\r\n and more\r\n\r\n",
                "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nA: b\r\nBad Name: x\r\n folded\r\n\r\n",
                "HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\n",
            ),
            ("HTTP/1.1  200   OK\x02\r\nA: b\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n\r\n"),
            ("HTTP/1.2 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
            (
                "HTTP/1.1 200 OK\r\nCache-Control : no-store\r\n\r\n",
                "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            ),
        ] {
            assert_eq!(understood(head).as_deref(), Ok(repaired), "{head:?}");
        }
    }

    #[test]
    fn connection_ends_if_a_field_says_so_or_two_frame_the_body() {
        for (lines, ends) in [
            ("Content-Length: 3\r\nConnection: keep-alive\r\nX-Own-Name: close", false),
            ("Transfer-Encoding: chunked", false),
            ("Connection: x, Close", true),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked", true),
            ("Content-Length : 3", true),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n");
            assert_eq!(understand(head.as_bytes(), false).unwrap().ends, ends, "{lines}");
        }
    }

    #[test]
    fn understood_head_is_read_with_its_reason_and_framing() {
        for (head, reason, framing) in [
            ("HTTP/1.1 200 OK\r\nA:\tb \r\nContent-Length: 3\r\n\r\n", None, BodyFraming::Length(3)),
            ("HTTP/1.0 200 Fine\nA: b\n\n", Some("Fine"), BodyFraming::UntilClose),
            (
                "HTTP/1.1 200\r\nA : b\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
                Some(""),
                BodyFraming::Chunked,
            ),
            ("HTTP/1.1 204 No Content\r\nA: b\r\nContent-Length: 3\r\n\r\n", None, BodyFraming::Length(0)),
        ] {
            let understood = understand(head.as_bytes(), false).unwrap();
            assert_eq!(understood.framing, framing, "{head:?}");
            let response = read(&understood.bytes.into_owned().into(), &understood.lines).unwrap();
            let is_old = head.starts_with("HTTP/1.0");
            assert_eq!(response.version() == Version::HTTP_10, is_old, "{head:?}");
            assert_eq!(response.headers()["a"], "b", "{head:?}");
            let said = response.extensions().get::<ReasonPhrase>();
            assert_eq!(said.map(ReasonPhrase::as_bytes), reason.map(str::as_bytes), "{head:?}");
        }
    }

    #[test]
    fn faults_with_two_meanings_are_named() {
        use HeadError::{Field, Length, StatusLine, TransferCoding};
        for (head, error) in [
            ("nonsense\r\n\r\n", StatusLine),
            ("HTTP/2.0 200 OK\r\n\r\n", StatusLine),
            ("ICY 200 OK\r\n\r\n", StatusLine),
            ("HTTP/1.1 20 OK\r\n\r\n", StatusLine),
            ("HTTP/1.1 2000 OK\r\n\r\n", StatusLine),
            ("HTTP/1.1 099 OK\r\n\r\n", StatusLine),
            ("HTTP/1.1200 OK\r\n\r\n", StatusLine),
            ("HTTP/1.1 200 O\0K\r\n\r\n", StatusLine),
            ("HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: c\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\n Cache-Control: no-store\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\nCDN-Cache-Control\x01: no-store\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\nSet-Cookie\u{fc}: a=b\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\nContent-\x01Length: 5\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding chunked\r\n\r\n", Field),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n", Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", Length),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\x012\r\n\r\n", Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", Length),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferCoding),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding : gzip, chunked\r\n\r\n", TransferCoding),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip,\r\n chunked\r\n\r\n", TransferCoding),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", TransferCoding),
        ] {
            assert_eq!(understood(head), Err(error), "{head:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MAX_LINES + 1));
        assert_eq!(understood(&many), Err(HeadError::TooManyLines));
    }

    #[test]
    fn responses_without_a_body_may_have_any_framing() {
        for (head, to_head) in [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: gzip\r\n\r\n", false),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n", false),
        ] {
            assert!(understand(head.as_bytes(), to_head).is_ok(), "{head:?}");
        }
    }

    #[test]
    fn first_bytes_reveal_that_they_begin_no_response() {
        for begun in [&b""[..], b"H", b"HTTP/1", b"HTTP/1.", b"HTTP/1.1 200 OK\r\n"] {
            assert!(may_begin(begun), "{begun:?}");
        }
        for other in [&b"\0"[..], b"\0\0\0\x04", b"HTTP/2", b"http/1.1", b"<html>", b" HTTP/1.1"] {
            assert!(!may_begin(other), "{other:?}");
        }
    }

    #[test]
    fn end_of_a_response_head_is_found_in_any_segmentation() {
        for head in
            ["HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "HTTP/1.1 200 OK\n\n", "HTTP/1.1 200 OK\r\nA: b\n\r\n"]
        {
            let bytes = [head.as_bytes(), b"body\r\n\r\n"].concat();
            for cut in 0..head.len() {
                assert_eq!(end(&bytes[..cut], 0), None, "{head:?} {cut}");
                assert_eq!(end(&bytes, cut), Some(head.len()), "{head:?} {cut}");
            }
        }
    }
}
