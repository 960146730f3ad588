//! Keys as written by hand for a purge.

use std::fmt;

use super::PurgeName;
use crate::{Policy, key::KeyRules, path::Readings};

/// Maximum length of the path and query of a key: that of a request target, 32 KiB, with every byte escaped.
const MAX_TARGET: usize = 3 * (32 << 10);

/// The parts of a key as it was written, complete or abbreviated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenKey<'a> {
    /// Method, and scheme and host of a complete key.
    start: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    /// The headers of a complete key, from the `#` on.
    fragment: &'a str,
}

/// The reason that nothing is ever stored under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The key does not start with a method whose responses are stored and a path.
    NoMethod,
    /// An abbreviated key has a fragment, or a complete one has a fragment that is not made of headers.
    Fragment,
    /// A segment of the path ends in `*`.
    Pattern,
    /// Path and query are longer than those of any request.
    TooLong,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMethod => {
                "is not a key: start it with the method, GET, HEAD or POST, as in GET:/api/posts/?page=2"
            }
            Self::Fragment => {
                "has a fragment, which requests never have: leave it out, or write %23 for a '#'; \
                 only a whole key has one, which lists headers, as in GET:http://shop/a#accept-language=de"
            }
            Self::Pattern => {
                "has a '*', but patterns are not supported: purge a tag to reach several keys, or write %2A for a literal '*'"
            }
            Self::TooLong => "is longer than any request target",
        })
    }
}

