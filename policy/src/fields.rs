//! Access to the header fields of a message, independent of their representation.

use http::HeaderMap;

/// Header fields in the order in which they arrived. Names are compared case-insensitively (RFC 9110, section 5.1).
pub trait Fields {
    /// Returns every field line: a name, in any case, and a value without the white space around it.
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// Returns the values of all lines of a field, in order.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.lines()
            // By the length first: most names differ in it.
            .filter(move |(known, _)| {
                known.len() == name.len() && known.eq_ignore_ascii_case(name.as_bytes())
            })
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

/// Returns true if the name of a field, or another text without control characters, is `known` in any case, which has lower-case
/// letters, digits, hyphens and slashes.
///
/// The bit that makes letters lower-case is set in the others, and makes one of them only from itself or from a control character. So
/// a name is compared at once and not byte by byte.
#[inline]
pub fn is_named<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    <&[u8; N]>::try_from(name).is_ok_and(|name| {
        let differences = name.iter().zip(known).map(|(byte, known)| (byte | 0x20) ^ known);
        differences.fold(0, |all, difference| all | difference) == 0
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case() {
        for name in ["http2-settings", "HTTP2-Settings", "HTTP2-SETTINGS"] {
            assert!(is_named(name.as_bytes(), b"http2-settings"), "{name}");
        }
        let known = b"http2-settings";
        for place in 0..known.len() {
            for byte in (b' '..=u8::MAX).filter(|&byte| byte != 0x7f) {
                let mut name = *known;
                name[place] = byte;
                assert_eq!(
                    is_named(&name, known),
                    name.eq_ignore_ascii_case(known),
                    "{}",
                    name.escape_ascii()
                );
            }
        }
        assert!(!is_named(b"http2-setting", known) && !is_named(b"http2-settings2", known));
    }
}
