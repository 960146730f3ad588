//! How the text of a key is written: into a buffer, without memory of its own.

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::Fields;

/// Header values are put after a `#`, which no request target contains, with what would blur them encoded.
const IN_FRAGMENT: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'&').add(b'=').add(b' ');
/// What could end a scheme or a host in the text of a key.
const IN_URL: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'/').add(b'?').add(b' ');

/// The first member of a list, or the whole value where it is none.
pub(super) fn first(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == b',').next().unwrap_or(value).trim_ascii()
}

/// A scheme or a host.
pub(super) fn push_in_url(into: &mut String, value: &[u8]) {
    into.extend(percent_encode(value, IN_URL));
}

/// A pair of a query, in which a `#` has no place.
pub(super) fn push_escaping_hash(into: &mut String, text: &str) {
    let mut pieces = text.split('#');
    into.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        into.push_str("%23");
        into.push_str(piece);
    }
}

/// The part after the `#`: names and encoded values.
///
/// No name has a `=` in it, no encoded value a `=` or a `&`, so that nothing in a value reads as another part. The names of
/// what is no header have a `:`, which no header's name has.
pub(super) struct Fragment<'a> {
    into: &'a mut String,
    separator: char,
}

impl<'a> Fragment<'a> {
    pub(super) fn new(into: &'a mut String) -> Self {
        Self { into, separator: '#' }
    }

    /// One part.
    pub(super) fn part(&mut self, name: &str, value: &[u8]) {
        self.name(name, "");
        self.value(value);
    }

    /// Starts a part whose name has two halves; [`Self::value`] goes on.
    pub(super) fn name(&mut self, start: &str, end: &str) {
        self.into.push(self.separator);
        self.into.push_str(start);
        self.into.push_str(end);
        self.into.push('=');
        self.separator = '&';
    }

    /// Adds to the value of the part.
    pub(super) fn value(&mut self, value: &[u8]) {
        self.into.extend(percent_encode(value, IN_FRAGMENT));
    }

    /// A number as a part.
    pub(super) fn number(&mut self, name: &str, mut number: u16) {
        let mut digits = [b'0'; 5];
        let mut from = digits.len();
        loop {
            from -= 1;
            digits[from] += (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.part(name, &digits[from..]);
    }

    /// All lines of a header as one, if there is a line: as they are joined before they are sent
    /// ([`crate::vary::canonicalise`]).
    pub(super) fn header(&mut self, name: &str, fields: &(impl Fields + ?Sized)) {
        self.lines(name, fields.values(name));
    }

    /// The same of lines that are at hand.
    pub(super) fn lines<'b>(&mut self, name: &str, lines: impl Iterator<Item = &'b [u8]>) {
        let between = if name == "cookie" { ";%20" } else { ",%20" };
        for (index, line) in lines.enumerate() {
            match index {
                0 => self.name(name, ""),
                _ => self.into.push_str(between),
            }
            self.value(line);
        }
    }

    /// The lines of `Forwarded` (RFC 7239) without the addresses of clients and proxies in them; nothing if there is nothing else.
    /// An application may look for `host=` without regard to elements and quotes, so that all but a plain `for=` or `by=` counts.
    pub(super) fn forwarded(&mut self, name: &str, fields: &(impl Fields + ?Sized)) {
        if fields.values(name).flat_map(unquoted_parts).all(|part| node(part).is_some()) {
            return;
        }
        self.name(name, "");
        for (index, line) in fields.values(name).enumerate() {
            if index > 0 {
                self.value(b", ");
            }
            let mut end = 0;
            for part in unquoted_parts(line) {
                self.value(node(part).unwrap_or(part));
                end += part.len();
                self.value(line.get(end..=end).unwrap_or_default());
                end += 1;
            }
        }
    }
}

/// A pair that says no more than who sent a request or took it (RFC 7239, section 6), without that: up to its `=`.
fn node(pair: &[u8]) -> Option<&[u8]> {
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (pair[..equals].trim_ascii_start(), &pair[equals + 1..]);
    let value = value.trim_ascii_end();
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let is_node = bare.iter().all(|byte| byte.is_ascii_alphanumeric() || b".:[]_-".contains(byte));
    let is_named = name.eq_ignore_ascii_case(b"for") || name.eq_ignore_ascii_case(b"by");
    (is_named && is_node).then(|| &pair[..=equals])
}

/// What is between the commas and semicolons of a value that are not inside quotes.
fn unquoted_parts(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b';' => return !quoted,
            _ => {}
        }
        false
    })
}
