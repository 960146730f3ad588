//! Helpers for the tests of this crate.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Builds header lines, in order.
pub(crate) fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}
