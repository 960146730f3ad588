//! Durations in the format of Gateway API.

use std::{borrow::Cow, fmt, str::FromStr, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A span of time in the format of [GEP-2257](https://gateway-api.sigs.k8s.io/geps/gep-2257/): one to four pairs of a
/// whole number of at most five digits and a unit (`h`, `m`, `s`, `ms`), such as `500ms`, `30s` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(pub time::Duration);

impl Duration {
    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// A duration of whole milliseconds, the finest unit of the format.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(time::Duration::from_millis(milliseconds))
    }
}

/// The CEL rule by which the API server enforces the format.
pub const CEL_RULE: &str = "self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')";

/// A text that is not a GEP-2257 duration. The message suggests the intended duration, where that is plain.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a duration: {}", remedy(text))]
pub struct DurationError {
    text: String,
}

impl DurationError {
    /// Returns the text to write instead, such as `write 60s (a number needs a unit)`.
    pub fn remedy(&self) -> String {
        remedy(&self.text)
    }
}

fn remedy(text: &str) -> String {
    meant(text).unwrap_or_else(|| "write one such as 500ms, 30s, 5m or 1h30m".to_owned())
}

/// Returns advice where the text is one number with a unit that does not exist, with a fraction, or without a unit.
fn meant(text: &str) -> Option<String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let (seconds, reason) = match unit {
        "" => (1.0, "a number needs a unit"),
        "d" => (86_400.0, "there is no unit for days"),
        "w" => (604_800.0, "there is no unit for weeks"),
        "h" | "m" | "s" if !number.contains('.') => return None,
        "h" => (3600.0, "fractions are not allowed"),
        "m" => (60.0, "fractions are not allowed"),
        "s" => (1.0, "fractions are not allowed"),
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    let total = time::Duration::try_from_secs_f64(number * seconds).ok()?;
    let written = match unit {
        // In the unit that was written, or the largest: 1d is 24h, and 90 is 90s.
        "" if number.fract() == 0.0 => format!("{number}s"),
        _ => Duration(time::Duration::from_millis(u64::try_from(total.as_millis()).ok()?)).to_string(),
    };
    written.parse::<Duration>().is_ok().then(|| format!("write {written} ({reason})"))
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || DurationError { text: text.to_owned() };
        let mut rest = text;
        let mut total = time::Duration::ZERO;
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=5).contains(&digits) {
                return Err(invalid());
            }
            let (number, after) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| invalid())?;
            let unit_length = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(unit_length);
            total += match unit {
                "h" => time::Duration::from_secs(number * 3600),
                "m" => time::Duration::from_secs(number * 60),
                "s" => time::Duration::from_secs(number),
                "ms" => time::Duration::from_millis(number),
                _ => return Err(invalid()),
            };
            rest = after;
            if rest.is_empty() {
                return Ok(Self(total));
            }
        }
        Err(invalid())
    }
}

impl TryFrom<String> for Duration {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_millis();
        if total == 0 {
            return f.write_str("0s");
        }
        for (size, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")] {
            let number = match unit {
                "h" => total / size,
                "m" => total / size % 60,
                "s" => total / size % 60,
                _ => total % 1000,
            };
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        Ok(())
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": CEL_RULE,
                "message": "write a duration such as 500ms, 30s, 5m or 1h30m",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_gep_2257_are_read() {
        for (text, milliseconds) in
            [("0s", 0), ("500ms", 500), ("120s", 120_000), ("1h30m", 5_400_000), ("1m1s1ms", 61_001)]
        {
            assert_eq!(text.parse::<Duration>().unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
    }

    #[test]
    fn invalid_duration_is_rejected_with_a_remedy() {
        for text in
            ["", "s", ".", "-1s", "1.2.3s", "123456s", "100000000d", "1h1m1s1ms1ms", " 1s", "1s ", "1y"]
        {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.ends_with("write one such as 500ms, 30s, 5m or 1h30m"), "{error}");
        }
    }

    #[test]
    fn error_suggests_the_intended_duration() {
        for (text, meant) in [
            ("60", "write 60s (a number needs a unit)"),
            ("0", "write 0s (a number needs a unit)"),
            ("1.5", "write 1s500ms (a number needs a unit)"),
            ("1d", "write 24h (there is no unit for days)"),
            ("0.5d", "write 12h (there is no unit for days)"),
            ("2w", "write 336h (there is no unit for weeks)"),
            ("1.5h", "write 1h30m (fractions are not allowed)"),
        ] {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert_eq!(error, format!("{text:?} is not a duration: {meant}"));
        }
    }

    #[test]
    fn duration_round_trips() {
        for text in ["0s", "500ms", "2m", "1h30m", "27h46m39s"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        assert_eq!("120s".parse::<Duration>().unwrap().to_string(), "2m");
    }
}
