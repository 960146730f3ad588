//! The names under which stored responses are purged.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
};

use bytes::BufMut as _;
use unicode_normalization::UnicodeNormalization as _;

use crate::path::{all_texts, decode_fully, fold, loose_texts};

mod key;

pub use self::key::{KeyError, WrittenKey};

/// Length up to which a name is hashed without an allocation, in bytes.
const MAX_SHORT: usize = 256;

/// Maximum number of segments by which a prefix of paths is told from others.
pub const MAX_PREFIX_SEGMENTS: usize = 32;

/// One name of a stored response, hashed: a key, a path or a tag. An entry has a few of them; a purge raises a barrier
/// on one, which invalidates every older entry with that name. Names of different kinds never collide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PurgeName([u8; 16]);

impl Hash for PurgeName {
    /// Hashes half of the bytes, which suffice to spread names in a table.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (half, _) = self.0.split_first_chunk().expect("a name has 16 bytes");
        state.write_u64(u64::from_ne_bytes(*half));
    }
}

impl PurgeName {
    /// The name of the fact that some prefix was purged. No stored response has this name.
    pub const ANY_PREFIX: Self = Self(*b"any path prefix\0");

    /// The name of the fact that some name was purged softly. No stored response has this name.
    pub const ANY_SOFT: Self = Self(*b"any soft purging");

    /// The name of a key, with or without scheme and host. Keys that differ only in escapes, in compatible characters
    /// (Unicode's NFKC), in `+` for a space, in empty pairs of the query, such as the one of `/a?`, or in the spelling
    /// of the host (RFC 3986, section 6.2), have one name.
    pub fn key(key: &str) -> Self {
        let key = with_normal_host(key);
        Self::new("key", &[&if has_one_spelling(&key) { key } else { Cow::Owned(respelled(&key)) }])
    }

    /// The names of a key with this scheme and host, as in `http://shop`, and of the same without them: of its method and its target
    /// alone.
    pub(crate) fn keys(key: &str, method: &str, origin: &str, target: &str) -> [Self; 2] {
        // A part of a key has no more spellings than the whole.
        if target.starts_with('/') && is_normal_origin(origin) && has_one_spelling(key) {
            return [Self::new("key", &[key]), Self::new("key", &[method, ":", target])];
        }
        [Self::key(key), Self::key(&[method, ":", target].concat())]
    }

    /// The name of a path, regardless of host, scheme, query and variant. Spellings that an application may treat as
    /// one path have one name.
    pub fn path(path: &str) -> Self {
        let text = loose_texts(path).next().expect("a path has a reading");
        Self::new("path", &[&text])
    }

    /// Returns the names of all paths that a server may read in `path`: those that a purge by that path raises.
    pub fn paths(path: &str) -> impl Iterator<Item = Self> {
        loose_texts(path).map(|text| Self::new("path", &[&text]))
    }

    /// Returns the names of the prefixes of a path, in segments: `/a` and `/a/b` among those of `/a/b/c`, and `/` and the path itself. Those
    /// of every reading count: a route that never asks the application stores responses under `/a/..%2Fb`.
    /// No response is stored with them: they are found from its path where [`Self::ANY_PREFIX`] has been purged since.
    pub fn prefixes_of(path: &str) -> Vec<Self> {
        let mut names = vec![Self::new("prefix", &["/"])];
        for text in all_texts(path) {
            let ends = text.match_indices('/').map(|(at, _)| at).skip(1).chain([text.len()]);
            let longer = ends.filter(|end| *end > 1).take(MAX_PREFIX_SEGMENTS).map(|end| &text[..end]);
            names.extend(longer.map(|prefix| Self::new("prefix", &[prefix])));
        }
        names
    }

