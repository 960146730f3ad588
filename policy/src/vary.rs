//! Which requests an answer is for (RFC 9111, section 4.1).

use std::fmt::Write;

use http::{
    HeaderMap, HeaderName,
    header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, COOKIE, FORWARDED, VARY, VIA},
};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::{
    cache_control::{members, split_at_commas},
    fields::Fields,
};

mod canonical;
mod weights;

pub use self::canonical::canonicalise;

/// Headers that are added to on the way to the origin: what it saw is not what the client sent.
const CHANGED_HERE: [HeaderName; 3] = [FORWARDED, VIA, HeaderName::from_static("x-forwarded-for")];

/// Fields of requests whose own syntax is a list: white space around its commas means nothing (RFC 9110, section 5.6.1; RFC
/// 7240; RFC 9651; the Fetch standard).
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

/// What must not be in the text of a value as it is.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// The names that `Vary` lists on all its lines, sorted, each once (RFC 9110, section 12.5.5). A response with a
/// `Content-Encoding` counts as one that varies by `Accept-Encoding`: not every application that compresses says so. `None`: no
/// request is like another, because one of them is `*`, can't be read, or names a header that is changed here.
pub fn names(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let names: Option<Vec<HeaderName>> = listed(headers).collect();
    names.map(sorted).filter(|names| !names.iter().any(|name| CHANGED_HERE.contains(name)))
}

/// The names under which an answer is stored that may be: all, or those that requests can be told apart by, where its route
/// stores in spite of the others.
pub fn names_to_store(headers: &HeaderMap) -> Vec<HeaderName> {
    names(headers).unwrap_or_else(|| usable_names(headers))
}

/// Those of the names that requests can be told apart by, for a route that stores in spite of the others.
pub(crate) fn usable_names(headers: &HeaderMap) -> Vec<HeaderName> {
    sorted(listed(headers).flatten().filter(|name| !CHANGED_HERE.contains(name)).collect())
}

fn listed(headers: &HeaderMap) -> impl Iterator<Item = Option<HeaderName>> {
    let lines = headers.get_all(VARY).iter();
    // `*` is a token, and so a name that the parser takes.
    let by_coding = is_encoded(headers).then_some(Some(ACCEPT_ENCODING));
    lines
        .flat_map(|line| members(line.as_bytes()))
        .map(|name| HeaderName::from_bytes(name).ok().filter(|_| name != b"*"))
        .chain(by_coding)
}

/// Returns true if the body has a coding that a client may not know (RFC 9110, section 8.4).
fn is_encoded(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CONTENT_ENCODING).iter();
    lines.flat_map(|line| members(line.as_bytes())).any(|coding| !coding.eq_ignore_ascii_case(b"identity"))
}

fn sorted(mut names: Vec<HeaderName>) -> Vec<HeaderName> {
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names
}

/// Appends the part of a variant's key that the selecting headers make: for each a line with its name and, if the request
/// has it, its value.
///
/// Requests that differ only in what section 4.1 lets a cache normalise have one text: lines are joined (RFC 9110, section
/// 5.3), those of `Cookie` as its pairs are (RFC 9113, section 8.2.3); white space around the commas of a field that is a list
/// goes (but not inside quotes); and the members of `Accept-Language` and `Accept-Encoding` are in lower case and in the order of
/// their weights. Any two others have different ones. Absent is not the same as empty.
///
/// Of a field whose syntax is not known to be a list only the ends are trimmed, for a comma may be text in it, as in many a
/// `User-Agent`. The public test suite has an optional test that wants `Foo: 1,2` and `Foo:  1, 2 ` to be one; section 4.1
/// lets a cache do that only where it is known to change nothing.
pub fn write_variant(into: &mut String, names: &[HeaderName], fields: &(impl Fields + ?Sized)) {
    for name in names {
        into.push('\n');
        into.push_str(name.as_str());
        let is_weighted = [ACCEPT_LANGUAGE, ACCEPT_ENCODING].contains(name);
        if is_weighted && weights::write(into, name.as_str(), fields) {
            continue;
        }
        let is_list = LISTS.contains(&name.as_str());
        let between = match *name {
            COOKIE => "; ",
            _ if is_list => ",",
            // As whoever joins lines writes them.
            _ => ", ",
        };
        let mut separator = "=";
        for value in fields.values(name.as_str()) {
            into.push_str(separator);
            separator = between;
            write_value(into, value, is_list);
        }
    }
}

/// A value without the white space at its ends and, of a list, around its commas.
fn write_value(into: &mut String, value: &[u8], is_list: bool) {
    // Most values are like this: nothing to trim, nothing to escape.
    let plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'%';
    let has_no = |byte: u8| !value.contains(&byte);
    if value.iter().all(plain) && (!is_list || has_no(b',') || has_no(b' ')) {
        into.push_str(str::from_utf8(value.trim_ascii()).expect("it is ASCII"));
        return;
    }
    if !is_list {
        into.extend(percent_encode(value.trim_ascii(), ESCAPED));
        return;
    }
    for (at, part) in split_at_commas(value).enumerate() {
        if at > 0 {
            into.push(',');
        }
        into.extend(percent_encode(part.trim_ascii(), ESCAPED));
    }
}

/// Appends a number in decimal.
fn write_number(into: &mut String, number: u16) {
    write!(into, "{number}").expect("a String takes whatever is written to it");
}

#[cfg(test)]
mod tests;
