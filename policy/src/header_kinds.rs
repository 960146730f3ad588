//! The kinds of header fields in a request, found in one pass.

use crate::{
    Fields, IdentityHeaders, credentials,
    forwarding::{self, Forwarding},
    is_named,
    tailoring::{is_hint, is_tailoring},
    writing::names_a_method,
};

/// The kinds of header fields in a request. Most requests have few of these, so later stages can skip work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderKinds {
    kinds: u16,
    /// A bit for each of [`forwarding::LISTED`].
    listed: u32,
}

const FORWARDING: u16 = 1;
const OVERRIDE: u16 = 1 << 1;
const CREDENTIALS: u16 = 1 << 2;
const AUTHORIZATION: u16 = 1 << 3;
const COOKIE: u16 = 1 << 4;
const CONDITIONAL: u16 = 1 << 5;
const RANGE: u16 = 1 << 6;
const DIRECTIVES: u16 = 1 << 7;
const CONTENT: u16 = 1 << 8;
const CONNECTION: u16 = 1 << 9;
const UNLISTED: u16 = 1 << 10;
const TAILORING: u16 = 1 << 11;

impl HeaderKinds {
    /// Examines every field once, by length and first letter first.
    pub fn of(fields: &(impl Fields + ?Sized)) -> Self {
        fields.lines().fold(Self::default(), |header_kinds, (name, _)| header_kinds.and(name))
    }

    /// Examines every field once, for a policy that declares further headers to identify a user.
    pub fn under(fields: &(impl Fields + ?Sized), identity: &IdentityHeaders) -> Self {
        let header_kinds = Self::of(fields);
        if identity.is_empty()
            || header_kinds.has_credentials()
            || !fields.lines().any(|(name, _)| identity.covers(name))
        {
            return header_kinds;
        }
        Self { kinds: header_kinds.kinds | CREDENTIALS, ..header_kinds }
    }

    /// Returns true if a header of this name is one by which an application may tailor a response.
    pub(crate) fn is_tailoring(name: &[u8]) -> bool {
        matches!(kinds_of(name), Kinds::Of(TAILORING))
    }

    fn and(self, name: &[u8]) -> Self {
        let Self { kinds, listed } = self;
        match kinds_of(name) {
            Kinds::Of(more) => Self { kinds: kinds | more, listed },
            Kinds::Listed(index) => Self { kinds: kinds | FORWARDING, listed: listed | 1 << index },
        }
    }

    /// Returns true for `Forwarded`, `X-Forwarded-Host`, `X-Forwarded-Proto`, or another header from which applications
    /// build links.
    pub fn has_forwarding(self) -> bool {
        self.has(FORWARDING)
    }

    /// Returns the listed headers from which applications build links that are present, besides the three, in the order
    /// of the key.
    pub(crate) fn listed_forwarding(self) -> impl Iterator<Item = &'static str> {
        let names = forwarding::LISTED.into_iter().enumerate();
        names.filter(move |(index, _)| self.listed & 1 << index != 0).map(|(_, name)| name)
    }

    /// Returns true for an unlisted header from which applications may build links.
    pub(crate) fn has_unlisted_forwarding(self) -> bool {
        self.has(UNLISTED)
    }

    /// Returns true for a header by which an application may tailor a response: to a place, a device, a version, a
    /// language, or to a script that asks for a part of a page.
    pub(crate) fn has_tailoring(self) -> bool {
        self.has(TAILORING)
    }

    /// Returns true for a header that may override the request line for the application; the request then passes
    /// through.
    pub fn has_override(self) -> bool {
        self.has(OVERRIDE)
    }

    /// Returns true for a header that identifies a user, `Authorization` and `Cookie` included: see
    /// [`credentials::identity_header`].
    pub fn has_credentials(self) -> bool {
        self.has(CREDENTIALS)
    }

    /// Returns true for `Authorization`.
    pub fn has_authorization(self) -> bool {
        self.has(AUTHORIZATION)
    }

    /// Returns true for `Cookie`.
    pub fn has_cookie(self) -> bool {
        self.has(COOKIE)
    }

    /// Returns true for a precondition (RFC 9110, section 13.1), `If-Range` included.
    pub fn is_conditional(self) -> bool {
        self.has(CONDITIONAL)
    }

    /// Returns true for `Range`.
    pub fn has_range(self) -> bool {
        self.has(RANGE)
    }

    /// Returns true for `Cache-Control` or `Pragma`.
    pub fn has_directives(self) -> bool {
        self.has(DIRECTIVES)
    }

    /// Returns true for `Content-Length` or `Transfer-Encoding`.
    pub fn has_content(self) -> bool {
        self.has(CONTENT)
    }

    /// Returns true for fields about the connection: `Connection`, `Upgrade`, `TE`, `Expect`, `Keep-Alive`,
    /// `Proxy-Connection`.
    pub fn has_connection(self) -> bool {
        self.has(CONNECTION)
    }

    fn has(self, kind: u16) -> bool {
        self.kinds & kind != 0
    }
}

/// The kinds that a name belongs to.
enum Kinds {
    Of(u16),
    /// A member of [`FORWARDING`], at this index of [`forwarding::LISTED`].
    Listed(usize),
}

