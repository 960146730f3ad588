//! Requests that name a person.

use http::HeaderMap;

use crate::key::KeyRules;

/// Headers that name a person, in lower case. A name that ends in `-` stands for every header that starts with it.
///
/// `Authorization` is RFC 9110, section 11.6.2; `Cookie` RFC 6265; the rest is what clients of APIs send, and what
/// authenticating proxies add in front of an application.
const IDENTITY: [&str; 25] = [
    "api-key",
    "authorization",
    "cf-access-",
    "cookie",
    "proxy-authorization",
    "remote-",
    "ssl-client-",
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
];

/// The first header of a request that names a person and that the route neither keys nor ignores. Such a request passes:
/// its answer may be that person's.
pub fn identity_header<'a>(headers: &'a HeaderMap, rules: &KeyRules) -> Option<&'a str> {
    headers.keys().map(|name| name.as_str()).find(|name| names_a_person(name) && !settled(name, rules))
}

fn names_a_person(name: &str) -> bool {
    IDENTITY.iter().any(|known| if known.ends_with('-') { name.starts_with(known) } else { name == *known })
}

fn settled(name: &str, rules: &KeyRules) -> bool {
    rules.headers.iter().chain(&rules.ignore_headers).any(|listed| listed == name)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::HeaderName};

    use super::*;
    use crate::spec::KeySpec;

    fn headers(names: &[&'static str]) -> HeaderMap {
        names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x"))).collect()
    }

    #[test]
    fn a_person_is_recognised() {
        let none = KeyRules::default();
        assert_eq!(identity_header(&headers(&["accept", "cookie"]), &none), Some("cookie"));
        assert_eq!(identity_header(&headers(&["x-auth-request-email"]), &none), Some("x-auth-request-email"));
        assert_eq!(identity_header(&headers(&["accept", "x-request-id"]), &none), None);
    }

    #[test]
    fn unless_the_route_keys_or_ignores_the_header() {
        let rules = KeyRules::new(Some(&KeySpec {
            query: None,
            headers: vec!["Authorization".into()],
            ignore_headers: vec!["Cookie".into()],
        }));
        assert_eq!(identity_header(&headers(&["authorization", "cookie"]), &rules), None);
        assert_eq!(
            identity_header(&headers(&["authorization", "x-forwarded-user"]), &rules),
            Some("x-forwarded-user")
        );
    }
}
