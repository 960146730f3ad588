//! Heads that need no repair, which are read in one walk.

use memchr::memchr;

use super::{ResponseFraming, StatusLine};
use crate::sniff;

/// Number of lines for which there is room without another allocation.
const FEW_LINES: usize = 24;

/// The places of a head's field lines, which follow each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    first: usize,
    lines: Vec<Line>,
    have_usual_breaks: bool,
}

/// The places of a line's colon and of its end, behind the line break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    colon: u32,
    end: u32,
}

/// A field line of a head.
#[derive(Clone, Copy, Debug)]
pub struct FieldLine<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The value, without white space around it.
    pub value: &'a [u8],
    /// The place of the line in its head.
    pub start: usize,
    /// The place behind its line break.
    pub end: usize,
}

impl Lines {
    /// Returns the lines of the head that was read.
    #[inline]
    pub(crate) fn of<'a>(&'a self, head: &'a [u8]) -> impl Iterator<Item = FieldLine<'a>> {
        let mut start = self.first;
        self.lines.iter().map(move |&Line { colon, end }| {
            let (colon, end) = (colon as usize, end as usize);
            let name = &head[start..colon];
            let value = head[colon + 1..end].trim_ascii();
            FieldLine { name, value, start: std::mem::replace(&mut start, end), end }
        })
    }

    /// Returns true if each line of the head ends with CRLF.
    pub(crate) fn have_usual_breaks(&self) -> bool {
        self.have_usual_breaks
    }

    /// Returns the number of lines.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }
}

/// A complete head without any fault.
pub(super) struct Clean<'a> {
    pub(super) status_line: StatusLine<'a>,
    pub(super) framing: ResponseFraming,
    pub(super) lines: Lines,
    /// Length of the head with its empty line.
    pub(super) length: usize,
}

impl<'a> Clean<'a> {
    /// Reads the head at the beginning of `bytes`; `None` if it is incomplete or needs repair.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let first = memchr(b'\n', bytes)?;
        let line = bytes[..first].strip_suffix(b"\r");
        let mut have_usual_breaks = line.is_some();
        let line = line.unwrap_or(&bytes[..first]);
        let status_line = StatusLine::parse(line).ok().filter(|line| line.is_clean)?;
        let first = first + 1;
        let mut lines = Vec::with_capacity(FEW_LINES);
        let mut framing = ResponseFraming::default();
        let mut start = first;
        let length = loop {
            let rest = &bytes[start..];
            let colon = rest.iter().position(|&byte| !sniff::is_token(byte))?;
            let value = if colon == 0 { rest } else { rest[colon..].strip_prefix(b":")? };
            let value_length = if colon == 0 { 0 } else { length_of_value(value) };
            let line_break = line_break(&value[value_length..])?;
            have_usual_breaks &= line_break == 2;
            if colon == 0 {
                break start + line_break;
            }
            if ResponseFraming::may_see(colon) {
                framing.see(&rest[..colon], &value[..value_length]);
            }
            let end = start + colon + 1 + value_length + line_break;
            let line = Line { colon: u32::try_from(start + colon).ok()?, end: u32::try_from(end).ok()? };
            lines.push(line);
            start = end;
        };
        Some(Self { status_line, framing, lines: Lines { first, lines, have_usual_breaks }, length })
    }
}

/// Returns the length of the line break at the beginning of `bytes`.
fn line_break(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\n', ..] => Some(1),
        [b'\r', b'\n', ..] => Some(2),
        _ => None,
    }
}

/// Returns the number of bytes at the beginning that may be in the value of a field (RFC 9110, section 5.5).
fn length_of_value(bytes: &[u8]) -> usize {
    let mut length = 0;
    loop {
        length += length_of_visible(&bytes[length..]);
        if bytes.get(length) != Some(&b'\t') {
            return length;
        }
        length += 1;
    }
}

/// Returns the number of bytes before the first control character, eight of which are looked at together.
fn length_of_visible(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let (eights, rest) = bytes.as_chunks::<8>();
    for (number, eight) in eights.iter().enumerate() {
        let eight = u64::from_le_bytes(*eight);
        // The lowest byte below 0x20 or equal to 0x7f has its high bit set, those above it may.
        let delete = eight ^ (ONES * 0x7f);
        let below = eight.wrapping_sub(ONES * 0x20) & !eight;
        let found = (below | delete.wrapping_sub(ONES) & !delete) & HIGH;
        if found != 0 {
            return number * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let control = rest.iter().position(u8::is_ascii_control);
    eights.len() * 8 + control.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_value_end_at_the_first_control_character_in_any_place() {
        for byte in 0..=u8::MAX {
            let is_text = byte == b'\t' || byte >= b' ' && byte != 0x7f;
            for before in 0..20 {
                let text = [&vec![b'\xff'; before], &[byte][..], b" more, \t\x80~ and more\r\n"].concat();
                let expected = if is_text { text.len() - 2 } else { before };
                assert_eq!(length_of_value(&text), expected, "{byte} behind {before}");
                assert_eq!(length_of_value(&text[..=before]), before + usize::from(is_text));
            }
        }
    }
}
