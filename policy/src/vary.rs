//! Selection of variants by `Vary` (RFC 9111, section 4.1).

use std::fmt::Write;

use http::{
    HeaderName,
    header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, COOKIE, FORWARDED, VARY, VIA},
};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::{
    cache_control::{members, split_at_commas},
    fields::{Fields, is_named},
};

mod canonical;
mod weights;

pub use self::canonical::{are_canonical, canonicalise};

/// Headers that are extended on the way to the origin, whose value there differs from the client's.
const CHANGED_HERE: [HeaderName; 3] = [FORWARDED, VIA, HeaderName::from_static("x-forwarded-for")];

/// Request fields whose syntax is a list: white space around the commas is insignificant (RFC 9110, section 5.6.1; RFC
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

/// Characters that are escaped in the text of a value.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Returns the names that `Vary` lists on all its lines, sorted and unique (RFC 9110, section 12.5.5). A response with
/// a `Content-Encoding` is treated as varying by `Accept-Encoding`, because not every application that compresses
/// declares it. `None`: the response matches no other request, because one of the names is `*`, is invalid, or is a
/// header that changes here.
pub fn names(headers: &(impl Fields + ?Sized)) -> Option<Vec<HeaderName>> {
    // Most responses have neither field that is looked at.
    if !headers.lines().any(|(name, _)| is_named(name, b"vary") || is_named(name, b"content-encoding")) {
        return Some(vec![]);
    }
    let names: Option<Vec<HeaderName>> = listed(headers).collect();
    names.map(sorted).filter(|names| !names.iter().any(|name| CHANGED_HERE.contains(name)))
}

/// Returns the names under which a storable response is stored: all, or the distinguishable ones if its route overrides
/// the others.
pub fn names_to_store(headers: &(impl Fields + ?Sized)) -> Vec<HeaderName> {
    names(headers).unwrap_or_else(|| usable_names(headers))
}

/// Returns the names by which requests can be distinguished, for a route that overrides the others.
pub(crate) fn usable_names(headers: &(impl Fields + ?Sized)) -> Vec<HeaderName> {
    sorted(listed(headers).flatten().filter(|name| !CHANGED_HERE.contains(name)).collect())
}

fn listed(headers: &(impl Fields + ?Sized)) -> impl Iterator<Item = Option<HeaderName>> {
    let lines = headers.values(VARY.as_str());
    // `*` is a token, and so a name that the parser takes.
    let by_coding = is_encoded(headers).then_some(Some(ACCEPT_ENCODING));
    lines
        .flat_map(members)
        .map(|name| HeaderName::from_bytes(name).ok().filter(|_| name != b"*"))
        .chain(by_coding)
}

/// Returns true if the body has a coding that a client may not know (RFC 9110, section 8.4).
fn is_encoded(headers: &(impl Fields + ?Sized)) -> bool {
    headers
        .values(CONTENT_ENCODING.as_str())
        .flat_map(members)
        .any(|coding| !coding.eq_ignore_ascii_case(b"identity"))
}

fn sorted(mut names: Vec<HeaderName>) -> Vec<HeaderName> {
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names
}

/// Appends the part of a variant's key that the selecting headers make: for each a line with its name and, if the
/// request has it, its value.
///
/// Requests that differ only in ways that section 4.1 lets a cache normalise have one text: lines are joined (RFC 9110,
/// section 5.3), those of `Cookie` as its pairs are (RFC 9113, section 8.2.3); white space around the commas of a list
/// field is removed (but not inside quotes); and the members of `Accept-Language` and `Accept-Encoding` are in lower
/// case and in the order of their weights. All other differences are preserved. An absent field differs from an empty
/// one.
///
/// A field that is not known to be a list is only trimmed at its ends, because a comma may be text in it, as in many a
/// `User-Agent`. The public test suite has an optional test that expects `Foo: 1,2` and `Foo:  1, 2 ` to be equal;
/// section 4.1 permits that only where it is known to change nothing.
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

/// Appends a value without the white space at its ends and, in a list, around its commas.
fn write_value(into: &mut String, value: &[u8], is_list: bool) {
    // Most values are like this: nothing to trim, nothing to escape.
    let plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'%';
    let has_no = |byte: u8| !value.contains(&byte);
    if value.iter().all(plain) && (!is_list || has_no(b',') || has_no(b' ')) {
        into.push_str(str::from_utf8(value.trim_ascii()).expect("only printable ASCII is left"));
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
    write!(into, "{number}").expect("writing to a String never fails");
}

#[cfg(test)]
mod tests;
