//! Names of parameters and cookies, compared as loosely as any application might.
//!
//! A parameter that a route leaves out of the key must not be one that an application acts on. Frameworks differ in the
//! names that they treat as equal: they decode escapes, ignore case, treat `.` and `_` alike, and `page[]` as `page`.
//! Every name that could be a keyed one is therefore treated as keyed.

use std::cmp::Ordering;

use percent_encoding::percent_decode;

use crate::{Fields, path::decode_fully};

/// Returns true if an application might read `name` as one that `pattern` matches; a `*` at the pattern's end stands
/// for any rest.
pub(crate) fn could_be(name: &[u8], pattern: &str) -> bool {
    let (wanted, open) = match pattern.strip_suffix('*') {
        Some(start) => (start, true),
        None => (pattern, false),
    };
    let (mut name, mut wanted) = (folded(name), folded(wanted.as_bytes()));
    loop {
        match (wanted.next(), name.next()) {
            (None, after) => return open || after.is_none(),
            (Some(wanted), Some(actual)) if wanted == actual => {}
            _ => return false,
        }
    }
}

/// Returns true if two header names are equal to CGI and its descendants, which use `_` for `-`, as PHP does for `.`.
pub(crate) fn is_alike(name: &[u8], known: &str) -> bool {
    let dashed = |byte: &u8| if b"_.".contains(byte) { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == known.len() && name.iter().map(dashed).eq(known.bytes())
}

/// Returns true if an application's reading of this name is unpredictable: an escape is broken, or a byte is not ASCII.
pub(crate) fn is_odd(name: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&byte) = name.get(at) {
        if byte == b'%' && !name.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
        {
            return true;
        }
        at += 1;
    }
    percent_decode(name).any(|byte| !byte.is_ascii())
}

/// Returns true if an application might read `name` as `wanted`, or reads it unpredictably.
pub(crate) fn could_be_or_is_odd(name: &[u8], wanted: &str) -> bool {
    could_be(name, wanted) || is_odd(name)
}

/// Returns true if every application reads a parameter of a query as this value, or as any if that is `*`: the query has it once, by
/// its own name, and no other that might be taken for it.
pub(crate) fn certainly_has(query: &str, name: &str, wanted: &str) -> bool {
    let mut found = pairs(query).filter(|pair| could_be_or_is_odd(name_of(pair).as_bytes(), name));
    let (Some(pair), None) = (found.next(), found.next()) else { return false };
    let (own_name, value) = pair.split_once('=').unwrap_or((pair, ""));
    // To some applications a '+' is a space.
    let has_value = || !value.contains('+') && percent_decode(value.as_bytes()).eq(wanted.bytes());
    // Some applications take ';' for a separator too.
    own_name == name && (wanted == "*" || has_value()) && !query.contains(';')
}

/// Orders names so that those that an application might treat as one are equal.
pub(crate) fn compare(one: &[u8], other: &[u8]) -> Ordering {
    folded(one).cmp(folded(other))
}

/// Returns the letters and digits of a name, decoded, up to the first bracket behind one: to Rack and qs `[page]` is `page`.
pub(crate) fn folded(name: &[u8]) -> impl Iterator<Item = u8> + '_ {
    percent_decode(name)
        .skip_while(|byte| matches!(byte, b'[' | b']'))
        .take_while(|byte| !matches!(byte, b'[' | 0))
        .filter(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii())
        .map(|byte| byte.to_ascii_lowercase())
}

/// Returns true if an application might read a value, as it was sent, as `wanted`.
pub(crate) fn value_could_be(value: &[u8], wanted: &str) -> bool {
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let decoded = || percent_decode(bare).map(|byte| if byte == b'+' { b' ' } else { byte });
    wanted == "*" || value == wanted.as_bytes() || bare == wanted.as_bytes() || decoded().eq(wanted.bytes())
}

/// Returns true if a lenient application might read a value, as it was sent, as `wanted`, or reads it unpredictably.
pub(crate) fn value_could_loosely_be(value: &[u8], wanted: &str) -> bool {
    is_odd(value) || value_is_loosely(value, wanted)
}

