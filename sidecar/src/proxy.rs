//! The way of a request.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, EXPECT, HOST},
};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Either};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use larder_policy::{HeaderKinds, Route, spec::OtherProtocols};

use crate::{
    body::{Body, Paced},
    budget::{Budget, Kind},
    cache_status::{Became, Bypass, CacheStatus, Forward, Tier},
    config::Config,
    drain::Drain,
    gate::Turnstile,
    head_room::{self, AtClient},
    headers,
    problem::Problem,
    serving::{NO_ROUTE, Snapshot},
    stats::Outcome,
    telemetry::Telemetry,
    upstream::{Abandoned, RequestBody, Upload, Upstream, UpstreamError, WhenRefused, no_body},
    work::Work,
};

mod admin_mount;
mod classify;
mod collapse;
mod deadline;
mod deliver;
mod envelope;
pub mod explain;
mod fallback;
mod fast_path;
mod fetch;
mod lease;
mod memory;
mod origin;
mod persist;
mod pipeline;
mod redis;
mod refresh;
mod request;
mod response;
mod sources;
mod tunnel;
mod write;

use classify::{Disposition, EndsHere, classify};
use deadline::Exchange;
pub use fast_path::FastPath;
use fetch::{Fetch, Purpose};
use request::CacheRequest;

/// Answers requests from the cache, from the route's sources, or from the application.
#[derive(Debug)]
pub struct Proxy {
    config: Arc<Config>,
    upstream: Upstream,
    /// The application's port, where the sidecar stands before several.
    target: Option<u16>,
    telemetry: Arc<Telemetry>,
    drain: Arc<Drain>,
    /// The admin API, for policies that put it under the application's address.
    admin: Router,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Client {
    /// The address that the connection comes from.
    pub address: IpAddr,
    /// The gate of an HTTP/1 connection.
    pub turnstile: Option<Arc<Turnstile>>,
    /// The work that its request causes: whatever goes on without it has a clone.
    pub work: Option<Work>,
}

impl Client {
    /// Tells the client to go on with its body, if it waits for that: who reads it is here.
    fn go_on(&self, headers: &mut HeaderMap) {
        if let Some(turnstile) = &self.turnstile
            && headers::expects_to_go_on(headers)
        {
            headers.remove(EXPECT);
            turnstile.go_on();
        }
    }
}

/// An answer, and what is to be counted of it.
struct Answered {
    response: Response<Body>,
    route: Option<Arc<Route>>,
    outcome: Outcome,
    tier: Tier,
    /// How long what it gives is stored for yet, if it is.
    life: Option<Life>,
}

/// Since when, and for how long yet, an answer is fresh.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// Milliseconds since the Unix epoch.
    received_at: u64,
    left: Duration,
}

impl Proxy {
    /// A proxy in front of `upstream`, whose answers are told apart by `target` from those of other ports of the pod. `admin` is
    /// the admin API, for policies that put it under the application's address.
    pub fn new(
        config: Arc<Config>,
        upstream: Upstream,
        target: Option<u16>,
        telemetry: Arc<Telemetry>,
        drain: Arc<Drain>,
        admin: Router,
    ) -> Self {
        Self { config, upstream, target, telemetry, drain, admin }
    }

    /// The application, for what is not HTTP.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The application's port, where the sidecar stands before several.
    pub fn target(&self) -> Option<u16> {
        self.target
    }

    /// Treatment of connections that do not speak HTTP.
    pub fn other_protocols(&self) -> OtherProtocols {
        self.config.snapshot().policy.other_protocols
    }

    /// Whether the process ends.
    pub fn is_ending(&self) -> bool {
        self.drain.is_ending()
    }

