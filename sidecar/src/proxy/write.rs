//! Writes, and the stored responses that they invalidate (RFC 9111, section 4.4).

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LOCATION, HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE},
    request::Parts,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use larder_policy::{
    Fields, HeaderKinds, NormalPath, Policy, PurgeName, Writing,
    key::path_of,
    policy::{RequestLine, WritePurges},
    response_meta::Times,
    spec::OnPurgeFailure,
    writing::is_plain_json,
};

use super::{
    Client, Proxy, Served,
    deadline::LATE_WRITE_TIMEOUT,
    fetch::{Fetch, Purpose},
    forward::{changed_protocol, copied_body, passed, unreachable},
    received::Received,
    request::{CacheRequest, Routed},
    told,
};
use crate::{
    barriers::{Covered, Stamp},
    body::{IncomingBody, Paced},
    cache_status::Forward,
    clock::wall_ms,
    outlive::Outliving,
    problem::Problem,
    snapshot::Snapshot,
    upstream::{BodyCopy, UpstreamError, WhenRefused},
};

impl Proxy {
    /// Passes a write on, with `protocol` as one to change to. The purge comes before the response leaves, and even if the client has
    /// left. A write whose response is late goes on without its client, and purges again.
    pub(super) async fn write(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        request: Request<Incoming>,
        client: Client,
        writing: Writing,
        protocol: Option<(HeaderValue, OnUpgrade)>,
    ) -> Box<Served> {
        if !self.may_write(snapshot, &writing).await {
            return Served::problem(Problem::NotPurgeable, None);
        }
        let (proxy, snapshot_then) = (Arc::clone(self), Arc::clone(snapshot));
        let from = client.clone();
        let mut posted = self.posted(snapshot, &request, &client);
        let (asked, from_client) = protocol.unzip();
        let written = async move {
            let target = Target::of(request.uri(), request.headers());
            let limit = body_limit(snapshot_then.policy(), &writing, request.headers());
            let body = limit.map(|limit| BodyCopy::new(limit, &proxy.telemetry.stats.budget));
            let request = request.map(|content| copied_body(content, body.as_ref()));
            let write = Write { snapshot: snapshot_then, writing, target, body, is_of_response: false };
            let requested_at = wall_ms();
            let may_change_protocol = asked.is_some();
            let mut exchange = proxy.begin(request, &from, asked, WhenRefused::Retry);
            let outcome = proxy.response_to(&mut exchange, may_change_protocol).await;
            if let Err(error) = &outcome
                && !error.may_have_been_sent()
            {
                return outcome
                    .map(|response| (response, Times { requested_at, received_at: requested_at }, None));
            }
            let times = Times { requested_at, received_at: wall_ms() };
            if let Some(posted) = &mut posted {
                posted.responded();
            }
            write.purge(&proxy, outcome.as_ref().ok()).await;
            if let Some(posted) = &mut posted {
                posted.purged();
            }
            if matches!(outcome, Err(UpstreamError::Timeout(_)))
                && let Some(late) = proxy.telemetry.stats.budget.late_write()
            {
                tokio::spawn(async move {
                    let _in_progress = (from, late);
                    let response = exchange.late_head(LATE_WRITE_TIMEOUT).await;
                    write.purge(&proxy, response.as_ref()).await;
                });
            }
            outcome.map(|response| (response, times, posted))
        };
        match Outliving::new(written, |written| async { drop(written.await) }).await {
            Ok((response, times, posted)) => {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS
                    && let Some(from_client) = from_client
                {
                    return changed_protocol(from_client, response, &client);
                }
                match posted.filter(|posted| posted.may_be_stored(&response)) {
                    Some(posted) => posted.deliver_for_get(response, times),
                    None => passed(snapshot, response, Forward::Method, None),
                }
            }
            Err(error) => unreachable(&error, &client, None),
        }
    }

    /// Returns true if nothing keeps a write from being sent: it need not hold, or its purge can be made to.
    async fn may_write(&self, snapshot: &Snapshot, writing: &Writing) -> bool {
        // Boxed: the futures of all other writes need no room for it.
        !must_hold(snapshot, writing) || Box::pin(self.purging().can_hold(&snapshot.store)).await
    }