/// Returns true if a value, as it was sent, is `wanted` to a lenient application: in any case, decoded as often as it goes, quoted,
/// between blanks.
pub(crate) fn value_is_loosely(value: &[u8], wanted: &str) -> bool {
    let text = String::from_utf8_lossy(value);
    let decoded = decode_fully(&text).replace('+', " ");
    let is_filler = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'');
    let trimmed = decoded.trim_matches(is_filler);
    let wanted = wanted.replace('+', " ");
    trimmed.to_lowercase() == wanted.trim_matches(is_filler).to_lowercase()
}

/// Returns true if some application may take a field of a request for one of this name, in lower case, that has a wanted value, alone or
/// as a member of a list.
pub(crate) fn could_have(
    fields: &(impl Fields + ?Sized),
    known: &str,
    is_wanted: impl Fn(&[u8]) -> bool,
) -> bool {
    let mut lines = fields.lines().filter(|(name, _)| is_alike(name, known));
    lines.any(|(_, value)| is_wanted(value) || value.split(|byte| *byte == b',').any(&is_wanted))
}

/// Splits a query into its pairs, at each `&`.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = &str> {
    query.split('&')
}

/// Returns the name in a pair.
pub(crate) fn name_of(pair: &str) -> &str {
    pair.split('=').next().unwrap_or(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_names_could_be_equal() {
        for name in [
            "page",
            "%70age",
            "PAGE",
            "page[]",
            "page%5B0%5D",
            "p_age",
            "pa.ge",
            "+page",
            "[page]",
            "%5Bpage%5D",
            "]page",
            "[[page]]",
        ] {
            assert!(could_be(name.as_bytes(), "page"), "{name}");
        }
        for name in ["pages", "pag", "", "xpage"] {
            assert!(!could_be(name.as_bytes(), "page"), "{name}");
        }
        assert!(could_be(b"utm_source", "utm_*"));
        assert!(could_be(b"", "*"));
        assert!(!could_be(b"ut", "utm_*"));
    }

    #[test]
    fn unpredictable_names_are_odd() {
        for (name, odd) in
            [("page", false), ("%70age", false), ("%u0070age", true), ("p%", true), ("caf%C3%A9", true)]
        {
            assert_eq!(is_odd(name.as_bytes()), odd, "{name}");
        }
    }

    #[test]
    fn parameter_is_certain_if_nothing_else_could_be_it() {
        for query in ["v=1", "a=2&v=1", "v=%31&a", "&v=1&"] {
            assert!(certainly_has(query, "v", "1") && certainly_has(query, "v", "*"), "{query}");
        }
        for query in [
            "",
            "a=1",
            "v=1&v=1",
            "v=1&V=2",
            "v=1&v[]=2",
            "v=1&[v]=2",
            "v=1&%5Bv%5D=2",
            "[v]=1",
            "v=1;v=2",
            "a=1;v=1",
            "v=1&%u0076=2",
            "V=1",
            "%76=1",
        ] {
            assert!(!certainly_has(query, "v", "1") && !certainly_has(query, "v", "*"), "{query}");
        }
        for (query, value) in [("v", ""), ("v=a%20b", "a b"), ("v=a=b", "a=b"), ("v=", "")] {
            assert!(certainly_has(query, "v", value), "{query}");
        }
        assert!(certainly_has("v=a%2Bb", "v", "a+b") && !certainly_has("v=a+b", "v", "a+b"));
        assert!(certainly_has("v=%2541", "v", "%41") && !certainly_has("v=%41", "v", "%41"));
        for query in ["v=2", "v=", "v", "v=11", "v=1%20"] {
            assert!(!certainly_has(query, "v", "1"), "{query}");
        }
    }

    #[test]
    fn a_value_may_be_escaped_or_quoted() {
        for value in ["a b", "a+b", "a%20b", "\"a b\""] {
            assert!(value_could_be(value.as_bytes(), "a b"), "{value}");
        }
        assert!(value_could_be(b"", "*"));
        assert!(!value_could_be(b"A b", "a b"));
    }
}
