//! Access to the header fields of a message, independent of their representation.

use http::HeaderMap;

/// Header fields in the order in which they arrived. Names are compared case-insensitively (RFC 9110, section 5.1).
pub trait Fields {
    /// Returns every field line: a name, in any case, and a value without the white space around it.
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// Returns the values of all lines of a field, in order.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.lines()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// Returns the value of the first line of a field.
    fn value<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.values(name).next()
    }

    /// Returns true if the field has at least one line.
    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }
}

// To hash a name, which must be parsed for it, takes longer than to compare it with those of a usual message.
impl Fields for HeaderMap {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }
}

impl Fields for [(&[u8], &[u8])] {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().copied()
    }
}
