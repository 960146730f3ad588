//! Classification of requests: the only place that decides what becomes of a request before anything stored is looked at.
//!
//! The proxy acts on the [`Disposition`] and `/explain` reports it. The fast path for hits responds to a subset of what is
//! classified as a [`Disposition::Route`] without a bypass.

use std::sync::Arc;

use http::{HeaderValue, Method, header::AUTHORIZATION};
use larder_policy::{
    Fields, HeaderKinds, NormalPath, Policy, Route, Writing, credentials, policy::RequestLine,
    range::RangeRequest, writing,
};

use super::request::Routed;
use crate::{
    cache_status::{Bypass, Forward},
    headers,
    http1_guard::RawTarget,
    purge::requests::is_purge,
    snapshot::Snapshot,
};

/// Treatment of a request.
#[derive(Debug)]
pub(super) enum Disposition {
    /// Goes no further than this sidecar.
    End(EndsHere),
    /// Passes, and asks the application to change to this protocol.
    Upgrade(HeaderValue),
    /// Passes, may ask to change to a protocol, and purges what it makes stale.
    Write { writing: Writing, protocol: Option<HeaderValue> },
    /// Passes without a route.
    Pass(Forward),
    /// Is looked up and stored by this route, unless there is a bypass.
    Route(Routed),
}

/// Reason why a request goes no further than this sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndsHere {
    /// Sent to the admin API, which the policy puts under the application's address.
    Admin,
    /// `CONNECT`: this is no proxy to connect through.
    Connect,
    /// `Max-Forwards` is 0 (RFC 9110, section 7.6.2).
    MaxForwards,
    /// Asks for a purge, which the policy permits to requests (`invalidation.requests`).
    Purge,
}

impl EndsHere {
    /// Returns the reason in the admin API's responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Connect => "connect",
            Self::MaxForwards => "max-forwards",
            Self::Purge => "purge",
        }
    }
}

/// A request as it is classified, without the fields of its connection.
pub(super) struct Request<'a, F> {
    pub(super) method: &'a Method,
    /// Host of an absolute target.
    pub(super) uri_host: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) fields: &'a F,
    /// True if it has a body that is not known to be empty.
    pub(super) has_content: bool,
    /// True if its target has bytes that RFC 3986 does not allow.
    pub(super) has_raw_target: bool,
    /// The protocol that it asked to change to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Classifies a request from which the fields of its connection were removed. `upgrade` is the protocol that those asked for.
pub(super) fn classify<B>(
    snapshot: &Snapshot,
    request: &http::Request<B>,
    upgrade: Option<HeaderValue>,
    has_content: bool,
) -> Disposition {
    let request = Request {
        method: request.method(),
        uri_host: request.uri().authority().map(|authority| authority.as_str()),
        path: request.uri().path(),
        query: request.uri().query(),
        fields: request.headers(),
        has_content,
        has_raw_target: request.extensions().get::<RawTarget>().is_some(),
        upgrade,
    };
    classify_fields(snapshot, request)
}

/// Classifies a request in any representation.
pub(super) fn classify_fields<F: Fields>(snapshot: &Snapshot, request: Request<'_, F>) -> Disposition {
    let Request { method, uri_host, query, fields, .. } = request;
    if *method == Method::CONNECT {
        return Disposition::End(EndsHere::Connect);
    }
    let path = NormalPath::new(request.path);
    if path_in_admin(snapshot.policy(), &path).is_some() {
        return Disposition::End(EndsHere::Admin);
    }
    if snapshot.policy().purge_requests.is_some() && is_purge(method) {
        return Disposition::End(EndsHere::Purge);
    }
    let found = snapshot.policy().route(&RequestLine { method, uri_host, path: &path, query }, fields);
    let may_be_stored = found.is_some_and(|found| !found.route.passes());
    let protocol =
        request.upgrade.filter(|protocol| is_taken_at_its_word(snapshot.policy(), protocol, may_be_stored));
    if let Some(protocol) = protocol.as_ref().filter(|_| writing::is_safe(method)) {
        return Disposition::Upgrade(protocol.clone());
    }
    if headers::forwards_left(method, fields) == Some(0) {
        return Disposition::End(EndsHere::MaxForwards);
    }
    if let Some(mut writing) = Writing::of(method, request.path, query, fields)
        && (!may_be_stored || writing.is_disguised())
    {
        snapshot.policy().read_head(&mut writing, query, fields);
        return Disposition::Write { writing, protocol };
    }
    if let Some(bypass) = snapshot.mode().bypass() {
        return Disposition::Pass(Forward::Bypass(bypass));
    }
    let Some(found) = found else {
        return Disposition::Pass(without_route(method, &path));
    };
    let kinds = HeaderKinds::under(fields, snapshot.policy().identity_headers());
    let bypass = if request.has_raw_target {
        Some(Bypass::Target)
    } else {
        let (route, is_post) = (found.route, *method == Method::POST);
        not_for_the_cache(snapshot, route, query, fields, &kinds)
            .or((is_post && kinds.is_conditional()).then_some(Bypass::Precondition))
            .or((!(is_post && route.body_limit().is_some()) && request.has_content)
                .then_some(Bypass::Content))
    };
    Disposition::Route(Routed { route: Arc::clone(found.route), kinds, bypass })
}