    /// Returns the POST of a sidecar without a policy, whose response may be one to GET as well.
    fn posted(
        &self,
        snapshot: &Arc<Snapshot>,
        request: &Request<Incoming>,
        client: &Client,
    ) -> Option<Posted> {
        if !snapshot.policy().is_bare() || *request.method() != Method::POST {
            return None;
        }
        let mut head = replica(request);
        let path = NormalPath::new(head.uri.path());
        let line = RequestLine {
            method: &Method::GET,
            uri_host: head.uri.authority().map(|authority| authority.as_str()),
            path: &path,
            query: head.uri.query(),
        };
        let found = snapshot.policy().route(&line, &head.headers)?;
        let target = Target::of(&head.uri, &head.headers);
        let kinds = HeaderKinds::under(&head.headers, snapshot.policy().identity_headers());
        let routed = Routed { route: Arc::clone(found.route), kinds, bypass: None };
        head.method = Method::GET;
        // Preconditions are about the POST.
        for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE] {
            head.headers.remove(name);
        }
        let get = Request::from_parts(head, Bytes::new());
        let mut request = CacheRequest::new(snapshot, &routed, self.target, get, client.clone());
        request.facts.method = Method::POST;
        let (names, stamp) = (request.names().into(), snapshot.store.barriers.stamp());
        Some(Posted { request, target, names, stamp, is_purged: false })
    }
}

/// Returns true if the policy refuses a write unless its purge can be made to hold: one that makes stored responses stale, or whose response
/// may name some.
pub(super) fn must_hold(snapshot: &Snapshot, writing: &Writing) -> bool {
    let policy = snapshot.policy();
    let refuses = policy.on_purge_failure == OnPurgeFailure::Refuse && !policy.suspended;
    refuses && (policy.obeys_responses || !purges_of(snapshot, writing).is_empty())
}

/// Returns what a successful write invalidates, except for those that its response points to.
pub(super) fn purges_of(snapshot: &Snapshot, writing: &Writing) -> WritePurges {
    let mut purges = if snapshot.policy().is_bare() {
        WritePurges::default()
    } else {
        snapshot.policy().purges_of(writing)
    };
    let own = writing.paths().iter().filter(|path| snapshot.policy().covers(path));
    for path in own {
        if !purges.hard.paths.contains(path) {
            purges.hard.paths.push(path.clone());
        }
    }
    purges
}

/// Returns the maximum size of a write's body in which rules for it look for values; `None` if they do not, or applications may read it as
/// something else than JSON.
pub(super) fn body_limit(policy: &Policy, writing: &Writing, headers: &HeaderMap) -> Option<u64> {
    policy.body_limit_of(writing).filter(|_| is_plain_json(headers))
}

/// Returns a copy of the head of a request.
fn replica(request: &Request<Incoming>) -> Parts {
    let mut replica = Request::new(());
    *replica.method_mut() = request.method().clone();
    *replica.uri_mut() = request.uri().clone();
    *replica.version_mut() = request.version();
    *replica.headers_mut() = request.headers().clone();
    replica.into_parts().0
}

/// A POST whose response may be stored as one to GET of the same target (RFC 9110, section 9.3.3).
///
/// The write invalidates responses to earlier requests, so its own response is stored under the stamp after its purge. Any other purge
/// since the request was sent may be later than the state that the response shows, and keeps it from being stored.
struct Posted {
    request: Box<CacheRequest>,
    target: Target,
    /// Purge names of the response to GET.
    names: Box<[PurgeName]>,
    /// Stamp before the request was sent, then before the write's own purge, then after it.
    stamp: Stamp,
    is_purged: bool,
}

impl Posted {
    /// Notes that the response has come, and that its purge is about to begin.
    fn responded(&mut self) {
        let barriers = &self.request.store().barriers;
        let before = std::mem::replace(&mut self.stamp, barriers.stamp());
        let path = path_of(self.request.key.as_str());
        self.is_purged = barriers.coverage(0, self.names.iter().copied(), path, before) != Covered::No;
    }

