//! Values of a request that are inserted into queries, statements and paths of sources.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    names::{name_of, pairs},
    template::{Parameters, encoded_segments, placeholders},
};

/// Characters to encode: all but the unreserved ones of RFC 3986, section 2.3, so that a value is never more than one
/// part of a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Prefix of the names of query parameters.
const IN_QUERY: &str = "query.";
/// Name of a source's response body, in a statement that persists it.
pub const BODY: &str = "body";

/// The values that `{name}` stands for: a parameter of the path, of the query (`query.name`), or the text of a response
/// body (`body`).
#[derive(Clone, Debug, Default)]
pub struct Values<'a> {
    /// Parameters of the path.
    pub parameters: Parameters<'a>,
    /// The query as it was sent.
    pub query: Option<&'a str>,
    /// The response body to persist.
    pub body: Option<&'a str>,
}

impl Values<'_> {
    /// Returns the value of a name; `None` if the request has none. Of several parameters of a name in the query, the
    /// first counts; `+` is a space in it, and invalid UTF-8 is replaced.
    pub fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        if let Some(wanted) = name.strip_prefix(IN_QUERY) {
            let is_it = |pair: &&str| decoded(name_of(pair)) == wanted;
            let pair = self.query.into_iter().flat_map(pairs).find(is_it)?;
            return Some(decoded(pair.split_once('=').map_or("", |(_, value)| value)));
        }
        let of_path = self.parameters.iter().find(|(known, _)| *known == name);
        let of_path = of_path.map(|(_, value)| Cow::from(value.as_str()));
        of_path.or_else(|| self.body.filter(|_| name == BODY).map(Cow::from))
    }

    /// Expands a path with an optional query: each `{name}` becomes its value as one part of a URL, or nothing, and
    /// `{*name}` in the path as the segments that it has. Returns `None` if a segment would become `.` or `..`, however
    /// servers resolve it, or the path would start with two slashes, which some take for a host.
    pub fn expand_url(&self, template: &str) -> Option<String> {
        let mut expanded = String::with_capacity(template.len() + 32);
        let mut rest = template;
        while let Some((before, name, after)) = rest
            .split_once('{')
            .and_then(|(before, rest)| rest.split_once('}').map(|(name, after)| (before, name, after)))
        {
            expanded.push_str(before);
            let in_path = !expanded.contains('?');
            let (name, is_spread) = match name.strip_prefix('*') {
                Some(name) => (name, in_path),
                None => (name, false),
            };
            let value = self.get(name).unwrap_or_default();
            if is_spread {
                expanded.push_str(&encoded_segments(&value));
            } else {
                if matches!(&*value, "." | "..") && in_path {
                    return None;
                }
                expanded.extend(utf8_percent_encode(&value, ENCODED));
            }
            rest = after;
        }
        expanded.push_str(rest);
        let leaves = dot_segments(&expanded) > dot_segments(template) || is_network_path(&expanded, template);
        (!leaves).then_some(expanded)
    }
}

/// Returns the number of dot segments in the path of a URL.
fn dot_segments(url: &str) -> usize {
    let path = url.split('?').next().unwrap_or(url);
    path.split('/').filter(|segment| matches!(*segment, "." | "..")).count()
}

/// Returns true if values made a network-path reference (RFC 3986, section 4.2) of a path.
fn is_network_path(expanded: &str, template: &str) -> bool {
    expanded.starts_with("//") && !template.starts_with("//")
}

/// Returns the parameter of the query that a name refers to.
pub(crate) fn query_parameter(name: &str) -> Option<&str> {
    name.strip_prefix(IN_QUERY).filter(|name| !name.is_empty())
}

/// Returns the query parameters among the `{name}`s of a text.
pub(crate) fn query_parameters(text: &str) -> impl Iterator<Item = &str> {
    placeholders(text).filter_map(query_parameter)
}

fn decoded(text: &str) -> Cow<'_, str> {
    let text = if text.contains('+') { Cow::from(text.replace('+', " ")) } else { Cow::from(text) };
    match text {
        Cow::Borrowed(text) => percent_decode_str(text).decode_utf8_lossy(),
        Cow::Owned(text) => percent_decode_str(&text).decode_utf8_lossy().into_owned().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_request_are_found() {
        let values = Values {
            parameters: vec![("key", "a/b".to_owned())],
            query: Some("x=1&page=2+%26&page=3&%70ath=%2e"),
            body: Some("{}"),
        };
        for (name, expected) in [
            ("key", Some("a/b")),
            ("query.page", Some("2 &")),
            ("query.path", Some(".")),
            ("query.x", Some("1")),
            ("query.y", None),
            ("body", Some("{}")),
            ("other", None),
        ] {
            assert_eq!(values.get(name).as_deref(), expected, "{name}");
        }
        let expanded = values.expand_url("/p/{key}?page={query.page}&y={query.y}");
        assert_eq!(expanded.as_deref(), Some("/p/a%2Fb?page=2%20%26&y="));
    }

    #[test]
    fn a_value_is_never_more_than_a_part() {
        for (value, expanded) in [
            ("..", None),
            (".", None),
            ("...", Some("/a/.../b")),
            ("x?y#z", Some("/a/x%3Fy%23z/b")),
            ("{key}", Some("/a/%7Bkey%7D/b")),
        ] {
            let values = Values { parameters: vec![("key", value.to_owned())], ..Values::default() };
            assert_eq!(values.expand_url("/a/{key}/b").as_deref(), expanded);
            assert!(values.expand_url("/a?b={key}").is_some());
        }
    }

    #[test]
    fn rest_of_a_path_keeps_its_segments_and_never_leaves_its_place() {
        for (value, expanded) in [
            ("a/b c.css", Some("/a/a/b%20c.css?of=a%2Fb%20c.css")),
            ("", Some("/a/?of=")),
            ("a/", Some("/a/a/?of=a%2F")),
            ("x?y#z/%2e%2e/\\", Some("/a/x%3Fy%23z/%252e%252e/%5C?of=x%3Fy%23z%2F%252e%252e%2F%5C")),
            ("..", None),
            ("a/../../b", None),
            ("a/.", None),
            ("./a", None),
        ] {
            let values = Values { parameters: vec![("path", value.to_owned())], ..Values::default() };
            assert_eq!(values.expand_url("/a/{*path}?of={*path}").as_deref(), expanded, "{value}");
            assert_eq!(
                values.expand_url("/a/..{*path}").is_some(),
                !matches!(value, "" | "a/../../b" | "a/.")
            );
        }
        for (value, expanded) in [("b/c", Some("/b/c")), ("/evil.example/x", None), ("", Some("/"))] {
            let values = Values { parameters: vec![("path", value.to_owned())], ..Values::default() };
            assert_eq!(values.expand_url("/{*path}").as_deref(), expanded, "{value}");
        }
    }
}
