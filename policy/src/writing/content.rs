//! Content of writes in which values are looked for.

use crate::{Fields, names::is_alike};

/// Returns true if every application that reads JSON in a body with these header fields reads the same: the content is JSON by its type, or
/// has none, its charset is UTF-8, and it has no coding.
///
/// A form can be JSON as well, with other values in it; and UTF-7 in what UTF-8 takes for a string is anything.
pub fn is_plain_json(fields: &(impl Fields + ?Sized)) -> bool {
    let values = |name| fields.lines().filter(move |(own, _)| is_alike(own, name)).map(|(_, value)| value);
    let mut types = values("content-type");
    let is_json = types.next().is_none_or(is_json_in_utf8);
    // Of several, each may be the one that is read.
    let is_one = types.next().is_none();
    is_json && is_one && values("content-encoding").all(|coding| coding.eq_ignore_ascii_case(b"identity"))
}

fn is_json_in_utf8(content_type: &[u8]) -> bool {
    let is_plain = |parameter: &[u8]| {
        let (name, value) = match parameter.iter().position(|byte| *byte == b'=') {
            Some(at) => (parameter[..at].trim_ascii(), parameter[at + 1..].trim_ascii()),
            None => (parameter, &[][..]),
        };
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        match name.get(..b"charset".len()) {
            // "charset*" is one, too.
            Some(beginning) if beginning.eq_ignore_ascii_case(b"charset") => {
                name.len() == beginning.len() && value.eq_ignore_ascii_case(b"utf-8")
            }
            _ => true,
        }
    };
    // With a ',' the line may be a list.
    is_json(content_type)
        && !content_type.contains(&b',')
        && content_type.split(|byte| *byte == b';').skip(1).map(<[u8]>::trim_ascii).all(is_plain)
}

/// Returns the media type in a value of Content-Type, without its parameters.
pub(super) fn media_type(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Returns true if the media type in a value of Content-Type is one of JSON.
pub fn is_json(content_type: &[u8]) -> bool {
    let media_type = media_type(content_type);
    let ends = media_type.len().saturating_sub(b"+json".len());
    let is = |known: &&[u8]| media_type.eq_ignore_ascii_case(known);
    [&b"application/json"[..], b"text/json"].iter().any(is)
        || media_type[ends..].eq_ignore_ascii_case(b"+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain(lines: &[(&str, &str)]) -> bool {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        is_plain_json(lines.as_slice())
    }

    #[test]
    fn content_is_read_as_json_only_if_nothing_says_otherwise() {
        assert!(is_plain(&[]));
        for content_type in [
            "application/json",
            "Application/JSON; Charset=UTF-8",
            "text/json;charset=\"utf-8\";",
            "application/vnd.api+json ; version=1",
        ] {
            assert!(is_plain(&[("content-type", content_type)]), "{content_type}");
        }
        for content_type in [
            "",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain",
            "application/jsonp",
            "json",
            "application/json; charset=utf-7",
            "application/json; charset=utf-16",
            "application/json; charset=us-ascii",
            "application/json; charset",
            "application/json; charset=utf-8; charset=utf-7",
            "application/json; x=\"; charset=utf-7\"",
            "application/json; charset*=utf-8''utf-7",
            "application/json, text/plain",
            "application/json; x=y, text/plain",
        ] {
            assert!(!is_plain(&[("content-type", content_type)]), "{content_type}");
        }
        let json = ("content-type", "application/json");
        assert!(!is_plain(&[json, ("content-type", "text/plain")]));
        assert!(!is_plain(&[json, ("Content_Type", "text/plain")]));
        assert!(!is_plain(&[json, json]));
        assert!(is_plain(&[json, ("content-encoding", "Identity")]));
        for coding in ["gzip", "identity, br", ""] {
            assert!(!is_plain(&[json, ("content-encoding", coding)]), "{coding}");
        }
    }
}
