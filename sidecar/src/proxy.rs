//! The path of a request.

use std::{borrow::Cow, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, EXPECT, TRAILER},
    uri::PathAndQuery,
};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Either};
use hyper::body::Incoming;
use larder_policy::{Route, spec::OtherProtocols, storing::NotStored};

use crate::{
    body::Body,
    budget::{Budget, Kind, Reservation},
    cache_status::{Bypass, Forward, Tier},
    config::ConfigWatcher,
    drain::Drain,
    head_room::{self, AtClient},
    headers,
    http1_guard::{Handoff, RawTarget},
    http2_guard::InterimStream,
    peers::Peers,
    problem::Problem,
    purge::{Purging, fields, requests},
    snapshot::{NO_ROUTE, Snapshot},
    stats::{Outcome, RouteStats},
    tail::{Answered, Arrival},
    telemetry::Telemetry,
    upstream::{RequestBody, Upload, Upstream},
    work::Work,
};

mod admin_mount;
mod classify;
mod client_fields;
mod collapse;
mod deadline;
mod deliver;
mod direct;
mod envelope;
pub mod explain;
mod fallback;
mod fast_path;
mod fetch;
mod forward;
mod lease;
mod memory;
mod origin;
mod persist;
mod pipeline;
mod purging;
mod received;
mod redis;
mod refresh;
mod request;
mod response;
#[cfg(test)]
mod sizes;
mod sources;
mod told;
mod tunnel;
mod write;

use classify::{Disposition, EndsHere, classify};
pub use direct::Direct;
use fast_path::StoredReply;
pub use fast_path::{FastPath, FastPath2};
use fetch::{Fetch, Purpose};
use forward::passed_body;
use received::ReceivedReply;
use request::{CacheRequest, Routed};

/// Serves requests from the cache, from the route's sources, or from the application.
#[derive(Debug)]
pub struct Proxy {
    /// The policy in force.
    pub config: Arc<ConfigWatcher>,
    /// The other pods, if they can be told of purges directly.
    pub peers: Option<Arc<Peers>>,
    /// The application.
    pub upstream: Upstream,
    /// Port of the application, if the sidecar is in front of several: it keeps their responses apart.
    pub target: Option<u16>,
    /// Counters and instruments.
    pub telemetry: Arc<Telemetry>,
    /// State of draining.
    pub drain: Arc<Drain>,
    /// Admin API, for policies that put it under the application's address.
    pub admin: Router,
    /// Where the token is that permits to purge.
    pub token_file: Option<PathBuf>,
    /// True if plain requests are served by the guards of their connections, without the general path.
    pub relays: bool,
}

#[cfg(test)]
impl Proxy {
    /// Returns a proxy in front of an application at which nothing listens: what it serves comes from memory.
    pub(crate) fn alone(config: Arc<ConfigWatcher>, telemetry: Arc<Telemetry>) -> Arc<Self> {
        let dialer = Arc::new(crate::upstream::Dialer::new(&"http://127.0.0.1:9".parse().unwrap(), None));
        Arc::new(Self {
            config,
            peers: None,
            upstream: Upstream::new(dialer, Arc::clone(&telemetry.stats.budget)),
            target: None,
            telemetry,
            drain: Arc::default(),
            admin: Router::new(),
            token_file: None,
            relays: true,
        })
    }
}

/// Client of a request.
#[derive(Clone, Debug)]
pub struct Client {
    /// Address that the connection comes from.
    pub address: IpAddr,
    /// Handoff of an HTTP/1 connection.
    pub handoff: Option<Arc<Handoff>>,
    /// Stream of an HTTP/2 connection, for interim responses.
    pub stream: Option<InterimStream>,
    /// Work of the request. Whatever goes on without the client has a clone.
    pub work: Option<Work>,
}

impl Client {
    /// Sends a 100 if the client waits for one, because its body is about to be read.
    fn go_on(&self, headers: &mut HeaderMap) {
        if self.takes_interim() && headers::expects_to_go_on(headers) {
            headers.remove(EXPECT);
            self.send_go_on();
        }
    }

    fn takes_interim(&self) -> bool {
        self.handoff.is_some() || self.stream.is_some()
    }

