//! JSON pointers (RFC 6901), and the values at them by every reading of a text.
//!
//! Programs differ in which of two members of one name they use, and some ignore the case of names: the values of all such members
//! count. A `*` is an extension: it leads to every element of a list.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::values::Collected;
use crate::path::fold;

/// Magnitude up to which a double has every integer.
const MAX_INTEGER: f64 = (1_u64 << 53) as f64;

/// A JSON pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<Token>,
}

/// A reference token.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A member of an object, or an element of a list, without escapes.
    Name(String),
    /// Every element of a list.
    Each,
}

impl Pointer {
    /// Parses a pointer; `None` if the text is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_escaped = text.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
        if !is_escaped || !(text.is_empty() || text.starts_with('/')) {
            return None;
        }
        let tokens = text.split('/').skip(1).map(|token| match token {
            "*" => Token::Each,
            name => Token::Name(name.replace("~1", "/").replace("~0", "~")),
        });
        Some(Self { text: text.to_owned(), tokens: tokens.collect() })
    }

    /// Returns the texts of the strings, numbers and booleans at the pointer, of a list those of its elements. `None` if the text is not
    /// JSON, or has something else or nothing there by one of its readings.
    pub(crate) fn values(&self, json: &[u8]) -> Option<Vec<String>> {
        let json = json.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(json);
        let mut found = Collected::default();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        Walk { tokens: &self.tokens, is_element: false, found: &mut found }
            .deserialize(&mut deserializer)
            .ok()?;
        deserializer.end().ok()?;
        found.finish()
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A step on the way along a pointer.
struct Walk<'a> {
    /// The tokens that are left.
    tokens: &'a [Token],
    /// True of the elements of a list at the pointer.
    is_element: bool,
    found: &'a mut Collected,
}