    /// Returns the names that a purge of all paths under a prefix raises, by every reading of it that a server may have, and
    /// [`Self::ANY_PREFIX`]. Of more than [`MAX_PREFIX_SEGMENTS`] segments the first ones count.
    pub fn prefixes(prefix: &str) -> impl Iterator<Item = Self> {
        let name = |text: Cow<'_, str>| {
            let end = text.match_indices('/').map(|(at, _)| at).nth(MAX_PREFIX_SEGMENTS);
            Self::new("prefix", &[&text[..end.unwrap_or(text.len())]])
        };
        loose_texts(prefix).map(name).chain([Self::ANY_PREFIX])
    }

    /// The name that a soft purge of this one raises. No stored response has it.
    #[must_use]
    pub fn soft(self) -> Self {
        Self(self.0.map(|byte| !byte))
    }

    /// The names of facts, by which a response is found to have been purged although none of its names was.
    pub fn indirect() -> [Self; 3] {
        [Self::ANY_PREFIX, Self::ANY_PREFIX.soft(), Self::ANY_SOFT]
    }

    /// Returns the names that a soft purge of these raises.
    pub fn softly(names: Vec<Self>) -> Vec<Self> {
        names.into_iter().map(Self::soft).chain([Self::ANY_SOFT]).collect()
    }

    /// The name of a tag. Tags that differ only in escapes, case or compatible characters have one name.
    pub fn tag(tag: &str) -> Self {
        Self::new("tag", &[&fold(&decode_fully(tag))])
    }

    /// The name of a policy's version, by its [`crate::Policy::fingerprint`]: shared by everything that is stored under it.
    pub fn version(fingerprint: &str) -> Self {
        Self::new("version", &[fingerprint])
    }

    /// The name of a write for which a policy names nothing. No stored response has this name.
    pub fn unnamed_write() -> Self {
        Self::new("write", &[])
    }

    /// The name of the fact that a purge was told to the Redis that counts in this generation, too. No stored response has this name.
    pub fn told(generation: u64) -> Self {
        Self::new("told", &[&generation.to_string()])
    }

    /// Hashes the parts of a text.
    fn new(kind: &str, parts: &[&str]) -> Self {
        let length = kind.len() + 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut room = [0; MAX_SHORT];
        let hash = match room.get_mut(..length) {
            // A hasher is two kilobytes.
            Some(mut rest) => {
                rest.put_slice(kind.as_bytes());
                rest.put_u8(b':');
                parts.iter().for_each(|part| rest.put_slice(part.as_bytes()));
                blake3::hash(&room[..length])
            }
            None => blake3::hash([&[kind, ":"], parts].concat().concat().as_bytes()),
        };
        let mut name = [0; 16];
        name.copy_from_slice(&hash.as_bytes()[..16]);
        Self(name)
    }

    /// Returns the wire form of the name: 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses the wire form of a name; `None` if it is not 16 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Returns a key with its scheme and host in lower case, and the host without the default port of its scheme and
/// without the root's dot.
fn with_normal_host(key: &str) -> Cow<'_, str> {
    let Some((method, rest)) = key.split_once(':') else { return Cow::Borrowed(key) };
    let (scheme, rest) = split_before_part(rest);
    let (Some(scheme), Some(rest)) = (scheme.strip_suffix(':'), rest.strip_prefix("//")) else {
        return Cow::Borrowed(key);
    };
    let (host, rest) = split_before_part(rest);
    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let has_capital = |text: &str| text.bytes().any(|byte| byte.is_ascii_uppercase());
    if !(has_capital(scheme) || has_capital(host) || host.ends_with(port) || host.ends_with('.')) {
        return Cow::Borrowed(key);
    }
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    let host = host.strip_suffix(port).unwrap_or(&host);
    let host = host.strip_suffix('.').unwrap_or(host);
    Cow::Owned(format!("{method}:{scheme}://{host}{rest}"))
}

/// Returns true if [`with_normal_host`] would not change a key with this scheme and host, as far as a look at it shows.
fn is_normal_origin(origin: &str) -> bool {
    // Several bytes at a time.
    origin.bytes().fold(true, |all, byte| all & !byte.is_ascii_uppercase())
        && ![".", ":80", ":443"].iter().any(|end| origin.ends_with(end))
}