    /// What has been counted.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Answers a request. Whatever fails on the way, there is an answer.
    pub async fn handle(self: &Arc<Self>, request: Request<Incoming>, client: Client) -> Response<Body> {
        let started = Instant::now();
        let snapshot = self.config.snapshot();
        let is_http2 = request.version() == Version::HTTP_2;
        tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
        let Answered { mut response, route, outcome, tier, life: _ } =
            self.answer(&snapshot, request, client).await;
        snapshot.route_stats(route.as_deref()).answered(outcome, tier);
        let name = route.as_ref().map_or(NO_ROUTE, |route| &route.name);
        let took = started.elapsed();
        self.telemetry.answered(name, outcome, took);
        let (status, milliseconds) = (response.status().as_u16(), took.as_secs_f64() * 1000.0);
        tracing::debug!(route = name, tier = tier.as_str(), status, milliseconds, "{}", outcome.as_str());
        let room = head_room::make(&mut response, &self.telemetry.stats.budget);
        if room == AtClient::NoRoom {
            response = Problem::Overloaded.response();
        }
        // The version is that of the connection which the response leaves on (RFC 9110, section 2.5).
        if response.version() == Version::HTTP_10 {
            *response.version_mut() = Version::HTTP_11;
        }
        // hyper keeps the buffer that it has written a large head to.
        let asks_to_close = self.drain.is_on() || self.upstream.is_gone() || room == AtClient::Large;
        if asks_to_close && !is_http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn answer(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        mut request: Request<Incoming>,
        client: Client,
    ) -> Answered {
        let (upgrade, has_content) = (headers::upgrade(request.headers()), !request.body().is_end_stream());
        let from_client = hyper::upgrade::on(&mut request);
        // What the application will not see must not be in the key.
        headers::remove_hop_by_hop(request.headers_mut());
        let disposition = classify(snapshot, &request, upgrade, has_content);
        headers::count_forward(&mut request);
        match disposition {
            Disposition::End(EndsHere::Connect) => Answered::problem(Problem::NoTunnel, None),
            Disposition::End(EndsHere::Admin) => self.ask_admin(snapshot, request, &client).await,
            Disposition::End(EndsHere::MaxForwards) => {
                let is_trace = *request.method() == Method::TRACE;
                Answered::problem(if is_trace { Problem::NoTrace } else { Problem::LastForward }, None)
            }
            Disposition::Upgrade(protocol) => self.upgrade(request, client, protocol, from_client).await,
            Disposition::Write { writing, protocol } => {
                let protocol = protocol.map(|protocol| (protocol, from_client));
                self.write(snapshot, request, client, writing, protocol).await
            }
            Disposition::Pass(reason) => self.pass(request, client, reason, None).await,
            Disposition::Route { route, kinds, bypass } => {
                if !route.envelope {
                    return self.serve_route(snapshot, request, client, &route, &kinds, bypass).await;
                }
                let method = request.method().clone();
                envelope::ask_for_whole(request.headers_mut());
                self.serve_route(snapshot, request, client, &route, &kinds, bypass).await.wrapped(&method)
            }
        }
    }

    async fn serve_route(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        request: Request<Incoming>,
        client: Client,
        route: &Arc<Route>,
        kinds: &HeaderKinds,
        bypass: Option<Bypass>,
    ) -> Answered {
        let has_content = !request.body().is_end_stream();
        // A source's response depends on path and query alone, so a bypass does not need the application, which may not have the path
        // at all. If it has, it gets the body that came with the request.
        let is_for_application = route.sources.is_empty() || route.asks_application && has_content;
        if let Some(bypass) = bypass.filter(|_| is_for_application) {
            return self.pass(request, client, Forward::Bypass(bypass), Some(route)).await;
        }
        let (mut head, body) = request.into_parts();
        let content = match route.body_limit().filter(|_| head.method == Method::POST) {
            Some(limit) => {
                let budget = &snapshot.store.budget;
                match read_at_most(limit, body, budget, &mut head.headers, &client).await {
                    Ok(content) => content,
                    Err(Unread::TooLong(body)) => {
                        let (request, reason) = (Request::from_parts(head, body), Bypass::Content);
                        return self.pass(request, client, Forward::Bypass(reason), Some(route)).await;
                    }
                    Err(Unread::BrokenOff) => return Answered::problem(Problem::BrokenOff, Some(route)),
                }
            }
            None => Bytes::new(),
        };
        let request = CacheRequest::new(snapshot, route, self.target, head, content, client, kinds);
        match bypass {
            None => self.respond(request).await,
            Some(bypass) => {
                let fetch = Fetch::new(request, Purpose::Bypass, Forward::Bypass(bypass));
                self.fetch_from_origins(fetch).await
            }
        }
    }

    /// Passes a request on, whatever is stored.
    async fn pass(
        &self,
        request: Request<Incoming>,
        client: Client,
        reason: Forward,
        route: Option<&Arc<Route>>,
    ) -> Answered {
        match self.forward(request.map(passed_body), &client, None, WhenRefused::Retry).await {
            Ok(response) => passed(response, reason, route),
            Err(error) => unreachable(&error, &client, route),
        }
    }

    /// Sends a request to the application, perhaps asking to change to a protocol, and interim responses back.
    async fn forward(
        &self,
        request: Request<RequestBody>,
        client: &Client,
        protocol: Option<HeaderValue>,
        refused: WhenRefused,
    ) -> Result<Response<Paced>, UpstreamError> {
        let may_change_protocol = protocol.is_some();
        let mut exchange = self.begin(request, client, protocol, refused);
        self.response_to(&mut exchange, may_change_protocol).await
    }

    /// Begins to send a request to the application.
    fn begin(
        &self,
        request: Request<RequestBody>,
        client: &Client,
        protocol: Option<HeaderValue>,
        refused: WhenRefused,
    ) -> Exchange {
        let mut request = outgoing(request, client.address);
        let abandoned = Abandoned::default();
        pass_interim_responses(&mut request, client, &abandoned);
        if let Some(protocol) = protocol {
            headers::ask_for_upgrade(request.headers_mut(), protocol);
        }
        if request.version() == Version::HTTP_2 {
            let budget = &self.telemetry.stats.budget;
            request = request.map(|body| match body {
                Either::Left(upload) => Either::Left(upload.kept(budget)),
                at_hand => at_hand,
            });
        }
        Exchange::new(self.upstream.clone(), request, refused, abandoned, self.application_timeout())
    }

    /// Waits for the response to a request, as long as the policy lets it take.
    async fn response_to(
        &self,
        exchange: &mut Exchange,
        may_change_protocol: bool,
    ) -> Result<Response<Paced>, UpstreamError> {
        let outcome = exchange.head_in_time().await.and_then(|response| match response.status() {
            StatusCode::SWITCHING_PROTOCOLS if !may_change_protocol => Err(UpstreamError::UnexpectedUpgrade),
            _ => Ok(response),
        });
        let mut response =
            outcome.inspect_err(|error| self.telemetry.stats.upstream_failed(error.reason()))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::remove_hop_by_hop(response.headers_mut());
        }
        let (head, body) = response.into_parts();
        let limit = exchange.limit().filter(|_| !deadline::may_be_silent(&head));
        Ok(Response::from_parts(head, Paced::new(body, limit, &self.telemetry.stats)))
    }

