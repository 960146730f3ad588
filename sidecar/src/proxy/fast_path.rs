//! The fast path: hits in memory for plain GETs and HEADs, without the machinery of a request.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use larder_policy::{
    Fields, HeaderKinds, Key, NormalPath, Route, Writing,
    cache_control::RequestDirectives,
    credentials,
    freshness::State,
    key::{KeyParts, Spans},
    policy::RequestLine,
    writing,
};

use self::reply::Reply;
use super::{
    Proxy,
    classify::{not_for_the_cache, path_and_query, path_in_admin, without_route},
    request::Routed,
};
use crate::{
    cache_key::{PrimaryKey, hash_of},
    cache_status::{Forward, Tier, ttl_seconds},
    entry::MAX_COPIED,
    http1_guard::Head,
    mode::Mode,
    snapshot::Snapshot,
    stats::Outcome,
    tail::Answered,
};

mod http2;
mod reply;
#[cfg(test)]
mod tests;

pub use http2::FastPath2;
pub(super) use reply::StoredReply;

/// A request, and the room for its response.
#[derive(Debug)]
struct Asked<'a, L> {
    method: &'a str,
    target: &'a str,
    /// The host beside the field lines, over HTTP/2.
    uri_host: Option<&'a str>,
    lines: &'a L,
    /// Maximum lengths of a stored head in HTTP/1 form, and of a body.
    max_head: usize,
    max_body: usize,
    /// Maximum length of a body that is copied behind its head.
    max_copied: usize,
}

/// A plain request that memory could not serve at once, as [`super::classify::classify`] classifies it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) finding: Finding,
}

#[derive(Debug)]
pub(super) enum Finding {
    /// A GET of a route, with its key.
    Route(Routed, PrimaryKey),
    /// A request that no route takes.
    Pass(Forward),
}

/// A plain request of a route.
#[derive(Debug)]
struct Plain<'s> {
    method: Method,
    route: &'s Arc<Route>,
    kinds: HeaderKinds,
    spans: Spans,
    /// Hash of the key.
    hash: u64,
}

/// Responds to plain GETs and HEADs from whole, fresh responses in memory. Every other request takes the slow path.
#[derive(Debug)]
pub struct FastPath {
    proxy: Arc<Proxy>,
    /// Key of the last plain request.
    key: String,
    /// Buffer for keys of variants.
    variant: String,
    /// Findings about the last request, if it is plain and got no response.
    found: Option<Found>,
}

impl FastPath {
    /// Creates the fast path of one connection.
    pub fn new(proxy: Arc<Proxy>) -> Self {
        Self { proxy, key: String::new(), variant: String::new(), found: None }
    }

    /// Writes the whole response, and returns the part of its body that follows.
    pub(super) fn find(&mut self, head: &Head<'_>, output: &mut Vec<u8>) -> Option<Bytes> {
        let Head { method, target, lines, is_http11, .. } = head;
        let asked = Asked {
            method,
            target,
            uri_host: None,
            lines,
            max_head: usize::MAX,
            max_body: usize::MAX,
            max_copied: MAX_COPIED,
        };
        self.found = None;
        if !is_http11 {
            return None;
        }
        let snapshot = self.proxy.config.snapshot_guard();
        let plain = match self.plain(&snapshot, &asked) {
            Ok(plain) => plain,
            Err(passes) => {
                self.found = passes
                    .map(|reason| Found { snapshot: Arc::clone(&snapshot), finding: Finding::Pass(reason) });
                return None;
            }
        };
        let body = self.hit(&snapshot, &asked, &plain, output);
        if body.is_none() && plain.method == Method::GET {
            let Plain { route, kinds, spans, hash, .. } = plain;
            let routed = Routed { route: Arc::clone(route), kinds, bypass: None };
            let key = PrimaryKey::hashed(Key::of(&self.key, spans), hash);
            self.found =
                Some(Found { snapshot: Arc::clone(&snapshot), finding: Finding::Route(routed, key) });
        }
        body
    }

    /// Returns the findings about the last request, if it is plain and got no response.
    pub(super) fn take_found(&mut self) -> Option<Found> {
        self.found.take()
    }

    fn respond_to(&mut self, asked: &Asked<'_, impl Fields>, output: &mut Vec<u8>) -> Option<Bytes> {
        let snapshot = self.proxy.config.snapshot_guard();
        let plain = self.plain(&snapshot, asked).ok()?;
        self.hit(&snapshot, asked, &plain, output)
    }