/// Returns the path of a request's target, and the query behind it.
pub(super) fn path_and_query(target: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'?', target.as_bytes()) {
        Some(end) => (&target[..end], Some(&target[end + 1..])),
        None => (target, None),
    }
}

/// Returns the path of a request within the admin API if the policy puts that under the application's address.
pub(super) fn path_in_admin<'p>(policy: &Policy, path: &'p NormalPath<'_>) -> Option<&'p str> {
    let rest = path.as_str().strip_prefix(policy.admin_prefix.as_deref()?)?;
    if rest.is_empty() { Some("/") } else { rest.starts_with('/').then_some(rest) }
}

/// Reports whether a request that asks for a protocol may change to it. A request of a route that stores stays what it is whatever
/// protocol it asks for: a server may ignore that (RFC 9110, section 7.8), and some clients ask with every request. WebSockets come
/// on any path.
fn is_taken_at_its_word(policy: &Policy, protocol: &HeaderValue, may_be_stored: bool) -> bool {
    let protocol = protocol.as_bytes();
    let in_passing = protocol.get(..4).is_some_and(|name| name.eq_ignore_ascii_case(b"TLS/"));
    protocol.eq_ignore_ascii_case(b"websocket") || !may_be_stored || policy.is_bare() && !in_passing
}

/// Returns the reason why a request passes that no route takes.
pub(super) fn without_route(method: &Method, path: &NormalPath<'_>) -> Forward {
    match *method {
        Method::GET | Method::HEAD if path.is_ambiguous() => Forward::Bypass(Bypass::AmbiguousPath),
        Method::GET | Method::HEAD => Forward::Bypass(Bypass::NoRoute),
        _ => Forward::Method,
    }
}

/// Returns the reason why a request of a route is neither looked up nor stored, whatever its content.
pub(super) fn not_for_the_cache(
    snapshot: &Snapshot,
    route: &Route,
    query: Option<&str>,
    fields: &impl Fields,
    kinds: &HeaderKinds,
) -> Option<Bypass> {
    if let Some(by) = route.bypass(query, fields) {
        Some(by.into())
    } else if kinds.has_credentials() && !snapshot.policy().is_bare() && !only_authorizes(fields, route) {
        Some(Bypass::Credentials)
    } else if kinds.has_override() {
        Some(Bypass::Override)
    } else if kinds.is_conditional() && (fields.has("if-match") || fields.has("if-unmodified-since")) {
        Some(Bypass::Precondition)
    } else if kinds.has_range() && matches!(RangeRequest::of(fields), RangeRequest::Several) {
        Some(Bypass::Range)
    } else {
        None
    }
}

/// Reports whether nothing but `Authorization` carries credentials that the route neither keys nor ignores: RFC 9111, section 3.5,
/// says when the response may be shared.
fn only_authorizes(fields: &impl Fields, route: &Route) -> bool {
    let named = |name: &[u8]| {
        credentials::is_identity(name, &route.key)
            && !name.eq_ignore_ascii_case(AUTHORIZATION.as_str().as_bytes())
    };
    let mut names = fields.lines().map(|(name, _)| name).filter(|name| named(name));
    names.all(|name| credentials::is_settled(name, &route.key))
}
