//! Places in a write that rules take values from.

use std::fmt;

use http::HeaderName;

use super::{
    pointer::Pointer,
    values::{of_header, of_query},
};
use crate::{Fields, PathTemplate};

/// A `{…}` in what a rule purges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{id}`: a parameter of the rule's path.
    Path(String),
    /// `{query:name}`: a parameter of the query.
    Query(String),
    /// `{header:X-Name}`: a header field, in lower case, with `-` where applications may read another sign.
    Header(String),
    /// `{body:/user/id}`: a place in a body of JSON.
    Body(Pointer),
    /// The tags in these header fields of the response.
    Response(String),
}

impl Placeholder {
    /// Parses the text between the braces, in a rule with this path.
    ///
    /// # Errors
    /// The error and its remedy.
    pub(crate) fn parse(text: &str, path: &PathTemplate) -> Result<Self, String> {
        let Some((kind, name)) = text.split_once(':') else {
            let is_known = path.parameters().any(|known| known == text);
            return if is_known { Ok(Self::Path(text.to_owned())) } else { Err(no_parameter(text, path)) };
        };
        let parsed = match kind {
            "query" => {
                let is_name = !name.is_empty() && !name.contains(['*', '&', '=', '#', ';']);
                is_name.then(|| Self::Query(name.to_owned()))
            }
            "header" => {
                let is_name = HeaderName::from_bytes(name.as_bytes()).is_ok() && !name.contains('"');
                is_name.then(|| Self::Header(name.to_ascii_lowercase().replace(['_', '.'], "-")))
            }
            "body" => Pointer::parse(name).map(Self::Body),
            _ => None,
        };
        let forms =
            "{name} of match.path, {query:name}, {header:X-Name} or, with a JSON pointer, {body:/user/id}";
        parsed.ok_or_else(|| format!("uses {{{text}}}, which is no value of a write: use {forms}"))
    }

    /// Returns the values in the query and the header fields of a write; `None` for those that are elsewhere, too.
    pub(crate) fn values_in_head(
        &self,
        query: Option<&str>,
        fields: &(impl Fields + ?Sized),
    ) -> Option<Vec<String>> {
        match self {
            Self::Query(name) => of_query(name, query, fields),
            Self::Header(name) => of_header(name, fields),
            Self::Path(_) | Self::Body(_) | Self::Response(_) => None,
        }
    }
}

/// Returns the error of a parameter that a path does not have.
pub(crate) fn no_parameter(name: &str, path: &PathTemplate) -> String {
    match name.strip_prefix('*') {
        Some(name) => format!("has {{*{name}}}, which belongs into match.path: write {{{name}}} here"),
        None => format!("uses {{{name}}}, which {path} does not have"),
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(name) => write!(f, "{{{name}}}"),
            Self::Query(name) => write!(f, "{{query:{name}}}"),
            Self::Header(name) => write!(f, "{{header:{name}}}"),
            Self::Body(pointer) => write!(f, "{{body:{pointer}}}"),
            Self::Response(headers) => write!(f, "{{response:{headers}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholder_names_a_place_or_says_which_there_are() {
        let path = PathTemplate::try_from("/a/{id}/{*rest}".to_owned()).unwrap();
        for (text, shown) in [
            ("id", "{id}"),
            ("rest", "{rest}"),
            ("query:user id", "{query:user id}"),
            ("query:a:b", "{query:a:b}"),
            ("header:X_User.Id", "{header:x-user-id}"),
            ("body:/user/id", "{body:/user/id}"),
            ("body:", "{body:}"),
        ] {
            assert_eq!(Placeholder::parse(text, &path).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "cookie:x",
            "query:",
            "query:a=b",
            "query:*",
            "header:",
            "header:a b",
            "header:a\"",
            "body:id",
            "body:/a~2",
            "Query:a",
            ":",
            "*body:/a",
        ] {
            let error = Placeholder::parse(text, &path).unwrap_err();
            assert!(error.contains("{query:name}, {header:X-Name} or"), "{text}: {error}");
        }
        let error = Placeholder::parse("*rest", &path).unwrap_err();
        assert!(error.ends_with("belongs into match.path: write {rest} here"), "{error}");
        let error = Placeholder::parse("no", &path).unwrap_err();
        assert_eq!(error, "uses {no}, which /a/{id}/{*rest} does not have");
    }
}
