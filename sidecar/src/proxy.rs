//! The way of a request.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{AGE, CONNECTION, CONTENT_TYPE, HOST, RANGE, UPGRADE},
};
use http_body::Body as _;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use larder_policy::{
    Key, NormalPath, PurgeName, credentials,
    freshness::{self, NotStored},
    key,
    policy::Match,
};

use crate::{
    barriers::Stamp,
    body::Body,
    cache_status::{Bypass, CacheStatus, Forward, Tier},
    clock::wall_ms,
    config::Config,
    drain::Drain,
    entry::{Entry, Parts, can_vary_by, variant},
    headers,
    l1::Stored,
    l2::Found,
    postgres::PostgresError,
    problem::Problem,
    purge,
    serving::{Mode, NO_ROUTE, Serving},
    stats::Outcome,
    telemetry::Telemetry,
    upstream::{RequestBody, Upstream, UpstreamError},
};

mod fill;
mod tunnel;

use fill::Fill;

/// Answers requests from the cache, from the route's sources, or from the application.
#[derive(Debug)]
pub struct Proxy {
    config: Arc<Config>,
    upstream: Upstream,
    /// The application's port, where the sidecar stands before several.
    target: Option<u16>,
    telemetry: Arc<Telemetry>,
    drain: Arc<Drain>,
}

/// An answer, and what is to be counted of it.
struct Answered {
    response: Response<Body>,
    route: Option<usize>,
    outcome: Outcome,
    tier: Tier,
}

/// A request that may be answered from the cache.
struct Question<'a> {
    serving: &'a Arc<Serving>,
    found: Match<'a>,
    key: Key,
    names: Box<[PurgeName]>,
    /// The client's headers, before any of ours are added.
    headers: HeaderMap,
    client: IpAddr,
}

impl Question<'_> {
    fn ttl(&self) -> Option<Duration> {
        self.found.route.ttl
    }
}

impl Proxy {
    /// A proxy in front of `upstream`, whose answers are told apart by `target` from those of other ports of the pod.
    pub fn new(
        config: Arc<Config>,
        upstream: Upstream,
        target: Option<u16>,
        telemetry: Arc<Telemetry>,
        drain: Arc<Drain>,
    ) -> Self {
        Self { config, upstream, target, telemetry, drain }
    }