/// Splits a text before the first character that begins a path, a query or a fragment.
fn split_before_part(text: &str) -> (&str, &str) {
    let begins_part = |byte| matches!(byte, b'/' | b'?' | b'#');
    text.split_at(text.bytes().position(begins_part).unwrap_or(text.len()))
}

/// Returns true if a key, apart from its host, has no other spelling, as most have not: it has no escape, no `+`, no empty pair, and is
/// ASCII. Its name is that of the key as it is.
fn has_one_spelling(key: &str) -> bool {
    // Several bytes at a time.
    let is_plain = |byte: u8| byte.is_ascii() & !matches!(byte, b'?' | b'&' | b'#' | b'%' | b'+');
    if key.bytes().fold(true, |all, byte| all & is_plain(byte)) {
        return true;
    }
    let mut before = Character::Plain;
    let has_no_other = key.bytes().all(|byte| {
        let (last, this) = (before, CHARACTERS[usize::from(byte)]);
        before = this;
        match this {
            Character::Plain => true,
            Character::Separator => last == Character::Plain || byte == b'?',
            Character::Respelled => false,
        }
    });
    has_no_other && before == Character::Plain
}

/// Meaning of a byte for the spellings of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Character {
    Plain,
    /// Precedes a pair of the query or of the fragment.
    Separator,
    /// Has another spelling, or is part of one.
    Respelled,
}

const CHARACTERS: [Character; 256] = {
    let mut characters = [Character::Plain; 256];
    let mut byte = 0;
    while byte < 256 {
        characters[byte] = match byte as u8 {
            b'?' | b'&' | b'#' => Character::Separator,
            b'%' | b'+' | 0x80.. => Character::Respelled,
            _ => Character::Plain,
        };
        byte += 1;
    }
    characters
};

/// Returns the spelling by which all of a key have one name.
fn respelled(key: &str) -> String {
    let mut text = decode_fully(key);
    if text.contains('+') {
        text = Cow::Owned(text.replace('+', " "));
    }
    if !text.is_ascii() {
        text = Cow::Owned(text.nfkc().collect());
    }
    without_empty_pairs(&text).into_owned()
}

/// Returns a decoded key without the empty pairs of its query and its fragment, and without the separators of those
/// that have no pair left.
fn without_empty_pairs(key: &str) -> Cow<'_, str> {
    let is_separator = |byte: &u8| matches!(byte, b'?' | b'&' | b'#');
    let ends_pair = |next: Option<&u8>| next.is_none_or(|next| matches!(next, b'&' | b'#'));
    let bytes = key.as_bytes();
    let is_empty_at = |at: usize| is_separator(&bytes[at]) && ends_pair(bytes.get(at + 1));
    if !(0..bytes.len()).any(is_empty_at) {
        return Cow::Borrowed(key);
    }
    let (target, fragment) = key.split_once('#').map_or((key, None), |(target, rest)| (target, Some(rest)));
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut text = path.to_owned();
    for (first, pairs) in [('?', query), ('#', fragment)] {
        let pairs = pairs.into_iter().flat_map(|pairs| pairs.split('&')).filter(|pair| !pair.is_empty());
        for (number, pair) in pairs.enumerate() {
            text.push(if number == 0 { first } else { '&' });
            text.push_str(pair);
        }
    }
    Cow::Owned(text)
}

