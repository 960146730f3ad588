//! `Vary`. The input is the fields of a response, then those of two requests.

use larder_policy::vary;

use crate::input::{Message, blocks};

/// Requests have one text if, and only if, their selecting fields are equal once they are normalised (RFC 9111, section 4.1).
pub fn check(data: &[u8]) {
    let [answer, one, other] = blocks(data).map(Message::read);
    let Some(names) = vary::names(&answer.map()) else { return };
    assert!(names.is_sorted_by(|one, other| one.as_str() < other.as_str()), "sorted, each once");
    assert!(names.iter().all(|name| name != "*"));
    let text = |request: &Message| {
        let (mut text, mut same) = ("before".to_owned(), "before".to_owned());
        vary::write_variant(&mut text, &names, &request.map());
        vary::write_variant(&mut same, &names, request.lines().as_slice());
        assert_eq!(text, same, "however they are held");
        text
    };
    let normal = |request: &Message| -> Vec<_> {
        names.iter().map(|name| normalised(name.as_str(), &request.values(name.as_str()))).collect()
    };
    assert_eq!(text(&one) == text(&other), normal(&one) == normal(&other), "{one:?} {other:?}");
}

/// A field in a form that is equal where a cache may treat two as equal.
#[derive(PartialEq, Eq)]
enum Normal {
    Absent,
    Weighted(Vec<(u16, Vec<u8>)>),
    Text(Vec<u8>),
}

fn normalised(name: &str, lines: &[&[u8]]) -> Normal {
    if lines.is_empty() {
        return Normal::Absent;
    }
    if ["accept-language", "accept-encoding"].contains(&name)
        && let Some(members) = weighted(lines)
    {
        return Normal::Weighted(members);
    }
    let whole = lines.iter().map(|line| line.trim_ascii()).collect::<Vec<_>>();
    Normal::Text(match name {
        "cookie" => whole.join(&b"; "[..]),
        _ if LISTS.contains(&name) => {
            whole.iter().flat_map(|line| between_commas(line)).collect::<Vec<_>>().join(&b',')
        }
        _ => whole.join(&b", "[..]),
    })
}

/// Fields whose syntax is a list.
const LISTS: [&str; 12] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "access-control-request-headers",
    "cache-control",
    "pragma",
    "prefer",
    "priority",
    "sec-ch-ua",
    "sec-ch-ua-full-version-list",
    "te",
];

/// Splits a value at the commas outside of quotes.
fn between_commas(line: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut from, mut at, mut quoted) = (vec![], 0, 0, false);
    while at < line.len() {
        match line[at] {
            b'"' => quoted = !quoted,
            b'\\' if quoted => at += 1,
            b',' if !quoted => {
                parts.push(line[from..at].trim_ascii());
                from = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(line[from..].trim_ascii());
    parts
}

/// Weights and names in order, if all can be read (RFC 9110, sections 12.5.3 and 12.5.4), and there are not too many.
fn weighted(lines: &[&[u8]]) -> Option<Vec<(u16, Vec<u8>)>> {
    let members = lines.iter().flat_map(|line| between_commas(line)).filter(|part| !part.is_empty());
    let read = |member: &[u8]| {
        let text = str::from_utf8(member).ok()?.to_ascii_lowercase();
        let (name, weight) = match text.split_once(';') {
            None => (text.as_str(), "q=1"),
            Some((name, weight)) => (name.trim_ascii_end(), weight.trim_ascii_start()),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-*_.".contains(c);
        let (whole, thousandths) = match weight.strip_prefix("q=")?.split_once('.') {
            None => (weight.strip_prefix("q=")?, ""),
            Some(halves) => halves,
        };
        let digits = thousandths.bytes().all(|byte| byte.is_ascii_digit()) && thousandths.len() <= 3;
        let number: u16 = format!("{whole}{thousandths:0<3}").parse().ok()?;
        let fits = ["0", "1"].contains(&whole) && digits && number <= 1000;
        (fits && !name.is_empty() && name.chars().all(is_plain))
            .then(|| (1000 - number, name.as_bytes().to_vec()))
    };
    let mut weighted: Vec<_> = members.map(read).collect::<Option<_>>()?;
    weighted.sort();
    (1..=16).contains(&weighted.len()).then_some(weighted)
}