impl Walk<'_> {
    /// Adds an integer, and the one that it is to programs in which every number is a double, such as those in JavaScript.
    fn integer<E>(self, value: String, as_double: f64) -> Result<(), E> {
        if self.tokens.is_empty() && as_double.abs() >= MAX_INTEGER {
            self.found.add(value);
            self.found.add(as_double.to_string());
            return Ok(());
        }
        self.scalar(value)
    }

    fn scalar<E>(self, value: String) -> Result<(), E> {
        match self.tokens {
            [] => self.found.add(value),
            _ => self.found.add_unknown(),
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.scalar(value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.to_string(), value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.to_string(), value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if self.tokens.is_empty() && value.fract() == 0.0 && value.abs() < MAX_INTEGER {
            // Programs differ in how they write such a number.
            self.found.add(format!("{}", value as i64));
            self.found.add(format!("{}.0", value as i64));
        } else {
            // Its text is not known here, and not the one that an application makes of it either.
            self.found.add_unknown();
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.scalar(value.to_owned())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.found.add_unknown();
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Self { tokens, is_element, found } = self;
        let mut is_missing = true;
        let (of_each, is_element) = match tokens.split_first() {
            Some((Token::Each, rest)) => (Some(rest), is_element),
            Some((Token::Name(name), rest)) => {
                let wanted = name.parse::<usize>().ok().filter(|index| index.to_string() == *name);
                for _ in 0..wanted.unwrap_or(0) {
                    // An index may be far beyond the end.
                    if elements.next_element::<IgnoredAny>()?.is_none() {
                        break;
                    }
                }
                if wanted.is_some() {
                    let element = Walk { tokens: rest, is_element, found: &mut *found };
                    is_missing = elements.next_element_seed(element)?.is_none();
                }
                (None, is_element)
            }
            None => ((!is_element).then_some(tokens), true),
        };
        if let Some(tokens) = of_each {
            while elements.next_element_seed(Walk { tokens, is_element, found: &mut *found })?.is_some() {
                is_missing = false;
            }
        }
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        if is_missing {
            found.add_unknown();
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { tokens, is_element, found } = self;
        let mut is_missing = true;
        while let Some(name) = members.next_key::<String>()? {
            match tokens.split_first() {
                Some((Token::Name(token), rest)) if name == *token || fold(&name) == fold(token) => {
                    is_missing = false;
                    members.next_value_seed(Walk { tokens: rest, is_element, found: &mut *found })?;
                }
                _ => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        if is_missing {
            found.add_unknown();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(pointer: &str, json: &str) -> Option<Vec<String>> {
        Pointer::parse(pointer).unwrap().values(json.as_bytes())
    }

    #[test]
    fn pointer_leads_to_strings_numbers_and_booleans_and_into_lists() {
        for (pointer, json, expected) in [
            ("/user/id", r#"{"user": {"id": "a b/\u00fc"}, "x": [1]}"#, &["a b/\u{fc}"][..]),
            ("/id", r#"{"id": 7}"#, &["7"]),
            ("/id", r#"{"id": -7}"#, &["-7"]),
            ("/id", r#"{"id": 9007199254740992}"#, &["9007199254740992"]),
            ("/id", r#"{"id": 9007199254740993}"#, &["9007199254740993", "9007199254740992"]),
            ("/id", r#"{"id": -9007199254740993}"#, &["-9007199254740993", "-9007199254740992"]),
            ("/id", r#"{"id": 18446744073709551615}"#, &["18446744073709551615", "18446744073709552000"]),
            ("/id", r#"{"id": 7.0}"#, &["7", "7.0"]),
            ("/id", r#"{"id": 1e2}"#, &["100", "100.0"]),
            ("/id", r#"{"id": "7.0"}"#, &["7.0"]),
            ("/id", r#"{"id": true}"#, &["true"]),
            ("", "\"a\"", &["a"]),
            ("", " [1, \"b\"] ", &["1", "b"]),
            ("/ids", r#"{"ids": [1, 2, "x", 1, false]}"#, &["1", "2", "x", "false"]),
            ("/0/id", r#"[{"id": 1}, {"id": 2}]"#, &["1"]),
            ("/a/1", r#"{"a": [1, [2, 3]]}"#, &["2", "3"]),
            (
                "/items/*/id",
                r#"{"items": [{"id": 1}, {"id": "b", "x": 2}, {"id": [3, 4]}]}"#,
                &["1", "b", "3", "4"],
            ),
            ("/*/id", r#"[{"id": 1}, {"ID": 2}, {"id": 1}]"#, &["1", "2"]),
            ("/*/*", "[[1, 2], [3]]", &["1", "2", "3"]),
            ("/*", "[[1, 2], [3], 4]", &["1", "2", "3", "4"]),
            ("/ids/*", r#"{"ids": [1, "x"]}"#, &["1", "x"]),
            ("/*/tags/1", r#"[{"tags": ["a", "b"]}, {"tags": ["c", "d"]}]"#, &["b", "d"]),
            ("/a*", r#"{"a*": 1}"#, &["1"]),
            ("/a~1b/c~0d", r#"{"a/b": {"c~d": 1}}"#, &["1"]),
            ("/~01", r#"{"~1": 1}"#, &["1"]),
            ("//x", r#"{"": {"x": 1}}"#, &["1"]),
            ("/1", r#"{"1": "member"}"#, &["member"]),
            ("/id", "\u{feff}{\"id\": 1}", &["1"]),
            ("/caf\u{e9}", r#"{"cafe\u0301": 1}"#, &["1"]),
        ] {
            assert_eq!(values(pointer, json).unwrap(), expected, "{pointer} in {json}");
        }
    }

    #[test]
    fn members_of_one_name_in_any_case_all_count() {
        assert_eq!(values("/id", r#"{"id": 1, "x": 2, "id": 3}"#).unwrap(), ["1", "3"]);
        assert_eq!(values("/id", r#"{"ID": 1, "id": 3}"#).unwrap(), ["1", "3"]);
        assert_eq!(values("/u/id", r#"{"u": {"id": 1}, "u": {"Id": 2}}"#).unwrap(), ["1", "2"]);
        for json in
            [r#"{"u": {"id": 1}, "u": {}}"#, r#"{"u": {"id": 1}, "u": 2}"#, r#"{"u": {"id": 1}, "U": null}"#]
        {
            assert_eq!(values("/u/id", json), None, "{json}");
        }
    }

    #[test]
    fn value_that_is_not_certain_is_unknown() {
        for json in [
            "",
            "{",
            "{}",
            "[]",
            "null",
            "7",
            r#"{"id": null}"#,
            r#"{"id": {}}"#,
            r#"{"id": []}"#,
            r#"{"id": ""}"#,
            r#"{"id": [1, null]}"#,
            r#"{"id": [1, [2]]}"#,
            r#"{"id": [1, {}]}"#,
            r#"{"id": 1.5}"#,
            r#"{"id": 123456789012345678901234567890}"#,
            r#"{"id": 1e30}"#,
            r#"{"id": 1} x"#,
            r#"{"id": 1,}"#,
            r#"{"id": "\ud800"}"#,
            r#"{"id": 1, "\ud800": 2}"#,
            "{'id': 1}",
            "id=1",
        ] {
            assert_eq!(values("/id", json), None, "{json}");
        }
        for (pointer, json) in [
            ("/a/01", "{\"a\": [1, 2]}"),
            ("/a/-", "{\"a\": [1]}"),
            ("/a/2", "{\"a\": [1, 2]}"),
            ("/18446744073709551615", "[1]"),
        ] {
            assert_eq!(values(pointer, json), None, "{pointer} in {json}");
        }
        for (pointer, json) in [
            // A '*' is an element of a list, and nothing else.
            ("/items/*/id", r#"{"items": {"*": {"id": 1}}}"#),
            ("/*", r#"{"*": 1}"#),
            ("/*", "1"),
            ("/items/*/id", r#"{"items": []}"#),
            ("/items/*/id", r#"{"items": [{"id": 1}, {}]}"#),
            ("/items/*/id", r#"{"items": [{"id": 1}, 2]}"#),
            ("/items/*/id", r#"{"items": [{"id": 1}, null]}"#),
            ("/items/*/id", r#"{"items": [{"id": 1}], "Items": []}"#),
            ("/items/*/id", r#"{"items": {"id": 1}}"#),
            ("/*/*", "[[1], 2]"),
            ("/*/*", "[[1], []]"),
        ] {
            assert_eq!(values(pointer, json), None, "{pointer} in {json}");
        }
        assert_eq!(values("/*/0", &format!("[{}[1]]", "[1],".repeat(1000))).unwrap(), ["1"]);
        let items = |count: usize| {
            format!("[{}]", (0..count).map(|id| format!("{{\"id\": {id}}}")).collect::<Vec<_>>().join(","))
        };
        assert_eq!(values("/*/id", &items(64)).unwrap().len(), 64);
        assert_eq!(values("/*/id", &items(65)), None);
        assert_eq!(Pointer::parse("/id").unwrap().values(b"{\"id\": \"\xFF\"}"), None);
        assert_eq!(Pointer::parse("/id").unwrap().values(&b"[".repeat(100_000)), None);
        let many = serde_json::to_string(&(0..1000).collect::<Vec<_>>()).unwrap();
        assert_eq!(values("", &many), None);
        assert_eq!(values("", &format!("\"{}\"", "a".repeat(100_000))), None);
    }

    #[test]
    fn pointer_begins_with_a_slash_and_has_two_escapes() {
        for text in ["a", "~0", "/~", "/~2", "/a~"] {
            assert_eq!(Pointer::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn value_is_found_wherever_it_was_put(tokens in proptest::collection::vec("[a-z~/\u{e9}]{0,3}", 0..4), value in any::<u32>()) {
            let json = tokens.iter().rev().fold(value.to_string(), |json, token| {
                format!("{{\"other\": [1], {}: {json}}}", serde_json::to_string(token).unwrap())
            });
            let pointer: String =
                tokens.iter().map(|token| format!("/{}", token.replace('~', "~0").replace('/', "~1"))).collect();
            prop_assert_eq!(values(&pointer, &json), Some(vec![value.to_string()]));
        }

        #[test]
        fn each_element_counts_and_no_other(ids in proptest::collection::vec(any::<u32>(), 1..70), at in 0..70_usize) {
            let element = |id: &u32| format!("{{\"id\": {id}, \"other\": [7]}}");
            let json = format!("{{\"items\": [{}]}}", ids.iter().map(element).collect::<Vec<_>>().join(","));
            let mut expected: Vec<String> = vec![];
            for id in ids.iter().map(ToString::to_string) {
                if !expected.contains(&id) {
                    expected.push(id);
                }
            }
            let expected = (expected.len() <= 64).then_some(expected);
            prop_assert_eq!(values("/items/*/id", &json), expected);
            let one = ids.get(at).map(|id| vec![id.to_string()]);
            prop_assert_eq!(values(&format!("/items/{at}/id"), &json), one);
        }

        #[test]
        fn any_text_has_values_or_none(pointer in "(/[a-b0-1~*]{0,2}){0,2}", json in "[\\[\\]{}:,\"ab01. ]{0,12}") {
            if let Some(pointer) = Pointer::parse(&pointer) {
                let values = pointer.values(json.as_bytes());
                prop_assert!(values.is_none_or(|values| !values.is_empty() && !values.contains(&String::new())));
            }
        }
    }
}