    /// Notes that the write's own purge has been applied.
    fn purged(&mut self) {
        let before = std::mem::replace(&mut self.stamp, self.request.store().barriers.stamp());
        // One barrier may be its own; further ones may cover the response.
        self.is_purged |= self.stamp.local > before.local + 1;
    }

    /// Returns true if `Content-Location` declares the response to be one to GET of the same target, and no other purge was applied.
    fn may_be_stored(&self, response: &Response<Paced>) -> bool {
        let headers = response.headers();
        let uri = &self.target.uri;
        let query = |text: &str| text.split_once('?').map(|(_, query)| query.to_owned());
        let location = headers.get(CONTENT_LOCATION).and_then(|location| location.to_str().ok());
        !self.is_purged
            && response.status() == StatusCode::OK
            && location.is_some_and(|location| {
                self.target.pointed_to(headers, &CONTENT_LOCATION).as_deref() == Some(uri.path())
                    && query(location).as_deref() == uri.query()
            })
    }

    /// Passes the response on and stores it as one to GET, if it declares a lifetime.
    fn deliver_for_get(self, response: Response<Paced>, times: Times) -> Box<Served> {
        let received = Received::with_map(&self.request, response, times, IncomingBody::Application);
        let mut fetch = Fetch::new(self.request, Purpose::Serve, Forward::Method);
        (fetch.known.stamp, fetch.known.own_stamp) = (self.stamp, self.stamp);
        fetch.deliver_received(received)
    }
}

/// A write that was sent, with everything on which its purge depends.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) writing: Writing,
    pub(super) target: Target,
    /// Copy of the body, if rules for the write use values in it.
    pub(super) body: Option<BodyCopy>,
    /// True if [`purges_of`] it is nothing: it invalidates no more than its response points to.
    pub(super) is_of_response: bool,
}

impl Write {
    /// Purges the names that the response invalidates. Without a response, the application may have written all the same.
    pub(super) async fn purge<B>(&self, proxy: &Proxy, response: Option<&Response<B>>) {
        let Self { snapshot, is_of_response, .. } = self;
        if let Some(response) = response {
            proxy.obey(response.headers()).await;
        }
        let writing = self.with_later_values(response);
        let may_have_changed = response.is_none_or(|response| !changed_nothing(response.status()));
        let policy = snapshot.policy();
        // A sidecar without a policy goes by the response alone.
        let by_policy = if !may_have_changed || *is_of_response || policy.is_bare() {
            WritePurges::default()
        } else {
            policy.purges_of(&writing)
        };
        proxy.telemetry.broadened(&by_policy.unknown);
        let mut names = by_policy.names();
        if let Some(response) = response {
            self.add_names_of_response(&mut names, response.status(), response.headers());
        }
        names.sort();
        names.dedup();
        if !names.is_empty() || may_have_changed || snapshot.writes_go_unheard() {
            proxy.purging().after_write(snapshot, &writing, &names).await;
        }
    }

    /// Adds the names that a response which is no error invalidates whatever the policy says: the cached ones among the write's own path
    /// and those that the response points to on the same host.
    fn add_names_of_response(&self, names: &mut Vec<PurgeName>, status: StatusCode, headers: &HeaderMap) {
        let Self { snapshot, writing, target, is_of_response, body: _ } = self;
        if status.is_success() || status.is_redirection() {
            let pointed_to = POINTING.map(|name| target.pointed_to(headers, &name));
            let own = if *is_of_response { &[] } else { writing.paths() };
            let paths = own.iter().chain(pointed_to.iter().flatten());
            names.extend(snapshot.policy().names_of_stored(paths));
        }
    }

