//! Protocol detection from the first bytes that a client sends.
//!
//! Bytes that a lenient server could take for HTTP are HTTP here, because a connection that is passed on is not
//! inspected further. Another protocol must be proven, by the whole first line or by a beginning that no HTTP request
//! has. Everything else goes through the guard, which rejects malformed requests.
//!
//! Servers skip more than the empty lines of RFC 9112, section 2.2: white space, lone CRs, control characters, a byte
//! order mark. The first line is therefore the first one with a visible character in it.

/// Maximum length in bytes of a first line that does not tell the protocol.
pub const MAX_FIRST_LINE: usize = 8 << 10;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Beginning of version 2 of the PROXY protocol.
const PROXY_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Beginning of version 1 of the PROXY protocol.
const PROXY_WORD: &[u8] = b"PROXY ";
/// Text before the number of an HTTP version (RFC 9112, section 2.3), in upper case.
const HTTP_NAME: &[u8] = b"HTTP/";

/// The protocol that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1, or bytes that a lenient server could take for it.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, section 3.3).
    Http2,
    /// The PROXY protocol, whose header precedes another protocol, such as HTTP.
    Proxied,
    /// Another protocol, proven.
    Other,
    /// Another protocol, unless the rest of the first line names an HTTP version ([`FirstLine`]).
    Presumed,
    /// Not known yet.
    Undecided,
}

/// Reads the first bytes of a connection; `is_all` if the client sends no more.
pub fn sniff(beginning: &[u8], is_all: bool) -> Protocol {
    match known_beginning(beginning) {
        Some(Protocol::Undecided) if is_all => {}
        Some(protocol) => return protocol,
        None => {}
    }
    let begins_white = |length| beginning[..length].iter().all(|byte| is_white(*byte));
    let Some(start) = beginning.iter().position(u8::is_ascii_graphic) else {
        return if begins_white(beginning.len()) { Protocol::Undecided } else { Protocol::Presumed };
    };
    let (line, is_whole) = match memchr::memchr(b'\n', &beginning[start..]) {
        Some(end) => (&beginning[start..start + end], true),
        None => (&beginning[start..], false),
    };
    if names_http(line) || is_request(line) {
        Protocol::Http1
    } else if is_whole || is_all {
        Protocol::Other
    } else if !begins_white(start) || begins_otherwise(line) {
        Protocol::Presumed
    } else {
        Protocol::Undecided
    }
}

/// Recognizes protocols with a known beginning; undecided while that is incomplete. TLS needs this because its first
/// message may name HTTP in its ALPN list.
fn known_beginning(beginning: &[u8]) -> Option<Protocol> {
    if beginning.is_empty() {
        return Some(Protocol::Undecided);
    }
    [(HTTP2_PREFACE, Protocol::Http2), (PROXY_SIGNATURE, Protocol::Proxied), (PROXY_WORD, Protocol::Proxied)]
        .into_iter()
        .find_map(|(whole, protocol)| match beginning.len() < whole.len() {
            true => whole.starts_with(beginning).then_some(Protocol::Undecided),
            false => beginning.starts_with(whole).then_some(protocol),
        })
        .or_else(|| client_hello(beginning))
}

/// Recognizes a TLS record with a `ClientHello` of less than 64 KiB (RFC 8446, sections 4 and 5.1).
fn client_hello(beginning: &[u8]) -> Option<Protocol> {
    let fits = |place: usize, byte: u8| match place {
        0 => byte == 22,
        1 => byte == 3,
        2 => byte <= 4,
        3 => byte <= 0x40,
        5 => byte == 1,
        6 => byte == 0,
        _ => true,
    };
    const ENOUGH: usize = 7;
    let seen = &beginning[..beginning.len().min(ENOUGH)];
    let is_one = seen.iter().enumerate().all(|(place, byte)| fits(place, *byte));
    is_one.then_some(if seen.len() == ENOUGH { Protocol::Other } else { Protocol::Undecided })
}

/// Returns true if a line has the name of HTTP before a version number, in upper or lower case.
fn names_http(line: &[u8]) -> bool {
    line.windows(HTTP_NAME.len()).any(|window| window.eq_ignore_ascii_case(HTTP_NAME))
}