impl<'a> WrittenKey<'a> {
    /// Parses a key. The lines of a variant, after a complete key, are dropped.
    ///
    /// # Errors
    /// If nothing is ever stored under it.
    pub fn parse(text: &'a str) -> Result<Self, KeyError> {
        let base = text.split('\n').next().unwrap_or(text);
        let (text, from, is_whole) = match (target_from(base), target_from(text)) {
            (Some((from, true)), _) => (base, from, true),
            (_, Some((from, false))) => (text, from, false),
            _ => return Err(KeyError::NoMethod),
        };
        let (start, rest) = text.split_at(from);
        if !rest.starts_with('/') {
            return Err(KeyError::NoMethod);
        }
        let (target, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let is_header = |text: &str| text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        if target.len() > MAX_TARGET {
            Err(KeyError::TooLong)
        } else if !(fragment.is_empty() || is_whole && is_header(&fragment[1..])) {
            Err(KeyError::Fragment)
        } else if path.split('/').any(|segment| segment.ends_with('*')) {
            Err(KeyError::Pattern)
        } else {
            Ok(Self { start, path, query, fragment })
        }
    }

    /// Returns the names of everything that may be stored under this key: as it was written, without accidental
    /// trailing characters, and in the form that the routes of a policy give it, which leave out parameters and sort
    /// them, and may ignore the host.
    pub fn purge_names(&self, policy: &Policy) -> Vec<PurgeName> {
        let readings = Readings::of(self.path);
        let routes = policy.routes().iter().filter(|route| match &route.path {
            None => true,
            Some(template) => readings.iter().any(|reading| template.matches_reading(reading).is_some()),
        });
        let by_routes = routes.map(|route| self.text(Some(&route.key)));
        let texts = [self.text(None)].into_iter().chain(by_routes);
        let mut names: Vec<_> =
            texts.flat_map(|text| [&*text, text.trim_end()].map(PurgeName::key)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Returns the key as it was written, or with the host and the query that a route's rules make of its own.
    fn text(&self, rules: Option<&KeyRules>) -> String {
        let before_host = self.start.find("://").map(|at| &self.start[..at + 3]);
        let mut text = match (before_host, rules.and_then(|rules| rules.any_host.as_deref())) {
            (Some(start), Some(host)) => [start, host, self.path].concat(),
            _ => [self.start, self.path].concat(),
        };
        match (self.query, rules) {
            (None, _) => {}
            (Some(query), None) => text.extend(["?", query]),
            (Some(query), Some(rules)) => rules.push_query(&mut text, query),
        }
        text.push_str(self.fragment);
        text
    }
}

/// Returns the position of the path in a key, and true if the key is complete: the path follows the method, and scheme
/// and host if there are any.
fn target_from(key: &str) -> Option<(usize, bool)> {
    let (method, rest) =
        key.split_once(':').filter(|(method, _)| matches!(*method, "GET" | "HEAD" | "POST"))?;
    let from = method.len() + 1;
    match rest.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#'])) {
        Some((scheme, rest)) => Some((from + scheme.len() + 3 + rest.find(['/', '?', '#'])?, true)),
        None => Some((from, false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_under_which_nothing_is_stored_is_invalid() {
        for (reason, keys) in [
            (
                KeyError::NoMethod,
                &[
                    "",
                    "/a",
                    "http://shop/a",
                    "get:/a",
                    "PUT:/a",
                    "GET:a",
                    "GET:shop/a",
                    "GET:",
                    "GET",
                    " GET:/a",
                ][..],
            ),
            (
                KeyError::NoMethod,
                &["GET:http://shop", "GET:http://shop?a", "GET:http://shop#a=b", "GET:\n/a"],
            ),
            (
                KeyError::NoMethod,
                &["GET:http://shop\n/a", "GET:ht\ntp://shop/a", "GET:?a", "GET:#a", "GET:*"],
            ),
            (KeyError::Fragment, &["GET:/a#x", "GET:/a#", "GET:/a#x=y", "GET:/a?b#x=y", "HEAD:/#"]),
            (KeyError::Fragment, &["GET:http://shop/a#x", "GET:http://shop/a#", "GET:http://shop/a#=x"]),
            (KeyError::Fragment, &["GET:http://shop/a?b#x\nc=d"]),
            (KeyError::Pattern, &["GET:/items/*", "GET:/*/a", "GET:http://shop/a*?b", "POST:/a**"]),
        ] {
            for key in keys {
                assert_eq!(WrittenKey::parse(key), Err(reason), "{key:?}");
            }
        }
        let long = format!("GET:/{}", "a".repeat(MAX_TARGET));
        assert_eq!(WrittenKey::parse(&long), Err(KeyError::TooLong));
        assert!(WrittenKey::parse(&long[..long.len() - 1]).is_ok());
        for key in [
            "GET:/",
            "GET://a",
            "HEAD:/a?b=*",
            "GET:/a*b/%2A",
            "GET:http:///a",
            "GET:https://shop:8443/a?b#c=d&e=f",
            "GET:http://shop/a#x=1\naccept-language:de;500",
            "GET:http://shop/a\nx=*",
            "GET:/a%zz",
            "GET:/a ",
            "GET:/a\n",
            "GET:/a://b",
        ] {
            assert!(WrittenKey::parse(key).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn handwritten_key_matches_the_routes_form() {
        let policy = "
routes:
- {name: some, match: {path: \"/some/{id}\"}, ttl: 60s, key: {query: {allow: [page, sort], order: Sorted}}}
- {name: page, match: {path: \"/{page}\"}, ttl: 60s, key: {query: {ignore: [\"utm_*\"]}}}
- {name: any, match: {path: /any/host}, ttl: 60s, key: {host: Ignore}}
";
        let policy = Policy::compile(&serde_yaml::from_str(policy).unwrap()).unwrap();
        for (stored, written) in [
            ("GET:/some/1", &["GET:/some/1?x=1", "GET:/some/1\n", "GET:/some/1 ", "GET:/some/%31?x=1&y"][..]),
            ("GET:/some/1?page=2", &["GET:/some/1?page=2&x=1", "GET:/some/1?x=1&page=2\n"]),
            ("GET:/some/1?page=2&sort=a", &["GET:/some/1?sort=a&x=1&page=2", "GET:/some/1?page=2&sort=%61"]),
            (
                "GET:http://shop/some/1?page=2#x=y",
                &["GET:http://shop/some/1?x=1&page=2#x=y", "GET:HTTP://SHOP:80/some/1?page=2#x=y\nvary=z"],
            ),
            (
                "GET:/cafe%CC%81?q=a+b",
                &["GET:/caf\u{e9}?q=a b&utm_a=1", "GET:/cafe\u{301}?q=a%20b", "GET:/caf%C3%A9?q=a+b"],
            ),
            ("GET:/a/other?x=1", &["GET:/a/other?x=1"]),
            (
                "GET:http://*/any/host?a=1",
                &[
                    "GET:http://shop/any/host?a=1",
                    "GET:HTTP://10.0.0.7:8080/any/host?a=1",
                    "GET:http://*/any/host?a=1",
                ],
            ),
        ] {
            for written in written {
                let names = WrittenKey::parse(written).unwrap().purge_names(&policy);
                assert!(names.contains(&PurgeName::key(stored)), "{written:?} is {stored:?}");
            }
        }
        for (stored, written) in [
            ("GET:/some/1", "GET:/some/1?page=2"),
            ("GET:/some/1?page=2", "GET:/some/1?page=3&x=1"),
            ("GET:/page", "GET:/page?x=1"),
            ("GET:/some/2", "GET:/some/1?x=1"),
        ] {
            let names = WrittenKey::parse(written).unwrap().purge_names(&policy);
            assert!(!names.contains(&PurgeName::key(stored)), "{written:?} is not {stored:?}");
        }
    }
}