    /// Returns the write with the tags that its response names and the values in its body, if those are needed and all of the body has passed, or
    /// its client has left within it and gets no response.
    fn with_later_values<B>(&self, response: Option<&Response<B>>) -> Cow<'_, Writing> {
        let policy = self.snapshot.policy();
        let reads_response = policy.reads_response_to(&self.writing);
        if self.body.is_none() && !reads_response {
            return Cow::Borrowed(&self.writing);
        }
        let mut writing = self.writing.clone();
        if let Some(body) = &self.body {
            body.read(|body| policy.read_body(&mut writing, body));
            if response.is_none() {
                body.read_broken_off(|beginning| policy.read_broken_off(&mut writing, beginning));
            }
        }
        if reads_response {
            policy.read_response(&mut writing, response);
        }
        Cow::Owned(writing)
    }
}

/// The fields of a response that point to what a write changed.
const POINTING: [HeaderName; 2] = [LOCATION, CONTENT_LOCATION];

/// Returns the parts of a response on which the purge of its write depends.
pub(super) fn response_of_write(status: u16, fields: &impl Fields) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    for name in POINTING {
        // The first one counts.
        let value = fields.values(name.as_str()).next().map(HeaderValue::from_bytes);
        if let Some(Ok(value)) = value {
            response.headers_mut().insert(name, value);
        }
    }
    told::copy(fields, response.headers_mut());
    response
}

/// Returns true if a status shows that a write was refused. The other client errors show that the resource is not in the state that
/// the client expected, so that stored responses may be outdated as well.
fn changed_nothing(status: StatusCode) -> bool {
    const UNEXPECTED_STATE: [StatusCode; 4] =
        [StatusCode::NOT_FOUND, StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT, StatusCode::GONE];
    status.is_client_error() && !UNEXPECTED_STATE.contains(&status)
}

/// Target of a write.
#[derive(Debug)]
pub(super) struct Target {
    uri: Uri,
    host: String,
}

impl Target {
    /// Returns the target at a path and query of a host.
    pub(super) fn at(path_and_query: &str, host: &str) -> Self {
        Self { uri: path_and_query.parse().unwrap_or_default(), host: host.to_owned() }
    }

    fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let uri = uri.clone();
        let host = match uri.authority() {
            Some(authority) => authority.as_str().to_owned(),
            None => {
                let host = headers.get(HOST).and_then(|host| host.to_str().ok());
                host.unwrap_or_default().to_owned()
            }
        };
        Self { uri, host }
    }

    /// Returns the path that a header points to, if it is on the same host (RFC 3986, section 5.2).
    fn pointed_to(&self, headers: &HeaderMap, name: &HeaderName) -> Option<String> {
        let text = headers.get(name)?.to_str().ok()?.trim();
        let reference = text.split(['?', '#']).next().unwrap_or(text);
        let absolute = reference.split_once("://").map(|(_, rest)| rest).or(reference.strip_prefix("//"));
        if let Some(rest) = absolute {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let is_same = without_port(host).eq_ignore_ascii_case(without_port(&self.host));
            return is_same.then(|| format!("/{path}"));
        }
        if reference.starts_with('/') {
            return Some(reference.to_owned());
        }
        let path = self.uri.path();
        if reference.is_empty() {
            return Some(path.to_owned());
        }
        let folder = &path[..path.rfind('/').map_or(0, |at| at + 1)];
        Some(format!("{folder}{reference}"))
    }
}

/// Returns a host without a port that is the default of a scheme.
fn without_port(host: &str) -> &str {
    host.strip_suffix(":80").or(host.strip_suffix(":443")).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn location_of_a_response_is_found_on_the_same_host_only() {
        let target = Target { uri: Uri::from_static("/api/users?x=1"), host: "shop:80".into() };
        let pointed_to = |value: &'static str| {
            let headers = [(LOCATION, HeaderValue::from_static(value))].into_iter().collect();
            target.pointed_to(&headers, &LOCATION)
        };
        for (value, path) in [
            ("/api/users/7?y=2", Some("/api/users/7")),
            ("7", Some("/api/7")),
            ("http://Shop:80/api/users/7", Some("/api/users/7")),
            ("http://shop/api", Some("/api")),
            ("//shop:80/a#b", Some("/a")),
            ("http://shop:81/api", None),
            ("http://other/api/users/7", None),
            ("", Some("/api/users")),
        ] {
            assert_eq!(pointed_to(value).as_deref(), path, "{value}");
        }
    }
}
