//! The rules for storing responses (RFC 9111, section 3).

use http::{
    HeaderName, Method, StatusCode,
    header::{CONTENT_LENGTH, SET_COOKIE},
};

use crate::{
    fields::{Fields, is_named},
    freshness,
    lifetimes::{Lifetimes, counted_as},
    range::ContentRange,
    response_meta::{ResponseMeta, is_heuristically_cacheable},
    spec::SetCookie,
    statuses::is_about_one_request,
    vary,
};

mod reason;
#[cfg(test)]
mod tests;

pub use reason::NotStored;

/// The properties of a request that decide whether its response may be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// `GET` or `HEAD`, or `POST` where a route has its body in the key.
    pub method: Method,
    /// True if the request has `Authorization`, which the route neither keys nor ignores.
    pub authorization: bool,
    /// True if the request identifies a user in a way that the route neither keys nor ignores.
    pub has_credentials: bool,
    /// True if the client forbids storing: `no-store` (section 5.2.1.5), where its directives are honoured.
    pub no_store: bool,
    /// True if the request was forwarded with `Range`: a response that is neither the part nor the whole may refer to
    /// the range.
    pub has_range: bool,
}

/// Returns the names in `Vary`, sorted and unique, if the response may be stored.
///
/// # Errors
/// The reason that it must not be stored.
pub fn storable(
    facts: &RequestFacts,
    status: StatusCode,
    headers: &impl Fields,
    meta: &ResponseMeta,
    lifetimes: &Lifetimes,
) -> Result<Vec<HeaderName>, NotStored> {
    let despite = lifetimes.store_despite;
    let directives = meta.directives();
    if ![Method::GET, Method::HEAD, Method::POST].contains(&facts.method) {
        return Err(NotStored::Method);
    }
    if facts.no_store {
        return Err(NotStored::RequestNoStore);
    }
    check_status(facts, status, meta, lifetimes)?;
    if status == StatusCode::PARTIAL_CONTENT {
        check_part(facts, headers)?;
    }
    // Whoever understands the status ignores no-store beside must-understand (section 5.2.2.3).
    if directives.no_store && !directives.must_understand && !despite.no_store {
        return Err(NotStored::NoStore);
    }
    if directives.private && !despite.private {
        return Err(NotStored::Private);
    }
    // Section 3.5: one of these says that the answer to somebody who is authorized is for everybody.
    let for_everybody = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if facts.authorization && !for_everybody {
        return Err(NotStored::Authorization);
    }
    if headers.has(SET_COOKIE.as_str()) && lifetimes.set_cookie == SetCookie::Refuse {
        return Err(NotStored::SetCookie);
    }
    let vary = match vary::names(headers) {
        Some(names) => names,
        None if despite.vary_any => vary::usable_names(headers),
        None => return Err(NotStored::VaryAny),
    };
    check_use(facts, meta, lifetimes)?;
    Ok(vary)
}

/// Checks the status (section 3): final; understood, if that is required; and cacheable, by itself or by an explicit
/// directive. A status that refers to other properties of the request is never stored.
fn check_status(
    facts: &RequestFacts,
    status: StatusCode,
    meta: &ResponseMeta,
    lifetimes: &Lifetimes,
) -> Result<(), NotStored> {
    let is_final = (200..600).contains(&status.as_u16()) && status != StatusCode::NOT_MODIFIED;
    let is_for_all = !is_about_one_request(status)
        && (!facts.has_range || [StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&status));
    let stays_unknown = meta.directives().must_understand && !is_understood(status);
    let said_so = meta.is_explicit()
        || meta.directives().public
        || is_heuristically_cacheable(status)
        || freshness::ttl(meta, lifetimes).is_some();
    let by_route = lifetimes.stores(counted_as(status)).unwrap_or(true);
    let is_stored = is_final && is_for_all && !stays_unknown && said_so && by_route;
    if is_stored { Ok(()) } else { Err(NotStored::Status) }
}

/// Returns true for the final statuses of RFC 9110, section 15, whose meaning for a cache is known.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=206 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505
    )
}

/// Checks that a part states its position in the whole (section 3.3; RFC 9110, section 15.3.7.1), and is itself
/// complete. A response with several parts states this inside the body, which is not parsed.
fn check_part(facts: &RequestFacts, headers: &impl Fields) -> Result<(), NotStored> {
    let range = ContentRange::of(headers).filter(|range| range.total.is_some());
    let mut lengths = headers.values(CONTENT_LENGTH.as_str());
    let fits = |range: ContentRange| lengths.all(|length| length == range.length().to_string().as_bytes());
    if facts.method == Method::GET && range.is_some_and(fits) { Ok(()) } else { Err(NotStored::ContentRange) }
}

/// Checks that a response is fresh for a moment, can be validated, or may be served stale.
fn check_use(facts: &RequestFacts, meta: &ResponseMeta, lifetimes: &Lifetimes) -> Result<(), NotStored> {
    let said = meta.is_explicit() || freshness::ttl(meta, lifetimes).is_some();
    // A guess is good enough for what nobody in particular asked for; and POST needs it said (RFC 9110, section 9.3.3).
    if !said && (facts.has_credentials || facts.method == Method::POST) {
        return Err(NotStored::NoLifetime);
    }
    match freshness::is_of_use(meta, lifetimes) || meta.has_validator() {
        true => Ok(()),
        false if said => Err(NotStored::Stale),
        false => Err(NotStored::NoLifetime),
    }
}

/// Returns true for fields that a shared cache stores (section 3.1): all but those between a client and a proxy. Those of one
/// connection are already gone.
pub fn is_kept(name: &[u8]) -> bool {
    match name.len() {
        18 => !is_named(name, b"proxy-authenticate"),
        19 => !is_named(name, b"proxy-authorization"),
        25 => !is_named(name, b"proxy-authentication-info"),
        _ => true,
    }
}
