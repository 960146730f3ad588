//! The update of a stored response by a 304, and the headers of a generated 304.

use http::{
    HeaderMap, HeaderName,
    header::{
        AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, LAST_MODIFIED,
        SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use super::{is_weak, strong_match, weak_match};
use crate::{
    cache_control::members,
    fields::{Fields, is_named},
    storing::is_kept,
};

/// Digests of a body, or of the representation that it is a part of (RFC 9530; RFC 1864).
static DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Fields of the connection (RFC 9110, section 7.6.1), which are never stored (RFC 9111, section 3.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Returns true if a 304 selects a stored response (RFC 9111, section 4.3.4): its strong validator equals the stored
/// one; or it has no strong one, and a weak one equals the stored one. A 304 without validators refers to the condition
/// that was sent, which named only the stored response.
pub fn selects(not_modified: &impl Fields, stored: &(impl Fields + ?Sized)) -> bool {
    if let Some(tag) = not_modified.value(ETAG.as_str()) {
        let compare = if is_weak(tag) { weak_match } else { strong_match };
        return match stored.value(ETAG.as_str()) {
            Some(stored) => compare(tag, stored),
            // Nothing stored has that strong validator; a weak one leaves the date to decide.
            None => is_weak(tag) && same_date(not_modified, stored),
        };
    }
    !not_modified.has(LAST_MODIFIED.as_str()) || same_date(not_modified, stored)
}

fn same_date(not_modified: &impl Fields, stored: &(impl Fields + ?Sized)) -> bool {
    let date = stored.value(LAST_MODIFIED.as_str());
    date.is_some() && date == not_modified.value(LAST_MODIFIED.as_str())
}

/// Returns the stored headers updated by those of a 304 (RFC 9111, section 3.2). Values share the memory of both.
///
/// Excluded are:
/// - `Content-Length`, by name;
/// - fields that must not be stored (section 3.1): those of the connection, and between a client and a proxy;
/// - fields that "the stored response depends upon": `Content-Encoding`, `Content-Range` and digests describe the
///   stored bytes, and a 304 changes no byte; a different `ETag`, because the 304 was matched to the stored one
///   (section 4.3.4). An `ETag` where there was none is taken;
/// - `Set-Cookie`, unless one is stored already: only a route with `setCookie: Store` stores it, and a 304 must not
///   circumvent that.
///
/// `Age` and `Date` of the stored response are dropped in any case: they state when it was generated, and a 304 resets
/// that (section 5.1 counts from the time when it "was generated or successfully validated at the origin server").
pub fn freshen(stored: &HeaderMap, newer: &HeaderMap) -> HeaderMap {
    let mut fresh = stored.clone();
    fresh.remove(AGE);
    fresh.remove(DATE);
    for name in newer.keys().filter(|name| replaces(name, stored, newer)) {
        fresh.remove(name);
        for value in newer.get_all(name) {
            fresh.append(name.clone(), value.clone());
        }
    }
    fresh
}

fn replaces(name: &HeaderName, stored: &HeaderMap, newer: &HeaderMap) -> bool {
    let of_the_bytes = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE].contains(name);
    let mut named = newer.get_all(CONNECTION).iter().flat_map(|line| members(line.as_bytes()));
    let of_the_connection =
        HOP_BY_HOP.contains(name) || named.any(|named| named.eq_ignore_ascii_case(name.as_str().as_bytes()));
    let refused = match *name {
        ETAG => stored.contains_key(ETAG),
        SET_COOKIE => !stored.contains_key(SET_COOKIE),
        _ => false,
    };
    !of_the_bytes
        && !of_the_connection
        && !refused
        && !DIGESTS.contains(name)
        && is_kept(name.as_str().as_bytes())
}

/// Returns true if a 304 for a stored response has the field of this name (RFC 9110, section 15.4.5): all but those that
/// describe the absent body. Of these, `Content-Location` and `ETag` stay, and `Last-Modified` if there is no `ETag`.
pub fn is_in_not_modified(name: &[u8], has_tag: bool) -> bool {
    // The length tells of most other fields.
    !match name.len() {
        6 => is_named(name, b"digest"),
        11 => is_named(name, b"content-md5") || is_named(name, b"repr-digest"),
        12 => is_named(name, b"content-type"),
        13 => is_named(name, b"content-range") || has_tag && is_named(name, b"last-modified"),
        14 => is_named(name, b"content-length") || is_named(name, b"content-digest"),
        16 => is_named(name, b"content-encoding") || is_named(name, b"content-language"),
        _ => false,
    }
}

/// Returns the field lines of a 304 for a stored response.
pub fn not_modified_lines(stored: &(impl Fields + ?Sized)) -> impl Iterator<Item = (&[u8], &[u8])> {
    let has_tag = stored.has(ETAG.as_str());
    stored.lines().filter(move |(name, _)| is_in_not_modified(name, has_tag))
}

/// Returns the headers of a 304 for a stored response.
pub fn not_modified_headers(stored: &HeaderMap) -> HeaderMap {
    let has_tag = stored.contains_key(ETAG);
    let lines = stored.iter().filter(|(name, _)| is_in_not_modified(name.as_str().as_bytes(), has_tag));
    let mut headers = HeaderMap::with_capacity(stored.len());
    for (name, value) in lines {
        headers.append(name, value.clone());
    }
    headers
}