    /// Classifies a plain request, and writes its key into the buffer.
    ///
    /// # Errors
    /// The reason why a plain request passes that no route takes; `None` for a request that is not plain.
    fn plain<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        asked: &Asked<'_, impl Fields>,
    ) -> Result<Plain<'s>, Option<Forward>> {
        let method = match asked.method {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            _ => return Err(None),
        };
        if !asked.target.starts_with('/') || self.proxy.drain.is_on() {
            return Err(None);
        }
        let kinds = HeaderKinds::under(asked.lines, snapshot.policy().identity_headers());
        let is_plain = !(kinds.has_content() || kinds.has_connection() && !only_keeps_alive(asked.lines));
        if snapshot.mode() != Mode::Serving || !is_plain {
            return Err(None);
        }
        let (path, query) = path_and_query(asked.target);
        // The key may leave the parameter out.
        if query.is_some_and(writing::is_disguised_by) {
            return Err(None);
        }
        let (sent, path) = (path, NormalPath::new(path));
        if path_in_admin(snapshot.policy(), &path).is_some() {
            return Err(None);
        }
        let line = RequestLine { method: &method, uri_host: asked.uri_host, path: &path, query };
        let Some(found) = snapshot.policy().route(&line, asked.lines) else {
            // A field may name another method, which makes the request a write.
            let is_write = Writing::of(&method, sent, query, asked.lines).is_some();
            return Err((!is_write).then(|| without_route(&method, &path)));
        };
        let route = found.route;
        if route.envelope {
            return Err(None);
        }
        let asks_caches = route.honor_request_directives && kinds.has_directives();
        // RFC 9111, section 3.5, is for the slow path.
        let authorizes = kinds.has_authorization() && !credentials::is_settled("authorization", &route.key);
        if asks_caches
            || authorizes && !snapshot.policy().is_bare()
            || not_for_the_cache(snapshot, route, query, asked.lines, &kinds).is_some()
        {
            return Err(None);
        }
        // The response to GET is also that to HEAD.
        let parts = KeyParts {
            method: &Method::GET,
            target: self.proxy.target,
            uri_host: asked.uri_host,
            path: &path,
            query,
            body: None,
        };
        let spans = Key::write(&mut self.key, &parts, asked.lines, &kinds, &route.key);
        Ok(Plain { method, route, kinds, spans, hash: hash_of(&self.key) })
    }

    /// Responds with a fresh response in memory.
    fn hit(
        &mut self,
        snapshot: &Snapshot,
        asked: &Asked<'_, impl Fields>,
        plain: &Plain<'_>,
        output: &mut Vec<u8>,
    ) -> Option<Bytes> {
        let Plain { method, route, kinds, hash, .. } = plain;
        let entry = snapshot.store.find((*hash, &self.key), &mut self.variant, asked.lines).ok()?;
        let body = entry.body()?;
        let barriers = &snapshot.store.barriers;
        if entry.is_purged(barriers) {
            return None;
        }
        let freshness = entry.freshness(&route.lifetimes, &RequestDirectives::default(), barriers);
        let lifetimes = &route.lifetimes;
        if !freshness.state.serves_now()
            || freshness.state.refreshes()
            || lifetimes.l1_ttl.is_some_and(|most| entry.here_for() >= most)
        {
            return None;
        }
        if let State::Fresh { ttl } = freshness.state
            && lifetimes.early_refresh
            && entry.is_renewed_early(ttl)
        {
            entry.ask_for_renewal();
            return None;
        }
        let reply = Reply::of(method, asked.lines, *kinds, &entry, body)?;
        let stored = entry.sent_fields().as_bytes().len();
        let bytes = reply.bytes(body);
        if stored > asked.max_head || bytes.len() > asked.max_body {
            return None;
        }
        let mut number = itoa::Buffer::new();
        output.reserve(stored + 192 + bytes.len().min(asked.max_copied));
        reply.write_head(&entry, output);
        output.extend_from_slice(b"age: ");
        output.extend_from_slice(number.format(freshness.age.as_secs()).as_bytes());
        output.extend_from_slice(b"\r\ncache-status: larder; hit; ttl=");
        output.extend_from_slice(number.format(ttl_seconds(freshness.state)).as_bytes());
        output.extend_from_slice(b"; detail=l1\r\n\r\n");
        snapshot.route_stats(Some(route)).answered(Outcome::Hit, Tier::L1);
        tracing::debug!(method = asked.method, uri = asked.target, "request");
        let status = reply.status(entry.status()).as_u16();
        let shown = Answered {
            route: Some(&route.name),
            outcome: Outcome::Hit,
            tier: Tier::L1,
            status,
            forward: None,
            not_stored: None,
            took: None,
        };
        self.proxy.telemetry.tails.show_at_once(asked.method, asked.target, &shown);
        tracing::debug!(route = route.name, tier = "l1", status, "hit");
        if bytes.len() > asked.max_copied {
            return Some(body.slice(bytes));
        }
        output.extend_from_slice(&body[bytes]);
        Some(Bytes::new())
    }
}

/// Returns true if the connection's own header fields only keep it alive.
fn only_keeps_alive(lines: &impl Fields) -> bool {
    let others = ["upgrade", "te", "expect", "keep-alive", "proxy-connection"];
    lines.values("connection").all(|value| value.eq_ignore_ascii_case(b"keep-alive"))
        && !others.iter().any(|name| lines.has(name))
}
