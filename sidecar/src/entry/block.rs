//! Everything of a stored response that differs in length, but for its body, as one block of bytes: the key in L1, the
//! names of purges, and the header fields as HTTP/1 writes them.
//!
//! A line is `name: value` and a line end. A value has no line end in it and a name no colon, so that the lines are
//! their own index.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use larder_policy::{Fields, PurgeName, validation::is_in_not_modified};
use memchr::memrchr;

use super::allocated;
use crate::headers::TextLines;

/// The block.
pub(super) struct Block {
    bytes: Box<[u8]>,
    /// Length of the key, with which the block begins. The names follow.
    key: u32,
    /// Number of the names. The lines follow.
    names: u16,
    /// Length of the first line if it is `Age`, of which a client gets another.
    age: u8,
    /// Number of the lines that a 304 does not have, which are the last ones, or [`UNCOUNTED`].
    not_in_304: u8,
}

/// Number of lines that most responses have at most.
const USUAL_LINES: usize = 24;

/// Value for lines in any order.
const UNCOUNTED: u8 = u8::MAX;

impl Block {
    /// Length of a purge name.
    pub(super) const NAME: usize = 16;

    /// Creates a block. Of the lines, each of which comes with its name, those of `Age` are replaced by one with `age`, in seconds, and
    /// those that a 304 does not have become the last ones.
    pub(super) fn new<'a>(
        key: &str,
        names: &[PurgeName],
        age: Option<Duration>,
        lines: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let age = age.map(|age| format!("age: {}\r\n", age.as_secs())).unwrap_or_default();
        let (mut others, mut length, mut has_tag) = (Vec::with_capacity(USUAL_LINES), 0, false);
        for (name, line) in lines {
            if name != b"age" {
                length += line.len();
                has_tag |= name == b"etag";
                others.push((name, line));
            }
        }
        let mut bytes = Vec::with_capacity(key.len() + names.len() * Self::NAME + age.len() + length);
        bytes.extend_from_slice(key.as_bytes());
        names.iter().for_each(|name| bytes.extend_from_slice(name.as_bytes()));
        bytes.extend_from_slice(age.as_bytes());
        others.retain(|(name, line)| {
            let is_in_304 = is_in_not_modified(name, has_tag);
            if is_in_304 {
                bytes.extend_from_slice(line);
            }
            !is_in_304
        });
        let not_in_304 = u8::try_from(others.len()).unwrap_or(UNCOUNTED);
        others.iter().for_each(|(_, line)| bytes.extend_from_slice(line));
        Self {
            bytes: bytes.into(),
            key: u32::try_from(key.len()).expect("a request head has less than 4 GiB"),
            names: u16::try_from(names.len())
                .expect("a response has at most 1,024 tags from headers, and a route at most 8"),
            age: age.len() as u8,
            not_in_304,
        }
    }

    /// Creates a block from names and lines that were once a block's.
    pub(super) fn from_parts(key: &str, names: &[u8], lines: StoredFields<'_>) -> Self {
        let age = lines.age_line() as u8;
        let count = u16::try_from(names.len() / Self::NAME).expect("a record has at most 65,535 names");
        let bytes = [key.as_bytes(), names, lines.0].concat().into();
        let key = u32::try_from(key.len()).expect("a request head has less than 4 GiB");
        Self { bytes, key, names: count, age, not_in_304: UNCOUNTED }
    }

    /// Returns the same block with another key.
    pub(super) fn under(self, key: &str) -> Self {
        if self.is_under(key) {
            return self;
        }
        let bytes = [key.as_bytes(), &self.bytes[self.key as usize..]].concat().into();
        Self { bytes, key: u32::try_from(key.len()).expect("a request head has less than 4 GiB"), ..self }
    }

    /// Returns true if this is the key.
    pub(super) fn is_under(&self, key: &str) -> bool {
        &self.bytes[..self.key as usize] == key.as_bytes()
    }

    pub(super) fn key(&self) -> &str {
        str::from_utf8(&self.bytes[..self.key as usize]).expect("it was a text")
    }

    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = PurgeName> + Clone + '_ {
        let name = |name: &[u8]| PurgeName::from_bytes(name).expect("it was a name");
        self.name_bytes().chunks_exact(Self::NAME).map(name)
    }

    pub(super) fn name_bytes(&self) -> &[u8] {
        &self.bytes[self.key as usize..self.lines_from()]
    }

    fn lines_from(&self) -> usize {
        self.key as usize + usize::from(self.names) * Self::NAME
    }

    /// Returns the lines, that of `Age` first.
    pub(super) fn fields(&self) -> StoredFields<'_> {
        StoredFields(&self.bytes[self.lines_from()..])
    }

    /// Returns the lines without that of `Age`.
    pub(super) fn sent_fields(&self) -> StoredFields<'_> {
        StoredFields(&self.bytes[self.lines_from() + usize::from(self.age)..])
    }

    /// Returns the lines of a 304 without that of `Age`, if it is known which they are.
    pub(super) fn fields_of_304(&self) -> Option<StoredFields<'_>> {
        let mut lines = self.sent_fields().0;
        let others = Some(self.not_in_304).filter(|others| *others != UNCOUNTED)?;
        for _ in 0..others {
            let (_, before) = lines.split_last()?;
            lines = &before[..memrchr(b'\n', before).map_or(0, |line_end| line_end + 1)];
        }
        Some(StoredFields(lines))
    }

    pub(super) fn memory(&self) -> usize {
        allocated(self.bytes.len())
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("key", &self.key())
            .field("fields", &String::from_utf8_lossy(self.fields().as_bytes()))
            .finish_non_exhaustive()
    }
}

