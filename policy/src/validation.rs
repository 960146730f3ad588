//! Validation (RFC 9111, section 4.3; RFC 9110, sections 8.8 and 13).

use http::{
    HeaderValue, StatusCode,
    header::{DATE, ETAG, IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED},
};

use crate::{date, fields::Fields};

mod update;

pub use update::{freshen, is_in_not_modified, not_modified_headers, not_modified_lines, selects};

/// The effect of a request's conditions on a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The request has no condition.
    None,
    /// The condition holds: the response is sent.
    Holds,
    /// The client already has the response: 304.
    NotModified,
    /// Only the origin can decide: a cache must not evaluate `If-Match` and `If-Unmodified-Since` (RFC 9111, section
    /// 4.3.2).
    Origins,
}

/// Evaluates the conditions of a GET or HEAD against a stored response (RFC 9111, section 4.3.2, in the order of RFC
/// 9110, section 13.2.2). `received_at_ms` is its time of receipt, in milliseconds since the epoch.
pub fn evaluate(
    fields: &(impl Fields + ?Sized),
    status: StatusCode,
    stored: &(impl Fields + ?Sized),
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
        matches_any(fields, stored.value(ETAG.as_str()))
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

/// Returns true if `If-None-Match` lists the stored tag, by weak comparison, or is `*` (RFC 9110, section 13.1.2).
fn matches_any(fields: &(impl Fields + ?Sized), stored: Option<&[u8]>) -> bool {
    let mut lines = fields.values("if-none-match");
    lines.any(|line| {
        line.trim_ascii() == b"*"
            || stored.is_some_and(|stored| tags(line).any(|tag| weak_match(tag, stored)))
    })
}

/// Parses a date field that has exactly one line.
fn only_date(fields: &(impl Fields + ?Sized), name: &str, now: i64) -> Option<i64> {
    let mut lines = fields.values(name);
    let line = lines.next().filter(|_| lines.next().is_none())?;
    date::parse(line, now)
}

/// Returns the entity tags of a list. A backslash escapes nothing in them (RFC 9110, section 8.8.3).
fn tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|tag| !tag.is_empty())
}

/// Returns true for an entity tag, false for a date.
pub(crate) fn is_tag(value: &[u8]) -> bool {
    value.starts_with(b"\"") || value.starts_with(b"W/\"")
}

fn is_weak(tag: &[u8]) -> bool {
    tag.starts_with(b"W/")
}

/// Compares two entity tags, weak or not (RFC 9110, section 8.8.3.2).
fn weak_match(one: &[u8], other: &[u8]) -> bool {
    one.strip_prefix(b"W/").unwrap_or(one) == other.strip_prefix(b"W/").unwrap_or(other)
}

/// Compares two entity tags, neither of which may be weak (RFC 9110, section 8.8.3.2).
pub(crate) fn strong_match(one: &[u8], other: &[u8]) -> bool {
    one == other && !is_weak(one)
}

/// Returns true if `Last-Modified` is a strong validator: two changes within one second have the same date, unless the
/// response was generated later than in that second (RFC 9110, section 8.8.2.2).
pub(crate) fn has_strong_date(fields: &(impl Fields + ?Sized)) -> bool {
    // The century of a two-digit year does not matter for the difference of two dates of one answer.
    let date_of = |name: &str| only_date(fields, name, 0);
    let (modified, made) = (date_of(LAST_MODIFIED.as_str()), date_of(DATE.as_str()));
    modified.zip(made).is_some_and(|(modified, made)| modified < made)
}

/// The conditions of a validation request (RFC 9111, section 4.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validators {
    /// The stored `ETag`.
    pub if_none_match: Option<HeaderValue>,
    /// The stored `Last-Modified`.
    pub if_modified_since: Option<HeaderValue>,
}

/// Returns the validators of a stored response; `None` if it has none.
pub fn validators(stored: &(impl Fields + ?Sized)) -> Option<Validators> {
    let value = |value: &[u8]| HeaderValue::from_bytes(value).ok();
    let validators = Validators {
        if_none_match: stored.value(ETAG.as_str()).and_then(value),
        if_modified_since: stored
            .value(LAST_MODIFIED.as_str())
            .filter(|date| date::parse(date, 0).is_some())
            .and_then(value),
    };
    (validators.if_none_match.is_some() || validators.if_modified_since.is_some()).then_some(validators)
}

#[cfg(test)]
mod tests;
