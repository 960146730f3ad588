//! Header fields of PURGE and BAN requests: those that name what to purge, those that name nothing, and those of proxies.

use http::{HeaderMap, HeaderName};
use larder_policy::names_sender;

/// Fields that proxies add to a request, besides those that name its sender; with a `-` at the end, all that begin so.
const OF_PROXIES: [&str; 9] = [
    "cdn-loop",
    "cf-",
    "cloudfront-",
    "forwarded",
    "via",
    "x-amzn-trace-id",
    "x-azure-",
    "x-envoy-",
    "x-forwarded-",
];

/// Form of the tags in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A list, separated as in a response.
    List,
    /// A list whose responses become stale.
    SoftList,
    /// A regular expression, or a list.
    Expression,
}

/// Headers that name tags.
pub(super) const OF_TAGS: [(&str, Form); 13] = [
    ("apiplatform-ban-regex", Form::Expression),
    ("cache-tag", Form::List),
    ("cache-tags", Form::Expression),
    ("edge-cache-tag", Form::List),
    ("purge-cache-tags", Form::Expression),
    ("surrogate-key", Form::List),
    ("varnish-ban-typo3-pid", Form::List),
    ("varnish-ban-typo3-tag", Form::List),
    ("x-cache-tags", Form::Expression),
    ("x-magento-tags-pattern", Form::Expression),
    ("xkey", Form::List),
    ("xkey-purge", Form::List),
    ("xkey-softpurge", Form::SoftList),
];

/// Headers with a regular expression for the path and query of what is purged.
pub(super) const OF_URLS: [&str; 3] = ["x-ban-regex", "x-ban-url", "x-url"];

/// Headers that tell hosts, sites or types apart, which no purge does, or say that everything is meant. None names anything by itself.
pub(super) const NARROWING: [&str; 5] =
    ["varnish-ban-all", "varnish-ban-typo3-sitename", "x-ban-host", "x-content-type", "x-host"];

/// Headers that make a purge soft by a `1`.
pub(super) const OF_SOFTNESS: [&str; 2] = ["fastly-soft-purge", "x-magento-purge-soft"];

/// Headers that name nothing to purge, though their names might tell so; with a `-` at the end, all that begin so.
const HARMLESS: [&str; 29] = [
    "content-location",
    "fastly-key",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "sec-",
    "x-amzn-trace-id",
    "x-azure-",
    "x-b3-",
    "x-client-ip",
    "x-cloud-trace-context",
    "x-cluster-client-ip",
    "x-correlation-id",
    "x-datadog-",
    "x-dynatrace",
    "x-envoy-",
    "x-forwarded-",
    "x-instana-",
    "x-invalidate-token",
    "x-newrelic-",
    "x-original-forwarded-for",
    "x-ot-span-context",
    "x-purge-method",
    "x-real-ip",
    "x-request-id",
    "x-requested-with",
    "x-scheme",
    "x-trace-id",
    "x-varnish",
];

/// Words in the names of headers that may name what to purge. An `X-` may be for anything.
const WORDS: [&str; 24] = [
    "ban",
    "block",
    "invalidate",
    "invalidates",
    "key",
    "keys",
    "layout",
    "location",
    "match",
    "path",
    "paths",
    "pattern",
    "pool",
    "prefix",
    "purge",
    "regex",
    "regexp",
    "tag",
    "tags",
    "uri",
    "url",
    "urls",
    "x",
    "xkey",
];

/// Returns true if a request may have come through a proxy, so that the address of its connection says nothing about its client.
pub fn is_of_proxy(headers: &HeaderMap) -> bool {
    headers.keys().map(HeaderName::as_str).any(|name| {
        // Plugins say so themselves that their site has TLS.
        name != "x-forwarded-proto" && (is_one_of(name, &OF_PROXIES) || names_sender(name.as_bytes()))
    })
}

/// Returns true if a header may name something to purge in a way that is not known here.
pub(super) fn is_unknown(name: &str) -> bool {
    let is_known = || {
        let of_tags = OF_TAGS.iter().map(|(name, _)| name);
        let mut named = of_tags.chain(&OF_URLS).chain(&NARROWING).chain(&OF_SOFTNESS);
        named.any(|known| *known == name) || is_one_of(name, &HARMLESS)
    };
    let mut words = name.split(['-', '_', '.']);
    words.any(|word| WORDS.contains(&word)) && !is_known()
}

/// Returns true if a name is known, or begins as a known one that ends with a `-`.
fn is_one_of(name: &str, known: &[&str]) -> bool {
    known.iter().any(|known| name == *known || known.ends_with('-') && name.starts_with(known))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn request_of_a_proxy_has_a_field_that_proxies_add() {
        let is_of_proxy = |name: &str| {
            let name = name.parse::<HeaderName>().unwrap();
            super::is_of_proxy(&HeaderMap::from_iter([(name, HeaderValue::from_static("a"))]))
        };
        for name in [
            "forwarded",
            "via",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-real-ip",
            "x-envoy-external-address",
            "cf-connecting-ip",
            "true-client-ip",
            "x-client-ip",
            "x-cluster-client-ip",
            "x-original-forwarded-for",
            "x-amzn-trace-id",
            "x-azure-clientip",
            "fastly-client-ip",
            "x-remote-addr",
        ] {
            assert!(is_of_proxy(name), "{name}");
        }
        for name in ["host", "x-forwarded-proto", "x-purge-method", "user-agent", "x-host", "max-forwards"] {
            assert!(!is_of_proxy(name), "{name}");
        }
    }

    #[test]
    fn header_that_is_not_known_may_name_something() {
        for name in [
            "block-id",
            "cache-key",
            "invalidate",
            "key",
            "surrogate-keys",
            "url",
            "x-anything",
            "x-invalidates",
            "x-layout-id",
            "x-location-id",
            "x-match",
            "x-pool",
            "x-surrogate-key",
            "x-varnish-ban-neos",
            "x_cache_tags",
        ] {
            assert!(is_unknown(name), "{name}");
        }
        let known =
            OF_TAGS.map(|(name, _)| name).into_iter().chain(OF_URLS).chain(NARROWING).chain(OF_SOFTNESS);
        let common = [
            "accept-encoding",
            "baggage",
            "content-location",
            "host",
            "if-none-match",
            "sec-fetch-mode",
            "traceparent",
            "upgrade-insecure-requests",
            "x-b3-traceid",
            "x-datadog-tags",
            "x-dynatrace",
            "x-forwarded-uri",
        ];
        for name in known.chain(common) {
            assert!(!is_unknown(name), "{name}");
        }
    }
}
