//! Values of a write that rules insert into what they purge.
//!
//! A value is known if every reading of the write has one. Where an application may read several, each counts: to purge too much costs
//! a miss.

use percent_encoding::percent_decode_str;

use super::may_name_target;
use crate::{
    Fields,
    names::{could_be, is_alike, is_odd, name_of, pairs},
};

/// Maximum number of values for one placeholder.
pub(crate) const MAX_VALUES: usize = 64;
/// Maximum length of a value in bytes.
const MAX_VALUE: usize = 4 << 10;

/// Collects the values for a placeholder.
#[derive(Debug, Default)]
pub(super) struct Collected {
    values: Vec<String>,
    is_unknown: bool,
}

impl Collected {
    pub(super) fn add(&mut self, value: String) {
        if self.is_unknown || self.values.contains(&value) {
            return;
        }
        if value.is_empty() || value.len() > MAX_VALUE || self.values.len() == MAX_VALUES {
            self.is_unknown = true;
        } else {
            self.values.push(value);
        }
    }

    /// Notes that some reading has no value that can be used.
    pub(super) fn add_unknown(&mut self) {
        self.is_unknown = true;
    }

    /// Returns the values, if there are some and all are known.
    pub(super) fn finish(self) -> Option<Vec<String>> {
        let Self { values, is_unknown } = self;
        (!is_unknown && !values.is_empty()).then_some(values)
    }
}

/// Returns the values of a parameter in the query of a target, and in those of the targets that header fields name.
pub(super) fn of_query(
    name: &str,
    query: Option<&str>,
    fields: &(impl Fields + ?Sized),
) -> Option<Vec<String>> {
    let named = fields.lines().filter(|(name, _)| may_name_target(name)).filter_map(|(_, target)| {
        let (_, query) = str::from_utf8(target).ok()?.split_once('?')?;
        query.split('#').next()
    });
    let mut found = Collected::default();
    for pair in query.into_iter().chain(named).flat_map(pairs) {
        // To some applications ';' separates, too.
        let whole = pair.contains(';').then_some(pair);
        for pair in pair.split(';').chain(whole) {
            let own = name_of(pair).as_bytes();
            if could_be(own, name) {
                let value = pair.split_once('=').map_or("", |(_, value)| value).replace('+', " ");
                match percent_decode_str(&value).decode_utf8() {
                    Ok(value) => found.add(value.into_owned()),
                    Err(_) => found.add_unknown(),
                }
            } else if is_odd(own) {
                found.add_unknown();
            }
        }
    }
    found.finish()
}

/// Returns the values of a header field whose name is in lower case, with `-` where applications may read another sign: each line, and
/// the members of a list (RFC 9110, section 5.6.1).
pub(super) fn of_header(name: &str, fields: &(impl Fields + ?Sized)) -> Option<Vec<String>> {
    let mut found = Collected::default();
    for (_, line) in fields.lines().filter(|(own, _)| is_alike(own, name)) {
        let Ok(line) = str::from_utf8(line) else {
            found.add_unknown();
            continue;
        };
        found.add(line.trim().to_owned());
        if line.contains(',') {
            let members = line.split(',').map(str::trim).filter(|member| !member.is_empty());
            members.for_each(|member| found.add(member.to_owned()));
        }
    }
    found.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(query: &str) -> Option<Vec<String>> {
        let none: &[(&[u8], &[u8])] = &[];
        of_query("id", Some(query), none)
    }

    #[test]
    fn every_parameter_that_may_be_read_by_the_name_has_a_value() {
        for (text, expected) in [
            ("id=7", &["7"][..]),
            ("x=1&id=7&id=8", &["7", "8"]),
            ("id[]=7&ID=8&%69d=9", &["7", "8", "9"]),
            ("id=a%20b+c%2Bd", &["a b c+d"]),
            ("id=%C3%BC%26", &["\u{fc}&"]),
            ("id=a=b", &["a=b"]),
            ("id=7;x=1", &["7", "7;x=1"]),
            ("x=1;id=7", &["7"]),
            ("id=7&", &["7"]),
        ] {
            let mut values = query(text).unwrap();
            values.sort();
            assert_eq!(values, expected, "{text}");
        }
        for text in ["", "x=1", "id", "id=", "id=7&id=", "id=%FF", "id=7&%zz=1", "id=7&caf%C3%A9=1"] {
            assert_eq!(query(text), None, "{text}");
        }
    }

    #[test]
    fn query_of_another_target_counts_too() {
        let lines: &[(&[u8], &[u8])] = &[(b"x-original-url", b"/b?id=8#x"), (b"referer", b"/b?id=9")];
        assert_eq!(of_query("id", Some("id=7"), lines).unwrap(), ["7", "8"]);
        assert_eq!(of_query("id", None, lines).unwrap(), ["8"]);
    }

    #[test]
    fn header_may_be_a_list_or_come_in_several_lines() {
        let lines: &[(&[u8], &[u8])] =
            &[(b"X-Team", b"a"), (b"x_team", b"b, c,"), (b"x-teams", b"d"), (b"x-other", b"\xFF")];
        assert_eq!(of_header("x-team", lines).unwrap(), ["a", "b, c,", "b", "c"]);
        assert_eq!(of_header("x-none", lines), None);
        assert_eq!(of_header("x-other", lines), None);
        let empty: &[(&[u8], &[u8])] = &[(b"x-team", b"a"), (b"x-team", b"")];
        assert_eq!(of_header("x-team", empty), None);
    }
}
