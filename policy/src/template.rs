//! Paths with parameters, such as `/api/users/{id}` and `/static/{*path}`.

use std::{borrow::Cow, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::path::{NormalPath, fold};

pub mod purge_path;
mod spellings;

pub use self::purge_path::PurgePath;
pub(crate) use self::spellings::lowered;

/// The CEL rule by which the API server enforces the format.
pub const CEL_RULE: &str = r"self.matches('^(/([A-Za-z0-9._~!$&()+,;=:@%-]*|[{][A-Za-z][A-Za-z0-9_]*[}]))*/([A-Za-z0-9._~!$&()+,;=:@%-]*|[{][*]?[A-Za-z][A-Za-z0-9_]*[}])$')";

/// Characters to encode: all but the unreserved ones of RFC 3986, section 2.3, so that a value cannot escape from its
/// tag or path segment.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path whose segments are literal text or one parameter, such as `/api/users/{id}`. A parameter matches one
/// non-empty segment. The last segment may be the rest of the path, as in `/static/{*path}`: it matches any segments,
/// and none behind the slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathTemplate {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// The literal, decoded.
    Literal(String),
    /// The name of a parameter.
    Parameter(String),
    /// The name of the rest of the path; always the last segment.
    Rest(String),
}

/// A text that is not a path template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The text is no path.
    #[error(
        "{0:?} is not a path: start it with '/', and let each segment be literal text or one {{parameter}}, \
         such as /api/users/{{id}}; the last may be {{*rest}}, as in /static/{{*path}}"
    )]
    NotAPath(String),
    /// The rest of the path is not a whole segment, or not the last.
    #[error(
        "{0:?} has a '*': put {{*name}} at the end, as a whole segment, as in /static/{{*path}}, where it stands for \
         the rest of the path"
    )]
    MisplacedRest(String),
}

/// The parameters of a path: names and values, the values percent-decoded.
pub type Parameters<'a> = Vec<(&'a str, String)>;

