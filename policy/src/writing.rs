//! Requests that may change something, whatever they look like.

mod content;
mod expandable;
mod placeholder;
mod pointer;
mod values;

use http::Method;
use percent_encoding::{percent_decode, percent_decode_str};

use crate::{
    Fields,
    names::{folded, is_alike, name_of, pairs},
};

pub use self::{
    content::{is_json, is_plain_json},
    placeholder::Placeholder,
    pointer::Pointer,
};
pub(crate) use self::{
    expandable::{Expandable, Expanded},
    placeholder::no_parameter,
};

/// Parts of the names, letters and digits alone, of header fields from which frameworks read another method than the
/// request line's.
const METHOD_PARTS: [&[u8]; 7] = [
    b"methodoverride",
    b"overridemethod",
    b"httpmethod",
    b"httprequestmethod",
    b"tunneledmethod",
    b"httpverb",
    b"verboverride",
];
/// Complete names, letters and digits alone, of header fields from which frameworks read another method.
const METHOD_NAMES: [&[u8]; 10] = [
    b"method",
    b"verb",
    b"xmethod",
    b"xverb",
    b"xoriginalmethod",
    b"xforwardedmethod",
    b"xrequestmethod",
    b"xrequestedmethod",
    b"xrestmethod",
    b"xtunnelmethod",
];
/// Methods that the parameter `method`, with no sign before it, may name: Akka's and Restlet's tunnels read one there,
/// and so do other applications, for other purposes.
const METHODS_OF_PLAIN_PARAMETER: [Method; 4] = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
/// Minimum length of the name of a parameter from which frameworks read another method: `xverb`.
const MIN_PARAMETER: usize = 5;
/// Header fields from which frameworks read another target than the request line's.
pub(crate) const TARGETS: [&str; 5] =
    ["x-original-uri", "x-original-url", "x-rewrite-uri", "x-rewrite-url", "x-waws-unencoded-url"];

/// Maximum length of the name of a header field that overrides the method.
const MAX_NAME: usize = 48;

/// A request that may change something, with every reading that an application may have of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writing {
    methods: Vec<Method>,
    paths: Vec<String>,
    disguised: bool,
    /// Values that were looked for, and those of them that are known.
    values: Vec<(Placeholder, Option<Vec<String>>)>,
}

impl Writing {
    /// Reads a request: its method, the methods that its header fields and query declare, and its path. Returns `None`
    /// if it changes nothing under any reading.
    pub fn of(
        method: &Method,
        path: &str,
        query: Option<&str>,
        fields: &(impl Fields + ?Sized),
    ) -> Option<Self> {
        let may_be_disguised = query.is_some() || fields.lines().any(|(name, _)| names_a_method(name));
        let mut methods: Vec<Method> =
            if may_be_disguised { overrides(query, fields).collect() } else { Vec::new() };
        let disguised = !methods.is_empty();
        if !is_safe(method) {
            methods.insert(0, method.clone());
        }
        if *method == Method::POST && may_have_method_in_body(fields) {
            // Forms can't send every method, and have a field that says which is meant. Some frameworks read it in JSON, too.
            methods.extend([Method::PUT, Method::PATCH, Method::DELETE]);
        }
        if methods.is_empty() {
            return None;
        }
        let targets =
            fields.lines().filter(|(name, _)| may_name_target(name)).filter_map(|(_, value)| path_of(value));
        let mut paths = vec![path.to_owned()];
        paths.extend(targets);
        Some(Self { methods, paths, disguised, values: vec![] })
    }

    /// Returns the methods that an application may carry out, the request line's first; each of them may change
    /// something.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// Returns the paths that the request may refer to, as they were sent, the request line's first.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// Returns true if a header field or a query parameter contradicts the request line.
    pub fn is_disguised(&self) -> bool {
        self.disguised
    }

    /// Notes the values for a placeholder, or that they are not known.
    pub(crate) fn note_values(&mut self, placeholder: &Placeholder, values: Option<Vec<String>>) {
        self.values.retain(|(known, _)| known != placeholder);
        self.values.push((placeholder.clone(), values));
    }

    /// Returns the values for a placeholder, if they are known.
    pub(crate) fn values(&self, placeholder: &Placeholder) -> Option<&[String]> {
        let (_, values) = self.values.iter().find(|(known, _)| known == placeholder)?;
        values.as_deref()
    }