    /// The application, for what is not HTTP.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// What has been counted.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Answers a request. Whatever fails on the way, there is an answer.
    pub async fn handle(&self, request: Request<Incoming>, client: IpAddr) -> Response<Body> {
        let started = Instant::now();
        let serving = Arc::clone(&self.config.serving());
        let Answered { mut response, route, outcome, tier } = self.answer(&serving, request, client).await;
        serving.route_stats(route).answered(outcome, tier);
        let name = route.map_or(NO_ROUTE, |index| &serving.policy.routes()[index].name);
        self.telemetry.answered(name, outcome, started.elapsed());
        if self.drain.is_on() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn answer(
        &self,
        serving: &Arc<Serving>,
        mut request: Request<Incoming>,
        client: IpAddr,
    ) -> Answered {
        let path = NormalPath::new(request.uri().path());
        let purged = serving.policy.purged_by(request.method(), &path);
        // A write that purges, and a request of a route, stay what they are whatever protocol they ask for: a server may
        // ignore that (RFC 9110, section 7.8), and some clients ask with every request. WebSockets come on any path.
        let tunnel = headers::upgrade(request.headers()).is_some_and(|protocol| {
            protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
                || serving.policy.route(request.method(), &path).is_none()
        });
        if tunnel && purged.is_empty() {
            return self.upgrade(request, client).await;
        }
        // What the application will not see must not be in the key.
        headers::remove_hop_by_hop(request.headers_mut());
        if !request.method().is_safe() {
            return self.write(serving, request, client, path, purged).await;
        }
        if let Some(bypass) = serving.mode.bypass() {
            return self.pass(request, client, Forward::Bypass(bypass), None).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return self.pass(request, client, Forward::Method, None).await;
        }
        let Some(found) = serving.policy.route(request.method(), &path) else {
            return self.pass(request, client, Forward::Bypass(Bypass::NoRoute), None).await;
        };
        let reason = not_for_the_cache(serving, &found, &request);
        if let Some(reason) = reason.filter(|_| found.route.sources.is_empty()) {
            return self.pass(request, client, reason, Some(found.index)).await;
        }
        let (uri, headers) = (request.uri(), request.headers());
        let host = uri.authority().map(|authority| authority.as_str());
        let key =
            Key::new(request.method(), self.target, host, &path, uri.query(), headers, &found.route.key);
        let question =
            Question { serving, key, names: Box::new([]), headers: HeaderMap::new(), found, client };
        match reason {
            // What the sources answer depends on the path alone, and the application may have no such path.
            Some(reason) => self.ask_sources(question, reason, None).await,
            None => self.ask(question, request).await,
        }
    }

    /// Looks in memory, then in Redis, then asks.
    async fn ask(&self, mut question: Question<'_>, request: Request<Incoming>) -> Answered {
        let reason = match look_in_memory(&question, request.headers()) {
            Ok((entry, ttl)) => return question.hit(&entry, Tier::L1, ttl),
            Err(reason) => reason,
        };
        question.headers = request.headers().clone();
        let tags = question.found.route.tags(&question.found.parameters);
        question.names = question.key.purge_names().into_iter().chain(tags).collect();
        let (stamp, in_redis) = look_in_redis(&question, reason).await;
        let reason = match in_redis {
            Ok((entry, ttl)) => return question.hit(&entry, Tier::L2, ttl),
            Err(reason) => reason,
        };
        if question.found.route.sources.is_empty() {
            self.ask_application(question, request, reason, stamp).await
        } else {
            self.ask_sources(question, reason, Some(stamp)).await
        }
    }

    /// Asks the route's sources in order. Without a stamp, nothing is stored.
    async fn ask_sources(&self, question: Question<'_>, reason: Forward, stamp: Option<Stamp>) -> Answered {
        for ask in &question.found.route.sources {
            let Some(source) = question.serving.source(&ask.source) else { continue };
            let started = Instant::now();
            let body = match source.fetch(&ask.query, &question.found.parameters).await {
                Ok(Some(body)) => body,
                Ok(None) => {
                    self.telemetry.tier_answered(Tier::Postgres, started.elapsed());
                    return question.answered(Problem::NotFound.response(), Outcome::Miss, Tier::Postgres);
                }
                // Nothing was asked.
                Err(PostgresError::Down) => continue,
                Err(error) => {
                    tracing::warn!(source = ask.source, route = question.found.route.name, %error, "a source failed");
                    self.telemetry.stats.tier_failed(Tier::Postgres);
                    continue;
                }
            };
            self.telemetry.tier_answered(Tier::Postgres, started.elapsed());
            let mut response = Response::new(Body::full(body.clone()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let stored = stamp.is_some_and(|stamp| {
                let fits = question.fits(body.len() as u64);
                if fits {
                    let parts = question.parts(StatusCode::OK, response.headers(), stamp);
                    Fill::new(&question, parts, vec![]).store(body);
                } else {
                    question.serving.not_stored(question.found.index, NotStored::TooLarge);
                }
                fits
            });
            CacheStatus::Forwarded { reason, tier: Tier::Postgres, stored }
                .append_to(response.headers_mut(), StatusCode::OK);
            return question.answered(response, Outcome::Miss, Tier::Postgres);
        }
        question.answered(Problem::SourcesFailed.response(), Outcome::Error, Tier::Nowhere)
    }

    async fn ask_application(
        &self,
        question: Question<'_>,
        request: Request<Incoming>,
        reason: Forward,
        stamp: Stamp,
    ) -> Answered {
        let response = match forward(&self.upstream, request, question.client).await {
            Ok(response) => response,
            Err(error) => return unreachable(error, Some(question.found.index)),
        };
        let (head, body) = response.into_parts();
        let storable = freshness::storable(head.status, &head.headers, question.ttl())
            .and_then(header_names)
            .and_then(|vary| {
                if question.fits(body.size_hint().lower()) { Ok(vary) } else { Err(NotStored::TooLarge) }
            });
        let (body, stored) = match storable {
            Ok(vary) => {
                let parts = question.parts(head.status, &head.headers, stamp);
                (Body::tapped(body, Box::new(Fill::new(&question, parts, vary))), true)
            }
            Err(reason) => {
                question.serving.not_stored(question.found.index, reason);
                (Body::Stream(body), false)
            }
        };
        let mut response = Response::from_parts(head, body);
        let status = response.status();
        CacheStatus::Forwarded { reason, tier: Tier::Application, stored }
            .append_to(response.headers_mut(), status);
        question.answered(response, Outcome::Miss, Tier::Application)
    }

    /// Passes a request on, whatever is stored.
    async fn pass(
        &self,
        request: Request<Incoming>,
        client: IpAddr,
        reason: Forward,
        route: Option<usize>,
    ) -> Answered {
        match forward(&self.upstream, request, client).await {
            Ok(response) => passed(response, reason, route),
            Err(error) => unreachable(error, route),
        }
    }

    /// Passes a write on. What it made stale is purged before its answer leaves, and even if the client has left.
    async fn write(
        &self,
        serving: &Arc<Serving>,
        request: Request<Incoming>,
        client: IpAddr,
        path: NormalPath,
        purged: Vec<PurgeName>,
    ) -> Answered {
        if purged.is_empty() && serving.mode != Mode::Absent {
            return self.pass(request, client, Forward::Method, None).await;
        }
        let (upstream, config, telemetry) =
            (self.upstream.clone(), Arc::clone(&self.config), Arc::clone(&self.telemetry));
        let serving = Arc::clone(serving);
        let written = tokio::spawn(async move {
            let method = request.method().clone();
            let outcome = forward(&upstream, request, client).await;
            // The application may have written before it failed.
            if !outcome.as_ref().is_ok_and(|response| changed_nothing(response.status())) {
                purge::after_write(&config, &serving, &method, &path, &purged, &telemetry.stats).await;
            }
            outcome
        });
        match written.await.expect("a task that is not aborted ends, unless it panics, and then so do we") {
            Ok(response) => passed(response, Forward::Method, None),
            Err(error) => unreachable(error, None),
        }
    }

    async fn upgrade(&self, mut request: Request<Incoming>, client: IpAddr) -> Answered {
        let protocol = headers::upgrade(request.headers());
        let from_client = hyper::upgrade::on(&mut request);
        let mut request = outgoing(request, client);
        if let Some(protocol) = protocol {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol);
        }
        let mut response = match self.upstream.send(request).await {
            Ok(response) => response,
            Err(error) => return unreachable(error, None),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::remove_hop_by_hop(response.headers_mut());
            return passed(response, Forward::Bypass(Bypass::Upgrade), None);
        }
        tokio::spawn(tunnel::join(from_client, hyper::upgrade::on(&mut response)));
        let response = response.map(Body::Stream);
        Answered { response, route: None, outcome: Outcome::Pass, tier: Tier::Application }
    }
}

impl Question<'_> {
    fn hit(&self, entry: &Entry, tier: Tier, ttl: Duration) -> Answered {
        let mut response = Response::new(Body::full(entry.body.clone()));
        *response.status_mut() = entry.status;
        *response.headers_mut() = entry.headers.clone();
        response.headers_mut().insert(AGE, HeaderValue::from(entry.age().as_secs()));
        CacheStatus::Hit { tier, ttl }.append_to(response.headers_mut(), entry.status);
        self.answered(response, Outcome::Hit, tier)
    }

    fn answered(&self, response: Response<Body>, outcome: Outcome, tier: Tier) -> Answered {
        Answered { response, route: Some(self.found.index), outcome, tier }
    }

    fn fits(&self, length: u64) -> bool {
        length <= self.serving.policy.l1.max_object_size.0
    }

    fn parts(&self, status: StatusCode, headers: &HeaderMap, stamp: Stamp) -> Parts {
        let headers = headers::detached(headers);
        Parts { status, headers, received_at: wall_ms(), stamp, names: self.names.clone() }
    }
}

/// Whether a status says that a write was refused. The other client errors say that what it was about is not as the client
/// thought, so that what is stored of it may not be so either.
fn changed_nothing(status: StatusCode) -> bool {
    const NOT_AS_THOUGHT: [StatusCode; 4] =
        [StatusCode::NOT_FOUND, StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT, StatusCode::GONE];
    status.is_client_error() && !NOT_AS_THOUGHT.contains(&status)
}

/// Why a request that a route matched is neither looked up nor stored.
fn not_for_the_cache(serving: &Serving, found: &Match<'_>, request: &Request<Incoming>) -> Option<Forward> {
    let headers = request.headers();
    if found.route.bypasses(request.uri().query()) {
        Some(Forward::Bypass(Bypass::Query))
    } else if credentials::identity_header(headers, &found.route.key).is_some() {
        Some(Forward::Bypass(Bypass::Credentials))
    } else if key::is_overridden(headers) {
        Some(Forward::Bypass(Bypass::Override))
    } else if headers.contains_key(RANGE) {
        Some(Forward::Bypass(Bypass::Range))
    } else if !request.body().is_end_stream() {
        Some(Forward::Bypass(Bypass::Content))
    } else if serving.policy.honours_clients() && asks_for_the_origin(headers) {
        Some(Forward::Request)
    } else {
        None
    }
}

/// `no-cache` or `no-store` of a client (RFC 9111, section 5.2.1).
fn asks_for_the_origin(headers: &HeaderMap) -> bool {
    let control = larder_policy::cache_control::CacheControl::parse(headers);
    control.no_cache || control.no_store
}

/// What L1 has for a request, and how much longer it is fresh; or why the request goes on.
fn look_in_memory(question: &Question<'_>, headers: &HeaderMap) -> Result<(Arc<Entry>, Duration), Forward> {
    let (serving, key) = (question.serving, question.key.as_str());
    let entry = match serving.l1.get(key) {
        None => return Err(Forward::UriMiss),
        Some(Stored::Entry(entry)) => entry,
        Some(Stored::Vary(vary)) => match serving.l1.get(&format!("{key}{}", variant(&vary, headers))) {
            Some(Stored::Entry(entry)) => entry,
            _ => return Err(Forward::VaryMiss),
        },
    };
    let fresh = entry.fresh_for(question.ttl()).filter(|_| !entry.is_purged(&serving.barriers));
    fresh.map(|ttl| (entry, ttl)).ok_or(Forward::Stale)
}

/// What L2 has for a request, and how much longer it is fresh; or why the request goes on, which is `reason` unless L2
/// knows better. The stamp is that of a fill that begins now: Redis' if it answered, this pod's otherwise.
async fn look_in_redis(
    question: &Question<'_>,
    reason: Forward,
) -> (Stamp, Result<(Arc<Entry>, Duration), Forward>) {
    let (serving, key) = (question.serving, question.key.as_str());
    let known_here = serving.barriers.stamp();
    let Some(l2) = &serving.l2 else { return (known_here, Err(reason)) };
    let Ok(lookup) = l2.lookup(&serving.shape, key, &question.headers, &question.names).await else {
        return (known_here, Err(reason));
    };
    let found = match lookup.found {
        Found::Nothing => Err(reason),
        Found::OtherVariants => Err(Forward::VaryMiss),
        Found::Purged => Err(Forward::Stale),
        Found::Entry(vary, entry) => match entry.fresh_for(question.ttl()) {
            None => Err(Forward::Stale),
            Some(ttl) => {
                let entry = Arc::new(*entry);
                keep_in_memory(serving, key, &vary, &variant(&vary, &question.headers), &entry);
                Ok((entry, ttl))
            }
        },
    };
    (lookup.stamp, found)
}

fn keep_in_memory(serving: &Serving, key: &str, vary: &[HeaderName], variant: &str, entry: &Arc<Entry>) {
    if vary.is_empty() {
        serving.l1.insert(key, Stored::Entry(Arc::clone(entry)));
    } else {
        serving.l1.insert(&format!("{key}{variant}"), Stored::Entry(Arc::clone(entry)));
        serving.l1.insert(key, Stored::Vary(vary.into()));
    }
}

/// A name that is no header's, or one that we change, can't be compared, so nothing may be stored under it.
fn header_names(names: Vec<String>) -> Result<Vec<HeaderName>, NotStored> {
    let names: Vec<HeaderName> =
        names.iter().map(|name| name.parse()).collect::<Result<_, _>>().map_err(|_| NotStored::VaryAny)?;
    if names.iter().all(can_vary_by) { Ok(names) } else { Err(NotStored::VaryAny) }
}

async fn forward(
    upstream: &Upstream,
    request: Request<Incoming>,
    client: IpAddr,
) -> Result<Response<Incoming>, UpstreamError> {
    let mut response = upstream.send(outgoing(request, client)).await?;
    headers::remove_hop_by_hop(response.headers_mut());
    Ok(response)
}

/// The request as the application sees it.
fn outgoing(request: Request<Incoming>, client: IpAddr) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    headers::remove_hop_by_hop(&mut head.headers);
    headers::announce(&mut head.headers, client);
    head.version = Version::HTTP_11;
    // The host of an absolute target goes before Host (RFC 9112, section 3.2.2).
    let host = head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        head.headers.insert(HOST, host);
    } else if !head.headers.contains_key(HOST) {
        head.headers.insert(HOST, HeaderValue::from_static(""));
    }
    let body = if body.is_end_stream() { Either::Right(Empty::new()) } else { Either::Left(body) };
    Request::from_parts(head, body)
}

fn passed(response: Response<Incoming>, reason: Forward, route: Option<usize>) -> Answered {
    let mut response = response.map(Body::Stream);
    let status = response.status();
    CacheStatus::Forwarded { reason, tier: Tier::Application, stored: false }
        .append_to(response.headers_mut(), status);
    let outcome = if route.is_some() { Outcome::Bypass } else { Outcome::Pass };
    Answered { response, route, outcome, tier: Tier::Application }
}

fn unreachable(error: UpstreamError, route: Option<usize>) -> Answered {
    tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "the application did not answer");
    let response = Problem::UpstreamUnreachable.response();
    Answered { response, route, outcome: Outcome::Error, tier: Tier::Nowhere }
}
