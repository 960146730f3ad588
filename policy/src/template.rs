//! Paths with parameters, such as `/api/users/{id}`.

use std::{borrow::Cow, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::path::{NormalPath, fold};

/// The CEL rule by which the API server enforces the format.
pub const CEL_RULE: &str =
    r"self.matches('^(/([A-Za-z0-9._~!$&()+,;=:@%-]*|[{][A-Za-z][A-Za-z0-9_]*[}]))+$')";

/// Characters to encode: all but the unreserved ones of RFC 3986, section 2.3, so that a value cannot escape from its
/// tag or path segment.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path whose segments are literal text or one parameter, such as `/api/users/{id}`. A parameter matches one
/// non-empty segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathTemplate {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// The literal, decoded.
    Literal(String),
    Parameter(String),
}

/// A text that is not a path template.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a path: start it with '/', and let each segment be literal text or one {{parameter}}, \
     such as /api/users/{{id}}"
)]
pub struct TemplateError(String);

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
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// Returns the parameters' values if `path`, an unambiguous one ([`NormalPath::is_ambiguous`]), matches.
    ///
    /// A segment that does not decode to UTF-8 matches no parameter: it could not appear in a tag or be bound to a
    /// query.
    pub fn matches(&self, path: &str) -> Option<Parameters<'_>> {
        self.covers(path).then(|| {
            let segments = path[1..].split('/').zip(&self.segments);
            let values = segments.filter_map(|(text, segment)| match segment {
                Segment::Parameter(name) => Some((name.as_str(), decoded(text)?.into_owned())),
                Segment::Literal(_) => None,
            });
            values.collect()
        })
    }

    /// Returns the parameters' values if one reading of a path matches, case-insensitively.
    pub(crate) fn matches_reading(&self, reading: &[String]) -> Option<Parameters<'_>> {
        // A reading has no empty segments.
        let mut segments = self
            .segments
            .iter()
            .filter(|segment| !matches!(segment, Segment::Literal(text) if text.is_empty()));
        let mut parameters = Parameters::new();
        for text in reading {
            match segments.next()? {
                Segment::Literal(literal) if fold(literal) == fold(text) => {}
                Segment::Literal(_) => return None,
                Segment::Parameter(name) => parameters.push((name, text.clone())),
            }
        }
        segments.next().is_none().then_some(parameters)
    }

    /// Returns true if `path`, an unambiguous one, matches. Allocates nothing, unless a parameter's value has escapes.
    pub fn covers(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut actual = path.split('/');
        let fits = |segment: &Segment| match (segment, actual.next()) {
            (Segment::Literal(literal), Some(text)) => stands_for(text, literal),
            (Segment::Parameter(_), Some(text)) => !text.is_empty(),
            (_, None) => false,
        };
        self.segments.iter().all(fits) && actual.next().is_none() && self.decodes(path)
    }

    /// Returns true if some path can match both templates.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let meet = |pair: (&Segment, &Segment)| match pair {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            (Segment::Literal(text), Segment::Parameter(_))
            | (Segment::Parameter(_), Segment::Literal(text)) => !text.is_empty(),
            (Segment::Parameter(_), Segment::Parameter(_)) => true,
        };
        self.segments.len() == other.segments.len() && self.segments.iter().zip(&other.segments).all(meet)
    }

    fn decodes(&self, path: &str) -> bool {
        let mut segments = path.split('/').zip(&self.segments);
        // An escape is the only way to what is not UTF-8.
        !path.contains('%')
            || segments
                .all(|(text, segment)| matches!(segment, Segment::Literal(_)) || decoded(text).is_some())
    }

    /// Returns the path with the parameters' values inserted, each encoded as one segment.
    pub fn expand(&self, parameters: &Parameters<'_>) -> String {
        expand(&self.text, parameters)
    }
}

/// Returns true if a segment of a path is `literal`, escaped or not.
fn stands_for(text: &str, literal: &str) -> bool {
    text == literal || text.contains('%') && percent_decode_str(text).eq(literal.bytes())
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// Returns `text` with each `{name}` replaced by the parameter's encoded value.
pub fn expand(text: &str, parameters: &Parameters<'_>) -> String {
    let mut expanded = text.to_owned();
    for (name, value) in parameters {
        let encoded = utf8_percent_encode(value, ENCODED).to_string();
        expanded = expanded.replace(&format!("{{{name}}}"), &encoded);
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
        match parsed {
            Some(segments) if text.len() <= 256 => Ok(Self { text, segments }),
            _ => Err(TemplateError(text)),
        }
    }
}

fn segment(text: &str) -> Option<Segment> {
    if let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        let mut characters = name.chars();
        let starts_well = characters.next().is_some_and(|first| first.is_ascii_alphabetic());
        return (starts_well && characters.all(|c| c.is_ascii_alphanumeric() || c == '_'))
            .then(|| Segment::Parameter(name.to_owned()));
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
        json_schema!({
            "type": "string",
            "maxLength": 256,
            "x-kubernetes-validations": [{
                "rule": CEL_RULE,
                "message": "start the path with '/', and let each segment be literal text or one {parameter}, such as /api/users/{id}",
            }],
        })
    }
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
            "", "users", "/a/{}", "/a/{id}x", "/a/{1}", "/a?b", "/a#b", "/a/*", "/../a", "/a b", "/a'b",
            "/a/{id", "/a%2Fb", "/a%5Cb", "/%zz", "/%ff", "/a.",
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