    /// Returns true if the request may have one of the methods of a rule; a rule without methods matches all.
    pub(crate) fn is_one_of(&self, listed: &[String]) -> bool {
        let is =
            |listed: &String| self.methods.iter().any(|method| method.as_str().eq_ignore_ascii_case(listed));
        listed.is_empty() || listed.iter().any(is)
    }
}

/// Returns true if a method is safe: a request with it asks for no change (RFC 9110, section 9.2.1). `QUERY` is, and has
/// content.
pub fn is_safe(method: &Method) -> bool {
    method.is_safe() || method.as_str() == "QUERY"
}

/// Returns true if some application may read a method in a header field of this name. CGI and its descendants read `_`
/// as `-`.
pub(crate) fn names_a_method(name: &[u8]) -> bool {
    // Each of the known names has an m or a v, and most fields of requests have neither.
    let may_be_known = name.iter().any(|byte| matches!(byte | 0x20, b'm' | b'v'));
    if !may_be_known || name.len() > MAX_NAME {
        return false;
    }
    let mut letters = [0; MAX_NAME];
    let mut count = 0;
    for byte in name.iter().filter(|byte| byte.is_ascii_alphanumeric()) {
        letters[count] = byte.to_ascii_lowercase();
        count += 1;
    }
    letters_name_a_method(&letters[..count])
}

fn letters_name_a_method(letters: &[u8]) -> bool {
    METHOD_NAMES.contains(&letters)
        || METHOD_PARTS.iter().any(|part| letters.windows(part.len()).any(|window| window == *part))
}

/// Returns true if some application may read a target in a header field of this name.
pub(crate) fn names_target(name: &[u8]) -> bool {
    TARGETS.iter().any(|known| is_alike(name, known))
}

/// Returns true if a header field of this name may extend a write beyond its path: to another target, or to the destination
/// of MOVE and COPY (RFC 4918, section 10.3). Errs on the side of true, which only purges more.
fn may_name_target(name: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"path", b"target", b"uri", b"url"];
    let is_one = |word: &[u8]| WORDS.iter().any(|known| word.eq_ignore_ascii_case(known));
    name.eq_ignore_ascii_case(b"destination")
        || names_target(name)
        || matches!(name, [b'x' | b'X', b'-' | b'_' | b'.', rest @ ..]
            if rest.split(|byte| b"-_.".contains(byte)).any(is_one))
}

/// Returns the unsafe methods that header fields and query parameters declare.
fn overrides(query: Option<&str>, fields: &(impl Fields + ?Sized)) -> impl Iterator<Item = Method> {
    let in_fields =
        fields.lines().filter(|(name, _)| names_a_method(name)).flat_map(|(_, value)| methods(value));
    in_fields.filter(|method| !is_safe(method)).chain(query.into_iter().flat_map(overrides_in_query))
}

/// Returns true if a parameter of a query declares an unsafe method.
pub fn is_disguised_by(query: &str) -> bool {
    overrides_in_query(query).next().is_some()
}

/// Returns the unsafe methods that parameters of a query declare.
fn overrides_in_query(query: &str) -> impl Iterator<Item = Method> {
    let pairs = pairs(query).flat_map(|pair| pair.split(';'));
    pairs.filter_map(|pair| Some((parameter(name_of(pair).as_bytes())?, pair))).flat_map(|(kind, pair)| {
        let value = pair.split_once('=').map_or("", |(_, value)| value).replace('+', " ");
        let methods = methods(&percent_decode_str(&value).collect::<Vec<u8>>()).into_iter();
        methods.filter(move |method| match kind {
            Parameter::OfMethod => !is_safe(method),
            Parameter::Plain => METHODS_OF_PLAIN_PARAMETER.contains(method),
        })
    })
}

/// A parameter from which some framework reads a method.
#[derive(Clone, Copy)]
enum Parameter {
    /// One of a name that means nothing else.
    OfMethod,
    /// `method`.
    Plain,
}

