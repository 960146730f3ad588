//! Paths of what a write purges.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// The CEL rule by which the API server enforces the format.
pub const CEL_RULE: &str = r"self.matches('^(/([A-Za-z0-9._~!$&()+,;=:@%-]*|[{]([*]?[A-Za-z][A-Za-z0-9_]*|(query|header|body):[^{}]*)[}]))+$')";

const MESSAGE: &str = "start the path with '/', and let each segment be literal text or one value: {id} of match.path, {query:name}, {header:X-Name} or {body:/user/id}";

/// A path whose segments are literal text or one value of a write, such as `/api/users/{body:/user/id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PurgePath(String);

/// A text that is no path with values.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a path to purge: {MESSAGE}")]
pub struct PurgePathError(String);

impl PurgePath {
    /// Returns the path as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PurgePath {
    type Error = PurgePathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let segments = text.strip_prefix('/').and_then(segments);
        let is_one = |segment: &str| {
            let value = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
            let kind = value.and_then(|value| value.split_once(':'));
            kind.map_or_else(
                || super::segment(segment).is_some(),
                |(kind, _)| matches!(kind, "query" | "header" | "body"),
            )
        };
        match segments {
            Some(segments) if text.len() <= 256 && segments.iter().all(|segment| is_one(segment)) => {
                Ok(Self(text))
            }
            _ => Err(PurgePathError(text)),
        }
    }
}

/// Splits a path at the slashes that are not between braces. Returns `None` if a value is not a whole segment.
fn segments(path: &str) -> Option<Vec<&str>> {
    let mut segments = Vec::new();
    let mut rest = path;
    loop {
        let end =
            if rest.starts_with('{') { rest.find('}')? + 1 } else { rest.find('/').unwrap_or(rest.len()) };
        let (segment, after) = rest.split_at(end);
        segments.push(segment);
        if after.is_empty() {
            return Some(segments);
        }
        rest = after.strip_prefix('/')?;
    }
}

impl From<PurgePath> for String {
    fn from(PurgePath(text): PurgePath) -> Self {
        text
    }
}

impl fmt::Display for PurgePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for PurgePath {
    fn schema_name() -> Cow<'static, str> {
        "PurgePath".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        super::schema_of_path(CEL_RULE, MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_whole_segments_and_may_have_slashes_between_their_braces() {
        for text in
            ["/", "/a", "/a/", "/{id}/b", "/a/{query:x y}", "/{body:/user/id}/posts", "/{body:}", "/{path}"]
        {
            assert!(PurgePath::try_from(text.to_owned()).is_ok(), "{text}");
        }
        let long = format!("/{}", "a".repeat(256));
        for text in [
            "",
            "a",
            "/a{id}",
            "/{id}b",
            "/{query:x}b",
            "/{cookie:x}",
            "/{body:/a",
            "/a?b",
            "/a b",
            "/../a",
            &long,
        ] {
            let error = PurgePath::try_from(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains("{query:name}, {header:X-Name} or {body:/user/id}"), "{error}");
        }
    }
}
