//! Parts of a body (RFC 9110, section 14).

use std::{fmt, ops::Range};

use http::header::{CONTENT_RANGE, ETAG, LAST_MODIFIED};

use crate::{cache_control::members, fields::Fields, validation};

mod pieces;
#[cfg(test)]
mod tests;

pub use pieces::Pieces;

/// The part of a body that a request selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole body: there is no `Range`, or one that must be ignored because its unit is unknown or it cannot be
    /// parsed (section 14.2).
    Whole,
    /// One part.
    One(Spec),
    /// Several parts, in any order.
    Several,
}

/// One part of a body (section 14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// From one byte to another, inclusive, or to the end.
    From {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: Option<u64>,
    },
    /// The given number of bytes at the end.
    Last(u64),
}

impl RangeRequest {
    /// Reads `Range`, which must have exactly one line.
    pub fn of(fields: &(impl Fields + ?Sized)) -> Self {
        let mut lines = fields.values("range");
        match (lines.next(), lines.next()) {
            (Some(line), None) => Self::parse(line).unwrap_or(Self::Whole),
            _ => Self::Whole,
        }
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let (unit, set) = line.split_at_checked(line.iter().position(|byte| *byte == b'=')?)?;
        if !unit.eq_ignore_ascii_case(b"bytes") {
            return None;
        }
        // All must be readable: an invalid one makes the whole field invalid (section 14.1.1).
        let mut specs = members(&set[1..]).map(Spec::parse);
        let first = specs.next()??;
        let mut request = Self::One(first);
        for spec in specs {
            spec?;
            request = Self::Several;
        }
        Some(request)
    }
}

impl Spec {
    fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (&text[..dash], &text[dash + 1..]);
        if first.is_empty() {
            return Some(Self::Last(number(last)?));
        }
        let first = number(first)?;
        let last = if last.is_empty() { None } else { Some(number(last)?) };
        last.is_none_or(|last| first <= last).then_some(Self::From { first, last })
    }

    /// Returns the bytes of a body of this length; `None` if there are none (416).
    pub fn resolve(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From { first, last } => {
                first..last.map_or(length, |last| last.saturating_add(1).min(length))
            }
            Self::Last(bytes) => length.saturating_sub(bytes)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Parses digits; a value beyond any body counts as the largest number.
fn number(text: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let add = |number: u64, byte| Some(number.saturating_mul(10).saturating_add(digit(byte)?));
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

/// The part of a body that a response contains (section 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte.
    pub first: u64,
    /// The last byte, inclusive.
    pub last: u64,
    /// The length of the whole body, if it is known.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads the header of a response, if it has exactly one line.
    pub fn of(fields: &(impl Fields + ?Sized)) -> Option<Self> {
        let mut lines = fields.values(CONTENT_RANGE.as_str());
        let line = lines.next().filter(|_| lines.next().is_none())?;
        Self::parse(line)
    }

    /// Parses a value such as `bytes 0-99/1000`. Returns `None` if it contradicts itself.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (unit, range) = value.split_at_checked(6)?;
        if !unit.eq_ignore_ascii_case(b"bytes ") {
            return None;
        }
        let slash = range.iter().position(|byte| *byte == b'/')?;
        let (ends, total) = (&range[..slash], &range[slash + 1..]);
        let dash = ends.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (number(&ends[..dash])?, number(&ends[dash + 1..])?);
        let total = if total == b"*" { None } else { Some(number(total)?) };
        // u64::MAX is what we read for numbers that are too large.
        let fits = first <= last && last < u64::MAX && total.is_none_or(|total| last < total);
        fits.then_some(Self { first, last, total })
    }

    /// Returns the number of bytes in the part.
    pub fn length(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Returns the part as a range.
    pub fn range(&self) -> Range<u64> {
        self.first..self.last + 1
    }

    /// Returns the value for a 416, with the length of the body (section 15.5.17).
    pub fn unsatisfied(total: u64) -> String {
        format!("bytes */{total}")
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/", self.first, self.last)?;
        match self.total {
            Some(total) => write!(f, "{total}"),
            None => f.write_str("*"),
        }
    }
}

/// Returns true if `If-Range` is absent or holds for a stored response, so that `Range` applies (section 13.1.5): by
/// strong comparison of entity tags, or an exact match of a `Last-Modified` that is strong.
pub fn if_range_holds(fields: &(impl Fields + ?Sized), stored: &(impl Fields + ?Sized)) -> bool {
    let mut lines = fields.values("if-range");
    match (lines.next(), lines.next()) {
        (None, _) => true,
        (Some(asked), None) if validation::is_tag(asked) => {
            stored.value(ETAG.as_str()).is_some_and(|tag| validation::strong_match(asked, tag))
        }
        (Some(asked), None) => {
            let same = stored.value(LAST_MODIFIED.as_str()) == Some(asked);
            same && validation::has_strong_date(stored)
        }
        _ => false,
    }
}

/// Returns true if parts with these headers belong to the same body and may be combined (RFC 9110, section 15.3.7.3):
/// they share a strong validator.
pub fn may_combine(stored: &(impl Fields + ?Sized), newer: &(impl Fields + ?Sized)) -> bool {
    match (stored.value(ETAG.as_str()), newer.value(ETAG.as_str())) {
        (Some(stored), Some(newer)) => validation::strong_match(stored, newer),
        (None, None) => {
            let date = stored.value(LAST_MODIFIED.as_str());
            date.is_some()
                && date == newer.value(LAST_MODIFIED.as_str())
                && validation::has_strong_date(stored)
        }
        _ => false,
    }
}