    async fn upgrade(
        &self,
        request: Request<Incoming>,
        client: Client,
        protocol: HeaderValue,
        from_client: OnUpgrade,
    ) -> Answered {
        match self.forward(request.map(passed_body), &client, Some(protocol), WhenRefused::Retry).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                changed_protocol(from_client, response, &client)
            }
            Ok(response) => passed(response, Forward::Bypass(Bypass::Upgrade), None),
            Err(error) => unreachable(&error, &client, None),
        }
    }
}

impl Answered {
    /// An answer of the sidecar's own.
    fn problem(problem: Problem, route: Option<&Arc<Route>>) -> Self {
        let route = route.cloned();
        Self { response: problem.response(), route, outcome: Outcome::Error, tier: Tier::Nowhere, life: None }
    }
}

/// A client's body, unless there is none.
fn passed_body(body: Incoming) -> RequestBody {
    if body.is_end_stream() { no_body() } else { Either::Left(Upload::new(body)) }
}

/// A body that is not in memory.
enum Unread {
    /// It is too long, or there is no room for it.
    TooLong(Incoming),
    BrokenOff,
}

/// Reads a body that says that it is not longer than `limit`; its client is told to go on, if it waits for that.
async fn read_at_most(
    limit: u64,
    body: Incoming,
    budget: &Arc<Budget>,
    headers: &mut HeaderMap,
    client: &Client,
) -> Result<Bytes, Unread> {
    let Some(length) = body.size_hint().upper().filter(|length| *length <= limit) else {
        return Err(Unread::TooLong(body));
    };
    // Twice: its pieces are copied into one.
    let Some(room) = budget.reserve(Kind::Requests, 2 * length) else { return Err(Unread::TooLong(body)) };
    client.go_on(headers);
    body.collect().await.map(|body| room.of(body.to_bytes())).map_err(|_| Unread::BrokenOff)
}

