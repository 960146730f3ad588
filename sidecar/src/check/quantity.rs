//! Amounts as Kubernetes writes them.

/// How many nanos are one.
const ONE: i128 = 1_000_000_000;

/// A [quantity](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/) in nanos, the finest that
/// there are; finer ones are rounded up, and what no machine has is as much as can be said.
pub(super) fn nanos(text: &str) -> Option<i128> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, unit) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (numerator, denominator) = factor(unit)?;
    let mut nanos: i128 = 0;
    for digit in whole.bytes().map(|byte| i128::from(byte - b'0')) {
        nanos = nanos.saturating_mul(10).saturating_add(digit.saturating_mul(ONE));
    }
    let mut place = ONE;
    for digit in fraction.bytes().map(|byte| i128::from(byte - b'0')) {
        place /= 10;
        nanos = nanos.saturating_add(digit.saturating_mul(place));
    }
    let nanos = nanos.saturating_mul(numerator);
    let nanos = nanos / denominator + i128::from(nanos % denominator != 0);
    Some(if text.starts_with('-') { -nanos } else { nanos })
}

/// What a unit multiplies and divides by.
fn factor(unit: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| 10_i128.checked_pow(power).unwrap_or(i128::MAX);
    let factor = match unit {
        "n" => (1, decimal(9)),
        "u" => (1, decimal(6)),
        "m" => (1, decimal(3)),
        "" => (1, 1),
        "k" => (decimal(3), 1),
        "M" => (decimal(6), 1),
        "G" => (decimal(9), 1),
        "T" => (decimal(12), 1),
        "P" => (decimal(15), 1),
        "E" => (decimal(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let power: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = decimal(power.unsigned_abs());
            if power < 0 { (1, size) } else { (size, 1) }
        }
    };
    Some(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quantities() {
        for (text, expected) in [
            ("0", 0),
            ("1", ONE),
            ("20m", ONE / 50),
            ("0.5", ONE / 2),
            (".5", ONE / 2),
            ("1.", ONE),
            ("1n", 1),
            ("0.1n", 1),
            ("-1m", -ONE / 1000),
            ("+1k", 1000 * ONE),
            ("128Mi", ONE << 27),
            ("1e3", 1000 * ONE),
            ("1E-3", ONE / 1000),
            ("1E", 1_000_000_000_000_000_000 * ONE),
            ("1.5Gi", (ONE * 3) << 29),
        ] {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
        assert!(nanos(&"9".repeat(60)) > nanos("7Ei"));
        assert!(nanos("1e999").is_some());
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "m", "abc", "1.2.3", "1mi", "1 Mi", "--1", ".", "1e", "1e99999999999"] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }
}
