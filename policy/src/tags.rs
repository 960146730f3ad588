//! Tags that a response names in header fields.

use std::borrow::Cow;

use http::HeaderName;

use crate::{Fields, PurgeName, storing::NotStored};

/// Maximum number of tags that the headers of a response may name.
pub const MAX_TAGS: usize = 1_024;

/// Maximum length of these tags together, in bytes.
pub const MAX_TAG_BYTES: usize = 16 << 10;

/// Header fields that name tags of a response (`tagsFrom`).
#[derive(Clone, Debug)]
pub struct TagsFrom {
    headers: Vec<(HeaderName, Separators)>,
    removed: Vec<HeaderName>,
}

/// Bytes that separate the tags of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Separators {
    Blanks,
    Commas,
    Both,
}

impl Separators {
    /// The separators of a header: those of the caches that made it known.
    fn of(name: &HeaderName) -> Self {
        match name.as_str() {
            "surrogate-key" => Self::Blanks,
            "cache-tag" | "edge-cache-tag" => Self::Commas,
            _ => Self::Both,
        }
    }

    /// Returns the tags of a line.
    fn split(self, line: &[u8]) -> impl Iterator<Item = &[u8]> {
        let tags = line.split(move |byte| self.has(*byte)).map(move |tag| match self {
            // API Platform writes a comma before each blank.
            Self::Blanks => tag.strip_suffix(b",").unwrap_or(tag),
            Self::Commas | Self::Both => tag.trim_ascii(),
        });
        tags.filter(|tag| !tag.is_empty())
    }

    fn has(self, byte: u8) -> bool {
        let (is_blank, is_comma) = (matches!(byte, b' ' | b'\t'), byte == b',');
        match self {
            Self::Blanks => is_blank,
            Self::Commas => is_comma,
            Self::Both => is_blank || is_comma,
        }
    }
}

impl TagsFrom {
    /// Creates the rules for these headers, which are taken out of responses if `removes` is true.
    pub(crate) fn new(mut names: Vec<HeaderName>, removes: bool) -> Self {
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        let headers = names.iter().map(|name| (name.clone(), Separators::of(name))).collect();
        Self { headers, removed: if removes { names } else { vec![] } }
    }

    /// Returns the headers, in the order of their names.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.iter().map(|(name, _)| name)
    }

    /// Returns the headers that are taken out of responses.
    pub fn removed(&self) -> &[HeaderName] {
        &self.removed
    }

    /// Reads the tags of a response with these fields.
    pub fn read(&self, fields: &(impl Fields + ?Sized)) -> ResponseTags {
        let is_complete = self.headers().all(|header| fields.has(header.as_str()));
        let mut names = vec![];
        match self.each(fields, |tag| names.push(PurgeName::tag(tag))) {
            Some(()) => ResponseTags { names, is_complete, are_too_many: false },
            None => ResponseTags { names: vec![], is_complete, are_too_many: true },
        }
    }

    /// Returns the tags of a response with these fields as texts; `None` if there are too many.
    pub(crate) fn texts(&self, fields: &(impl Fields + ?Sized)) -> Option<Vec<String>> {
        let mut texts = vec![];
        self.each(fields, |tag| texts.push(tag.to_owned()))?;
        Some(texts)
    }

    /// Passes each tag on; `None` if there are too many.
    fn each(&self, fields: &(impl Fields + ?Sized), mut take: impl FnMut(&str)) -> Option<()> {
        let (mut count, mut bytes) = (0, 0);
        for (header, separators) in &self.headers {
            for tag in fields.values(header.as_str()).flat_map(|line| separators.split(line)) {
                (count, bytes) = (count + 1, bytes + tag.len());
                if count > MAX_TAGS || bytes > MAX_TAG_BYTES {
                    return None;
                }
                take(&text_of(tag));
            }
        }
        Some(())
    }
}

/// Returns the tags in a line of a header field, separated as those of responses are.
pub fn tags_in<'a>(name: &HeaderName, line: &'a [u8]) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
    Separators::of(name).split(line).map(text_of)
}

/// Returns a tag as text: in UTF-8, or in ISO 8859-1 if it is not that (RFC 9110, section 5.5).
pub fn text_of(tag: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(tag) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(tag.iter().map(|byte| char::from(*byte)).collect()),
    }
}

/// Tags that the header fields of one response name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseTags {
    names: Vec<PurgeName>,
    /// True if every header that may name tags is there.
    is_complete: bool,
    are_too_many: bool,
}