/// Returns true if a line begins with a method and a target: a path, or a URI with a host. HTTP/0.9 has no version
/// behind them, and some servers still accept it.
fn is_request(line: &[u8]) -> bool {
    let mut words = line.split(|byte| is_white(*byte)).filter(|word| !word.is_empty());
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return false };
    let scheme =
        target.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
    method.iter().all(|byte| is_token(*byte))
        && (target.starts_with(b"/") || target[scheme..].starts_with(b"://") || method == b"CONNECT")
}

/// Returns true if an unfinished line has a control character or bytes that no method has.
fn begins_otherwise(line: &[u8]) -> bool {
    let method = line.split(|byte| is_white(*byte)).next().unwrap_or_default();
    !method.iter().all(|byte| is_token(*byte))
        || line.iter().any(|byte| byte.is_ascii_control() && !is_white(*byte))
}

/// Returns true if any language's trimming or line splitting takes a byte for white space.
fn is_white(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | 0x1c..=b' ')
}

/// Returns true if a byte may be in a token (RFC 9110, section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

/// The bytes of tokens, because most bytes of a head's names are looked up here.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut number = 0;
    while number < 128 {
        let byte = number as u8;
        table[number] = byte.is_ascii_alphanumeric() || is_mark(byte);
        number += 1;
    }
    table
};

