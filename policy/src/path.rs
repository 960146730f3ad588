//! Request paths in one form, so that two spellings of a path are one path.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};

/// What ends a path in a URL can't be in one. What is not ASCII is encoded whatever the set.
const NOT_IN_PATH: &AsciiSet = &AsciiSet::EMPTY.add(b'?').add(b'#');

/// Bytes that a path has to be looked at closely for.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 128;
    while byte < 256 {
        special[byte] = true;
        byte += 1;
    }
    special[b'%' as usize] = true;
    special[b'\\' as usize] = true;
    special[b'?' as usize] = true;
    special[b'#' as usize] = true;
    special[0] = true;
    special
};

/// A request's path, normalised as RFC 3986, section 6.2.2, has it: unreserved characters decoded, the hex digits of the
/// other escapes in capitals, dot segments resolved. Escapes of reserved characters stay, `%2F` among them.
///
/// Most paths are in that form already; those are borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    text: Cow<'a, str>,
    ambiguous: bool,
}

impl<'a> NormalPath<'a> {
    /// Normalises the path of a request target.
    pub fn new(raw: &'a str) -> Self {
        if is_normal(raw) {
            return Self { text: Cow::Borrowed(raw), ambiguous: false };
        }
        let decoded = normalise_escapes(raw);
        let has_dots = decoded.split('/').any(|segment| matches!(segment, "." | ".."));
        let ambiguous = has_dots || decoded.contains(['\\', '\0']) || decoded.contains("%5C");
        let text = if has_dots { resolve_dots(&decoded) } else { decoded };
        Self { text: Cow::Owned(text), ambiguous }
    }

    /// The normalised path. It starts with `/` if the raw one did.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True if two servers may read the raw path differently: it had dot segments or backslashes. What such a request
    /// gets must not be stored under the path that we made of it; what such a request writes may well be there.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// The same path in memory of its own.
    pub fn into_owned(self) -> NormalPath<'static> {
        NormalPath { text: Cow::Owned(self.text.into_owned()), ambiguous: self.ambiguous }
    }
}

/// Whether there is nothing to normalise: no escape, nothing that is not ASCII, no segment that starts with a dot.
fn is_normal(raw: &str) -> bool {
    let mut before = b'/';
    raw.bytes().all(|byte| {
        let special = SPECIAL[usize::from(byte)] || (byte == b'.' && before == b'/');
        before = byte;
        !special
    })
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
        let byte = percent_decode_str(escape).next().expect("an escape is one byte");
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

/// RFC 3986, section 5.2.4.
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
            ("/a%2fb", "/a%2Fb"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/100%", "/100%"),
            ("/%zz", "/%zz"),
            ("/%%330", "/%%330"),
            ("/%3%30", "/%3%30"),
            ("/%/%61", "/%/a"),
            ("/%%7a", "/%z"),
            ("//a", "//a"),
            ("/.well-known/a", "/.well-known/a"),
            ("/a?b#c", "/a%3Fb%23c"),
        ] {
            let path = NormalPath::new(raw);
            assert_eq!(path.as_str(), normal, "{raw}");
            assert!(!path.is_ambiguous(), "{raw}");
        }
    }

    #[test]
    fn what_servers_may_read_differently_is_marked() {
        for (raw, normal) in [
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/../a", "/a"),
            ("/a\\b", "/a\\b"),
            ("/a%5cb", "/a%5Cb"),
        ] {
            let path = NormalPath::new(raw);
            assert_eq!(path.as_str(), normal, "{raw}");
            assert!(path.is_ambiguous(), "{raw}");
        }
    }

    #[test]
    fn a_path_in_that_form_is_borrowed() {
        assert!(matches!(NormalPath::new("/api/users/1;v=2/a.b~c").text, Cow::Borrowed(_)));
        assert!(matches!(NormalPath::new("/%61").text, Cow::Owned(_)));
    }

    proptest! {
        #[test]
        fn what_is_borrowed_is_normal(raw in "[a-z%./?#~é\\\\]{0,12}") {
            if is_normal(&raw) {
                prop_assert_eq!(&normalise_escapes(&raw), &raw);
                prop_assert!(!raw.split('/').any(|segment| matches!(segment, "." | "..")));
                prop_assert!(!raw.contains('\\'));
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