impl PathTemplate {
    /// Returns the template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the names of the parameters, in the order of the path.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) | Segment::Rest(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// Returns the name of the rest of the path, if the template ends with one.
    pub fn rest(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Rest(name)) => Some(name),
            _ => None,
        }
    }

    /// Returns the segments.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the parameters' values if `path`, an unambiguous one ([`NormalPath::is_ambiguous`]), matches.
    ///
    /// A segment that does not decode to UTF-8 matches no parameter: it could not appear in a tag or be bound to a
    /// query.
    pub fn matches(&self, path: &str) -> Option<Parameters<'_>> {
        self.matches_spelled(path, false)
    }

    /// Returns the parameters' values if `path`, an unambiguous one, matches, regardless of the case of literals if so asked.
    pub(crate) fn matches_spelled(&self, path: &str, ignores_case: bool) -> Option<Parameters<'_>> {
        self.covers_spelled(path, ignores_case).then(|| {
            let values = self.pieces(&path[1..]).filter_map(|(text, segment)| match segment {
                Segment::Parameter(name) | Segment::Rest(name) => {
                    Some((name.as_str(), decoded(text)?.into_owned()))
                }
                Segment::Literal(_) => None,
            });
            values.collect()
        })
    }

    /// Returns the parameters' values if one reading of a path matches, case-insensitively.
    pub(crate) fn matches_reading(&self, reading: &[String]) -> Option<Parameters<'_>> {
        // A reading has no empty segments.
        let segments = self
            .segments
            .iter()
            .filter(|segment| !matches!(segment, Segment::Literal(text) if text.is_empty()));
        let mut parameters = Parameters::new();
        let mut unread = reading;
        for segment in segments {
            if let Segment::Rest(name) = segment {
                parameters.push((name, unread.join("/")));
                return Some(parameters);
            }
            let (text, after) = unread.split_first()?;
            match segment {
                Segment::Literal(literal) if fold(literal) != fold(text) => return None,
                Segment::Parameter(name) => parameters.push((name, text.clone())),
                Segment::Literal(_) | Segment::Rest(_) => {}
            }
            unread = after;
        }
        unread.is_empty().then_some(parameters)
    }

    /// Returns true if `path`, an unambiguous one, matches. Allocates nothing, unless a parameter's value has escapes.
    pub fn covers(&self, path: &str) -> bool {
        self.covers_spelled(path, false)
    }

    fn covers_spelled(&self, path: &str, ignores_case: bool) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut actual = path.split('/');
        let fits = |segment: &Segment| match (segment, actual.next()) {
            (Segment::Literal(literal), Some(text)) => {
                stands_for(text, literal) || ignores_case && is_in_another_case(text, literal)
            }
            (Segment::Parameter(_), Some(text)) => !text.is_empty(),
            (Segment::Rest(_), Some(_)) => true,
            (_, None) => false,
        };
        self.segments.iter().all(fits)
            && (self.rest().is_some() || actual.next().is_none())
            && self.decodes(path)
    }

    /// Returns true if some path can match both templates.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let mut pairs = self.segments.iter().zip(&other.segments);
        let has_rest = |(one, other): &(&Segment, &Segment)| {
            matches!(one, Segment::Rest(_)) || matches!(other, Segment::Rest(_))
        };
        let meet = |pair: &(&Segment, &Segment)| match pair {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            (Segment::Literal(text), Segment::Parameter(_))
            | (Segment::Parameter(_), Segment::Literal(text)) => !text.is_empty(),
            _ => true,
        };
        match pairs.find(|pair| has_rest(pair) || !meet(pair)) {
            Some(pair) => has_rest(&pair),
            None => self.segments.len() == other.segments.len(),
        }
    }

    /// Returns true if the values of parameters in `path`, without its first slash, are UTF-8. The path has the
    /// segments of the template.
    pub(crate) fn decodes(&self, path: &str) -> bool {
        // An escape is the only way to what is not UTF-8.
        !path.contains('%')
            || self
                .pieces(path)
                .all(|(text, segment)| matches!(segment, Segment::Literal(_)) || decoded(text).is_some())
    }

    /// Returns the parts of a matching path, without its first slash, each with its segment; the last is as much as is
    /// left.
    fn pieces<'p>(&self, path: &'p str) -> impl Iterator<Item = (&'p str, &Segment)> {
        path.splitn(self.segments.len(), '/').zip(&self.segments)
    }

    /// Returns the path with the parameters' values inserted, each encoded as one segment, and that of its rest as the
    /// segments that it has.
    pub fn expand(&self, parameters: &Parameters<'_>) -> String {
        let mut expanded = self.text.clone();
        if let Some((name, value)) = parameters.iter().find(|(name, _)| Some(*name) == self.rest()) {
            expanded = expanded.replace(&format!("{{*{name}}}"), &encoded_segments(value));
        }
        expand(&expanded, parameters)
    }

    /// Returns the text before the first parameter, as far as its last slash: a folder of every path that matches.
    pub(crate) fn literal_folder(&self) -> &str {
        literal_folder(self.text.split('{').next().unwrap_or_default())
    }
}

/// Returns true if a segment of a path is `literal`, escaped or not.
fn stands_for(text: &str, literal: &str) -> bool {
    text == literal || text.contains('%') && percent_decode_str(text).eq(literal.bytes())
}

/// Returns true if a segment of a path is `literal` in another case, escaped or not.
fn is_in_another_case(text: &str, literal: &str) -> bool {
    decoded(text).is_some_and(|text| lowered(&text) == lowered(literal))
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// Returns `text` with each `{name}` written as `{*name}`, which stands for a value of several segments.
pub(crate) fn spread(text: &str, name: &str) -> String {
    text.replace(&format!("{{{name}}}"), &format!("{{*{name}}}"))
}

/// Returns the beginning of a path as far as its last slash.
pub(crate) fn literal_folder(text: &str) -> &str {
    text.rfind('/').map_or("", |end| &text[..=end])
}

/// Returns a value encoded, so that it is never more than a part of a tag or of a segment.
pub(crate) fn encoded(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

/// Returns the value of a rest, each of its segments encoded.
pub(crate) fn encoded_segments(value: &str) -> String {
    value.split('/').map(encoded).collect::<Vec<_>>().join("/")
}

/// Returns `text` with each `{name}` replaced by the parameter's encoded value.
pub fn expand(text: &str, parameters: &Parameters<'_>) -> String {
    let mut expanded = text.to_owned();
    for (name, value) in parameters {
        expanded = expanded.replace(&format!("{{{name}}}"), &encoded(value));
    }
    expanded
}

/// Returns the names between braces in `text`.
pub fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name)
}