const fn is_mark(byte: u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// The rest of the first line of a connection that is passed on because it is presumably not HTTP.
///
/// No server acts on a request before its first line is complete. The presumption does no harm, because a line that
/// names HTTP is stopped before its end.
#[derive(Debug, Default)]
pub struct FirstLine {
    is_visible: bool,
    is_over: bool,
    /// Number of bytes of [`HTTP_NAME`] at the end of the bytes so far.
    matched: usize,
}

impl FirstLine {
    /// Returns true if these bytes may be passed on because the first line does not name HTTP yet.
    pub fn admits(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.is_over {
                return true;
            }
            self.is_over = *byte == b'\n' && self.is_visible;
            self.is_visible |= byte.is_ascii_graphic();
            let byte = byte.to_ascii_uppercase();
            self.matched = match byte == HTTP_NAME[self.matched] {
                true => self.matched + 1,
                false => usize::from(byte == HTTP_NAME[0]),
            };
            if self.matched == HTTP_NAME.len() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &[u8]) -> Protocol {
        sniff(text, false)
    }

    #[test]
    fn bytes_that_a_server_could_take_for_http_are_http() {
        for text in [
            &b"GET / HTTP/1.1"[..],
            b"PURGE /x",
            b"GET /",
            b"GET  /a",
            b"PUT\t/a",
            b"PUT\x0b/a",
            b"CONNECT h:80",
            b"M-SEARCH * HTTP/1.1",
            b"OPTIONS http://h/",
            b"PUT ftp://shop/x",
            b"POST rtsp://shop/x RTSP/1.0",
            b"PUT x:y HTTP/1.1",
            b"PUT x HTTP/1.1",
            b"GET ?a HTTP/1.1",
            b"put /x",
            b"PUT users/5 http/1.1",
            b"P\0UT /x HTTP/1.1",
            b"PUT(/x HTTP/1.1",
            b"PUT /x\x1bHTTP/1.1",
            b"\r\nGET /",
            b"\r\n\r\n\nGET /",
            b"\rPUT /x HTTP/1.1",
            b" PUT /x",
            b"\t\x0b\x0cPUT /x",
            b"\0PUT /x",
            b"\0\0\0\x08PUT /x",
            b"\x16\x03PUT /x",
            b"\x16\x03\x01  \x01PUT /x",
            b"\xef\xbb\xbfPUT /x",
            b"\xef\xbb\xbf\r\nPUT /x",
            b"\0\n\0\nPUT /x",
            b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"{\"url\": \"x\"} HTTP/1.1",
        ] {
            assert_eq!(of(text), Protocol::Http1, "{:?}", text.escape_ascii().to_string());
        }
    }

    #[test]
    fn http2_is_known_by_its_preface() {
        assert_eq!(of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"), Protocol::Http2);
    }

    #[test]
    fn proxy_protocol_header_is_detected() {
        assert_eq!(of(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nPUT /x"), Protocol::Proxied);
        assert_eq!(of(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"), Protocol::Proxied);
    }

    #[test]
    fn a_whole_first_line_or_a_client_hello_proves_another_protocol() {
        for text in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x02http/1.1"[..],
            b"HELO example\r\n",
            b"get key\r\n",
            b"GET key\n",
            b"KEYS *\r\n",
            b"*1\r\n$4\r\nPING",
            b"SSH-2.0-OpenSSH\r\n",
            b"{\"jsonrpc\": \"2.0\", \"path\": \"/x\"}\n",
        ] {
            assert_eq!(of(text), Protocol::Other, "{:?}", text.escape_ascii().to_string());
        }
        assert_eq!(sniff(b"ping", true), Protocol::Other);
    }

    #[test]
    fn bytes_that_begin_no_request_are_presumed_to_be_another_protocol() {
        for text in [
            &b"\0\0\0\x08\x04\xd2\x16\x2f"[..],
            b"\0\0raw",
            b"AMQP\0\0\x09\x01",
            b"\x10\x0c\0\x04MQTT",
            b"\x30\x0c\x02\x01\x01\x60",
            b"8=FIX.4.4\x019=70",
            b"<stream:stream to='x'>",
            b"{\"id\":1}",
        ] {
            assert_eq!(of(text), Protocol::Presumed, "{:?}", text.escape_ascii().to_string());
        }
    }

    #[test]
    fn undecided_bytes_wait_for_more() {
        for text in [
            &b""[..],
            b"\r",
            b"\r\n\r\n",
            b"\r\n\r\n\0\r\nQ",
            b"  ",
            b"G",
            b"GET",
            b"GET ",
            b"GET ht",
            b"PUT users/5 HTT",
            b"PROX",
            b"PRI",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            b"\x16\x03\x01",
            b"SSH-2.0",
            &[b'A'; 4000],
        ] {
            assert_eq!(of(text), Protocol::Undecided, "{:?}", text.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_first_line_that_names_http_is_not_let_through() {
        for (text, is_admitted) in [
            (&b"\0PUT x HTTP/1.1\r\n"[..], false),
            (b"{ hhttp/2", false),
            (b"{ HTTHTTP/", false),
            (b"\0\r\n \r\nx HTTP/", false),
            (b"\0x\nPUT x HTTP/1.1\r\n", true),
            (b"\0http: //", true),
        ] {
            let mut whole = FirstLine::default();
            assert_eq!(whole.admits(text), is_admitted, "{:?}", text.escape_ascii().to_string());
            let mut bytewise = FirstLine::default();
            assert_eq!(text.chunks(1).all(|byte| bytewise.admits(byte)), is_admitted);
        }
    }

    proptest! {
        /// No first line that names HTTP is passed on to its end, in any segmentation.
        #[test]
        fn http_is_never_passed_on_in_any_segmentation(
            before in "[\\x00-\\x20\u{feff}]{0,4}",
            line in "[ -~\\x00\\x0b]{0,30}",
            version in "(HTTP|http|Http)/[0-9]",
            cuts in proptest::collection::vec(1..9_usize, 0..20),
        ) {
            let text = format!("{before}{line}{version}\r\n");
            prop_assume!(!text.starts_with("PRI ") && !text.starts_with('\x16'));
            let (bytes, mut seen) = (text.as_bytes(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                seen = (seen + cut).min(bytes.len());
                match sniff(&bytes[..seen], false) {
                    Protocol::Undecided => {}
                    Protocol::Presumed => {
                        let mut first_line = FirstLine::default();
                        prop_assert!(!(first_line.admits(&bytes[..seen]) && first_line.admits(&bytes[seen..])));
                        return Ok(());
                    }
                    decided => {
                        prop_assert!(matches!(decided, Protocol::Http1 | Protocol::Proxied), "{decided:?}");
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "undecided");
        }
    }
}
