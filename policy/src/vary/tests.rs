use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::testing::headers;

fn variant(names: &[&'static str], lines: &[(&str, &str)]) -> String {
    let names: Vec<_> = names.iter().copied().map(HeaderName::from_static).collect();
    let mut text = String::new();
    write_variant(&mut text, &names, &headers(lines));
    text
}

#[test]
fn names_are_sorted_and_each_is_there_once() {
    for (lines, expected) in [
        (&[("vary", "B, a,, "), ("vary", "A")][..], Some(&["a", "b"][..])),
        (&[("vary", "")], Some(&[])),
        (&[], Some(&[])),
        (&[("vary", "*")], None),
        (&[("vary", "*, *")], None),
        (&[("vary", ", *")], None),
        (&[("vary", "a"), ("vary", "*")], None),
        (&[("vary", "a, *")], None),
        (&[("vary", "a b")], None),
        (&[("vary", "caf\u{e9}")], None),
        (&[("vary", "accept, Via")], None),
        (&[("vary", "x-forwarded-for")], None),
        (&[("vary", "forwarded")], None),
    ] {
        let names = names(&headers(lines));
        let names: Option<Vec<_>> =
            names.as_ref().map(|names| names.iter().map(HeaderName::as_str).collect());
        assert_eq!(names.as_deref(), expected, "{lines:?}");
    }
}

#[test]
fn requests_that_differ_in_what_does_not_matter_are_alike() {
    let accept = |lines: &[(&str, &str)]| variant(&["accept"], lines);
    let one = accept(&[("accept", "a, b")]);
    assert_eq!(one, "\naccept=a,b");
    for lines in [
        &[("accept", "a,b")][..],
        &[("accept", "a \t ,\t b")],
        &[("accept", "a"), ("other", "x"), ("ACCEPT", "b")],
    ] {
        assert_eq!(accept(lines), one, "{lines:?}");
    }
    let language = |value| variant(&["accept-language"], &[("accept-language", value)]);
    for value in ["en;q=0.8, De", "de, en;q=0.8", "DE;q=1.000,EN ; Q=0.80", "en;q=0.8,,de"] {
        assert_eq!(language(value), "\naccept-language:de;1000,en;800", "{value}");
    }
}

#[test]
fn requests_that_differ_are_told_apart() {
    let texts = [
        variant(&["a", "b"], &[]),
        variant(&["a", "b"], &[("a", "")]),
        variant(&["a", "b"], &[("b", "")]),
        variant(&["a", "b"], &[("a", ""), ("a", "")]),
        variant(&["a", "b"], &[("a", "x")]),
        variant(&["a", "b"], &[("b", "x")]),
        variant(&["a", "b"], &[("a", "X")]),
        variant(&["a", "b"], &[("a", "x y")]),
        variant(&["a", "b"], &[("a", "x  y")]),
        variant(&["a", "b"], &[("a", "\"x, y\"")]),
        variant(&["a", "b"], &[("a", "\"x ,y\"")]),
        variant(&["a", "b"], &[("a", "x%20y")]),
        variant(&["a", "b"], &[("a", "x\ty")]),
        variant(&["a", "b"], &[("a", "x%09y")]),
        variant(&["a", "b"], &[("a", "x,y")]),
        variant(&["a", "b"], &[("a", "y,x")]),
    ];
    let unique: std::collections::HashSet<_> = texts.iter().collect();
    assert_eq!(unique.len(), texts.len(), "{texts:?}");
}

#[test]
fn an_odd_accept_language_is_taken_as_it_is() {
    let many = (0..17).map(|n| format!("l{n}")).collect::<Vec<_>>().join(",");
    for value in ["en;q=2", "en;q=0.1234", "en;q=", "en;x=1", "e n", "en;1000", "", "en;q=1.001", &many] {
        let text = variant(&["accept-language"], &[("accept-language", value)]);
        assert_eq!(text, format!("\naccept-language={value}"), "{value}");
    }
}

#[test]
fn simple_values_fit_into_a_buffer_that_was_used() {
    let names = [ACCEPT_LANGUAGE, http::header::ACCEPT_ENCODING];
    let request = headers(&[("accept-encoding", "gzip, deflate, br"), ("accept-language", "de, en;q=0.8")]);
    let mut buffer = String::with_capacity(128);
    let before = buffer.as_ptr();
    write_variant(&mut buffer, &names, &request);
    assert_eq!(buffer, "\naccept-language:de;1000,en;800\naccept-encoding=gzip,deflate,br");
    assert_eq!(buffer.as_ptr(), before);
}

/// What section 4.1 leaves of a value: its members in quotes or not, without the white space around them.
fn normalised(lines: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let parts = lines.iter().flat_map(|line| split_at_commas(line).map(|part| part.trim_ascii().to_vec()));
    (!lines.is_empty()).then(|| parts.collect())
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    // What a header value may hold, without what the parser of a message takes from its ends.
    let byte = prop_oneof![
        4 => proptest::sample::select(b"ab, \t%=:;\"\\".to_vec()),
        1 => proptest::sample::select((0x21..=0x7e).chain(0x80..=0xff).collect::<Vec<u8>>()),
    ];
    proptest::collection::vec(byte, 0..8).prop_map(|line| line.trim_ascii().to_vec())
}

fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(line(), 0..3)
}