impl TryFrom<String> for PathTemplate {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed =
            text.strip_prefix('/').and_then(|path| path.split('/').map(segment).collect::<Option<Vec<_>>>());
        let is_whole = |segments: &[Segment]| {
            let (_, before) = segments.split_last().expect("a split has a part");
            !before.iter().any(|segment| matches!(segment, Segment::Rest(_)))
        };
        match parsed {
            Some(segments) if text.len() <= 256 && is_whole(&segments) => Ok(Self { text, segments }),
            _ if text.contains('*') => Err(TemplateError::MisplacedRest(text)),
            _ => Err(TemplateError::NotAPath(text)),
        }
    }
}

fn segment(text: &str) -> Option<Segment> {
    if let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        let (name, make): (_, fn(String) -> Segment) = match name.strip_prefix('*') {
            Some(name) => (name, Segment::Rest),
            None => (name, Segment::Parameter),
        };
        let mut characters = name.chars();
        let starts_well = characters.next().is_some_and(|first| first.is_ascii_alphabetic());
        return (starts_well && characters.all(|c| c.is_ascii_alphanumeric() || c == '_'))
            .then(|| make(name.to_owned()));
    }
    let allowed = |c: char| c.is_ascii_graphic() && !"{}?#*\\\"'<>^`|".contains(c);
    let literal = decoded(text)?;
    // What servers may read differently fits no request that is stored, but a write may have a ';'.
    let is_one = text.split(';').all(|part| !NormalPath::new(part).is_ambiguous());
    (text.chars().all(allowed) && is_one).then(|| Segment::Literal(literal.into_owned()))
}

impl From<PathTemplate> for String {
    fn from(template: PathTemplate) -> Self {
        template.text
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for PathTemplate {
    fn schema_name() -> Cow<'static, str> {
        "PathTemplate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema_of_path(
            CEL_RULE,
            "start the path with '/', and let each segment be literal text or one {parameter}, such as /api/users/{id}; the last may be {*rest}, as in /static/{*path}",
        )
    }
}