impl fmt::Debug for PurgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_of_names_never_collide() {
        assert_ne!(PurgeName::key("/a"), PurgeName::path("/a"));
        assert_ne!(PurgeName::tag("/a"), PurgeName::path("/a"));
        assert_ne!(PurgeName::tag("/a"), PurgeName::version("/a"));
        let name = PurgeName::tag("user:42");
        assert_eq!(PurgeName::from_bytes(name.as_bytes()), Some(name));
        assert_eq!(PurgeName::from_bytes(b"short"), None);
    }

    #[test]
    fn prefix_is_of_whole_segments_in_any_spelling() {
        let is_under = |path: &str, prefix: &str| {
            let names = PurgeName::prefixes_of(path);
            PurgeName::prefixes(prefix).any(|name| names.contains(&name))
        };
        for prefix in
            ["/", "//", "/a", "/a/", "/A", "/%61", "/a/b", "/a/b/", "/a/./b", "/x/../a", "/a/b/c", "/a;v=1/b"]
        {
            assert!(is_under("/a/b/c", prefix), "{prefix}");
        }
        for prefix in ["/b", "/a/bc", "/a/b/c/d", "/a/b/cd", "/aa", "/a/c", "/c"] {
            assert!(!is_under("/a/b/c", prefix), "{prefix}");
        }
        assert!(is_under("/", "/") && !is_under("/", "/a"));
        for path in ["/a/..%2Fb", "/a/..%252fb", "/A/x%5C..%5C..%5Cb", "/a/x/..;/../b"] {
            assert!(is_under(path, "/a") && is_under(path, "/b"), "{path}");
            assert!(!is_under(path, "/c"), "{path}");
        }
        assert!(is_under("/caf%C3%A9/x", "/caf\u{e9}") && is_under("/a%20b/x", "/a+b"));
        let deep = "/a".repeat(100);
        assert!(is_under(&deep, &"/a".repeat(32)) && is_under(&deep, &deep) && is_under(&deep, "/a"));
        assert!(is_under(&"/a".repeat(40), &deep), "beyond 32 segments the first 32 count");
        assert!(!is_under(&"/a".repeat(31), &deep));
        assert_eq!(PurgeName::prefixes_of(&deep).len(), 1 + MAX_PREFIX_SEGMENTS);
        assert_eq!(PurgeName::prefixes("/a/b").last(), Some(PurgeName::ANY_PREFIX));
        assert!(!is_under("any path prefix", "/a"));
    }

    #[test]
    fn soft_purge_raises_names_of_its_own() {
        let (a, b) = (PurgeName::tag("a"), PurgeName::tag("b"));
        assert_eq!(PurgeName::softly(vec![a, b]), [a.soft(), b.soft(), PurgeName::ANY_SOFT]);
        assert!(a.soft() != a && a.soft() != b.soft() && a.soft().soft() == a);
    }

    proptest! {
        #[test]
        fn path_is_under_itself_and_all_before_it(segments in proptest::collection::vec("[a-c%;.+]{1,3}", 1..6)) {
            let path = format!("/{}", segments.join("/"));
            // What a purge by this path reaches one by it as a prefix reaches, too.
            let names = PurgeName::prefixes_of(&path);
            prop_assert!(PurgeName::prefixes(&path).any(|name| names.contains(&name)), "{}", path);
        }
    }

    #[test]
    fn purge_name_is_a_hash_of_kind_and_text_at_any_length() {
        for length in [0, 1, MAX_SHORT - 4, MAX_SHORT - 3, 1000] {
            let tag = "a".repeat(length);
            let hash = blake3::hash(format!("tag:{tag}").as_bytes());
            assert_eq!(PurgeName::tag(&tag).as_bytes()[..], hash.as_bytes()[..16], "{length}");
        }
    }

    #[test]
    fn spellings_of_one_key_share_a_name() {
        let key = PurgeName::key("GET:http://shop/u/me@x.com?q=a%20b");
        for spelling in [
            "GET:http://SHOP/u/me@x.com?q=a%20b",
            "GET:HTTP://shop:80/u/me%40x.com?q=a b",
            "GET:http://shop./u/%6De@x.com?q=a%20b",
            "GET:http://shop/u/me@x.com?q=a+b",
            "GET:http://shop/u/me@x.com?q=a%2Bb",
        ] {
            assert_eq!(PurgeName::key(spelling), key, "{spelling}");
        }
        for other in [
            "GET:https://shop/u/me@x.com?q=a%20b",
            "GET:http://shop:81/u/me@x.com?q=a%20b",
            "GET:http://shop/u/ME@x.com?q=a%20b",
            "GET:http://shop/u/me@x.com/?q=a%20b",
            "HEAD:http://shop/u/me@x.com?q=a%20b",
        ] {
            assert_ne!(PurgeName::key(other), key, "{other}");
        }
        assert_eq!(PurgeName::key("GET:/a%40://b"), PurgeName::key("GET:/a@://b"));
        assert_eq!(PurgeName::key("GET:/cafe%CC%81"), PurgeName::key("GET:/caf\u{e9}"));
    }

    #[test]
    fn key_with_an_ordinary_host_is_not_copied() {
        for key in ["GET:http://shop/u?q=A", "GET:https://shop.test:80/U", "GET:http://shop:443/", "GET:/u"] {
            assert!(matches!(with_normal_host(key), Cow::Borrowed(_)), "{key}");
        }
        for (key, normal) in [
            ("GET:http://shop:80/u", "GET:http://shop/u"),
            ("GET:HTTPS://shop:443/u", "GET:https://shop/u"),
            ("GET:http://shop.:80/U", "GET:http://shop/U"),
            ("GET:http://shop./u", "GET:http://shop/u"),
            ("GET:http://Shop/u", "GET:http://shop/u"),
        ] {
            assert_eq!(with_normal_host(key), normal, "{key}");
        }
    }

    #[test]
    fn empty_pairs_of_a_query_make_no_difference() {
        for (spellings, other) in [
            (&["GET:/x", "GET:/x?", "GET:/x?&", "GET:/x?&&"][..], "GET:/x?="),
            (&["GET:http://a/x", "GET:http://a:80/x?", "GET:http://a/x?&"], "GET:http://a/x/"),
            (&["GET:http://a/x#b=c", "GET:http://a/x?#b=c", "GET:http://a/x?&#b=c"], "GET:http://a/x?b=c"),
            (&["GET:/x?a=1&b=", "GET:/x?&a=1&&b=&", "GET:/x?a=1&&&b="], "GET:/x?a=1&b"),
            (&["GET:/x&", "GET:/x&?", "GET:/x&?&"], "GET:/x"),
            (&["GET:/x?a?", "GET:/x?a?&"], "GET:/x?a"),
        ] {
            let name = PurgeName::key(spellings[0]);
            for spelling in spellings {
                assert_eq!(PurgeName::key(spelling), name, "{spelling}");
            }
            assert_ne!(PurgeName::key(other), name, "{other}");
        }
    }

    proptest! {
        #[test]
        fn names_of_a_key_and_of_its_target_are_those_of_their_texts(
            origin in "[a-zA-Z:]{0,2}://[aA]{0,2}[.]?(:80)?",
            target in "/?[a%2B+?&=/ \u{e9}]{0,8}",
            fragment in "(#[a%2B&=\u{e9}]{0,6})?",
        ) {
            let texts = [format!("GET:{origin}{target}{fragment}"), format!("GET:{target}")];
            let names = PurgeName::keys(&texts[0], "GET", &origin, &target);
            prop_assert_eq!(names, texts.map(|text| PurgeName::key(&text)));
        }

        #[test]
        fn key_with_one_spelling_is_the_one_that_others_are_turned_into(key in "[a%2B+?&#=/ \u{e9}]{0,12}") {
            prop_assert!(!has_one_spelling(&key) || respelled(&key) == key);
        }
    }

    #[test]
    fn tag_matches_handwritten_spellings() {
        for (stored, written) in [
            ("user:urn%3Aisbn%3A1", "user:urn:isbn:1"),
            ("user:a%2Fb", "user:a/b"),
            ("user:100%25", "user:100%"),
            ("user:%C3%BC", "user:\u{dc}"),
            ("user:a%20b", "user:a+b"),
        ] {
            assert_eq!(PurgeName::tag(stored), PurgeName::tag(written), "{written}");
        }
        assert_ne!(PurgeName::tag("user:1"), PurgeName::tag("user:2"));
    }
}