/// The request as the application sees it.
fn outgoing(request: Request<RequestBody>, client: IpAddr) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    headers::remove_hop_by_hop(&mut head.headers);
    headers::announce(&mut head.headers, client, head.version);
    // The host of an absolute target goes before Host (RFC 9112, section 3.2.2).
    let host = head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        head.headers.insert(HOST, host);
    } else if !head.headers.contains_key(HOST) {
        // HTTP/1.1 wants one, and servers refuse an empty one: a health check over HTTP/1.0 has none.
        head.headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    Request::from_parts(head, body)
}

/// RFC 9110, section 15.2: a proxy passes them on, but for a 100 that the client has not asked for, and 101.
fn pass_interim_responses(request: &mut Request<RequestBody>, client: &Client, abandoned: &Abandoned) {
    let Some(turnstile) = client.turnstile.clone().filter(|_| request.version() == Version::HTTP_11) else {
        return;
    };
    let (expects, abandoned) = (headers::expects_to_go_on(request.headers()), abandoned.clone());
    hyper::ext::on_informational(request, move |response| match response.status().as_u16() {
        // The client has its response, and may be waiting for another one.
        _ if abandoned.is_set() => {}
        100 if expects => turnstile.go_on(),
        102.. => turnstile.send_interim(response.status(), response.headers()),
        _ => {}
    });
}

/// From here on, bytes pass both ways.
fn changed_protocol(from_client: OnUpgrade, mut response: Response<Paced>, client: &Client) -> Answered {
    if let Some(turnstile) = &client.turnstile {
        turnstile.change_protocol();
    }
    tokio::spawn(tunnel::join(from_client, hyper::upgrade::on(&mut response), client.turnstile.clone()));
    let response = response.map(Body::stream);
    Answered { response, route: None, outcome: Outcome::Pass, tier: Tier::Application, life: None }
}

fn passed(response: Response<Paced>, reason: Forward, route: Option<&Arc<Route>>) -> Answered {
    let mut response = response.map(Body::stream);
    let status = Some(response.status());
    CacheStatus::Forwarded { reason, status, tier: Tier::Application, answer: Became::Passed }
        .append_to(response.headers_mut());
    let outcome = if route.is_some() { Outcome::Bypass } else { Outcome::Pass };
    Answered { response, route: route.cloned(), outcome, tier: Tier::Application, life: None }
}

/// The application did not answer, unless the request broke off before it was whole.
fn unreachable(error: &UpstreamError, client: &Client, route: Option<&Arc<Route>>) -> Answered {
    if let Some(error) = client.turnstile.as_deref().and_then(Turnstile::error) {
        return Answered::problem(Problem::Refused(error), route);
    }
    let reason = error.reason();
    tracing::warn!(reason = reason.as_str(), error = error.chain(), "the application did not respond");
    Answered::problem(Problem::Upstream(reason), route)
}