/// Returns the schema of a path that a rule describes.
fn schema_of_path(rule: &str, message: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 256,
        "x-kubernetes-validations": [{"rule": rule, "message": message}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> PathTemplate {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn a_parameter_is_one_segment_that_is_not_empty() {
        let user = template("/api/users/{id}");
        assert_eq!(user.matches("/api/users/42"), Some(vec![("id", "42".to_owned())]));
        for path in ["/api/users/", "/api/users", "/api/users/42/", "/api/users/42/posts", "/api/user/42"] {
            assert_eq!(user.matches(path), None, "{path}");
        }
        assert_eq!(template("/").matches("/"), Some(vec![]));
        assert!(template("/caf%c3%a9/%61").matches("/caf%C3%A9/a").is_some(), "a literal may be escaped");
        for path in ["/@scope/x", "/%40scope/x"] {
            assert!(template("/@scope/{pkg}").matches(path).is_some(), "{path}");
            assert!(template("/%40scope/{pkg}").matches(path).is_some(), "{path}");
        }
        assert_eq!(template("/api/posts/").matches("/api/posts"), None);
    }

    #[test]
    fn rest_is_any_number_of_segments() {
        let files = template("/static/{*path}");
        for (path, value) in [
            ("/static/a", Some("a")),
            ("/static/a/b.css", Some("a/b.css")),
            ("/static/", Some("")),
            ("/static/a/", Some("a/")),
            ("/static//a", Some("/a")),
            ("/static/a%20b/%C3%BC", Some("a b/\u{fc}")),
            ("/static", None),
            ("/statics/a", None),
            ("/Static/a", None),
            ("/static/a/%FF", None),
        ] {
            let expected = value.map(|value| vec![("path", value.to_owned())]);
            assert_eq!(files.matches(path), expected, "{path}");
        }
        let site = template("/{*path}");
        for path in ["/", "/a", "/a/b/c/", "//"] {
            assert!(site.covers(path), "{path}");
        }
        assert!(!site.covers("*") && !site.covers(""));
        assert_eq!(files.rest(), Some("path"));
        assert_eq!(template("/u/{id}/{*of}").parameters().collect::<Vec<_>>(), ["id", "of"]);
    }

    #[test]
    fn rest_of_a_reading_has_its_segments() {
        let files = template("/static/{*path}");
        let reading = |segments: &[&str]| segments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let value =
            |segments: &[&str]| files.matches_reading(&reading(segments)).map(|values| values[0].1.clone());
        assert_eq!(value(&["STATIC", "a", "b"]).as_deref(), Some("a/b"));
        assert_eq!(value(&["static"]).as_deref(), Some(""), "servers ignore a slash at the end");
        assert_eq!(value(&["other", "a"]), None);
        assert!(template("/{*path}").matches_reading(&[]).is_some());
    }

    #[test]
    fn rest_is_inserted_into_paths_with_its_slashes_and_into_tags_as_one_value() {
        let files = template("/static/{*path}");
        let parameters = files.matches("/static/a%3F/b%7Bid%7D").unwrap();
        assert_eq!(files.expand(&parameters), "/static/a%3F/b%7Bid%7D");
        assert_eq!(expand("file:{path}", &parameters), "file:a%3F%2Fb%7Bid%7D");
    }

    #[test]
    fn templates_overlap_if_one_path_fits_both() {
        for (one, other, overlap) in [
            ("/a/{*p}", "/a/b/c", true),
            ("/a/{*p}", "/a/{id}", true),
            ("/a/{*p}", "/a/", true),
            ("/a/{*p}", "/{x}/{*q}", true),
            ("/a/{*p}", "/a", false),
            ("/a/{*p}", "/b/{*p}", false),
            ("/{*p}", "/", true),
            ("/{a}", "/", false),
            ("/{a}/x", "/y/{b}", true),
            ("/a", "/a/b", false),
        ] {
            let (one, other) = (template(one), template(other));
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (overlap, overlap), "{one} {other}");
        }
    }

    #[test]
    fn misplaced_rest_is_rejected_with_its_place() {
        for text in ["/{*a}/b", "/{*a}/", "/a{*b}", "/{*}", "/a/*", "/{*a}/{*b}", "/{**a}", "/{*1}"] {
            let error = PathTemplate::try_from(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("at the end, as a whole segment, as in /static/{*path}"), "{error}");
        }
    }

    #[test]
    fn values_are_decoded_on_match_and_encoded_on_expansion() {
        let data = template("/data/{key}");
        let parameters = data.matches("/data/a%2Fb%7D%20c").unwrap();
        assert_eq!(parameters, vec![("key", "a/b} c".to_owned())]);
        assert_eq!(expand("item:{key}", &parameters), "item:a%2Fb%7D%20c");
        assert_eq!(data.expand(&parameters), "/data/a%2Fb%7D%20c");
        assert_eq!(data.matches("/data/%FF"), None);
    }

    #[test]
    fn invalid_path_is_rejected() {
        for text in [
            "", "users", "/a/{}", "/a/{id}x", "/a/{1}", "/a?b", "/a#b", "/../a", "/a b", "/a'b", "/a/{id",
            "/a%2Fb", "/a%5Cb", "/%zz", "/%ff", "/a.",
        ] {
            let error = PathTemplate::try_from(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("such as /api/users/{id}"), "{error}");
        }
    }

    #[test]
    fn placeholders_are_found() {
        assert_eq!(placeholders("a:{x}:{y}").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(placeholders("none {open").count(), 0);
    }
}
