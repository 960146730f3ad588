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
        (&[("content-encoding", "gzip")], Some(&["accept-encoding"])),
        (&[("content-encoding", "gzip"), ("vary", "Accept-Encoding, a")], Some(&["a", "accept-encoding"])),
        (&[("content-encoding", "identity, br")], Some(&["accept-encoding"])),
        (&[("content-encoding", "Identity")], Some(&[])),
        (&[("content-encoding", "")], Some(&[])),
        (&[("content-encoding", "gzip"), ("vary", "*")], None),
    ] {
        let names = names(&headers(lines));
        let names: Option<Vec<_>> =
            names.as_ref().map(|names| names.iter().map(HeaderName::as_str).collect());
        assert_eq!(names.as_deref(), expected, "{lines:?}");
    }
}

#[test]
fn insignificant_differences_share_a_variant() {
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
    // Clients may send each cookie on a line of its own.
    assert_eq!(
        variant(&["cookie"], &[("cookie", "a=b; c=d")]),
        variant(&["cookie"], &[("cookie", "a=b"), ("cookie", "c=d")])
    );
    let other = |lines: &[(&str, &str)]| variant(&["x"], lines);
    assert_eq!(other(&[("x", "a, b")]), other(&[("x", "a"), ("x", " b ")]));
    let language = |value| variant(&["accept-language"], &[("accept-language", value)]);
    for value in ["en;q=0.8, De", "de, en;q=0.8", "DE;q=1.000,EN ; Q=0.80", "en;q=0.8,,de"] {
        assert_eq!(language(value), "\naccept-language:de;1000,en;800", "{value}");
    }
    let encoding = |value| variant(&["accept-encoding"], &[("accept-encoding", value)]);
    for value in ["gzip, br", "br,gzip", "GZIP;q=1, Br ; Q=1.0", "gzip;q=1.000,,br"] {
        assert_eq!(encoding(value), "\naccept-encoding:br;1000,gzip;1000", "{value}");
    }
    for other in ["gzip", "gzip, br;q=0.9", "gzip, br;q=0", "gzip, br, *;q=0", "gzip, br;level=1", ""] {
        assert_ne!(encoding(other), encoding("gzip, br"), "{other}");
    }
}

#[test]
fn different_requests_have_different_variants() {
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
        variant(&["a", "b"], &[("a", "x (KHTML, like)")]),
        variant(&["a", "b"], &[("a", "x (KHTML,like)")]),
        variant(&["a", "b"], &[("a", "x (KHTML ,like)")]),
        variant(&["cookie"], &[("cookie", "x=a, b")]),
        variant(&["cookie"], &[("cookie", "x=a,b")]),
        variant(&["cookie"], &[("cookie", "x=a"), ("cookie", "b")]),
        variant(&["cookie"], &[("cookie", "x=a;b")]),
    ];
    let unique: std::collections::HashSet<_> = texts.iter().collect();
    assert_eq!(unique.len(), texts.len(), "{texts:?}");
}

#[test]
fn invalid_accept_language_is_not_normalised() {
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
    assert_eq!(buffer, "\naccept-language:de;1000,en;800\naccept-encoding:br;1000,deflate;1000,gzip;1000");
    assert_eq!(buffer.as_ptr(), before);
}

/// Returns the normal form of a field by section 4.1.
fn normalised(name: &str, lines: &[Vec<u8>]) -> Option<Vec<u8>> {
    let trimmed = |line: &[u8]| line.trim_ascii().to_vec();
    let joined = match name {
        // A comma inside quotes is one like any other where lines are joined.
        "accept" => {
            let parts = lines.iter().flat_map(|line| split_at_commas(line).map(trimmed));
            parts.collect::<Vec<_>>().join(&b","[..])
        }
        "cookie" => lines.iter().map(|line| trimmed(line)).collect::<Vec<_>>().join(&b"; "[..]),
        _ => lines.iter().map(|line| trimmed(line)).collect::<Vec<_>>().join(&b", "[..]),
    };
    (!lines.is_empty()).then_some(joined)
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

/// Short lines of little else than what separates.
fn vec_of_commas() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let line = proptest::collection::vec(proptest::sample::select(b"a, ;".to_vec()), 0..4);
    proptest::collection::vec(line.prop_map(|line| line.trim_ascii().to_vec()), 0..3)
}

/// A field of each kind.
const KINDS: [&str; 3] = ["accept", "cookie", "x"];

fn text(requested: &[Vec<Vec<u8>>; 3]) -> String {
    let mut request = http::HeaderMap::new();
    for (name, lines) in KINDS.into_iter().zip(requested) {
        for line in lines {
            request.append(name, HeaderValue::from_bytes(line).unwrap());
        }
    }
    let mut text = String::new();
    write_variant(&mut text, &KINDS.map(HeaderName::from_static), &request);
    text
}

fn request() -> impl Strategy<Value = [Vec<Vec<u8>>; 3]> {
    [lines(), lines(), lines()]
}

proptest! {
    #[test]
    fn variants_are_alike_iff_their_headers_are((one, other) in (request(), request())) {
        let alike = (0..3).all(|n| normalised(KINDS[n], &one[n]) == normalised(KINDS[n], &other[n]));
        prop_assert_eq!(text(&one) == text(&other), alike);
    }

    /// Chance seldom makes two that are nearly the same.
    #[test]
    fn variants_are_alike_iff_one_header_is(
        (kind, one, other) in (0..3_usize, vec_of_commas(), vec_of_commas())
    ) {
        let name = KINDS[kind];
        let request = |lines: Vec<Vec<u8>>| {
            let mut request = [vec![], vec![], vec![]];
            request[kind] = lines;
            request
        };
        let alike = normalised(name, &one) == normalised(name, &other);
        prop_assert_eq!(text(&request(one)) == text(&request(other)), alike);
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
        let accept = |lines| text(&[lines, vec![], vec![]]);
        prop_assert_eq!(accept(vec![spaced.trim().as_bytes().to_vec()]), accept(split));
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
