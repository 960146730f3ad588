//! Headers by which an application may take a request for another: for one to another host or scheme, of another path, or of
//! another method.
//!
//! The set is open, as that of headers that name a person: what gateways are known to send is listed, and what looks like it
//! counts as well, with `_` and `.` for `-` too: PHP and other heirs of CGI take them for one. `X-Forwarded-For` and other addresses of clients are not among them: they differ by client, and an
//! application whose responses depend on them is not cacheable by a shared cache.

use crate::{
    credentials::names_a_person,
    names::is_alike,
    writing::{names_a_method, names_target},
};

/// Headers by which applications make links and redirects: they are in the key wherever they are present. In the order of the
/// key.
pub(crate) const LISTED: [&str; 24] = [
    "cf-visitor",
    "cloudfront-forwarded-proto",
    "front-end-https",
    "https",
    "proxy-host",
    "proxy-ssl",
    "script-name",
    "x-arr-ssl",
    "x-base-url",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-proto",
    "x-scheme",
    "x-script-name",
    "x-url-scheme",
];

/// Words of names that tell of where a request was sent.
const PLACES: [&str; 14] = [
    "basepath", "baseurl", "domain", "host", "hostname", "https", "path", "prefix", "proto", "protocol",
    "scheme", "ssl", "uri", "url",
];
/// Words of names that tell of who sent it: addresses, which differ by client.
const SENDERS: [&str; 7] = ["addr", "address", "client", "for", "ip", "peer", "remote"];
/// Words of names that put something in place of what the request line says.
const REPLACED: [&str; 4] = ["original", "override", "rewrite", "unencoded"];

/// What a header may make an application take a request for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// One to another place, by the header at this index of [`LISTED`]: it is in the key.
    Listed(usize),
    /// One to another place, by a header that is not listed: it is in the key.
    Unlisted,
    /// One of another method or target: it passes, because it is not stored under the path that it is about.
    Override,
}

impl Forwarding {
    /// Whether the header is in the key.
    pub(crate) const fn is_keyed(self) -> bool {
        matches!(self, Self::Listed(_) | Self::Unlisted)
    }
}

/// What a header may make an application take a request for, by its name in whatever case.
pub(crate) fn of(name: &[u8]) -> Option<Forwarding> {
    let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
    if let Some(index) = LISTED.iter().position(is) {
        return Some(Forwarding::Listed(index));
    }
    if names_target(name) {
        return Some(Forwarding::Override);
    }
    if LISTED.iter().any(|known| is_alike(name, known)) {
        return Some(Forwarding::Unlisted);
    }
    let [b'x' | b'X', b'-' | b'_' | b'.', rest @ ..] = name else { return None };
    let words = || rest.split(|byte| b"-_.".contains(byte));
    let has = |known: &[&str]| {
        words().any(|word| known.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes())))
    };
    // Known apart, in scheme and host.
    let is_common = is(&"x-forwarded-host") || is(&"x-forwarded-proto");
    if is_common || has(&SENDERS) || names_a_person(name) {
        return None;
    }
    let is_forwarded = words().next().is_some_and(|word| word.eq_ignore_ascii_case(b"forwarded"));
    let replaces_target = has(&["path", "uri", "url"]) && has(&REPLACED) && !has(&["envoy"]);
    if names_a_method(name) || has(&["method"]) || replaces_target {
        Some(Forwarding::Override)
    } else if is_forwarded || has(&PLACES) {
        Some(Forwarding::Unlisted)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writing::TARGETS;

    fn kind(name: &str) -> Option<Forwarding> {
        let kind = of(name.as_bytes());
        assert_eq!(of(name.to_ascii_uppercase().as_bytes()), kind, "{name}");
        kind
    }

    #[test]
    fn places_are_in_the_key_whoever_names_them() {
        for (index, name) in LISTED.iter().enumerate() {
            assert_eq!(kind(name), Some(Forwarding::Listed(index)));
        }
        assert!(LISTED.is_sorted());
        for name in [
            "x-app-base-path",
            "x-backend-host",
            "x-custom-domain",
            "x-envoy-original-path",
            "x-forwarded-basepath",
            "x-forwarded-context",
            "x-forwarded-host-override",
            "x-forwarded-protocol-version",
            "x-forwarded-root",
            "x-forwarded_proto",
            "x-original-proto",
            "x-original-scheme",
            "x-path-prefix",
            "x-protocol",
            "x-proxy-scheme",
            "x-real-host",
            "x-ssl",
            "x-url",
            "front_end_https",
            "x.forwarded.host",
            "x_forwarded_host",
            "x_forwarded_port",
            "x_forwarded_proto",
            "x_forwarded-prefix",
        ] {
            assert_eq!(kind(name), Some(Forwarding::Unlisted), "{name}");
        }
    }

    #[test]
    fn what_replaces_the_request_line_passes() {
        for name in TARGETS.into_iter().chain([
            "x-http-method",
            "x-http-method-override",
            "x-method-override",
            "x-method",
            "x-original-method",
            "x-original-path",
            "x-override-url",
            "x-rewrite-path",
            "x-url-override",
            "x.rewrite.url",
            "x_original_url",
        ]) {
            assert_eq!(kind(name), Some(Forwarding::Override), "{name}");
        }
    }

    #[test]
    fn addresses_persons_and_the_rest_are_something_else() {
        for name in [
            "",
            "x",
            "x-",
            "cf-connecting-ip",
            "fastly-client-ip",
            "forwarded",
            "host",
            "true-client-ip",
            "x-amzn-trace-id",
            "x-azure-clientip",
            "x-b3-traceid",
            "x-client-ip",
            "x-cluster-client-ip",
            "x-correlation-id",
            "x-envoy-expected-rq-timeout-ms",
            "x-forwarded-client-cert",
            "x-forwarded-email",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-user",
            "x-original-forwarded-for",
            "x-real-ip",
            "x-request-id",
            "x-requested-with",
            "x_forwarded_for",
        ] {
            assert_eq!(kind(name), None, "{name}");
        }
    }
}
