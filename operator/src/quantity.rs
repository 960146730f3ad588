//! Arithmetic of Kubernetes quantities.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Billionths in one: the finest unit of a quantity.
const NANO: i128 = 1_000_000_000;

/// Returns a quantity in billionths, rounded up, as Kubernetes reads it; `None` if it is malformed.
pub fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let unsigned = text.trim_start_matches(['+', '-']);
    let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (numerator, denominator) = scale(suffix)?;
    let unit = NANO.checked_mul(numerator)?;
    let mut sum = unit.checked_mul(if whole.is_empty() { 0 } else { whole.parse().ok()? })?;
    if !fraction.is_empty() {
        let places = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let parts: i128 = fraction.parse().ok()?;
        sum = sum.checked_add(divided_up(unit.checked_mul(parts)?, places))?;
    }
    let nanos = divided_up(sum, denominator);
    Some(if text.starts_with('-') { -nanos } else { nanos })
}

/// Returns the numerator and the denominator of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    })
}

fn divided_up(number: i128, by: i128) -> i128 {
    number.div_euclid(by) + i128::from(number.rem_euclid(by) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<i128> {
        nanos(&Quantity(text.into()))
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("20m", 20_000_000),
            ("0.1", 100_000_000),
            (".5", 500_000_000),
            ("1.", NANO),
            ("1", NANO),
            ("-1", -NANO),
            ("1k", 1_000 * NANO),
            ("1Ki", 1_024 * NANO),
            ("1.5Gi", 3 * (1 << 29) * NANO),
            ("1e3", 1_000 * NANO),
            ("1E-3", 1_000_000),
            ("1E", 1_000_000_000_000_000_000 * NANO),
            ("3n", 3),
            ("0.1n", 1),
        ] {
            assert_eq!(read(text), Some(value), "{text}");
        }
        assert_eq!(read("128Mi"), read("134217728"));
    }

    #[test]
    fn malformed_quantity_has_no_value() {
        for text in ["", "m", "1x", "1 Gi", "1e", "one", "1e99"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
