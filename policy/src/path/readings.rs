//! Every path that a server may read in a request's path.
//!
//! Servers and frameworks differ in the paths that they treat as equal: they decode once or twice, resolve dot segments
//! before or after that, read `\` as `/`, merge slashes, cut off `;` parameters, ignore case, a trailing slash or
//! trailing dots. A write is matched with rules, and purges stored responses, by all of these readings: purging too
//! much costs a miss, purging too little serves outdated responses.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use unicode_normalization::UnicodeNormalization as _;

use super::{is_plain, normalise_escapes, resolve_dots};

/// Rounds of decoding between which dot segments may be resolved.
const MAX_ROUNDS: usize = 3;

/// The paths that servers may read in one path, each as its segments: decoded, in the case in which they were sent,
/// without empty ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readings {
    /// Readings of the most lenient servers: no escapes, dot segments, `;` parameters or trailing dots are left.
    loose: Vec<Vec<String>>,
    /// Readings of strict servers: decoded once, with the result unchanged in its segment.
    strict: Vec<Vec<String>>,
}

impl Readings {
    /// Reads the path of a request target, as it was sent.
    pub(crate) fn of(path: &str) -> Self {
        if has_one_reading(path) {
            let segments: Vec<_> =
                path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            return Self { loose: vec![segments.clone()], strict: vec![segments] };
        }
        Self::of_unsettled(path)
    }

    fn of_unsettled(path: &str) -> Self {
        let mut strict = Vec::new();
        for path in [path, &resolve_dots(&normalise_escapes(path))] {
            push_new(
                &mut strict,
                path.split('/').filter(|part| !part.is_empty()).map(decoded_once).collect(),
            );
        }
        Self { loose: loose_paths(path), strict }
    }

    /// Returns all readings.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[String]> {
        self.loose.iter().chain(&self.strict).map(Vec::as_slice)
    }
}

/// Returns a path that all servers read alike, with each segment folded; `None` for any other.
pub(crate) fn only_reading(path: &str) -> Option<Cow<'_, str>> {
    // Folding leaves the slashes of ASCII.
    has_one_reading(path).then(|| fold(path))
}

/// Returns the texts that stand for a path in purge names: one for an unambiguous path, several otherwise.
pub(crate) fn loose_texts(path: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let own = only_reading(path);
    let others = if own.is_some() { vec![] } else { loose_paths(path) };
    own.into_iter().chain(others.into_iter().map(|segments| Cow::Owned(text_of_segments(&segments))))
}

/// Returns the texts of every reading of a path, those of strict servers among them; one for an unambiguous path.
pub(crate) fn all_texts(path: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let own = only_reading(path);
    let others: Vec<_> = if own.is_some() {
        vec![]
    } else {
        Readings::of_unsettled(path).iter().map(text_of_segments).collect()
    };
    own.into_iter().chain(others.into_iter().map(Cow::Owned))
}

fn text_of_segments(segments: &[String]) -> String {
    format!("/{}", fold(&segments.join("/")))
}

/// Characters of ASCII that stand for themselves in every reading of a path, wherever they are.
const SETTLED: [bool; 256] = {
    let mut settled = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        settled[byte as usize] = !matches!(byte, b'%' | b';' | b'\\' | b'?' | b'#');
        byte += 1;
    }
    settled
};

/// Returns true if all servers read a path as the segments that it shows, as they do most: it has no character that a reading decodes or
/// cuts off, no empty segment, and none that ends in a dot. Paths that are not ASCII are not looked at.
fn has_one_reading(path: &str) -> bool {
    let mut before = b'/';
    let mut rest = path.bytes();
    rest.next() == Some(b'/')
        && rest.all(|byte| {
            let ends_well = byte != b'/' || !matches!(before, b'/' | b'.');
            before = byte;
            ends_well && SETTLED[usize::from(byte)]
        })
        && (before != b'/' || path.len() == 1)
        && before != b'.'
}

/// Folds `text` so that spellings that an application may treat as equal become equal: no escapes, in lower case of its
/// capitals ("\u{df}" and "SS" alike), compatible characters alike (Unicode's NFKC), `+` a space.
pub(crate) fn fold(text: &str) -> Cow<'_, str> {
    if !text.is_ascii() {
        return Cow::Owned(fold_any(text));
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'+') {
        return Cow::Owned(text.replace('+', " ").to_ascii_lowercase());
    }
    Cow::Borrowed(text)
}

fn fold_any(text: &str) -> String {
    let lower =
        text.nfkc().flat_map(char::to_lowercase).flat_map(char::to_uppercase).flat_map(char::to_lowercase);
    let folded: String = lower.map(|c| if c == '+' { ' ' } else { c }).collect();
    // Lower case may need composing again.
    folded.nfkc().collect()
}

