//! What a 304 does to a stored answer, and what one of ours carries.

use http::{
    HeaderMap, HeaderName,
    header::{
        AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        DATE, ETAG, LAST_MODIFIED, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use super::{is_weak, strong_match, weak_match};
use crate::{cache_control::members, storing::is_for_proxies};

/// Digests of a body, or of what it is a part of (RFC 9530; RFC 1864).
const DIGESTS: [HeaderName; 4] = [
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

/// Whether a 304 is about a stored answer (RFC 9111, section 4.3.4): its strong validator is that of the stored one; or it has
/// none that is strong, and a weak one is that of the stored one. One without any answers the condition that we sent, which
/// named nothing but the stored one.
pub fn selects(not_modified: &HeaderMap, stored: &HeaderMap) -> bool {
    if let Some(tag) = not_modified.get(ETAG) {
        let compare = if is_weak(tag.as_bytes()) { weak_match } else { strong_match };
        return match stored.get(ETAG) {
            Some(stored) => compare(tag.as_bytes(), stored.as_bytes()),
            // Nothing stored has that strong validator; a weak one leaves the date to decide.
            None => is_weak(tag.as_bytes()) && same_date(not_modified, stored),
        };
    }
    !not_modified.contains_key(LAST_MODIFIED) || same_date(not_modified, stored)
}

fn same_date(not_modified: &HeaderMap, stored: &HeaderMap) -> bool {
    let date = stored.get(LAST_MODIFIED);
    date.is_some() && date == not_modified.get(LAST_MODIFIED)
}

/// The stored headers with those of a 304 in place of their like (RFC 9111, section 3.2). What is in memory of the connection
/// still must be copied (`storing::kept_headers`).
///
/// Not taken are:
/// - `Content-Length`, by name;
/// - what must not be stored (section 3.1): fields of the connection, and between a client and a proxy;
/// - what "the stored response depends upon": `Content-Encoding`, `Content-Range` and digests say how to read the bytes that
///   are stored, and a 304 changes no byte; another `ETag`, which would name them by a name that they do not have: the 304 was
///   matched to this one (section 4.3.4). One where there was none is taken;
/// - `Set-Cookie`, unless there is one already: it is stored only by a route that says so, and a 304 is no way around that.
///
/// `Age` and `Date` of the stored answer go in any case: they say when it was made, and a 304 is that moment again (section
/// 5.1 counts from when it "was generated or successfully validated at the origin server").
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
    !of_the_bytes && !of_the_connection && !refused && !DIGESTS.contains(name) && !is_for_proxies(name)
}

/// What a 304 carries of a stored answer (RFC 9110, section 15.4.5): all but what describes a body that it does not have. Of
/// that, `Content-Location` and `ETag` stay, and `Last-Modified` where there is no `ETag`.
pub fn not_modified_headers(stored: &HeaderMap) -> HeaderMap {
    let mut headers = stored.clone();
    let described = [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE];
    for name in described.iter().chain(&DIGESTS) {
        headers.remove(name);
    }
    if headers.contains_key(ETAG) {
        headers.remove(LAST_MODIFIED);
    }
    headers
}