    /// Sends a 100, once.
    fn send_go_on(&self) {
        match (&self.handoff, &self.stream) {
            (Some(handoff), _) => handoff.go_on(),
            (None, Some(stream)) => stream.go_on(),
            (None, None) => {}
        }
    }

    /// Sends an interim response (RFC 9110, section 15.2) ahead of the final one, without the header fields in `removed`.
    fn send_interim(&self, status: StatusCode, headers: &HeaderMap, removed: &[HeaderName]) {
        match (&self.handoff, &self.stream) {
            (Some(handoff), _) => handoff.send_interim(status, headers, removed),
            (None, Some(stream)) => stream.send(status, headers, removed),
            (None, None) => {}
        }
    }

    /// Forgets the way to the client: nothing is sent but the final response.
    fn forget_way(&mut self) {
        (self.handoff, self.stream) = (None, None);
    }
}

/// A response, and the labels under which it is counted. Boxed, because each stage passes it on.
struct Served {
    /// The response, without what is in `reply`.
    response: Response<Body>,
    reply: Option<GuardReply>,
    route: Option<Arc<Route>>,
    outcome: Outcome,
    tier: Tier,
    /// Reason why no stored response was used.
    forward: Option<Forward>,
    /// Reason why the response is not stored, if its head says so.
    not_stored: Option<NotStored>,
    /// Lifetime of the stored response that it was made from, if its envelope states it.
    life: Option<Life>,
}

/// The part of a response that the guard of the client's connection writes without a header map.
enum GuardReply {
    /// All of a stored response.
    Stored(StoredReply),
    /// The fields of a response that has just come.
    Received(ReceivedReply),
}

/// Lifetime of a stored response.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// Time at which it was received, in milliseconds since the Unix epoch.
    received_at: u64,
    /// Time for which it stays fresh.
    left: Duration,
}

impl Proxy {
    /// Returns the application, for connections that do not speak HTTP.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Returns the port of the application, if the sidecar is in front of several.
    pub fn target(&self) -> Option<u16> {
        self.target
    }

    /// Returns the treatment of connections that do not speak HTTP.
    pub fn other_protocols(&self) -> OtherProtocols {
        self.config.snapshot().policy().other_protocols
    }

    /// Returns true if the process is ending.
    pub fn is_ending(&self) -> bool {
        self.drain.is_ending()
    }

    /// Returns the counters.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Serves a request. Whatever fails on the way, there is a response.
    pub async fn handle(self: &Arc<Self>, request: Request<Incoming>, client: Client) -> Response<Body> {
        let arrival = self.telemetry.tails.arrival(request.method().as_str(), &target_of(&request));
        let snapshot = self.config.snapshot();
        let is_http2 = request.version() == Version::HTTP_2;
        tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
        let mut served = self.answer(&snapshot, request, client).await;
        let asks_to_close = self.finish(&snapshot, &mut served, &arrival);
        let mut response = served.response;
        if asks_to_close && !is_http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Makes room for the head of a response, or replaces it, and counts it. Returns true if its client is asked to close the connection.
    fn finish(&self, snapshot: &Snapshot, served: &mut Served, arrival: &Arrival) -> bool {
        let room = head_room::make(&mut served.response, &self.telemetry.stats.budget);
        if room == AtClient::NoRoom {
            let forward = served.forward;
            *served = Served { forward, ..*Served::problem(Problem::Overloaded, served.route.as_ref()) };
        }
        let Served { response, reply: _, route, outcome, tier, forward, not_stored, life: _ } = served;
        let answered = Answered {
            route: route.as_ref().map(|route| &*route.name),
            outcome: *outcome,
            tier: *tier,
            status: response.status().as_u16(),
            forward: *forward,
            not_stored: *not_stored,
            took: Some(arrival.at.elapsed()),
        };
        self.record(snapshot.route_stats(route.as_deref()), arrival, &answered);
        // The version is that of the connection which the response leaves on (RFC 9110, section 2.5).
        if response.version() == Version::HTTP_10 {
            *response.version_mut() = Version::HTTP_11;
        }
        // hyper retains the buffer that it has written a large head to.
        self.asks_to_close() || room == AtClient::Large
    }

    /// Counts, logs and shows a response whose head is ready.
    fn record(&self, stats: &RouteStats, arrival: &Arrival, answered: &Answered<'_>) {
        let Answered { route, outcome, tier, status, took, .. } = *answered;
        stats.answered(outcome, tier);
        let took = took.unwrap_or_default();
        self.telemetry.answered(stats, outcome, took);
        self.telemetry.stats.took(tier, took);
        self.telemetry.tails.show(arrival, answered);
        let (name, milliseconds) = (route.unwrap_or(NO_ROUTE), took.as_secs_f64() * 1000.0);
        tracing::debug!(route = name, tier = tier.as_str(), status, milliseconds, "{}", outcome.as_str());
    }

    /// Returns the parts of the process that purges go through.
    fn purging(&self) -> Purging<'_> {
        let stats = &self.telemetry.stats;
        Purging { config: &self.config, peers: self.peers.as_deref(), stats }
    }

