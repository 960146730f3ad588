//! What kinds of header fields a request has, found in one pass.

use crate::{
    Fields, credentials,
    writing::{TARGETS, names_a_method},
};

/// Headers by which some applications make links and redirects: they are in the key wherever they are present.
pub(crate) const LINK_HEADERS: [&str; 9] = [
    "front-end-https",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-host",
    "x-original-host",
    "x-url-scheme",
];

/// What kinds of header fields a request has. Most requests have few of these, so that whoever asks can skip what they are
/// about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey(u16);

const FORWARDING: u16 = 1;
const OVERRIDE: u16 = 1 << 1;
const PERSON: u16 = 1 << 2;
const AUTHORIZATION: u16 = 1 << 3;
const COOKIE: u16 = 1 << 4;
const CONDITIONAL: u16 = 1 << 5;
const RANGE: u16 = 1 << 6;
const DIRECTIVES: u16 = 1 << 7;
const CONTENT: u16 = 1 << 8;
const CONNECTION: u16 = 1 << 9;

impl Survey {
    /// Looks at every field once, by length and first letter before anything else.
    pub fn of(fields: &(impl Fields + ?Sized)) -> Self {
        Self(fields.lines().fold(0, |kinds, (name, _)| kinds | kinds_of(name)))
    }

    /// `Forwarded`, `X-Forwarded-Host`, `X-Forwarded-Proto`, or another header by which applications make links.
    pub fn has_forwarding(self) -> bool {
        self.has(FORWARDING)
    }

    /// A request with one of these may mean something else to the application than its request line says: it passes.
    pub fn has_override(self) -> bool {
        self.has(OVERRIDE)
    }

    /// A header that names a person, `Authorization` and `Cookie` included: see [`credentials::identity_header`].
    pub fn names_a_person(self) -> bool {
        self.has(PERSON)
    }

    /// `Authorization`.
    pub fn has_authorization(self) -> bool {
        self.has(AUTHORIZATION)
    }

    /// `Cookie`.
    pub fn has_cookie(self) -> bool {
        self.has(COOKIE)
    }

    /// A precondition (RFC 9110, section 13.1), `If-Range` among them.
    pub fn is_conditional(self) -> bool {
        self.has(CONDITIONAL)
    }

    /// `Range`.
    pub fn has_range(self) -> bool {
        self.has(RANGE)
    }

    /// `Cache-Control` or `Pragma`.
    pub fn has_directives(self) -> bool {
        self.has(DIRECTIVES)
    }

    /// `Content-Length` or `Transfer-Encoding`.
    pub fn has_content(self) -> bool {
        self.has(CONTENT)
    }

    /// Fields that are about the connection, or that ask for something of it: `Connection`, `Upgrade`, `TE`, `Expect`,
    /// `Keep-Alive`, `Proxy-Connection`.
    pub fn has_connection(self) -> bool {
        self.has(CONNECTION)
    }

    fn has(self, kind: u16) -> bool {
        self.0 & kind != 0
    }
}

fn kinds_of(name: &[u8]) -> u16 {
    let Some(first) = name.first().map(u8::to_ascii_lowercase) else { return 0 };
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match (first, name.len()) {
        (b'x', _) => extension(name),
        (b'a', 13) if is("authorization") => AUTHORIZATION | PERSON,
        (b'c', 6) if is("cookie") => COOKIE | PERSON,
        (b'c', 10) if is("connection") => CONNECTION,
        (b'c', 13) if is("cache-control") => DIRECTIVES,
        (b'c', 14) if is("content-length") => CONTENT,
        (b'e', 6) if is("expect") => CONNECTION,
        (b'f', 9) if is("forwarded") => FORWARDING,
        (b'f', _) if LINK_HEADERS.iter().any(|known| is(known)) => FORWARDING,
        (b'i', _) if name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"if-")) => CONDITIONAL,
        // Shorter ones, such as Host, are none, and every request has those.
        (b'h' | b'm' | b'v' | b'_', 6..) if names_a_method(name) => OVERRIDE,
        (b'k', 10) if is("keep-alive") => CONNECTION,
        (b'p', 6) if is("pragma") => DIRECTIVES,
        (b'p', 16) if is("proxy-connection") => CONNECTION,
        (b'r', 5) if is("range") => RANGE,
        (b't', 2) if is("te") => CONNECTION,
        (b't', 17) if is("transfer-encoding") => CONTENT,
        (b'u', 7) if is("upgrade") => CONNECTION,
        _ if credentials::names_a_person(name) => PERSON,
        _ => 0,
    }
}

/// The kinds of a name that starts with an `x`.
fn extension(name: &[u8]) -> u16 {
    let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
    let mut kinds = 0;
    if is(&"x-forwarded-host") || is(&"x-forwarded-proto") || LINK_HEADERS.iter().any(is) {
        kinds |= FORWARDING;
    }
    // They are not in the key.
    if TARGETS.iter().any(is) || names_a_method(name) {
        kinds |= OVERRIDE;
    }
    if credentials::names_a_person(name) {
        kinds |= PERSON;
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(name: &str) -> Survey {
        Survey::of(&[(name.as_bytes(), b"x".as_slice())][..])
    }

    #[test]
    fn every_kind_is_found_in_any_case() {
        type Asks = fn(Survey) -> bool;
        let kinds: [(&[&str], Asks); 11] = [
            (&["forwarded", "x-forwarded-host", "x-forwarded-proto"], Survey::has_forwarding),
            (&LINK_HEADERS, Survey::has_forwarding),
            (&TARGETS, Survey::has_override),
            (&["x-http-method", "x-method-override", "http-method-override", "method"], Survey::has_override),
            (&["authorization"], Survey::has_authorization),
            (&["cookie"], Survey::has_cookie),
            (
                &["if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"],
                Survey::is_conditional,
            ),
            (&["range"], Survey::has_range),
            (&["cache-control", "pragma"], Survey::has_directives),
            (&["content-length", "transfer-encoding"], Survey::has_content),
            (
                &["connection", "upgrade", "te", "expect", "keep-alive", "proxy-connection"],
                Survey::has_connection,
            ),
        ];
        for (names, asks) in kinds {
            for name in names {
                assert!(asks(survey(name)), "{name}");
                assert!(asks(survey(&name.to_ascii_uppercase())), "{name}");
                assert_eq!(survey(&format!("{name}y")).0 & !(PERSON | CONDITIONAL | OVERRIDE), 0, "{name}");
            }
        }
    }

    #[test]
    fn a_person_is_found_wherever_credentials_know_one() {
        for name in credentials::IDENTITY.iter().flat_map(|(_, names)| *names) {
            let name = if name.ends_with('-') { format!("{name}Some") } else { name.to_ascii_uppercase() };
            assert!(survey(&name).names_a_person(), "{name}");
        }
    }

    #[test]
    fn most_fields_are_of_no_kind() {
        for name in
            ["", "host", "accept", "accept-encoding", "user-agent", "content-type", "referer", "x-request-id"]
        {
            assert_eq!(survey(name), Survey::default(), "{name}");
        }
    }
}
