//! Validation (RFC 9111, section 4.3; RFC 9110, sections 8.8 and 13).

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{DATE, ETAG, IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED},
};

use crate::{date, fields::Fields};

mod update;

pub use update::{freshen, not_modified_headers, selects};

/// What the conditions of a request mean for a stored answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// There is none.
    None,
    /// The condition holds: the answer is sent.
    Holds,
    /// The client has it already: 304.
    NotModified,
    /// Only the origin can say: `If-Match` and `If-Unmodified-Since` are not a cache's to judge (RFC 9111, section 4.3.2).
    Origins,
}

/// Judges the conditions of a GET or HEAD for a stored answer (RFC 9111, section 4.3.2; the order is that of RFC 9110, section
/// 13.2.2). `received_at_ms` is when it was received, in milliseconds since the epoch.
pub fn evaluate(
    fields: &(impl Fields + ?Sized),
    status: StatusCode,
    stored: &HeaderMap,
    received_at_ms: u64,
) -> Precondition {
    if fields.has(IF_MATCH.as_str()) || fields.has(IF_UNMODIFIED_SINCE.as_str()) {
        return Precondition::Origins;
    }
    // Conditions count only where the answer would be a success without them (RFC 9110, section 13.2.1).
    if !status.is_success() {
        return Precondition::None;
    }
    let unmodified = if fields.has("if-none-match") {
        matches_any(fields, stored.get(ETAG))
    } else {
        let now = i64::try_from(received_at_ms / 1000).unwrap_or(i64::MAX);
        let Some(since) = only_date(fields, "if-modified-since", now) else {
            return Precondition::None;
        };
        let modified = only_date(stored, LAST_MODIFIED.as_str(), now);
        modified.or_else(|| only_date(stored, DATE.as_str(), now)).unwrap_or(now) <= since
    };
    if unmodified { Precondition::NotModified } else { Precondition::Holds }
}

/// Whether `If-None-Match` lists the tag of what is stored, by weak comparison, or is `*` (RFC 9110, section 13.1.2).
fn matches_any(fields: &(impl Fields + ?Sized), stored: Option<&HeaderValue>) -> bool {
    let mut lines = fields.values("if-none-match");
    lines.any(|line| {
        line.trim_ascii() == b"*"
            || stored.is_some_and(|stored| tags(line).any(|tag| weak_match(tag, stored.as_bytes())))
    })
}

/// A field that has one line, which is a date.
fn only_date(fields: &(impl Fields + ?Sized), name: &str, now: i64) -> Option<i64> {
    let mut lines = fields.values(name);
    let line = lines.next().filter(|_| lines.next().is_none())?;
    date::parse(line, now)
}

/// The entity tags of a list. A backslash escapes nothing in them (RFC 9110, section 8.8.3).
fn tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|tag| !tag.is_empty())
}

/// Whether it is an entity tag and not a date.
pub(crate) fn is_tag(value: &[u8]) -> bool {
    value.starts_with(b"\"") || value.starts_with(b"W/\"")
}

fn is_weak(tag: &[u8]) -> bool {
    tag.starts_with(b"W/")
}

/// The same, whether weak or not (RFC 9110, section 8.8.3.2).
fn weak_match(one: &[u8], other: &[u8]) -> bool {
    one.strip_prefix(b"W/").unwrap_or(one) == other.strip_prefix(b"W/").unwrap_or(other)
}

/// The same, and neither is weak (RFC 9110, section 8.8.3.2).
pub(crate) fn strong_match(one: &[u8], other: &[u8]) -> bool {
    one == other && !is_weak(one)
}

/// Whether `Last-Modified` is a strong validator: what was changed twice in one second would have the same, unless the answer
/// was made later than in that second (RFC 9110, section 8.8.2.2).
pub(crate) fn has_strong_date(headers: &HeaderMap) -> bool {
    // The century of a two-digit year does not matter for the difference of two dates of one answer.
    let date_of = |name: &str| only_date(headers, name, 0);
    let (modified, made) = (date_of(LAST_MODIFIED.as_str()), date_of(DATE.as_str()));
    modified.zip(made).is_some_and(|(modified, made)| modified < made)
}

/// What is sent to ask the origin whether a stored answer is still good (RFC 9111, section 4.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validators {
    /// The stored `ETag`.
    pub if_none_match: Option<HeaderValue>,
    /// The stored `Last-Modified`.
    pub if_modified_since: Option<HeaderValue>,
}

/// The validators of a stored answer; `None` if it has none.
pub fn validators(stored: &HeaderMap) -> Option<Validators> {
    let validators = Validators {
        if_none_match: stored.get(ETAG).cloned(),
        if_modified_since: stored
            .get(LAST_MODIFIED)
            .filter(|date| date::parse(date.as_bytes(), 0).is_some())
            .cloned(),
    };
    (validators.if_none_match.is_some() || validators.if_modified_since.is_some()).then_some(validators)
}

#[cfg(test)]
mod tests;
