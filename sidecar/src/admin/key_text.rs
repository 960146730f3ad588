//! Keys as people write them.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header::HOST};
use larder_policy::{
    NormalPath, PurgeName,
    policy::{Match, RequestLine},
};
use percent_encoding::percent_decode_str;

use crate::snapshot::Snapshot;

/// The text of a whole key, such as `GET:http://shop/a?page=2#accept-language=de`, taken apart ([`larder_policy::Key`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyText<'a> {
    method: &'a str,
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    /// Headers that the route puts into the key, and what else tells requests apart.
    fragment: &'a str,
    /// Headers that `Vary` listed: a line each.
    variant: &'a str,
    /// All but the variant.
    base: &'a str,
}

impl<'a> KeyText<'a> {
    /// Takes a whole key apart; `None` if it is none.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (base, variant) = split_before(text, '\n');
        let (rest, fragment) = split_before(base, '#');
        let (method, rest) = rest.split_once(':')?;
        let (_scheme, rest) = rest.split_once("://")?;
        let (target, query) = match rest.split_once('?') {
            Some((target, query)) => (target, Some(query)),
            None => (rest, None),
        };
        let (host, path) = target.split_at(target.find('/')?);
        Some(Self { method, host, path, query, fragment, variant, base })
    }

    /// The key of what its variants are of.
    pub(super) fn base(&self) -> &'a str {
        self.base
    }

    /// The key without scheme, host and headers: `GET:/a?page=2`.
    pub(super) fn short(&self) -> String {
        let query = self.query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}:{}{query}", self.method, self.path)
    }

    /// The headers that are in the key.
    pub(super) fn headers(&self) -> HeaderMap {
        let of_route = self.fragment.trim_start_matches('#').split('&');
        of_route.chain(self.variant.split('\n')).filter_map(field).collect()
    }

    /// The route that takes requests of this key.
    pub(super) fn route<'s>(&self, snapshot: &'s Snapshot) -> Option<Match<'s>> {
        let method = Method::from_bytes(self.method.as_bytes()).ok()?;
        let mut headers = self.headers();
        // A host that the application got beside another is behind the '#'.
        let uri_host = if headers.contains_key(HOST) {
            headers.entry("x-forwarded-host").or_insert(HeaderValue::from_str(self.host).ok()?);
            None
        } else {
            Some(self.host)
        };
        if let Some(forwarded) = headers.get("forwarded").and_then(|value| value.to_str().ok()) {
            let stated = without_unkeyed_hosts(forwarded);
            headers.insert("forwarded", HeaderValue::try_from(stated).ok()?);
        }
        let path = NormalPath::new(self.path);
        let line = RequestLine { method: &method, uri_host, path: &path, query: self.query };
        snapshot.policy().route(&line, &headers)
    }

    /// The names under which what is stored under this key can be purged.
    pub(super) fn purge_names(&self, route: Option<Match<'_>>) -> Vec<PurgeName> {
        let path = NormalPath::new(self.path);
        let own = [PurgeName::key(self.base), PurgeName::key(&self.short()), PurgeName::path(self.path)];
        let tags = route.map(|found| found.route.tags(path.as_sent()).collect::<Vec<_>>());
        own.into_iter().chain(tags.into_iter().flatten()).collect()
    }
}

/// A header of a key: `name=value`, or the ranges of `Accept-Language`, each with its weight in thousandths
/// ([`larder_policy::vary::write_variant`]).
fn field(part: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = part.split_at(part.find(['=', ':'])?);
    let value = match value.strip_prefix(':') {
        None => percent_decode_str(&value[1..]).collect::<Vec<_>>(),
        Some(ranges) => {
            let ranges = ranges.split(',').map(|range| {
                let (tag, weight) = range.split_once(';')?;
                let weight: u16 = weight.parse().ok()?;
                Some(format!("{tag};q={}.{:03}", weight / 1000, weight % 1000))
            });
            ranges.collect::<Option<Vec<_>>>()?.join(",").into_bytes()
        }
    };
    Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(&value).ok()?))
}

/// Takes the hosts out of `Forwarded` of which the key has the name alone (`key.host: Ignore`): they were those of the route.
fn without_unkeyed_hosts(forwarded: &str) -> String {
    let is_stated = |pair: &&str| !pair.trim().eq_ignore_ascii_case("host=");
    let elements =
        forwarded.split(',').map(|pairs| pairs.split(';').filter(is_stated).collect::<Vec<_>>().join(";"));
    elements.filter(|pairs| !pairs.is_empty()).collect::<Vec<_>>().join(",")
}

fn split_before(text: &str, at: char) -> (&str, &str) {
    text.split_at(text.find(at).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use larder_policy::{HeaderKinds, Key, key::KeyParts, key::KeyRules, vary};

    use super::*;

    /// The key of a request on a route that keys `x-kept`.
    fn key(target: &str, headers: &HeaderMap) -> Key {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let parts = KeyParts {
            method: &Method::GET,
            target: None,
            uri_host: None,
            path: &NormalPath::new(path),
            query,
            body: None,
        };
        let mut rules = KeyRules::default();
        rules.headers.push("x-kept".to_owned());
        Key::new(&parts, headers, &HeaderKinds::of(headers), &rules)
    }

    #[test]
    fn parts_of_a_key_are_found_in_its_text() {
        let fields = [
            ("host", "shop:8080"),
            ("x-kept", "de, en;q=0.5&#\u{20}=%"),
            ("x-a", "1=2:3%41"),
            ("accept-language", "de;q=0.8, EN, fr;q=0.005"),
        ];
        let headers: HeaderMap = fields
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let vary = ["accept-language", "x-a", "x-b"].map(HeaderName::from_static);
        for target in ["/", "/a/b?x=1&y=%23#z", "/a://b", "/%2F%3F?", "/GET:http://x/y?z"] {
            let key = key(target, &headers);
            let parsed = KeyText::parse(key.as_str()).unwrap();
            assert_eq!(parsed.purge_names(None), key.purge_names(), "{target}");
            assert_eq!(parsed.headers()["x-kept"], headers["x-kept"], "{target}");
            let mut variant = key.as_str().to_owned();
            vary::write_variant(&mut variant, &vary, &headers);
            let parsed = KeyText::parse(&variant).unwrap();
            assert_eq!((parsed.base(), parsed.purge_names(None)), (key.as_str(), key.purge_names().to_vec()));
            let mut again = key.as_str().to_owned();
            vary::write_variant(&mut again, &vary, &parsed.headers());
            assert_eq!(again, variant, "its headers are those of the variant");
        }
    }

    #[test]
    fn hosts_that_are_not_in_the_key_are_none_of_the_request() {
        for (keyed, stated) in [
            ("for=;Host=;proto=https", "for=;proto=https"),
            ("host=, host=;proto=https, for=", "proto=https, for="),
            ("for=;host=shop;proto=https", "for=;host=shop;proto=https"),
        ] {
            assert_eq!(without_unkeyed_hosts(keyed).trim(), stated, "{keyed}");
        }
    }

    #[test]
    fn incomplete_key_text_is_none() {
        for text in ["", "GET", "GET:/a", "GET:http:/a", "GET:http://shop", "http://shop/a"] {
            assert_eq!(KeyText::parse(text).map(|key| key.base()), None, "{text}");
        }
    }
}
