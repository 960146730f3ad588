//! Request paths in a normal form, so that two spellings of a path are equal.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};
use unicode_normalization::UnicodeNormalization as _;

mod readings;

pub(crate) use self::readings::{Readings, all_texts, decode_fully, fold, loose_texts, only_reading};

/// Characters that end a path in a URL. Non-ASCII characters are encoded regardless of the set.
const NOT_IN_PATH: &AsciiSet = &AsciiSet::EMPTY.add(b'?').add(b'#');

/// Bytes whose presence requires normalisation.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        special[byte] = byte <= b' ' as usize || byte >= 127;
        byte += 1;
    }
    special[b'%' as usize] = true;
    special[b'\\' as usize] = true;
    special[b'?' as usize] = true;
    special[b'#' as usize] = true;
    special[b';' as usize] = true;
    special
};

/// A request's path: as it was sent, and normalised by RFC 3986, section 6.2.2: unreserved characters decoded, the hex
/// digits of the other escapes in capitals, dot segments resolved. Escapes of reserved characters stay, `%2F` among
/// them.
///
/// Most paths are already in normal form; those are borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    sent: Cow<'a, str>,
    /// The normal form; `None` if it equals the path as sent.
    normal: Option<String>,
    ambiguous: bool,
}

impl<'a> NormalPath<'a> {
    /// Normalises the path of a request target.
    pub fn new(raw: &'a str) -> Self {
        let sent = Cow::Borrowed(raw);
        if is_plain(raw) {
            return Self { sent, normal: None, ambiguous: false };
        }
        let mut normal = normalise_escapes(raw);
        if normal.split('/').any(|segment| matches!(segment, "." | "..")) {
            normal = resolve_dots(&normal);
        }
        Self { sent, ambiguous: is_ambiguous(raw), normal: (normal != raw).then_some(normal) }
    }

    /// Returns the normalised path. Starts with `/` if the raw one did.
    pub fn as_str(&self) -> &str {
        self.normal.as_deref().unwrap_or(&self.sent)
    }

    /// Returns the path as it was sent.
    pub fn as_sent(&self) -> &str {
        &self.sent
    }

    /// Returns true if two servers may read the path differently: it has dot segments, backslashes, `;` parameters,
    /// segments that end in a dot or a space, broken escapes, escapes of separators or terminators (`/ \\ ; ? #` and
    /// control characters), once or twice encoded, characters that some servers treat as dots or slashes (fullwidth
    /// ones), or escapes that are not UTF-8. The response to such a request must not be stored, because the application
    /// may read a path in it that belongs to another route; a write may be one to any of the readings.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// Copies the path into memory of its own.
    pub fn into_owned(self) -> NormalPath<'static> {
        NormalPath { sent: Cow::Owned(self.sent.into_owned()), ..self }
    }
}

/// Returns true if there is nothing to normalise and no ambiguity: no escape, only printable ASCII, no segment that
/// starts or ends with a dot.
fn is_plain(raw: &str) -> bool {
    let mut before = b'/';
    let is_plain = raw.bytes().all(|byte| {
        let beside_slash = (byte == b'.' && before == b'/') || (byte == b'/' && before == b'.');
        before = byte;
        !SPECIAL[usize::from(byte)] && !beside_slash
    });
    is_plain && before != b'.'
}

fn is_ambiguous(raw: &str) -> bool {
    let has_broken_escape = raw
        .split('%')
        .skip(1)
        .any(|after| !after.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)));
    let Ok(decoded) = percent_decode_str(raw).decode_utf8() else { return true };
    let separates = |c: char| matches!(c, '\\' | ';' | '?' | '#') || c.is_control();
    let slashes = |text: &str| text.matches('/').count();
    // What some decode a second time.
    let decodes_again = decoded.split('%').skip(1).any(|after| {
        let escaped = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).map(char::from);
        escaped.is_some_and(|c| separates(c) || matches!(c, '.' | '/' | '%'))
    });
    has_broken_escape
        || decoded.contains(separates)
        || decodes_again
        || slashes(&decoded) != slashes(raw)
        || decoded.split('/').any(|segment| segment.ends_with(['.', ' ']))
        || becomes_separated(&decoded)
}

/// Returns true if some servers' treatment of non-ASCII characters changes the segments of a path: compatible characters
/// (Unicode's NFKC), such as a fullwidth slash or dots that are one character, look-alikes that Windows and IDNA treat as
/// slashes and dots, and invisible characters that are dropped or trimmed.
fn becomes_separated(decoded: &str) -> bool {
    if decoded.is_ascii() {
        return false;
    }
    let folded: String = decoded.nfkc().filter(|c| !is_invisible(*c)).map(look_alike).collect();
    let separators = |text: &str| text.matches(['/', '\\']).count();
    separators(&folded) != separators(decoded)
        || folded.split('/').any(|segment| segment.ends_with(|c: char| c == '.' || c.is_whitespace()))
}

/// Returns true if a character is invisible: a soft hyphen, joiners, marks of direction, selectors of variants, a byte order mark.
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The slash, backslash or dot that a character is taken for by its looks.
const fn look_alike(c: char) -> char {
    match c {
        '\u{2044}' | '\u{2215}' | '\u{29f8}' => '/',
        '\u{2216}' | '\u{29f5}' | '\u{29f9}' => '\\',
        '\u{3002}' => '.',
        other => other,
    }
}

