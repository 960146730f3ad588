//! Writes the text of a key into a buffer, without allocations of its own.

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::Fields;

/// Bytes that are encoded in the fragment. Header values follow a `#`, which no request target contains.
const IN_FRAGMENT: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'&').add(b'=').add(b' ');
/// Bytes that could end a scheme or a host in the text of a key, and the one that stands for any host.
const IN_URL: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'/').add(b'?').add(b' ').add(b'*');

/// Returns the first member of a list, or the whole value if it is not a list.
pub(super) fn first(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == b',').next().unwrap_or(value).trim_ascii()
}

/// Adds a scheme or a host.
pub(super) fn push_in_url(into: &mut String, value: &[u8]) {
    into.extend(percent_encode(value, IN_URL));
}

/// Adds a pair of a query, in which a `#` is not allowed.
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
/// No name contains a `=`, no encoded value a `=` or a `&`, so that nothing in a value reads as another part. Names
/// that are not headers contain a `:`, which no header's name does.
pub(super) struct Fragment<'a> {
    into: &'a mut String,
    separator: char,
}

impl<'a> Fragment<'a> {
    pub(super) fn new(into: &'a mut String) -> Self {
        Self { into, separator: '#' }
    }

    /// Adds one part.
    pub(super) fn part(&mut self, name: &str, value: &[u8]) {
        self.name(name, "");
        self.value(value);
    }

    /// Starts a part whose name has two halves, continued by [`Self::value`].
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

    /// Adds a number as a part.
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

    /// Adds all lines of a header as one, if there are any, joined as they are before they are forwarded
    /// ([`crate::vary::canonicalise`]).
    pub(super) fn header(&mut self, name: &str, fields: &(impl Fields + ?Sized)) {
        self.lines(name, fields.values(name));
    }

    /// Adds the given lines of a header as one.
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

    /// Adds the lines of `Forwarded` (RFC 7239) without the addresses of clients and proxies, and without hosts if those do not
    /// count; nothing if there is nothing else. Everything but a plain `for=` or `by=` counts otherwise, because an application may
    /// search for `host=` regardless of elements and quotes.
    pub(super) fn forwarded(&mut self, name: &str, fields: &(impl Fields + ?Sized), has_hosts: bool) {
        let dropped: &[&[u8]] = if has_hosts { &[b"for", b"by"] } else { &[b"for", b"by", b"host"] };
        if fields.values(name).flat_map(unquoted_parts).all(|part| without_node(part, dropped).is_some()) {
            return;
        }
        self.name(name, "");
        for (index, line) in fields.values(name).enumerate() {
            if index > 0 {
                self.value(b", ");
            }
            let mut end = 0;
            for part in unquoted_parts(line) {
                self.value(without_node(part, dropped).unwrap_or(part));
                end += part.len();
                self.value(line.get(end..=end).unwrap_or_default());
                end += 1;
            }
        }
    }
}

/// Returns true if all hosts in `Forwarded` (RFC 7239) are such, and nothing else in it could be read as one.
pub(crate) fn all_forwarded_hosts(fields: &(impl Fields + ?Sized), is_such: impl Fn(&[u8]) -> bool) -> bool {
    fields.values("forwarded").flat_map(unquoted_parts).all(|part| {
        if let Some(start) = without_node(part, &[b"host"]) {
            let value = part[start.len()..].trim_ascii_end();
            return is_such(
                value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value),
            );
        }
        without_node(part, &[b"for", b"by", b"proto"]).is_some()
    })
}

/// Returns a pair of one of these names that only identifies a node (RFC 7239, section 6), up to its `=`, without the node.
fn without_node<'a>(pair: &'a [u8], names: &[&[u8]]) -> Option<&'a [u8]> {
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (pair[..equals].trim_ascii_start(), &pair[equals + 1..]);
    let value = value.trim_ascii_end();
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let is_node = bare.iter().all(|byte| byte.is_ascii_alphanumeric() || b".:[]_-".contains(byte));
    let is_named = names.iter().any(|known| name.eq_ignore_ascii_case(known));
    (is_named && is_node).then(|| &pair[..=equals])
}

/// Splits a value at the commas and semicolons that are not inside quotes.
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
