//! The TTL that a response states where its route looks for one.

use std::time::Duration;

use http::HeaderName;
use serde_json::Value;

use crate::fields::Fields;

/// Maximum TTL that a response can state.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Returns the TTL in a header: a number of seconds, or a duration such as `5m`. A negative number is 0. `None` if
/// there is not exactly one, or it is neither.
pub fn of_header(headers: &impl Fields, name: &HeaderName) -> Option<Duration> {
    let mut lines = headers.values(name.as_str());
    let line = lines.next().filter(|_| lines.next().is_none())?;
    of_text(str::from_utf8(line).ok()?.trim())
}

/// Returns the TTL at a JSON pointer (RFC 6901) in a body: a number of seconds, or a duration such as `"5m"`. A
/// negative number is 0. `None` if there is neither, or the body is not JSON.
pub fn of_json(body: &[u8], pointer: &str) -> Option<Duration> {
    let value: Value = serde_json::from_slice(body).ok()?;
    match value.pointer(pointer)? {
        Value::Number(number) => of_number(number.as_f64()?),
        Value::String(text) => of_text(text),
        _ => None,
    }
}

fn of_text(text: &str) -> Option<Duration> {
    let duration = text.parse::<crate::Duration>().ok().map(|duration| duration.0.min(MAX_TTL));
    duration.or_else(|| of_number(text.parse().ok()?))
}

fn of_number(seconds: f64) -> Option<Duration> {
    (!seconds.is_nan()).then(|| Duration::from_secs_f64(seconds.clamp(0.0, MAX_TTL.as_secs_f64())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::headers;

    #[test]
    fn ttl_is_a_number_of_seconds_or_a_duration() {
        let name = HeaderName::from_static("x-ttl");
        for (text, expected) in [
            ("90", Some(90_000)),
            ("1.5", Some(1_500)),
            ("5m", Some(300_000)),
            (" 7 ", Some(7_000)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-1", Some(0)),
            ("-1.5", Some(0)),
            ("-1e30", Some(0)),
            ("-5m", None),
            ("NaN", None),
            ("soon", None),
            ("", None),
            ("1e30", Some(31_536_000_000)),
        ] {
            let found = of_header(&headers(&[("x-ttl", text)]), &name);
            assert_eq!(found.map(|ttl| ttl.as_millis()), expected, "{text}");
        }
        assert_eq!(of_header(&headers(&[("x-ttl", "1"), ("x-ttl", "2")]), &name), None);
        for (body, expected) in [
            (r#"{"meta": {"ttl": 90}}"#, Some(90_000)),
            (r#"{"meta": {"ttl": 0.25}}"#, Some(250)),
            (r#"{"meta": {"ttl": "2h"}}"#, Some(7_200_000)),
            (r#"{"meta": {"ttl": 0}}"#, Some(0)),
            (r#"{"meta": {"ttl": -1}}"#, Some(0)),
            (r#"{"meta": {"ttl": null}}"#, None),
            (r#"{"meta": {}}"#, None),
            ("no json", None),
        ] {
            let found = of_json(body.as_bytes(), "/meta/ttl");
            assert_eq!(found.map(|ttl| ttl.as_millis()), expected, "{body}");
        }
    }
}
