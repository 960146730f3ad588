//! The header fields of a response as text.

use std::{fmt, mem, ops::Range};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use larder_policy::Fields;
use memchr::memchr;

use super::write_line;

/// Room for the lines of a usual response: their number and their bytes.
const USUAL: (usize, usize) = (24, 768);

/// Header fields in HTTP/1 form, with lower-case names. A response is passed on and stored by copying its lines.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FieldLines {
    text: Vec<u8>,
    lines: Vec<Line>,
}

/// The places of a line's colon and of its end, behind the line break.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Line {
    colon: u32,
    end: u32,
}

impl FieldLines {
    /// Adds a line.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let place = |at: usize| u32::try_from(at).expect("a head has less than 4 GiB");
        let start = self.text.len();
        write_line(&mut self.text, name, value);
        let colon = start + name.len();
        self.text[start..colon].make_ascii_lowercase();
        self.lines.push(Line { colon: place(colon), end: place(self.text.len()) });
    }

    /// Removes all lines of these fields.
    pub fn remove(&mut self, names: &[HeaderName]) {
        let is_removed = |name: &[u8]| names.iter().any(|removed| removed.as_str().as_bytes() == name);
        if self.lines().any(|(name, _)| is_removed(name)) {
            *self = self.lines().filter(|(name, _)| !is_removed(name)).collect();
        }
    }

    /// Returns all lines.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Returns the name of each line, and the line with its end.
    #[inline]
    pub fn named(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.places().map(|(start, colon, end)| (&self.text[start..colon], &self.text[start..end]))
    }

    /// Returns a map of the fields, whose values share one copy.
    pub fn to_map(&self) -> HeaderMap {
        let copy = Bytes::copy_from_slice(&self.text);
        // More than there are fields: a client gets some.
        let mut map = HeaderMap::with_capacity(self.lines.len() + 2);
        for (start, colon, end) in self.places() {
            let name = HeaderName::from_bytes(&copy[start..colon]).expect("it was a name");
            let value = HeaderValue::from_maybe_shared(copy.slice(value_of(colon, end)));
            map.append(name, value.expect("it was a value"));
        }
        map
    }

    /// Returns where each line begins, has its colon, and ends.
    #[inline]
    fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut start = 0;
        self.lines.iter().map(move |&Line { colon, end }| {
            let (colon, end) = (colon as usize, end as usize);
            (mem::replace(&mut start, end), colon, end)
        })
    }
}

/// Returns the place of a value, between ": " and the line break.
fn value_of(colon: usize, end: usize) -> Range<usize> {
    colon + 2..end - 2
}

impl Fields for FieldLines {
    #[inline]
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.places().map(|(start, colon, end)| (&self.text[start..colon], &self.text[value_of(colon, end)]))
    }
}

impl<'a> FromIterator<(&'a [u8], &'a [u8])> for FieldLines {
    fn from_iter<T: IntoIterator<Item = (&'a [u8], &'a [u8])>>(lines: T) -> Self {
        let (number, bytes) = USUAL;
        let mut all = Self { text: Vec::with_capacity(bytes), lines: Vec::with_capacity(number) };
        lines.into_iter().for_each(|(name, value)| all.push(name, value));
        all
    }
}

impl From<&HeaderMap> for FieldLines {
    fn from(headers: &HeaderMap) -> Self {
        headers.lines().collect()
    }
}

/// The names and values of a text of lines, each as `name: value` and CRLF.
#[derive(Clone)]
pub struct TextLines<'a>(pub &'a [u8]);

impl<'a> Iterator for TextLines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (line, rest) = self.0.split_at_checked(memchr(b'\n', self.0)? + 1)?;
        self.0 = rest;
        let colon = memchr(b':', line)?;
        Some((&line[..colon], &line[colon + 2..line.len() - 2]))
    }
}

impl fmt::Debug for FieldLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FieldLines").field(&String::from_utf8_lossy(&self.text)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_map_that_is_made_of_them() {
        let lines: [(&[u8], &[u8]); 4] =
            [(b"Vary", b"a"), (b"X-Empty", b""), (b"vary", b"b"), (b"etag", b"\"\xe4\"")];
        let fields: FieldLines = lines.into_iter().collect();
        assert_eq!(fields.as_bytes(), b"vary: a\r\nx-empty: \r\nvary: b\r\netag: \"\xe4\"\r\n");
        assert_eq!(fields.values("Vary").collect::<Vec<_>>(), [b"a", b"b"]);
        assert!(fields.lines().zip(lines).all(|((_, value), (_, expected))| value == expected));
        let texts: Vec<_> = fields.named().map(|(_, text)| text).collect();
        assert_eq!(texts.concat(), fields.as_bytes());
        let map = fields.to_map();
        let grouped: [(&[u8], &[u8]); 4] =
            [(b"vary", b"a"), (b"vary", b"b"), (b"x-empty", b""), (b"etag", b"\"\xe4\"")];
        assert_eq!(map.lines().collect::<Vec<_>>(), grouped);
        assert_eq!(FieldLines::from(&map).to_map(), map);
    }
}