fn normalise_escapes(raw: &str) -> String {
    // Clients send these bytes as they are or escaped; servers take both for the same.
    let raw = utf8_percent_encode(raw, NOT_IN_PATH).to_string();
    if !raw.contains('%') {
        return raw;
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw.as_str();
    let mut stray = None;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let Some(escape) = rest.get(at..at + 3).filter(|e| e[1..].bytes().all(|b| b.is_ascii_hexdigit()))
        else {
            stray = Some(text.len());
            text.push('%');
            rest = &rest[at + 1..];
            continue;
        };
        let byte = percent_decode_str(escape).next().expect("a percent-encoded escape is one byte");
        // Behind a '%' that is no escape, what is decoded could make it one: "%%330" is not "%30".
        let completes = byte.is_ascii_hexdigit()
            && stray.is_some_and(|stray| {
                let since = &text.as_bytes()[stray + 1..];
                since.len() < 2 && since.iter().all(u8::is_ascii_hexdigit)
            });
        if !completes && (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
            text.push(char::from(byte));
        } else {
            text.push_str(&escape.to_ascii_uppercase());
        }
        rest = &rest[at + 3..];
    }
    text.push_str(rest);
    text
}

/// Removes dot segments (RFC 3986, section 5.2.4).
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_spellings_are_one_path() {
        for (raw, normal) in [
            ("/api/users/1", "/api/users/1"),
            ("/%61pi/%7euser", "/api/~user"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/%E6%9C%AC%EF%BC%9F", "/%E6%9C%AC%EF%BC%9F"),
            ("/100%25", "/100%25"),
            ("/a%2541", "/a%2541"),
            ("//a", "//a"),
            ("/.well-known/a", "/.well-known/a"),
            ("/@a%40b/x%2Cy,z", "/@a%40b/x%2Cy,z"),
        ] {
            let path = NormalPath::new(raw);
            assert_eq!(path.as_str(), normal, "{raw}");
            assert_eq!(path.as_sent(), raw);
            assert!(!path.is_ambiguous(), "{raw}");
        }
    }

    #[test]
    fn ambiguous_paths_are_marked() {
        for (raw, normal) in [
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/../a", "/a"),
            ("/a\\b", "/a\\b"),
            ("/a%5cb", "/a%5Cb"),
            ("/a%2fb", "/a%2Fb"),
            ("/..%2fa", "/..%2Fa"),
            ("/a?b#c", "/a%3Fb%23c"),
            ("/a%3fb", "/a%3Fb"),
            ("/a%23", "/a%23"),
            ("/a%00", "/a%00"),
            ("/a%0d%0a", "/a%0D%0A"),
            ("/a/..;/b", "/a/..;/b"),
            ("/a/.;x/b", "/a/.;x/b"),
            ("/a;x=1", "/a;x=1"),
            ("/a%3bx", "/a%3Bx"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/.%252e/a", "/.%252e/a"),
            ("/%25%32e/a", "/%252e/a"),
            ("/a%252fb", "/a%252fb"),
            ("/a%255cb", "/a%255cb"),
            ("/a%25252fb", "/a%25252fb"),
            ("/a%2500", "/a%2500"),
            ("/a./b", "/a./b"),
            ("/a%20/b", "/a%20/b"),
            ("/.../b", "/.../b"),
            ("/..%20/b", "/..%20/b"),
            ("/%c0%af", "/%C0%AF"),
            ("/%ff", "/%FF"),
            ("/100%", "/100%"),
            ("/%zz", "/%zz"),
            ("/%u002e", "/%u002e"),
            ("/%%330", "/%%330"),
            ("/%3%30", "/%3%30"),
            ("/%/%61", "/%/a"),
            ("/%%7a", "/%z"),
            ("/..%ef%bc%8fa", "/..%EF%BC%8Fa"),
            ("/a%EF%BC%BCb", "/a%EF%BC%BCb"),
            ("/\u{ff0e}\u{ff0e}/a", "/%EF%BC%8E%EF%BC%8E/a"),
            ("/%e2%80%a5/a", "/%E2%80%A5/a"),
            ("/..%e2%81%84a", "/..%E2%81%84a"),
            ("/..%e2%88%95a", "/..%E2%88%95a"),
            ("/a%e2%88%96b", "/a%E2%88%96b"),
            ("/..%c2%ad/a", "/..%C2%AD/a"),
            ("/.%e2%80%8b./a", "/.%E2%80%8B./a"),
            ("/..%c2%a0/a", "/..%C2%A0/a"),
            ("/..%e3%80%80/a", "/..%E3%80%80/a"),
            ("/%e3%80%82%ef%bd%a1/a", "/%E3%80%82%EF%BD%A1/a"),
            ("/a b", "/a b"),
        ] {
            let path = NormalPath::new(raw);
            assert_eq!(path.as_str(), normal, "{raw}");
            assert!(path.is_ambiguous() || raw == "/a b", "{raw}");
        }
    }

    #[test]
    fn normalised_path_is_borrowed() {
        for raw in ["/api/users/1,v=2/a.b~c", "/caf%C3%A9", "/.well-known/x"] {
            let path = NormalPath::new(raw);
            assert!(path.normal.is_none() && matches!(path.sent, Cow::Borrowed(_)), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn plain_path_is_normal(raw in "[a-z%./?#~;é\\\\]{0,12}") {
            if is_plain(&raw) {
                prop_assert_eq!(&normalise_escapes(&raw), &raw);
                prop_assert!(!raw.split('/').any(|segment| matches!(segment, "." | "..")));
                prop_assert!(!is_ambiguous(&raw));
            }
        }

        #[test]
        fn normalising_twice_changes_nothing(raw in "/[a-zA-Z0-9%./~_\\\\-]{0,40}") {
            let once = NormalPath::new(&raw);
            let twice = NormalPath::new(once.as_str());
            // "%2561" is the escape of "%61": decoding it again would name another path.
            prop_assume!(!raw.contains("%25"));
            prop_assert_eq!(once.as_str(), twice.as_str());
        }
    }
}