fn kinds_of(name: &[u8]) -> Kinds {
    let Some(first) = name.first().map(u8::to_ascii_lowercase) else { return Kinds::Of(0) };
    Kinds::Of(match (first, name.len()) {
        (b'a', 13) if is_named(name, b"authorization") => AUTHORIZATION | CREDENTIALS,
        (b'c', 6) if is_named(name, b"cookie") => COOKIE | CREDENTIALS,
        (b'c', 10) if is_named(name, b"connection") => CONNECTION,
        (b'c', 13) if is_named(name, b"cache-control") => DIRECTIVES,
        (b'c', 14) if is_named(name, b"content-length") => CONTENT,
        (b'e', 6) if is_named(name, b"expect") => CONNECTION,
        (b'f', 9) if is_named(name, b"forwarded") => FORWARDING,
        // The usual ones are known to name no method.
        (b'i', 13) if is_named(name, b"if-none-match") => CONDITIONAL,
        (b'i', 17) if is_named(name, b"if-modified-since") => CONDITIONAL,
        (b'i', _) if is_condition(name) && !names_a_method(name) => CONDITIONAL,
        // Shorter ones, such as Host, are none, and every request has those.
        (b'h' | b'm' | b'v' | b'_', 6..) | (b's', 8..) | (b'a', 16..) if names_a_method(name) => OVERRIDE,
        (b'k', 10) if is_named(name, b"keep-alive") => CONNECTION,
        (b'p', 6) if is_named(name, b"pragma") => DIRECTIVES,
        (b'p', 16) if is_named(name, b"proxy-connection") => CONNECTION,
        (b'r', 5) if is_named(name, b"range") => RANGE,
        (b's', 8..) if is_hint(name) => TAILORING,
        (b't', 2) if is_named(name, b"te") => CONNECTION,
        (b't', 17) if is_named(name, b"transfer-encoding") => CONTENT,
        (b'u', 7) if is_named(name, b"upgrade") => CONNECTION,
        (b'x', 16) if is_named(name, b"x-forwarded-host") => FORWARDING,
        (b'x', 17) if is_named(name, b"x-forwarded-proto") => FORWARDING,
        _ if credentials::is_common(name) => 0,
        _ => return of_others(name),
    })
}

fn is_condition(name: &[u8]) -> bool {
    name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"if-"))
}

/// Returns the kinds of a name that few requests have.
fn of_others(name: &[u8]) -> Kinds {
    match forwarding::of(name) {
        Some(Forwarding::Listed(index)) => Kinds::Listed(index),
        Some(Forwarding::Unlisted) => Kinds::Of(FORWARDING | UNLISTED),
        Some(Forwarding::Override) => Kinds::Of(OVERRIDE),
        None if credentials::names_credentials(name) => Kinds::Of(CREDENTIALS),
        None if is_tailoring(name) => Kinds::Of(TAILORING),
        None => Kinds::Of(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writing::TARGETS;

    fn header_kinds(name: &str) -> HeaderKinds {
        HeaderKinds::of(&[(name.as_bytes(), b"x".as_slice())][..])
    }

    #[test]
    fn method_override_is_found_in_any_name() {
        for name in [
            "sec-ch-method-override",
            "Sec_CH_Method-Override",
            "sec-http-method",
            "access-control-method-override",
            "x-client-http-method",
            "x-remote-method-override",
            "x-auth-method-override",
            "authorization-method-override",
            "if-method-override",
            "cookie-http-method",
            "x-user-http_method",
        ] {
            assert!(names_a_method(name.as_bytes()), "{name}");
            assert!(header_kinds(name).has_override(), "{name}");
        }
        assert!(!header_kinds("access-control-request-method").has_override());
    }

    #[test]
    fn every_kind_is_found_in_any_case() {
        type Asks = fn(HeaderKinds) -> bool;
        let kinds: [(&[&str], Asks); 11] = [
            (&["forwarded", "x-forwarded-host", "x-forwarded-proto"], HeaderKinds::has_forwarding),
            (&forwarding::LISTED, HeaderKinds::has_forwarding),
            (&TARGETS, HeaderKinds::has_override),
            (
                &["x-http-method", "x-method-override", "http-method-override", "method"],
                HeaderKinds::has_override,
            ),
            (&["authorization"], HeaderKinds::has_authorization),
            (&["cookie"], HeaderKinds::has_cookie),
            (
                &["if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"],
                HeaderKinds::is_conditional,
            ),
            (&["range"], HeaderKinds::has_range),
            (&["cache-control", "pragma"], HeaderKinds::has_directives),
            (&["content-length", "transfer-encoding"], HeaderKinds::has_content),
            (
                &["connection", "upgrade", "te", "expect", "keep-alive", "proxy-connection"],
                HeaderKinds::has_connection,
            ),
        ];
        for (names, asks) in kinds {
            for name in names {
                assert!(asks(header_kinds(name)), "{name}");
                assert!(asks(header_kinds(&name.to_ascii_uppercase())), "{name}");
                let longer = header_kinds(&format!("{name}y")).kinds;
                assert_eq!(
                    longer & !(CREDENTIALS | CONDITIONAL | FORWARDING | UNLISTED | OVERRIDE | TAILORING),
                    0,
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn identity_headers_of_the_policy_are_found() {
        let identity = IdentityHeaders::new(&["x-shop-badge".to_owned(), "x-crew-*".to_owned()]);
        let under = |name: &str| HeaderKinds::under(&[(name.as_bytes(), b"x".as_slice())][..], &identity);
        for name in ["cookie", "X-Session-Token", "X-Shop-Badge", "x-crew-id"] {
            assert!(under(name).has_credentials(), "{name}");
        }
        assert!(!under("x-shop-badges").has_credentials());
        assert!(!header_kinds("x-shop-badge").has_credentials());
    }

    #[test]
    fn common_fields_have_no_kind() {
        for name in
            ["", "host", "accept", "accept-encoding", "user-agent", "content-type", "referer", "x-request-id"]
        {
            assert_eq!(header_kinds(name), HeaderKinds::default(), "{name}");
        }
    }
}
