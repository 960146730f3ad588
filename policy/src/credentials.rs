//! Requests that identify a user.

mod patterns;

pub use self::patterns::{IdentityHeaders, is_pattern};
pub(crate) use crate::credential_names::is_common;
pub use crate::credential_names::names_credentials;
use crate::{Fields, key::KeyRules};

/// Returns the first header of a request that identifies a user and that the route neither keys nor ignores. Such a
/// request passes through, because its response may be personal.
pub fn identity_header<'a>(fields: &'a (impl Fields + ?Sized), rules: &KeyRules) -> Option<&'a [u8]> {
    fields.lines().map(|(name, _)| name).find(|name| is_identity(name, rules) && !is_settled(name, rules))
}

/// Returns true if the route decides the effect of a credential header on responses: the header is in the key, or
/// ignored.
pub fn is_settled(name: impl AsRef<[u8]>, rules: &KeyRules) -> bool {
    let is = |listed: &str| listed.as_bytes().eq_ignore_ascii_case(name.as_ref());
    let mut listed = rules.headers.iter().chain(&rules.ignore_headers);
    listed.any(|listed| is(listed)) || (!rules.cookies.is_empty() && is("cookie"))
}

/// Returns true if a header identifies a user, by its name or because the policy lists it.
pub fn is_identity(name: &[u8], rules: &KeyRules) -> bool {
    names_credentials(name) || rules.identity.covers(name)
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
    fn identity_header_is_recognised() {
        let none = KeyRules::default();
        assert_eq!(identity_header(&headers(&["accept", "cookie"]), &none), Some(&b"cookie"[..]));
        assert_eq!(
            identity_header(&headers(&["x-auth-request-email"]), &none),
            Some(&b"x-auth-request-email"[..])
        );
        assert_eq!(identity_header(&headers(&["accept", "x-request-id"]), &none), None);
    }

    #[test]
    fn keyed_or_ignored_header_identifies_nobody() {
        let rules = KeyRules::new(Some(&KeySpec {
            headers: Some(vec!["Authorization".into()]),
            ignore_headers: Some(vec!["Cookie".into()]),
            ..KeySpec::default()
        }));
        assert_eq!(identity_header(&headers(&["authorization", "cookie"]), &rules), None);
        assert_eq!(
            identity_header(&headers(&["authorization", "x-forwarded-user"]), &rules),
            Some(&b"x-forwarded-user"[..])
        );
    }

    #[test]
    fn policy_adds_identity_headers() {
        let mut rules = KeyRules::default();
        let badge = headers(&["accept", "x-shop-badge"]);
        assert_eq!(identity_header(&badge, &rules), None);
        rules.identity = IdentityHeaders::new(&["x-shop-*".to_owned()]);
        assert_eq!(identity_header(&badge, &rules), Some(&b"x-shop-badge"[..]));
        rules.ignore_headers = vec!["x-shop-badge".into()];
        assert_eq!(identity_header(&badge, &rules), None);
    }

    #[test]
    fn cookie_header_is_settled_by_keyed_cookies() {
        let rules =
            KeyRules::new(Some(&KeySpec { cookies: Some(vec!["lang".into()]), ..KeySpec::default() }));
        assert_eq!(identity_header(&headers(&["cookie"]), &rules), None);
        assert!(is_settled("Cookie", &rules) && !is_settled("authorization", &rules));
    }
}