fn text(one: &[Vec<u8>], other: &[Vec<u8>]) -> String {
    let mut request = HeaderMap::new();
    for (name, lines) in [("a", one), ("b", other)] {
        for line in lines {
            request.append(name, HeaderValue::from_bytes(line).unwrap());
        }
    }
    let mut text = String::new();
    write_variant(&mut text, &[HeaderName::from_static("a"), HeaderName::from_static("b")], &request);
    text
}

/// What is between the commas of all parts: a comma inside quotes is one like any other where lines are joined.
fn flat(parts: Option<Vec<Vec<u8>>>) -> Option<Vec<u8>> {
    parts.map(|parts| parts.join(&b','))
}

proptest! {
    #[test]
    fn alike_if_and_only_if_the_headers_are(
        (a, b, c, d) in (lines(), lines(), lines(), lines())
    ) {
        let alike = flat(normalised(&a)) == flat(normalised(&c)) && flat(normalised(&b)) == flat(normalised(&d));
        prop_assert_eq!(text(&a, &b) == text(&c, &d), alike);
    }

    #[test]
    fn white_space_around_commas_and_lines_do_not_matter(
        members in proptest::collection::vec("[a-z%;=]{0,3}", 1..5),
        spaces in proptest::collection::vec("[ \t]{0,2},[ \t]{0,2}", 5),
        at in 0_usize..5,
    ) {
        let mut spaced = members[0].clone();
        for (member, space) in members[1..].iter().zip(&spaces) {
            spaced.push_str(space);
            spaced.push_str(member);
        }
        let (one, other) = members.split_at(at.min(members.len()));
        let split: Vec<_> = [one, other]
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| part.join(",").into_bytes())
            .collect();
        prop_assert_eq!(text(&[spaced.trim().as_bytes().to_vec()], &[]), text(&split, &[]));
    }

    #[test]
    fn the_order_of_languages_does_not_matter(
        ranges in proptest::collection::vec(("[a-zA-Z]{2}", 0_u16..=9), 1..8).prop_shuffle(),
    ) {
        let write = |ranges: &[(String, u16)]| {
            let value: Vec<_> = ranges.iter().map(|(tag, q)| format!("{tag};q=0.{q}")).collect();
            variant(&["accept-language"], &[("accept-language", &value.join(", "))])
        };
        let lower = |tag: &str| tag.to_ascii_lowercase();
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|(tag, q)| (*q, lower(tag)));
        let text = write(&ranges);
        prop_assert_eq!(&text, &write(&sorted));
        let mut other = sorted;
        other[0].1 = (other[0].1 + 1) % 10;
        prop_assert_ne!(text, write(&other));
    }
}