/// Decodes escapes until none is left, those that decoding creates included, in one pass.
pub(crate) fn decode_fully(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes: Vec<u8> = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        bytes.push(byte);
        while let [.., b'%', high, low] = bytes[..]
            && let (Some(high), Some(low)) = (char::from(high).to_digit(16), char::from(low).to_digit(16))
        {
            bytes.truncate(bytes.len() - 3);
            bytes.push((high * 16 + low) as u8);
        }
    }
    Cow::Owned(text_of(bytes))
}

fn decoded_once(text: &str) -> String {
    text_of(percent_decode_str(text).collect())
}

/// Returns bytes as UTF-8, or as Latin-1 if they are not UTF-8; an overlong encoding of an ASCII character counts as
/// that character, as in lenient decoders.
fn text_of(bytes: Vec<u8>) -> String {
    let bytes = match String::from_utf8(bytes) {
        Ok(text) => return text,
        Err(error) => error.into_bytes(),
    };
    let mut shortened = Vec::with_capacity(bytes.len());
    let mut rest = &bytes[..];
    while let [byte, after @ ..] = rest {
        let (byte, after) = match rest {
            [first @ 0xC0..=0xC1, last @ 0x80..=0xBF, after @ ..] => ((first & 1) << 6 | last & 0x3F, after),
            [0xE0, first @ 0x80..=0x81, last @ 0x80..=0xBF, after @ ..]
            | [0xF0, 0x80, first @ 0x80..=0x81, last @ 0x80..=0xBF, after @ ..] => {
                ((first & 1) << 6 | last & 0x3F, after)
            }
            _ => (*byte, after),
        };
        shortened.push(byte);
        rest = after;
    }
    match String::from_utf8(shortened) {
        Ok(text) => text,
        Err(error) => error.into_bytes().into_iter().map(char::from).collect(),
    }
}

fn loose_paths(path: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    if is_plain(path) {
        push_loose(&mut paths, path);
        return paths;
    }
    let mut text = path.to_owned();
    for _ in 0..MAX_ROUNDS {
        push_loose(&mut paths, &decode_fully(&text));
        push_loose(&mut paths, &decode_fully(&resolve_dots(&text)));
        let decoded = decoded_once(&text);
        if decoded == text {
            break;
        }
        text = decoded;
    }
    paths
}

/// Adds the readings of a path without escapes.
fn push_loose(paths: &mut Vec<Vec<String>>, path: &str) {
    // Some end a path at what ends one in a URL or in C, some drop what no path has.
    let cut = path.split(['?', '#', '\0']).next().unwrap_or(path);
    let printed: String = path.chars().filter(|c| !c.is_control()).collect();
    for path in [printed.as_str(), cut] {
        let segments: Vec<&str> = path.split(['/', '\\']).skip(1).map(trimmed).collect();
        let merged: Vec<&str> = segments.iter().copied().filter(|segment| !segment.is_empty()).collect();
        // Whether slashes are merged before or after dot segments are resolved makes "/a//../b" two paths.
        for segments in [segments, merged] {
            push_new(paths, resolved(&segments));
        }
    }
}

/// Removes `;` parameters, and the trailing characters that some file systems ignore, from a segment.
fn trimmed(segment: &str) -> &str {
    let name = segment.split(';').next().unwrap_or(segment).trim();
    match name {
        "." | ".." => name,
        _ => name.trim_end_matches(['.', ' ']),
    }
}