    /// Returns true while clients are asked to close their connections.
    fn asks_to_close(&self) -> bool {
        self.drain.is_on() || self.upstream.is_gone()
    }

    /// Responds to a request. Each disposition has a future of its own on the heap, so that none takes the memory, or is moved at the
    /// cost, of the largest.
    fn answer<'a>(
        self: &'a Arc<Self>,
        snapshot: &'a Arc<Snapshot>,
        mut request: Request<Incoming>,
        client: Client,
    ) -> BoxFuture<'a, Box<Served>> {
        let (upgrade, has_content) = (headers::upgrade(request.headers()), !request.body().is_end_stream());
        let from_client = hyper::upgrade::on(&mut request);
        let is_of_proxy = requests::is_purge(request.method()) && fields::is_of_proxy(request.headers());
        // The key must not depend on fields that the application will not see.
        headers::remove_hop_by_hop(request.headers_mut());
        let disposition = classify(snapshot, &request, upgrade, has_content);
        headers::count_forward(&mut request);
        match disposition {
            Disposition::End(EndsHere::Connect) => Box::pin(ready(Served::problem(Problem::NoTunnel, None))),
            Disposition::End(EndsHere::Admin) => Box::pin(self.ask_admin(snapshot, request, client)),
            Disposition::End(EndsHere::Purge) => {
                Box::pin(self.purge_as_asked(snapshot, request, client, is_of_proxy))
            }
            Disposition::End(EndsHere::MaxForwards) => {
                let is_trace = *request.method() == Method::TRACE;
                let problem = if is_trace { Problem::NoTrace } else { Problem::LastForward };
                Box::pin(ready(Served::problem(problem, None)))
            }
            Disposition::Upgrade(protocol) => {
                Box::pin(self.upgrade(snapshot, request, client, protocol, from_client))
            }
            Disposition::Write { writing, protocol } => {
                let protocol = protocol.map(|protocol| (protocol, from_client));
                Box::pin(self.write(snapshot, request, client, writing, protocol))
            }
            Disposition::Pass(reason) => {
                Box::pin(self.pass(snapshot, request.map(passed_body), client, reason, None))
            }
            Disposition::Route(routed) => {
                if !routed.route.envelope {
                    return self.serve_route(snapshot, request, client, routed);
                }
                let method = request.method().clone();
                envelope::ask_for_whole(request.headers_mut());
                let served = self.serve_route(snapshot, request, client, routed);
                Box::pin(async move { served.await.wrapped(&method) })
            }
        }
    }

    fn serve_route<'a>(
        self: &'a Arc<Self>,
        snapshot: &'a Arc<Snapshot>,
        request: Request<Incoming>,
        client: Client,
        routed: Routed,
    ) -> BoxFuture<'a, Box<Served>> {
        let route = &routed.route;
        let has_content = !request.body().is_end_stream();
        if let Some(bypass) = routed.passes(has_content) {
            let request = request.map(passed_body);
            return Box::pin(self.bypass(snapshot, request, client, bypass, routed.route));
        }
        if let Some(limit) = route.body_limit().filter(|_| *request.method() == Method::POST) {
            return Box::pin(self.serve_with_content(snapshot, request, client, routed, limit));
        }
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, Bytes::new());
        let request = CacheRequest::new(snapshot, &routed, self.target, request, client);
        let served = self.look_up(request, routed.bypass);
        if !has_content {
            return served;
        }
        Box::pin(async move {
            // Without the body, hyper may read no more from the client.
            let _unread = body;
            served.await
        })
    }

    async fn bypass(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        request: Request<RequestBody>,
        client: Client,
        bypass: Bypass,
        route: Arc<Route>,
    ) -> Box<Served> {
        self.pass(snapshot, request, client, Forward::Bypass(bypass), Some(&route)).await
    }

    /// Responds to a request whose body is part of the key, if it has at most `limit` bytes.
    async fn serve_with_content(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        request: Request<Incoming>,
        client: Client,
        routed: Routed,
        limit: u64,
    ) -> Box<Served> {
        let (mut head, body) = request.into_parts();
        let budget = &snapshot.store.budget;
        match read_at_most(limit, body, budget, &mut head.headers, &client).await {
            Ok(content) => {
                let request = Request::from_parts(head, content);
                let request = CacheRequest::new(snapshot, &routed, self.target, request, client);
                self.look_up(request, routed.bypass).await
            }
            Err(Unread::TooLong(body)) => {
                let request = Request::from_parts(head, body);
                self.bypass(snapshot, request, client, Bypass::Content, routed.route).await
            }
            Err(Unread::BrokenOff) => Served::problem(Problem::BrokenOff, Some(&routed.route)),
        }
    }

    /// Serves a request of a route.
    fn look_up(
        self: &Arc<Self>,
        request: Box<CacheRequest>,
        bypass: Option<Bypass>,
    ) -> BoxFuture<'static, Box<Served>> {
        let proxy = Arc::clone(self);
        match bypass {
            None => Box::pin(async move { proxy.respond(request).await }),
            Some(bypass) => {
                let fetch = Fetch::new(request, Purpose::Bypass, Forward::Bypass(bypass));
                Box::pin(async move { proxy.fetch_from_origins(fetch).await })
            }
        }
    }
}