/// Maximum length of the value of `Age`, so that the length of its line fits into a byte.
const MAX_AGE_LENGTH: usize = u8::MAX as usize - b"age: \r\n".len();

/// Maximum number of header fields, more than are read from an application, and maximum length of a name: a header map takes no
/// more.
const MAX_LINES: usize = 4 << 10;
const MAX_NAME: usize = (1 << 16) - 1;

/// The header fields of a stored response, with lower-case names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StoredFields<'a>(&'a [u8]);

impl<'a> StoredFields<'a> {
    /// Takes lines in HTTP/1 form; `None` if they are not well-formed, a name is refused, or `Age` is among them but not the first.
    pub(super) fn checked(lines: &'a [u8], is_refused: impl Fn(&[u8]) -> bool) -> Option<Self> {
        let (mut rest, mut count) = (lines, 0);
        while !rest.is_empty() {
            let (name, after) = split_while(rest, IN_NAME);
            let (value, after) = split_while(after.strip_prefix(b": ")?, IN_VALUE);
            let after = after.strip_prefix(b"\r\n")?;
            // Of the age only a number is written, and in the first line.
            let is_odd = name == b"age" && (rest.len() < lines.len() || value.len() > MAX_AGE_LENGTH);
            count += 1;
            if name.is_empty() || name.len() > MAX_NAME || count > MAX_LINES || is_odd || is_refused(name) {
                return None;
            }
            rest = after;
        }
        Some(Self(lines))
    }

    /// Returns the length of the line `Age`, which is the first.
    pub(super) fn age_line(self) -> usize {
        match self.iter().next() {
            Some((b"age", value)) => b"age: \r\n".len() + value.len(),
            _ => 0,
        }
    }

    /// Returns them in HTTP/1 form.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Returns each name and value.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
        TextLines(self.0)
    }

    /// Returns a map of them, whose values share one copy.
    pub fn to_map(self) -> HeaderMap {
        let copy = Bytes::copy_from_slice(self.0);
        let mut map = HeaderMap::with_capacity(self.iter().count());
        for (name, value) in TextLines(&copy) {
            let name = HeaderName::from_bytes(name).expect("it was a name");
            map.append(name, HeaderValue::from_maybe_shared(copy.slice_ref(value)).expect("it was a value"));
        }
        map
    }
}

impl fmt::Debug for StoredFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredFields").field(&String::from_utf8_lossy(self.0)).finish()
    }
}

impl Fields for StoredFields<'_> {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter()
    }
}

/// Bit of a character of a name (RFC 9110, section 5.6.2) in lower case.
const IN_NAME: u8 = 1;

/// Bit of a character of a value (RFC 9110, section 5.5).
const IN_VALUE: u8 = 1 << 1;

/// The bits of each character.
const CHARACTERS: [u8; 256] = {
    let mut characters = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        characters[byte] = match byte as u8 {
            b'a'..=b'z'
            | b'0'..=b'9'
            | b'!'
            | b'#'..=b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'..=b'`'
            | b'|'
            | b'~' => IN_NAME | IN_VALUE,
            b'\t' | b' '..=b'~' | 0x80.. => IN_VALUE,
            _ => 0,
        };
        byte += 1;
    }
    characters
};

/// Splits bytes before the first one that does not have this bit.
fn split_while(bytes: &[u8], bit: u8) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| CHARACTERS[usize::from(*byte)] & bit == 0);
    bytes.split_at(end.unwrap_or(bytes.len()))
}

#[cfg(test)]
mod tests {
    use larder_policy::validation;

    use super::*;
    use crate::entry::{Content, Entry, tests::head};

    #[test]
    fn lines_of_a_304_come_before_the_others() {
        let fields = [
            ("content-type", "a"),
            ("etag", "\"a\""),
            ("last-modified", "b"),
            ("content-encoding", "c"),
            ("x", "d"),
            ("age", "7"),
            ("content-type", "e"),
            ("vary", "f"),
        ];
        for set in 0_u32..1 << fields.len() {
            let mut head = head("max-age=60", Duration::ZERO);
            for (number, (name, value)) in fields.into_iter().enumerate() {
                if set & 1 << number != 0 {
                    head.append(name, value);
                }
            }
            let stored = Entry::new("key", &head, Content::Whole(Bytes::from_static(b"body")));
            let found: Vec<_> = stored.fields_of_304().unwrap().iter().collect();
            let (sent, headers, received) = (stored.sent_fields(), stored.headers(), head.headers());
            assert_eq!(found, validation::not_modified_lines(&sent).collect::<Vec<_>>());
            assert!(
                headers.iter().all(|(name, value)| received.get_all(name).iter().any(|own| own == value))
            );
            assert_eq!(headers.len(), received.len());
        }
        let mut head = head("max-age=60", Duration::ZERO);
        for _ in 0..300 {
            head.append("content-language", "de");
        }
        let stored = Entry::new("key", &head, Content::Whole(Bytes::new()));
        assert!(stored.fields_of_304().is_none(), "too many to count");
    }
}