fn parameter(name: &[u8]) -> Option<Parameter> {
    if name.len() < MIN_PARAMETER {
        return None;
    }
    let mut letters = [0; MAX_NAME];
    let mut count = 0;
    for byte in folded(name) {
        *letters.get_mut(count)? = byte;
        count += 1;
    }
    let letters = &letters[..count];
    if !letters_name_a_method(letters) {
        return None;
    }
    // Without what marks it, as in `_method` and `$verb`, it is a word of the application's.
    let first = percent_decode(name).next();
    match letters {
        b"method" if first.is_some_and(|byte| byte.is_ascii_alphanumeric()) => Some(Parameter::Plain),
        b"verb" if first.is_some_and(|byte| byte.is_ascii_alphanumeric()) => None,
        _ => Some(Parameter::OfMethod),
    }
}

/// Returns the methods in a value: frameworks differ in which of several they use.
fn methods(value: &[u8]) -> Vec<Method> {
    let words = value.split(|byte| b",;\"' \t".contains(byte)).filter(|word| !word.is_empty());
    words.filter_map(|word| Method::from_bytes(&word.to_ascii_uppercase()).ok()).collect()
}

fn may_have_method_in_body(fields: &(impl Fields + ?Sized)) -> bool {
    const FORMS: [&[u8]; 2] = [b"application/x-www-form-urlencoded", b"multipart/form-data"];
    let is_form = |value| FORMS.iter().any(|form| content::media_type(value).eq_ignore_ascii_case(form));
    fields.values("content-type").any(|value| is_form(value) || is_json(value))
}

