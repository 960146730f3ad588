//! What tells two answers apart.

use std::fmt::Write as _;

use http::{
    HeaderMap, Method,
    header::{FORWARDED, HOST},
};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::{NormalPath, PurgeName, spec::KeySpec};

/// Header values are put after a `#`, which no request target contains, with what would blur them encoded.
const IN_FRAGMENT: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'&').add(b'=').add(b' ');

/// The key under which an answer is stored, as people read and write it:
/// `GET:http://shop.example/api/posts/?page=2#accept-language=en`.
///
/// Scheme and host are the client's. A host that differs between `Host` and `X-Forwarded-Host` puts both in: an application
/// may look at either.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    text: String,
    /// Where the path starts, and where the fragment does.
    path: (usize, usize),
    method_length: usize,
}

impl Key {
    /// The key of a request.
    ///
    /// `query` is the raw one; `uri_host` the host of an absolute request target, which goes before `Host`
    /// (RFC 9112, section 3.2.2). `target` tells the ports of a pod apart, where several are cached.
    pub fn new(
        method: &Method,
        target: Option<u16>,
        uri_host: Option<&str>,
        path: &NormalPath,
        query: Option<&str>,
        headers: &HeaderMap,
        rules: &KeyRules,
    ) -> Self {
        let own_host = match uri_host {
            Some(host) => Joined(host.as_bytes().to_vec()),
            None => Joined::new(headers, HOST.as_str()).unwrap_or_default(),
        };
        let forwarded_host = Joined::new(headers, "x-forwarded-host");
        let forwarded_proto = Joined::new(headers, "x-forwarded-proto");
        let host = forwarded_host.as_ref().unwrap_or(&own_host).first();
        let scheme = forwarded_proto.as_ref().map_or(&b"http"[..], Joined::first);

        let mut text = String::with_capacity(128);
        text.push_str(method.as_str());
        text.push(':');
        let authority_from = text.len();
        let _ = write!(text, "{}://{}", percent_encode(scheme, IN_URL), percent_encode(host, IN_URL));
        text[authority_from..].make_ascii_lowercase();
        let path_from = text.len();
        text.push_str(path.as_str());
        push_query(&mut text, query, rules);
        let fragment_from = text.len();

        let mut separator = '#';
        let mut part = |name: &str, value: &[u8]| {
            let _ = write!(text, "{separator}{name}={}", percent_encode(value, IN_FRAGMENT));
            separator = '&';
        };
        if let Some(port) = target {
            part("target", port.to_string().as_bytes());
        }
        if !host.eq_ignore_ascii_case(&own_host.0) {
            part("host", &own_host.0.to_ascii_lowercase());
        }
        for (name, forwarded) in
            [("x-forwarded-host", &forwarded_host), ("x-forwarded-proto", &forwarded_proto)]
        {
            if let Some(several) = forwarded.as_ref().filter(|values| values.0.len() != values.first().len())
            {
                part(name, &several.0);
            }
        }
        if let Some(claims) =
            Joined::new(headers, FORWARDED.as_str()).and_then(|values| values.host_and_scheme())
        {
            part(FORWARDED.as_str(), &claims);
        }
        for name in LINK_HEADERS.into_iter().chain(rules.headers.iter().map(String::as_str)) {
            if let Some(values) = Joined::new(headers, name) {
                part(name, &values.0);
            }
        }
        Self { text, path: (path_from, fragment_from), method_length: method.as_str().len() }
    }

    /// The key as people read it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names under which a purge finds what is stored under this key, tags aside.
    pub fn purge_names(&self) -> [PurgeName; 3] {
        let target = &self.text[self.path.0..self.path.1];
        let path = target.split('?').next().unwrap_or(target);
        let method = &self.text[..self.method_length];
        [PurgeName::key(&self.text), PurgeName::key(&format!("{method}:{target}")), PurgeName::path(path)]
    }
}

/// Headers by which some applications make links and redirects: they are in the key wherever they are present.
const LINK_HEADERS: [&str; 9] = [
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

/// Headers by which some applications read another method or another target than the request line's. They are not in the
/// key, so that a request with one of them must pass.
const OVERRIDES: [&str; 6] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Whether a request may mean something else to the application than its request line says.
pub fn is_overridden(headers: &HeaderMap) -> bool {
    OVERRIDES.iter().any(|name| headers.contains_key(*name))
}

/// What could end a scheme or a host in the text of a key.
const IN_URL: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'/').add(b'?').add(b' ');

/// All lines of a header as one (RFC 9110, section 5.3).
#[derive(Default)]
struct Joined(Vec<u8>);

impl Joined {
    fn new(headers: &HeaderMap, name: &str) -> Option<Self> {
        let mut lines = headers.get_all(name).iter().map(|line| line.as_bytes());
        let first = lines.next()?.to_vec();
        Some(Self(lines.fold(first, |mut joined, line| {
            joined.extend_from_slice(b",");
            joined.extend_from_slice(line);
            joined
        })))
    }

    /// What `Forwarded` (RFC 7239) claims of host and scheme, in a form of our own; who the client was is left out.
    fn host_and_scheme(&self) -> Option<Vec<u8>> {
        let pairs = self.0.split(|byte| b",;".contains(byte)).map(<[u8]>::trim_ascii);
        let claims: Vec<_> = pairs
            .filter(|pair| {
                let name = pair.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
                name.eq_ignore_ascii_case(b"host") || name.eq_ignore_ascii_case(b"proto")
            })
            .collect();
        (!claims.is_empty()).then(|| claims.join(&b';'))
    }