impl ResponseTags {
    /// Returns the names under which the response can be purged once it is stored: those of its request, those of its tags, and those
    /// of the stored response that it updates, unless all headers that named tags of that have come again. A header that a 304 or a
    /// part leaves out stays as it was (RFC 9111, section 3.2).
    ///
    /// # Errors
    /// If there are too many: without all of them a purge would miss the response.
    pub fn names(
        &self,
        of_request: &[PurgeName],
        of_stored: impl Iterator<Item = PurgeName>,
    ) -> Result<Box<[PurgeName]>, NotStored> {
        let mut tags = self.names.clone();
        if !self.is_complete {
            tags.extend(of_stored);
        }
        tags.sort_unstable();
        tags.dedup();
        // The first names of a response are those of its key.
        tags.retain(|name| !of_request.contains(name));
        if self.are_too_many || tags.len() > MAX_TAGS {
            return Err(NotStored::TooManyTags);
        }
        Ok([of_request, &tags].concat().into())
    }
}

#[cfg(test)]
mod tests {
    use std::iter::empty;

    use super::*;
    use crate::testing::headers;

    fn rules(names: &[&'static str]) -> TagsFrom {
        TagsFrom::new(names.iter().map(|name| HeaderName::from_static(name)).collect(), false)
    }

    fn names_of(tags: &[&str]) -> Vec<PurgeName> {
        let mut names: Vec<_> = tags.iter().map(|tag| PurgeName::tag(tag)).collect();
        names.sort();
        names
    }

    fn read(rules: &TagsFrom, lines: &[(&str, &str)]) -> Vec<PurgeName> {
        rules.read(&headers(lines)).names(&[], empty()).unwrap().to_vec()
    }

    #[test]
    fn tags_are_separated_as_each_header_does() {
        let all = rules(&["surrogate-key", "cache-tag", "xkey"]);
        for (lines, tags) in [
            (&[("Surrogate-Key", " a  b,c \td")][..], &["a", "b,c", "d"][..]),
            (&[("Surrogate-Key", "a, b, ,")], &["a", "b"]),
            (&[("Cache-Tag", "a b, c,,d ")], &["a b", "c", "d"]),
            (&[("xkey", "a,b c"), ("xkey", "d")], &["a", "b", "c", "d"]),
            (&[("xkey", "a"), ("Cache-Tag", "a"), ("Surrogate-Key", "b")], &["a", "b"]),
            (&[("X-Other", "a"), ("xkey", " , ")], &[]),
        ] {
            assert_eq!(read(&all, lines), names_of(tags), "{lines:?}");
        }
    }

    #[test]
    fn tag_of_any_bytes_has_a_name() {
        let fields = [(&b"xkey"[..], &b"caf\xe9 \xff\xfe"[..])];
        let names = rules(&["xkey"]).read(&fields[..]).names(&[], empty()).unwrap();
        assert_eq!(names.to_vec(), names_of(&["café", "ÿþ"]));
        assert_eq!(read(&rules(&["xkey"]), &[("xkey", "café")]), names_of(&["café"]));
    }

    #[test]
    fn response_with_too_many_tags_has_no_names() {
        let tags = |count: usize| (0..count).map(|tag| tag.to_string()).collect::<Vec<_>>().join(" ");
        let rules = rules(&["xkey"]);
        for (value, fits) in [
            (tags(MAX_TAGS), true),
            (tags(MAX_TAGS + 1), false),
            ("a".repeat(MAX_TAG_BYTES), true),
            ("a".repeat(MAX_TAG_BYTES + 1), false),
        ] {
            let names = rules.read(&headers(&[("xkey", &value)])).names(&[], empty());
            assert_eq!(names.err(), (!fits).then_some(NotStored::TooManyTags), "{}", value.len());
        }
        let stored = (0..MAX_TAGS).map(|tag| PurgeName::tag(&format!("stored {tag}")));
        let without = rules.read(&headers(&[]));
        assert!(without.names(&[], stored.clone()).is_ok());
        let partial =
            TagsFrom::new(vec![HeaderName::from_static("xkey"), HeaderName::from_static("b")], false);
        let names = partial.read(&headers(&[("xkey", "new")])).names(&[], stored);
        assert_eq!(names.err(), Some(NotStored::TooManyTags));
    }

    #[test]
    fn tags_of_a_stored_response_stay_unless_all_headers_come_again() {
        let (key, old, new) = (PurgeName::key("GET:/a"), PurgeName::tag("old"), PurgeName::tag("new"));
        let both = rules(&["surrogate-key", "xkey"]);
        for (lines, tags) in [
            (&[][..], &["old"][..]),
            (&[("xkey", "new")], &["new", "old"]),
            (&[("xkey", "new"), ("surrogate-key", "")], &["new"]),
        ] {
            let names = both.read(&headers(lines)).names(&[key], [key, old].into_iter()).unwrap();
            assert_eq!(names[0], key, "the name of the key is the first");
            assert_eq!(names[1..], names_of(tags), "{lines:?}");
        }
        assert_ne!(old, new);
    }
}
