//! The part of a cacheable request that is forwarded to the application.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, FORWARDED, HOST, IF_MATCH,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, USER_AGENT, VIA,
    },
};

use super::Route;
use crate::{forwarding, key::keyed_cookies};

/// Headers that are forwarded whatever the key is: scheme and host, which are in it; those whose effect the response
/// declares by `Content-Encoding`, `ETag`, `Last-Modified` and its status; and the sender and way of the request, on
/// which no cacheable response may depend.
const SAFE: [HeaderName; 14] = [
    HOST,
    FORWARDED,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    ACCEPT_ENCODING,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    RANGE,
    VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("traceparent"),
];
/// Headers that are also forwarded where the body is in the key, because the key covers how it is read.
const OF_BODY: [HeaderName; 3] = [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE];

/// The `User-Agent` that the application receives in place of the client's.
const AGENT: HeaderValue = HeaderValue::from_static("larder");

impl Route {
    /// Returns true if all headers are forwarded as they are.
    pub fn forwards_all(&self) -> bool {
        !self.forwards_keyed
    }

    /// Returns the headers to forward to the application for a request that may be served from the cache: all, or, with
    /// `forwardHeaders: Keyed`, those in the key and those that change no response.
    pub fn forwarded(&self, fields: &HeaderMap) -> HeaderMap {
        if !self.forwards_keyed {
            return fields.clone();
        }
        let mut forwarded = HeaderMap::with_capacity(fields.len() + 1);
        forwarded.extend(
            fields
                .iter()
                .filter(|(name, _)| self.forwards(name))
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        if !self.key.headers.iter().any(|keyed| keyed == COOKIE.as_str()) {
            let cookies = keyed_cookies(&self.key.cookies, fields);
            if let Some(cookies) = cookies.and_then(|cookies| HeaderValue::from_bytes(&cookies).ok()) {
                forwarded.insert(COOKIE, cookies);
            }
        }
        // Some applications refuse a request without one.
        forwarded.entry(USER_AGENT).or_insert(AGENT);
        forwarded
    }

    fn forwards(&self, name: &HeaderName) -> bool {
        SAFE.contains(name)
            || self.key.headers.iter().any(|keyed| keyed == name.as_str())
            || self.body_limit.is_some() && OF_BODY.contains(name)
            || forwarding::of(name.as_str().as_bytes()).is_some_and(|forwarding| forwarding.is_keyed())
    }
}

#[cfg(test)]
mod tests {
    use http::header::HeaderName;

    use crate::{
        Policy,
        spec::{CacheSpec, ForwardHeaders},
    };

    fn forwarded(route: &str, lines: &[(&'static str, &'static str)]) -> Vec<String> {
        let spec: CacheSpec =
            serde_yaml::from_str(&format!("routes: [{{name: a, match: {{path: /a}}, {route}}}]")).unwrap();
        let policy = Policy::compile(&spec).unwrap();
        let fields = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let forwarded = policy.routes()[0].forwarded(&fields);
        let mut lines: Vec<_> =
            forwarded.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const SENT: [(&str, &str); 11] = [
        ("host", "shop"),
        ("accept", "text/html"),
        ("accept-encoding", "gzip"),
        ("authorization", "Bearer 1"),
        ("cookie", "session=1; lang=de"),
        ("cookie", "other=2; lang=en"),
        ("if-none-match", "\"1\""),
        ("user-agent", "a browser"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-prefix", "/shop"),
        ("x-anything", "evil"),
    ];

    #[test]
    fn only_keyed_and_neutral_headers_are_forwarded() {
        let route = "forwardHeaders: Keyed, key: {headers: [accept], cookies: [lang], ignoreHeaders: [authorization]}";
        let expected = [
            "accept-encoding: gzip",
            "accept: text/html",
            "cookie: lang=de; lang=en",
            "host: shop",
            "if-none-match: \"1\"",
            "user-agent: larder",
            "x-forwarded-for: 192.0.2.1",
            "x-forwarded-prefix: /shop",
        ];
        assert_eq!(forwarded(route, &SENT), expected);
    }

    #[test]
    fn keyed_cookie_header_and_agent_are_forwarded_whole() {
        let lines = forwarded("forwardHeaders: Keyed, key: {headers: [Cookie, User-Agent]}", &SENT[4..8]);
        let expected = [
            "cookie: other=2; lang=en",
            "cookie: session=1; lang=de",
            "if-none-match: \"1\"",
            "user-agent: a browser",
        ];
        assert_eq!(lines, expected);
        assert_eq!(forwarded("forwardHeaders: Keyed", &SENT[3..6]), ["user-agent: larder"]);
    }

    #[test]
    fn all_headers_are_forwarded_by_default() {
        assert_eq!(ForwardHeaders::default(), ForwardHeaders::All);
        assert_eq!(forwarded("ttl: 1s", &SENT).len(), SENT.len());
    }

    #[test]
    fn keyed_body_is_forwarded_with_its_content_headers() {
        let route = "forwardHeaders: Keyed, key: {body: {}}";
        let route = route.replace("key", "match: {path: /a, methods: [POST]}, key");
        let spec = format!("routes: [{{name: a, {route}}}]");
        let policy = Policy::compile(&serde_yaml::from_str(&spec).unwrap()).unwrap();
        let fields = [("content-type", "a/b"), ("content-language", "de")];
        let fields = fields
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let forwarded = policy.routes()[0].forwarded(&fields);
        assert!(forwarded.contains_key("content-type") && !forwarded.contains_key("content-language"));
    }
}
