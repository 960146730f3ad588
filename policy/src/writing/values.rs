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
/// the members of a list (RFC 9110, section 5.6.1), with their quotes and without, in UTF-8 and in ISO 8859-1.
pub(super) fn of_header(name: &str, fields: &(impl Fields + ?Sized)) -> Option<Vec<String>> {
    let mut found = Collected::default();
    for (_, line) in fields.lines().filter(|(own, _)| is_alike(own, name)) {
        match str::from_utf8(line) {
            Ok(text) => add_line(&mut found, text),
            Err(_) => found.add_unknown(),
        }
        if !line.is_ascii() {
            let text: String = line.iter().copied().map(char::from).collect();
            add_line(&mut found, &text);
        }
    }
    found.finish()
}

fn add_line(found: &mut Collected, line: &str) {
    let mut add = |text: &str| {
        found.add(text.to_owned());
        if let Some(unquoted) = unquoted(text) {
            found.add(unquoted);
        }
    };
    add(line.trim());
    if line.contains(',') {
        // Programs split lists with regard to quotes, or without.
        let members = line.split(',').chain(members(line)).map(str::trim);
        members.filter(|member| !member.is_empty()).for_each(add);
    }
}

/// Returns the members of a list, whose quoted strings may have commas.
fn members(line: &str) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    line.split(move |c| {
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = c == '\\' && is_quoted && !is_escaped;
        c == ',' && !is_quoted
    })
}

/// Returns the text that a quoted string stands for (RFC 9110, section 5.6.4).
fn unquoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut is_escaped = false;
    let is_part = |c: &char| {
        is_escaped = *c == '\\' && !is_escaped;
        !is_escaped
    };
    Some(inner.chars().filter(is_part).collect())
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

    #[test]
    fn header_is_read_with_and_without_quotes_and_in_both_charsets() {
        for (line, expected) in [
            (&b"\"a\""[..], &["\"a\"", "a"][..]),
            (b"\"a,b\", c", &["\"a,b\", c", "\"a", "b\"", "c", "\"a,b\"", "a,b"]),
            (br#""a\"b""#, &[r#""a\"b""#, "a\"b"]),
            (b"caf\xC3\xA9", &["caf\u{e9}", "caf\u{c3}\u{a9}"]),
            (b"\"\xC3\xA9\"", &["\"\u{e9}\"", "\u{e9}", "\"\u{c3}\u{a9}\"", "\u{c3}\u{a9}"]),
            (b"a\"", &["a\""]),
        ] {
            let lines: &[(&[u8], &[u8])] = &[(b"x-team", line)];
            let mut values = of_header("x-team", lines).unwrap();
            let mut expected = expected.to_vec();
            values.sort();
            expected.sort_unstable();
            assert_eq!(values, expected, "{}", String::from_utf8_lossy(line));
        }
        let empty: &[(&[u8], &[u8])] = &[(b"x-team", b"a, \"\"")];
        assert_eq!(of_header("x-team", empty), None);
    }
}