/// Returns the path of a target in a header field.
fn path_of(value: &[u8]) -> Option<String> {
    let target = str::from_utf8(value).ok()?.trim();
    let target = target.split(['?', '#']).next().unwrap_or(target);
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map(|at| rest[at..].to_owned()),
        None if target.starts_with('/') => Some(target.to_owned()),
        None => Some(format!("/{target}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writing(method: &Method, target: &str, lines: &[(&str, &str)]) -> Option<Writing> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        Writing::of(method, path, query, lines.as_slice())
    }

    fn methods(method: &Method, target: &str, lines: &[(&str, &str)]) -> Vec<String> {
        let writing = writing(method, target, lines);
        writing.iter().flat_map(Writing::methods).map(ToString::to_string).collect()
    }

    #[test]
    fn any_unsafe_override_makes_a_write() {
        let none: [&str; 0] = [];
        for (lines, expected) in [
            (&[("x-http-method-override", "DELETE")][..], &["DELETE"][..]),
            (&[("x-http-method", "GET"), ("x-http-method-override", "DELETE")], &["DELETE"]),
            (&[("x-http-method-override", "GET"), ("X-HTTP-Method-Override", "put")], &["PUT"]),
            (&[("x-method-override", " GET , pAtCh")], &["PATCH"]),
            (&[("x-http-method", "\"DELETE\"; x")], &["DELETE", "X"]),
            (&[("X_HTTP_METHOD_OVERRIDE", "DELETE")], &["DELETE"]),
            (&[("x-method", "POST")], &["POST"]),
            (&[("http-method-override", "POST")], &["POST"]),
            (&[("x-http-verb-override", "MOVE")], &["MOVE"]),
            (&[("X-Rest-Method", "DELETE")], &["DELETE"]),
            (&[("x-request-method", "put"), ("x-tunnel-method", "GET")], &["PUT"]),
            (&[("X-Requested-Method", "DELETE")], &["DELETE"]),
            (&[("x_requested_method", "PUT")], &["PUT"]),
            (&[("X-HTTP-Request-Method", "PATCH")], &["PATCH"]),
            (&[("x-tunneled-method", "PUT")], &["PUT"]),
            (&[("x-http-method", "get"), ("x-method-override", "HEAD")], &none),
            (&[("x-http-method-override", "QUERY")], &none),
            (&[("access-control-request-method", "DELETE")], &none),
            (&[("x-payment-method", "delete")], &none),
        ] {
            assert_eq!(methods(&Method::GET, "/a", lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn query_or_form_may_override_the_method() {
        for (target, expected) in [
            ("/a?_method=delete", &["DELETE"][..]),
            ("/a?x=1&_METHOD=PuT", &["PUT"]),
            ("/a?x=1;%5Fmethod=%50UT", &["PUT"]),
            ("/a?x-http-method-override=PATCH", &["PATCH"]),
            ("/a?_method[]=delete", &["DELETE"]),
            ("/a?_method%5B0%5D=delete", &["DELETE"]),
            ("/a?_METHOD=Delete", &["DELETE"]),
            ("/a?__METHOD__=PUT", &["PUT"]),
            ("/a?:method=PUT", &["PUT"]),
            ("/a?_HttpMethod=PATCH", &["PATCH"]),
            ("/a?$httpMethod=PATCH", &["PATCH"]),
            ("/a?_http_method=PATCH", &["PATCH"]),
            ("/a?_method_override=PATCH", &["PATCH"]),
            ("/a?methodOverride=PATCH", &["PATCH"]),
            ("/a?x-tunneled-method=PUT", &["PUT"]),
            ("/a?X-HTTP-Method=MERGE", &["MERGE"]),
            ("/a?_method=anything", &["ANYTHING"]),
            ("/a?method=DELETE", &["DELETE"]),
            ("/a?Method=post&x", &["POST"]),
            ("/a?method[]=put", &["PUT"]),
            ("/a?_method=GET", &[]),
            ("/a?_method=QUERY", &[]),
            ("/a?method=card", &[]),
            ("/a?method=get", &[]),
            ("/a?verb=delete", &[]),
            ("/a?payment_method=delete", &[]),
            ("/a?methods=delete", &[]),
            ("/a?method", &[]),
            ("/a?_method=", &[]),
        ] {
            assert_eq!(methods(&Method::GET, target, &[]), expected, "{target}");
            let query = target.split_once('?').unwrap().1;
            assert_eq!(is_disguised_by(query), !expected.is_empty(), "{target}");
        }
        let form = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        assert_eq!(methods(&Method::POST, "/a", &form), ["POST", "PUT", "PATCH", "DELETE"]);
        assert!(!writing(&Method::POST, "/a", &form).unwrap().is_disguised());
        assert_eq!(methods(&Method::POST, "/a?_method=DELETE", &[]), ["POST", "DELETE"]);
    }

    #[test]
    fn post_of_json_may_override_the_method_in_its_content() {
        for media_type in
            ["application/json", "Application/JSON;charset=utf-8", "application/vnd.api+json", "text/json"]
        {
            let all = methods(&Method::POST, "/a", &[("content-type", media_type)]);
            assert_eq!(all, ["POST", "PUT", "PATCH", "DELETE"], "{media_type}");
        }
        for media_type in ["text/html", "application/xml", "json", ""] {
            assert_eq!(
                methods(&Method::POST, "/a", &[("content-type", media_type)]),
                ["POST"],
                "{media_type}"
            );
        }
    }

    #[test]
    fn query_is_safe() {
        let query = Method::from_bytes(b"QUERY").unwrap();
        assert_eq!(writing(&query, "/a", &[("content-type", "application/json")]), None);
        assert_eq!(methods(&query, "/a", &[("x-http-method-override", "PUT")]), ["PUT"]);
        let lower = Method::from_bytes(b"query").unwrap();
        assert_eq!(methods(&lower, "/a", &[]), ["query"]);
    }

    #[test]
    fn write_may_refer_to_another_path() {
        let lines =
            [("x-original-url", "/b?x=1"), ("x-rewrite-url", "http://shop/c"), ("x-original-uri", "d")];
        assert_eq!(writing(&Method::PUT, "/a", &lines).unwrap().paths(), ["/a", "/b", "/c", "/d"]);
        assert_eq!(writing(&Method::GET, "/a", &lines), None);
    }

    #[test]
    fn any_header_that_may_name_a_target_adds_its_path() {
        let target = |name, value| {
            let writing = writing(&Method::PUT, "/a", &[(name, value)]).unwrap();
            writing.paths().get(1).cloned()
        };
        for (name, value) in [
            ("x-original-path", "/b"),
            ("X-Rewrite-Path", "/b?x"),
            ("x_original_url", "http://shop/b"),
            ("x-override-url", "/b"),
            ("x-forwarded-uri", "/b"),
            ("x-forwarded-path", "b"),
            ("x-replaced-path", "/b"),
            ("x-envoy-original-path", "/b"),
            ("Destination", "http://shop/b"),
            ("destination", "/b"),
        ] {
            assert_eq!(target(name, value).as_deref(), Some("/b"), "{name}");
        }
        for name in ["referer", "x-request-id", "x-pathology", "content-location", "x"] {
            assert_eq!(target(name, "/b"), None, "{name}");
        }
    }
}
