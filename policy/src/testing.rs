//! What the tests of this crate share.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Header lines, in order.
pub(crate) fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}
