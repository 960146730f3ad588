//! Headers that may make an application treat a request as another: to another host or scheme, of another path, or of
//! another method.
//!
//! The set is open, like that of headers that identify a user: headers that gateways are known to send are listed, and
//! names that resemble them count as well, with `_` and `.` for `-` too, because PHP and other descendants of CGI treat
//! these alike. `X-Forwarded-For` and other client addresses are not included: they differ by client, and an
//! application whose responses depend on them cannot be cached by a shared cache.

use crate::{
    credential_names::names_credentials,
    names::is_alike,
    writing::{names_a_method, names_target},
};

/// Headers from which applications build links and redirects. Each is in the key wherever it is present, in this order.
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

/// Words in names that refer to the place where a request was sent.
const PLACES: [&str; 16] = [
    "basepath",
    "baseurl",
    "domain",
    "host",
    "hostname",
    "https",
    "path",
    "prefix",
    "proto",
    "protocol",
    "scheme",
    "servername",
    "ssl",
    "uri",
    "url",
    "vhost",
];
/// Words that refer to a place only after `X-`, and words of headers in which frameworks trust their own middleware or web server.
const EXTENDED_PLACES: [&str; 15] = [
    "accel",
    "backend",
    "base",
    "invoke",
    "middleware",
    "nextjs",
    "origin",
    "root",
    "route",
    "sendfile",
    "server",
    "site",
    "subdomain",
    "tld",
    "website",
];
/// Words in names that refer to the scheme of a request, even beside a word that refers to the sender.
const SCHEMES: [&str; 5] = ["https", "proto", "protocol", "scheme", "ssl"];
/// Words in names that refer to the sender: addresses, which differ by client.
const SENDERS: [&str; 7] = ["addr", "address", "client", "for", "ip", "peer", "remote"];
/// Words in names of headers that replace a part of the request line.
const REPLACED: [&str; 4] = ["original", "override", "rewrite", "unencoded"];

/// Headers that refer to a place and have parts of their own in a key.
const APART: [&str; 4] = ["forwarded", "host", "x-forwarded-host", "x-forwarded-proto"];

/// The effect that a header may have on the application's reading of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// Another place, by the header at this index of [`LISTED`]: the header is in the key.
    Listed(usize),
    /// Another place, by a header that is not listed: the header is in the key.
    Unlisted,
    /// Another method or target: the request passes through, because its response does not belong under its path.
    Override,
}

impl Forwarding {
    /// Returns true if the header is in the key.
    pub(crate) const fn is_keyed(self) -> bool {
        matches!(self, Self::Listed(_) | Self::Unlisted)
    }
}

/// Returns the effect that a header may have, by its name in any case.
pub(crate) fn of(name: &[u8]) -> Option<Forwarding> {
    let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
    if let Some(index) = LISTED.iter().position(is) {
        return Some(Forwarding::Listed(index));
    }
    if names_target(name) || names_a_method(name) {
        return Some(Forwarding::Override);
    }
    if LISTED.iter().any(|known| is_alike(name, known)) {
        return Some(Forwarding::Unlisted);
    }
    let starts = |start: &str| name.get(..start.len()).is_some_and(|part| is_alike(part, start));
    let has = |known: &[&str]| has_word(name, known);
    // Known apart, in scheme and host.
    let is_common = APART.iter().any(is);
    // The browser's own fields, and those of CORS.
    let is_browsers = starts("sec-") || starts("access-control-");
    if is_common || is_browsers || names_sender(name) || names_credentials(name) {
        return None;
    }
    let is_forwarded = has(&["forwarded"]);
    let replaces_target = has(&["path", "uri", "url"]) && has(&REPLACED) && !has(&["envoy"]);
    if has(&["method"]) || replaces_target {
        Some(Forwarding::Override)
    } else if is_forwarded || has(&PLACES) || starts("x-") && has(&EXTENDED_PLACES) || is(&"proxy") {
        Some(Forwarding::Unlisted)
    } else {
        None
    }
}

/// Returns true if a header names the sender of a request, such as `X-Forwarded-For` and `CF-Connecting-IP`.
pub fn names_sender(name: &[u8]) -> bool {
    has_word(name, &SENDERS) && !has_word(name, &SCHEMES)
}

/// Returns true if a name has one of these words.
fn has_word(name: &[u8], known: &[&str]) -> bool {
    let words = name.split(|byte| b"-_.".contains(byte));
    words.into_iter().any(|word| known.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes())))
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
    fn forwarded_places_are_in_the_key() {
        for (index, name) in LISTED.iter().enumerate() {
            assert_eq!(kind(name), Some(Forwarding::Listed(index)));
        }
        assert!(LISTED.is_sorted());
        for name in [
            "fastly-orig-host",
            "proxy",
            "x-accel-mapping",
            "x-api-base",
            "x-app-base-path",
            "x-client-proto",
            "x-client-scheme",
            "x-client-ssl",
            "x-invoke-query",
            "x-middleware-subrequest",
            "x-now-route-matches",
            "x-sendfile-type",
            "x-server-name",
            "x-subdomain",
            "x-vhost",
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
            "base-url",
            "fastly-ssl",
            "fly-forwarded-port",
            "fly-forwarded-proto",
            "forwarded-host",
            "forwarded-proto",
            "front_end_https",
            "host-override",
            "ssl-offloaded",
            "wl-proxy-ssl",
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
    fn request_line_overrides_pass_through() {
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
            "original-url",
            "x.rewrite.url",
            "x_original_url",
        ]) {
            assert_eq!(kind(name), Some(Forwarding::Override), "{name}");
        }
    }

    #[test]
    fn addresses_and_identities_are_not_forwarding() {
        for name in [
            "",
            "x",
            "x-",
            "cf-connecting-ip",
            "fastly-client-ip",
            "access-control-request-private-network",
            "fly-client-ip",
            "forwarded",
            "forwarded-for",
            "host",
            "sec-websocket-protocol",
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