    fn first(&self) -> &[u8] {
        self.0.split(|&byte| byte == b',').next().unwrap_or(&self.0).trim_ascii()
    }
}

fn push_query(text: &mut String, query: Option<&str>, rules: &KeyRules) {
    let mut separator = '?';
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        let name = pair.split('=').next().unwrap_or(pair);
        // Some applications take ';' for a separator too: what comes after it may not be ignored.
        if rules.ignores(name) && !pair.contains(';') {
            continue;
        }
        text.push(separator);
        // A '#' can't be in a request target; a client that sends one must not forge a header's part of the key.
        text.push_str(&pair.replace('#', "%23"));
        separator = '&';
    }
}

/// A route's key rules, ready to be applied.
#[derive(Clone, Debug, Default)]
pub struct KeyRules {
    /// Lower-case names of the headers in the key.
    pub headers: Vec<String>,
    /// Lower-case names of the headers that the route lists as ignored.
    pub ignore_headers: Vec<String>,
    ignore_query: Vec<String>,
}

impl KeyRules {
    /// The rules of a route.
    pub fn new(spec: Option<&KeySpec>) -> Self {
        let Some(KeySpec { query, headers, ignore_headers }) = spec else { return Self::default() };
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self {
            headers: lower(headers),
            ignore_headers: lower(ignore_headers),
            ignore_query: query.as_ref().map(|query| query.ignore.clone()).unwrap_or_default(),
        }
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignore_query.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::spec::KeyQuery;

    fn key(target: &str, headers: &[(&'static str, &str)], rules: &KeyRules) -> Key {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap()));
        Key::new(&Method::GET, None, None, &NormalPath::new(path), query, &headers.collect(), rules)
    }

    fn rules(ignore: &[&str], headers: &[&str]) -> KeyRules {
        KeyRules::new(Some(&KeySpec {
            query: Some(KeyQuery { ignore: ignore.iter().map(|&name| name.to_owned()).collect() }),
            headers: headers.iter().map(|&name| name.to_owned()).collect(),
            ignore_headers: vec![],
        }))
    }

    #[test]
    fn has_method_scheme_host_path_and_query() {
        let plain = KeyRules::default();
        assert_eq!(key("/p/?b=2&a=1", &[("host", "Shop")], &plain).as_str(), "GET:http://shop/p/?b=2&a=1");
        assert_eq!(
            key(
                "/p",
                &[("host", "shop"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "example.com")],
                &plain
            )
            .as_str(),
            "GET:https://example.com/p#host=shop"
        );
    }

    #[test]
    fn leaves_out_what_the_route_ignores() {
        let rules = rules(&["utm_*", "fbclid"], &[]);
        assert_eq!(key("/p?utm_source=x&a=1&fbclid=2", &[], &rules).as_str(), "GET:http:///p?a=1");
        assert_eq!(key("/p?utm_source=x", &[], &rules), key("/p", &[], &rules));
        assert_ne!(key("/p?utm_source=x;id=9", &[], &rules), key("/p", &[], &rules));
    }

    #[test]
    fn takes_in_the_headers_that_the_route_names() {
        let rules = rules(&[], &["Accept-Language"]);
        assert_eq!(
            key("/p", &[("host", "h"), ("accept-language", "en, de")], &rules).as_str(),
            "GET:http://h/p#accept-language=en,%20de"
        );
        assert_ne!(key("/p", &[("accept-language", "")], &rules), key("/p", &[], &rules));
    }

    #[test]
    fn a_purge_finds_it_by_key_with_and_without_host_and_by_path() {
        let names = key("/p/?a=1", &[("host", "h")], &KeyRules::default()).purge_names();
        assert_eq!(
            names,
            [PurgeName::key("GET:http://h/p/?a=1"), PurgeName::key("GET:/p/?a=1"), PurgeName::path("/p/"),]
        );
    }

    #[test]
    fn what_forwarded_claims_of_the_host_is_in_it_and_the_client_is_not() {
        let plain = KeyRules::default();
        let forwarded = |value| key("/p", &[("host", "h"), ("forwarded", value)], &plain);
        assert_eq!(
            forwarded("for=192.0.2.1;Host=evil;proto=https, for=192.0.2.2").as_str(),
            "GET:http://h/p#forwarded=Host%3Devil;proto%3Dhttps"
        );
        assert_eq!(forwarded("for=192.0.2.1"), forwarded("for=192.0.2.2"));
    }

    #[test]
    fn what_applications_make_links_from_is_in_it() {
        let plain = KeyRules::default();
        assert_ne!(key("/p", &[("x-forwarded-prefix", "/evil")], &plain), key("/p", &[], &plain));
    }

    #[test]
    fn an_override_is_noticed() {
        let headers =
            |name: &'static str| [(http::HeaderName::from_static(name), HeaderValue::from_static("x"))];
        assert!(is_overridden(&headers("x-original-url").into_iter().collect()));
        assert!(!is_overridden(&headers("x-original-host").into_iter().collect()));
    }

    proptest! {
        #[test]
        fn hosts_and_headers_forge_nobody_elses_key(host in "[ -~]{0,12}", other in "[ -~]{0,12}", value in "[ -~]{0,12}") {
            let rules = rules(&[], &["accept-language"]);
            let mine = key("/p", &[("host", &host), ("accept-language", &value)], &rules);
            let theirs = key("/p", &[("host", &other)], &rules);
            prop_assert_ne!(mine, theirs);
        }
    }
}
