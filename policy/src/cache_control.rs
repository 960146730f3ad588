//! The directives of `Cache-Control` (RFC 9111, section 5.2).

use std::time::Duration;

use http::{HeaderMap, header::CACHE_CONTROL};

/// The response directives that Larder acts on.
///
/// Names are read in any case, values quoted or not, and all field lines count (RFC 9111, section 5.2). A directive that is
/// repeated counts with its most restrictive value (section 4.2.1 allows either; the shorter life is the safer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// `no-store`: nothing of the answer may be stored.
    pub no_store: bool,
    /// `private`, with or without field names: not for a shared cache. With names only those fields are private, but a cache
    /// may treat it as the unqualified form (section 5.2.2.7).
    pub private: bool,
    /// `no-cache`, with or without field names: not without asking the origin.
    pub no_cache: bool,
    /// `max-age`.
    pub max_age: Option<Duration>,
    /// `s-maxage`, which goes before `max-age` in a shared cache.
    pub s_maxage: Option<Duration>,
}

impl CacheControl {
    /// Reads all `Cache-Control` field lines.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut parsed = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for (name, value) in directives(line.as_bytes()) {
                parsed.add(&name, value.as_deref());
            }
        }
        parsed
    }

    fn add(&mut self, name: &str, value: Option<&str>) {
        match name {
            "no-store" => self.no_store = true,
            "private" => self.private = true,
            "no-cache" => self.no_cache = true,
            "max-age" => shorten(&mut self.max_age, value),
            "s-maxage" => shorten(&mut self.s_maxage, value),
            _ => {}
        }
    }
}

/// A value that is no number means that the answer is stale (RFC 9111, section 4.2.1).
fn shorten(current: &mut Option<Duration>, value: Option<&str>) {
    let seconds = value.and_then(delta_seconds).unwrap_or(0);
    let new = Duration::from_secs(seconds);
    *current = Some(current.map_or(new, |old| old.min(new)));
}

/// Delta seconds (RFC 9111, section 1.2.2); what is larger than 2^31 counts as 2^31.
pub(crate) fn delta_seconds(text: &str) -> Option<u64> {
    const MOST: u64 = 1 << 31;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(MOST).min(MOST))
}

/// The directives of one field line: names in lower case, values without their quotes.
fn directives(line: &[u8]) -> Vec<(String, Option<String>)> {
    let line = String::from_utf8_lossy(line);
    split_outside_quotes(&line)
        .into_iter()
        .filter_map(|directive| {
            let (name, value) = match directive.split_once('=') {
                Some((name, value)) => (name.trim(), Some(unquote(value.trim()))),
                None => (directive.trim(), None),
            };
            (!name.is_empty()).then(|| (name.to_ascii_lowercase(), value))
        })
        .collect()
}

fn split_outside_quotes(line: &str) -> Vec<&str> {
    let (mut parts, mut from, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&line[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&line[from..]);
    parts
}

fn unquote(value: &str) -> String {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.unwrap_or(value).replace('\\', "")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parse(lines: &[&str]) -> CacheControl {
        CacheControl::parse(
            &lines.iter().map(|line| (CACHE_CONTROL, HeaderValue::from_str(line).unwrap())).collect(),
        )
    }

    #[test]
    fn any_case_any_quotes_any_line() {
        let parsed = parse(&["No-Store, MAX-AGE=\"60\"", "S-MaxAge = 10"]);
        assert!(parsed.no_store);
        assert_eq!(
            (parsed.max_age, parsed.s_maxage),
            (Some(Duration::from_secs(60)), Some(Duration::from_secs(10)))
        );
    }

    #[test]
    fn a_name_inside_quotes_is_no_directive() {
        let parsed = parse(&["ext=\"no-store, private\", max-age=5"]);
        assert!(!parsed.no_store && !parsed.private);
        assert_eq!(parsed.max_age, Some(Duration::from_secs(5)));
        assert!(parse(&["private=\"set-cookie, x\""]).private);
    }

    #[test]
    fn odd_ages_are_stale_and_huge_ones_are_capped() {
        for value in ["max-age=-1", "max-age=1.5", "max-age='60'", "max-age=", "max-age"] {
            assert_eq!(parse(&[value]).max_age, Some(Duration::ZERO), "{value}");
        }
        assert_eq!(parse(&["max-age=99999999999999999999"]).max_age, Some(Duration::from_secs(1 << 31)));
        assert_eq!(parse(&["max-age=60, max-age=10"]).max_age, Some(Duration::from_secs(10)));
    }
}