/// Returns the target of a request as the client sent it.
fn target_of(request: &Request<Incoming>) -> Cow<'_, str> {
    match request.extensions().get::<RawTarget>() {
        Some(RawTarget(target)) => String::from_utf8_lossy(target),
        None => {
            request.uri().path_and_query().map_or_else(|| request.uri().path(), PathAndQuery::as_str).into()
        }
    }
}

impl Served {
    /// Returns an error of the sidecar's own.
    fn problem(problem: Problem, route: Option<&Arc<Route>>) -> Box<Self> {
        Self::new(problem.response(), route.cloned(), Outcome::Error, Tier::Nowhere)
    }

    /// Returns a response whose head is in its header map.
    fn new(response: Response<Body>, route: Option<Arc<Route>>, outcome: Outcome, tier: Tier) -> Box<Self> {
        let (reply, forward, not_stored, life) = (None, None, None, None);
        Box::new(Self { response, reply, route, outcome, tier, forward, not_stored, life })
    }
}

/// Reason why a body was not read into memory.
enum Unread {
    /// The body is too long, or there is no memory for it.
    TooLong(RequestBody),
    /// The client broke the body off.
    BrokenOff,
}

/// Reads a body of at most `limit` bytes. A client that waits for a 100 gets one. Where no length is declared, a body turns out to be
/// too long after some of it was read, which is passed on before the rest. Trailers are dropped, and with them their announcement.
async fn read_at_most(
    limit: u64,
    mut body: Incoming,
    budget: &Arc<Budget>,
    headers: &mut HeaderMap,
    client: &Client,
) -> Result<Bytes, Unread> {
    let declared = body.size_hint().exact();
    let mut room = Reservation::new(budget, Kind::Requests);
    // Twice, because its pieces are copied into one.
    if let Some(length) = declared
        && (length > limit || !room.grow_or_refuse(2 * length))
    {
        return Err(Unread::TooLong(passed_body(body)));
    }
    client.go_on(headers);
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Unread::BrokenOff)?.into_data() else { continue };
        content.extend_from_slice(&piece);
        let fits = content.len() as u64 <= limit
            && (declared.is_some() || room.grow_or_refuse(2 * piece.len() as u64));
        if !fits {
            return Err(Unread::TooLong(Either::Left(Upload::new(room.of(content.into()), body))));
        }
    }
    headers.remove(TRAILER);
    Ok(room.of(content.into()))
}
