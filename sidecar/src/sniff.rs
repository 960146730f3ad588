//! Which protocol a connection speaks, from the first bytes that a client sends.

/// The longest beginning that is needed to tell.
pub const ENOUGH: usize = 40;

/// Methods that nothing but HTTP begins with and then names a path.
const METHODS: [&[u8]; 7] = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"];

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, section 3.3).
    Http2,
    /// Something else: it is passed on as it is.
    Other,
    /// Too little has been seen.
    Undecided,
}

/// Reads the first bytes as the beginning of a request line (RFC 9112, section 3): a method, a space and a target.
pub fn sniff(beginning: &[u8]) -> Protocol {
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A client may send empty lines first (RFC 9112, section 2.2).
    let mut line = beginning;
    while let [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] = line {
        line = rest;
    }
    if matches!(line, [] | [b'\r']) {
        return if beginning.len() < ENOUGH { Protocol::Undecided } else { Protocol::Http1 };
    }
    if HTTP2.starts_with(line) || line.starts_with(HTTP2) {
        return if line.len() >= HTTP2.len() { Protocol::Http2 } else { Protocol::Undecided };
    }
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    match (&line[method..], method) {
        (_, 0) | ([], ENOUGH..) => Protocol::Other,
        ([] | [b' '], _) => Protocol::Undecided,
        ([b' ', target @ ..], _) if target_form(&line[..method], target) != Protocol::Other => {
            target_form(&line[..method], target)
        }
        // Malformed, but meant to be HTTP: it is refused as such.
        ([b' ' | b'\t', rest @ ..], _) if METHODS.contains(&&line[..method]) => {
            match rest.iter().find(|byte| !b" \t".contains(byte)) {
                Some(b'/') => Protocol::Http1,
                None if beginning.len() < ENOUGH => Protocol::Undecided,
                _ => Protocol::Other,
            }
        }
        _ => Protocol::Other,
    }
}

/// Origin form, asterisk form, absolute form, or, for CONNECT, a host (RFC 9112, section 3.2).
fn target_form(method: &[u8], target: &[u8]) -> Protocol {
    const ABSOLUTE: &[u8] = b"http";
    let seen = target.len().min(ABSOLUTE.len());
    match target[0] {
        b'/' | b'*' => Protocol::Http1,
        _ if method == b"CONNECT" => Protocol::Http1,
        _ if !target[..seen].eq_ignore_ascii_case(&ABSOLUTE[..seen]) => Protocol::Other,
        _ if seen < ABSOLUTE.len() => Protocol::Undecided,
        _ => Protocol::Http1,
    }
}

/// Whether a byte may be in a token (RFC 9110, section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_http() {
        for text in [
            "GET / HTTP/1.1",
            "PURGE /x",
            "M-SEARCH * HTTP/1.1",
            "OPTIONS http://h/",
            "\r\nGET /",
            "\r\n\r\n\nGET /",
            "GET  /a",
            "PUT\t/a",
            "CONNECT h:80",
        ] {
            assert_eq!(sniff(text.as_bytes()), Protocol::Http1, "{text}");
        }
    }

    #[test]
    fn knows_http2() {
        assert_eq!(sniff(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"), Protocol::Http2);
    }

    #[test]
    fn knows_what_is_not() {
        for text in [
            "\x16\x03\x01\x02\x00",
            "HELO example",
            "GET key\r\n",
            "get key\r\n",
            "get hello\r\n",
            "get h\r\n",
            "*1\r\n$4\r\nPING",
            "\0\0\0\x08",
            "SSH-2.0-OpenSSH\r\n",
            "PROXY TCP4 1.2.3.4",
        ] {
            assert_eq!(sniff(text.as_bytes()), Protocol::Other, "{text:?}");
        }
    }

    #[test]
    fn waits_for_what_it_needs() {
        for text in ["", "\r", "G", "GET", "GET ", "GET ht", "PRI", "PRI * HTTP/2.0\r\n\r\nSM"] {
            assert_eq!(sniff(text.as_bytes()), Protocol::Undecided, "{text:?}");
        }
        assert_eq!(sniff(&[b'A'; ENOUGH]), Protocol::Other);
    }
}
