//! Requests that name a person.

use crate::{Fields, key::KeyRules};

/// Headers that name a person, in lower case and by their first letter. A name that ends in `-` stands for every header that
/// starts with it.
///
/// `Authorization` is RFC 9110, section 11.6.2; `Cookie` RFC 6265; the rest is what clients of APIs send, and what
/// authenticating proxies add in front of an application.
pub(crate) const IDENTITY: [(u8, &[&str]); 6] = [
    (b'a', &["api-key", "authorization"]),
    (b'c', &["cf-access-", "cookie"]),
    (b'p', &["proxy-authorization"]),
    (b'r', &["remote-"]),
    (b's', &["ssl-client-"]),
    (
        b'x',
        &[
            "x-access-token",
            "x-amzn-oidc-",
            "x-api-key",
            "x-auth-request-",
            "x-auth-token",
            "x-authenticated-",
            "x-authentik-",
            "x-consumer-",
            "x-forwarded-access-token",
            "x-forwarded-client-cert",
            "x-forwarded-email",
            "x-forwarded-groups",
            "x-forwarded-preferred-username",
            "x-forwarded-user",
            "x-goog-authenticated-user-",
            "x-goog-iap-jwt-assertion",
            "x-ms-client-principal",
            "x-remote-",
        ],
    ),
];

/// The first header of a request that names a person and that the route neither keys nor ignores. Such a request passes:
/// its answer may be that person's.
pub fn identity_header<'a>(fields: &'a (impl Fields + ?Sized), rules: &KeyRules) -> Option<&'a [u8]> {
    fields.lines().map(|(name, _)| name).find(|name| names_a_person(name) && !is_settled(name, rules))
}

/// Whether the route says of a header that names a person what it does to answers: it is in the key, or ignored.
pub fn is_settled(name: impl AsRef<[u8]>, rules: &KeyRules) -> bool {
    let is = |listed: &str| listed.as_bytes().eq_ignore_ascii_case(name.as_ref());
    let mut listed = rules.headers.iter().chain(&rules.ignore_headers);
    listed.any(|listed| is(listed)) || (!rules.cookies.is_empty() && is("cookie"))
}

/// Whether a header names a person. The first letter sorts out most of them.
pub fn names_a_person(name: &[u8]) -> bool {
    let Some(first) = name.first().map(u8::to_ascii_lowercase) else { return false };
    let Some((_, known)) = IDENTITY.iter().find(|(letter, _)| *letter == first) else { return false };
    known.iter().any(|known| {
        let part = if known.ends_with('-') { name.get(..known.len()) } else { Some(name) };
        part.is_some_and(|part| part.eq_ignore_ascii_case(known.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::HeaderName};

    use super::*;
    use crate::spec::KeySpec;

    fn headers(names: &[&'static str]) -> HeaderMap {
        names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x"))).collect()
    }

    #[test]
    fn a_person_is_recognised() {
        let none = KeyRules::default();
        assert_eq!(identity_header(&headers(&["accept", "cookie"]), &none), Some(&b"cookie"[..]));
        assert_eq!(
            identity_header(&headers(&["x-auth-request-email"]), &none),
            Some(&b"x-auth-request-email"[..])
        );
        assert_eq!(identity_header(&headers(&["accept", "x-request-id"]), &none), None);
    }

    #[test]
    fn unless_the_route_keys_or_ignores_the_header() {
        let rules = KeyRules::new(Some(&KeySpec {
            headers: vec!["Authorization".into()],
            ignore_headers: vec!["Cookie".into()],
            ..KeySpec::default()
        }));
        assert_eq!(identity_header(&headers(&["authorization", "cookie"]), &rules), None);
        assert_eq!(
            identity_header(&headers(&["authorization", "x-forwarded-user"]), &rules),
            Some(&b"x-forwarded-user"[..])
        );
    }

    #[test]
    fn or_keys_cookies_by_name() {
        let rules = KeyRules::new(Some(&KeySpec { cookies: vec!["lang".into()], ..KeySpec::default() }));
        assert_eq!(identity_header(&headers(&["cookie"]), &rules), None);
        assert!(is_settled("Cookie", &rules) && !is_settled("authorization", &rules));
    }
}