fn resolved(segments: &[&str]) -> Vec<String> {
    let mut kept: Vec<&str> = Vec::new();
    for segment in segments {
        match *segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    kept.into_iter().filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::NormalPath;

    fn texts(path: &str) -> Vec<String> {
        loose_texts(path).map(Cow::into_owned).collect()
    }

    /// Returns the texts of a path without the short cut.
    fn texts_the_long_way(path: &str) -> Vec<String> {
        loose_paths(path).iter().map(|segments| text_of_segments(segments)).collect()
    }

    #[test]
    fn spellings_of_one_path_share_a_reading() {
        for (path, spellings) in [
            (
                "/users/1",
                &[
                    "/users/1/",
                    "//users/1",
                    "/users//1",
                    "/Users/1",
                    "/USERS/1",
                    "/users/1;v=1",
                    "/users;x/1",
                    "/%75sers/1",
                    "/%2575sers/1",
                    "/users\\1",
                    "/users%5C1",
                    "/users%2F1",
                    "/users%252f1",
                    "/users%c0%af1",
                    "/x/../users/1",
                    "/users/./1",
                    "/users/%2e/1",
                    "/users/x/..;/1",
                    "/users/x/%252e%252e/1",
                    "/users/1.",
                    "/users/1%20",
                    "/users/1%00",
                    "/users/1%00.html",
                    "/users/1%3Fx",
                    "/users/1%23x",
                    "/users/1%253fx",
                    "/%e0%80%afusers/1",
                    "/users/%EF%BC%91",
                    "/a%2Fb/../users/1",
                    "/users%0a/1",
                    "/x//../users/1",
                    "/%ff/../users/1",
                    "/users/1%3B",
                    "/users/ 1",
                ][..],
            ),
            ("/users/me@x.com", &["/users/me%40x.com", "/users/ME%40x.com", "/users/me%2540x.com"]),
            ("/u/a%20b", &["/u/a b", "/u/a+b", "/u/a%2Bb", "/u/a%2520b"]),
            ("/users/%C3%BC", &["/users/\u{fc}", "/users/%c3%9c", "/users/u%CC%88", "/users/%FC"]),
            ("/users/\u{3c3}\u{3c2}", &["/users/\u{3a3}\u{3a3}", "/users/\u{3c3}\u{3c3}"]),
            ("/users/stra\u{df}e", &["/users/STRASSE", "/users/stra\u{1e9e}e"]),
            ("/", &["", "//", "/.", "/..", "/;x", "/%2F"]),
        ] {
            let [text] = &texts(path)[..] else { panic!("{path} has one reading") };
            for spelling in spellings {
                assert!(texts(spelling).contains(text), "{spelling} is no {path}: {:?}", texts(spelling));
            }
        }
    }

    #[test]
    fn different_paths_stay_different() {
        for (one, other) in [
            ("/users/1", "/users/2"),
            ("/users/1", "/users"),
            ("/users/1", "/users/1/posts"),
            ("/users/100%25", "/users/100"),
            ("/users/a,b", "/users/ab"),
        ] {
            let one = texts(one);
            assert!(texts(other).iter().all(|text| !one.contains(text)), "{other}");
        }
    }

    #[test]
    fn decoding_covers_escapes_that_decoding_creates() {
        for (text, decoded) in [
            ("%2541", "A"),
            ("%252525252541", "A"),
            ("%%34%31", "A"),
            ("%2%35%34%31", "A"),
            ("100%", "100%"),
            ("%zz", "%zz"),
            ("%25", "%"),
        ] {
            assert_eq!(decode_fully(text), decoded, "{text}");
        }
    }

    #[test]
    fn ordinary_paths_have_one_reading() {
        for path in [
            "/",
            "/api/users/1",
            "/.well-known/x",
            "/a.b~c,d=e@f:1!/*",
            "/static/app.3f2a-1_b.js",
            "/shop.v1.Carts/AddItem",
            "/a+b",
        ] {
            assert!(has_one_reading(path), "{path}");
        }
        for path in ["", "*", "a", "//", "/a/", "/a//b", "/a./b", "/a/..", "/.", "/a%20", "/a;b"] {
            assert!(!has_one_reading(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_path_has_one_reading_iff_it_is_its_only_text(path in "[/.]{0,2}([a-zA-Z0-9!-~]|[/.;+?#\\\\]){0,8}[/.]{0,2}") {
            let path = path.replace('%', "");
            prop_assert_eq!(has_one_reading(&path), texts_the_long_way(&path) == [fold(&path)], "{}", path);
        }

        #[test]
        fn short_cut_changes_no_text_and_no_reading(path in "[/.]{0,2}([a-z/.%0-9A-Z ]|\\PC|%[0-9a-fA-F]{2}|[\u{0}-\u{ff}]){0,8}") {
            prop_assert_eq!(texts(&path), texts_the_long_way(&path));
            prop_assert_eq!(Readings::of(&path), Readings::of_unsettled(&path));
        }

        #[test]
        fn short_cut_for_ascii_folds_as_unicode_does(text in "[\u{0}-\u{7f}]{0,12}") {
            prop_assert_eq!(fold(&text), fold_any(&text));
        }

        #[test]
        fn short_cut_reads_as_the_long_way(path in "(/[a-zA-Z0-9.~+-]{0,4}[a-zA-Z0-9~+-]){0,4}") {
            prop_assert_eq!(has_one_reading(&path), !path.is_empty());
            prop_assert_eq!(texts(&path), texts_the_long_way(&path));
            prop_assert_eq!(Readings::of(&path), Readings::of_unsettled(&path));
        }

        #[test]
        fn a_path_that_servers_read_alike_has_one_reading(raw in "/([a-zA-Z0-9/@.+:~-]|%[0-9a-fA-F]{2}|%25|;|\u{e9}){0,12}") {
            if !NormalPath::new(&raw).is_ambiguous() {
                prop_assert_eq!(texts(&raw).len(), 1, "{:?}", texts(&raw));
            }
        }

        #[test]
        fn one_more_escape_changes_no_reading(raw in "/[a-zA-Z0-9/@+:~-]{0,12}", at in any::<prop::sample::Index>()) {
            let at = at.index(raw.len());
            let escaped = format!("{}%{:02x}{}", &raw[..at], raw.as_bytes()[at], &raw[at + 1..]);
            prop_assert!(texts(&escaped).contains(&texts(&raw)[0]), "{}", escaped);
        }
    }
}
