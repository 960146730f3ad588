//! Targeted cache control (RFC 9213).

use std::time::Duration;

use http::HeaderName;
use sfv::{BareItem, Dictionary, ListEntry, Parser, Version};

use crate::{
    cache_control::{ResponseDirectives, delta_seconds},
    fields::Fields,
};

/// Returns the directives of the first field of a target list that is present, valid and not empty (section 2.2). If
/// there is one, `Cache-Control` and `Expires` are ignored.
pub fn directives(fields: &(impl Fields + ?Sized), targets: &[HeaderName]) -> Option<ResponseDirectives> {
    targets.iter().filter(|name| fields.has(name.as_str())).find_map(|name| {
        // Several lines are one Structured Field (RFC 9651, section 4.2).
        let lines: Vec<&[u8]> = fields.values(name.as_str()).collect();
        parse(&lines.join(&b", "[..]))
    })
}

/// Parses a Dictionary; `None` for a field that must be ignored as a whole (section 2.1): an empty one, one that does
/// not parse, and one with a known directive whose value has the wrong type. RFC 9213 ignores such values; RFC 9651,
/// section 2, treats a violation of a field's own rules as a parsing error.
fn parse(value: &[u8]) -> Option<ResponseDirectives> {
    // RFC 9213 is written against RFC 8941, which has neither dates nor display strings.
    let members: Dictionary = Parser::new(value).with_version(Version::Rfc8941).parse().ok()?;
    if members.is_empty() {
        return None;
    }
    let mut parsed = ResponseDirectives::default();
    for (name, member) in &members {
        let name = name.as_str().as_bytes();
        if let Some(flag) = parsed.flag(name) {
            *flag = is_there(name, member)?;
        } else if let Some(time) = parsed.time(name) {
            *time = Some(seconds(member)?);
        }
    }
    Some(parsed)
}

/// Returns true for a directive without a value; only `no-cache` and `private` may list fields, in a String.
fn is_there(name: &[u8], member: &ListEntry) -> Option<bool> {
    match bare(member)? {
        BareItem::Boolean(true) => Some(true),
        BareItem::String(_) if [&b"no-cache"[..], b"private"].contains(&name) => Some(true),
        _ => None,
    }
}

/// Parses an Integer. A negative one has the right type, but declares nothing that can be fresh (RFC 9111, section
/// 4.2.1).
fn seconds(member: &ListEntry) -> Option<Duration> {
    let number = i64::from(bare(member)?.as_integer()?);
    Some(delta_seconds(number.to_string().as_bytes()).unwrap_or_default())
}

/// Returns the value; parameters are ignored (section 2.1).
fn bare(member: &ListEntry) -> Option<&BareItem> {
    match member {
        ListEntry::Item(item) => Some(&item.bare_item),
        ListEntry::InnerList(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::headers;

    const OURS: HeaderName = HeaderName::from_static("larder-cache-control");
    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn minute() -> ResponseDirectives {
        ResponseDirectives { max_age: Some(Duration::from_secs(60)), ..Default::default() }
    }

    #[test]
    fn valid_targeted_fields_are_parsed() {
        let no_store = ResponseDirectives { no_store: true, ..Default::default() };
        for (value, expected) in [
            ("max-age=60", minute()),
            ("max-age=60;x=1, foo, bar=(1 2), baz=\"x\"", minute()),
            ("max-age=1, max-age=60", minute()),
            ("no-store", no_store),
            ("no-store=?1", no_store),
            ("no-cache=\"a, b\"", ResponseDirectives { no_cache: true, ..Default::default() }),
            ("private", ResponseDirectives { private: true, ..Default::default() }),
            ("unknown", ResponseDirectives::default()),
            ("max-age=-1", ResponseDirectives { max_age: Some(Duration::ZERO), ..Default::default() }),
            (
                "max-age=999999999999999",
                ResponseDirectives { max_age: Some(Duration::from_secs(1 << 31)), ..Default::default() },
            ),
        ] {
            assert_eq!(parse(value.as_bytes()), Some(expected), "{value}");
        }
    }

    #[test]
    fn invalid_targeted_fields_are_ignored() {
        for value in [
            "",
            " ",
            "max-age",
            "max-age=",
            "max-age =60",
            "max-age= 60",
            "MAX-AGE=60",
            "max-age=60,",
            "max-age=60 no-store",
            "max-age=60, &&&",
            "max-age=1.5",
            "max-age=\"60\"",
            "max-age=(60)",
            "max-age=60a",
            "max-age=1000000000000000",
            "max-age=@60",
            "no-store=1",
            "no-store=\"x\"",
            "no-store=?0",
            "must-revalidate=\"x\"",
            "max-age=60, caf\u{e9}",
        ] {
            assert_eq!(parse(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn the_first_valid_field_of_the_list_decides() {
        let targets = [OURS, CDN];
        let minute = Some(minute());
        for (lines, expected) in [
            (&[("larder-cache-control", "max-age=60"), ("cdn-cache-control", "no-store")][..], minute),
            (&[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store")], minute),
            (&[("larder-cache-control", "max-age=x y"), ("cdn-cache-control", "max-age=60")], minute),
            (&[("larder-cache-control", ""), ("cdn-cache-control", "max-age=60")], minute),
            (&[("cdn-cache-control", "a"), ("cdn-cache-control", "max-age=60")], minute),
            (&[("surrogate-control", "max-age=60")], None),
        ] {
            assert_eq!(directives(&headers(lines), &targets), expected, "{lines:?}");
        }
    }
}
