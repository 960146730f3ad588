//! Forwarding of requests to the application, whatever is stored.

use std::{future::poll_fn, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version, header::HOST};
use http_body::Body as _;
use http_body_util::Either;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use larder_policy::{Fields, Route};
use tokio::time::timeout;

use super::{
    Client, Proxy, Served,
    deadline::{self, Exchange, application_timeout},
    request::CacheRequest,
    told, tunnel,
};
use crate::{
    body::{Begun, Body, Paced},
    cache_status::{Became, Bypass, CacheStatus, Forward, Tier},
    headers::{self, FieldLines, LARDER_PURGE},
    http1_guard::{BodyKind, Handoff},
    problem::Problem,
    snapshot::Snapshot,
    stats::Outcome,
    upstream::{
        Abandoned, ApplicationBody, BodyCopy, HeadError, OnInterim, RawExchange, RequestBody,
        SwitchedConnection, Upload, UpstreamError, WhenRefused, no_body,
    },
};

impl Proxy {
    /// Passes a request on to the application.
    pub(super) async fn pass(
        &self,
        snapshot: &Snapshot,
        request: Request<RequestBody>,
        client: Client,
        reason: Forward,
        route: Option<&Arc<Route>>,
    ) -> Box<Served> {
        match self.forward(request, &client, None, WhenRefused::Retry).await {
            Ok(response) => passed(snapshot, response, reason, route),
            Err(error) => unreachable(&error, &client, route),
        }
    }

    /// Sends a request to the application, with `protocol` as one to change to, and passes interim responses back.
    pub(super) async fn forward(
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
    pub(super) fn begin(
        &self,
        request: Request<RequestBody>,
        client: &Client,
        protocol: Option<HeaderValue>,
        refused: WhenRefused,
    ) -> Exchange {
        let mut request = outgoing(request, client.address);
        let abandoned = Abandoned::default();
        let snapshot = self.config.snapshot_guard();
        pass_interim_responses(&mut request, client, &abandoned, snapshot.policy().removed_headers());
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
        let limit = application_timeout(&snapshot);
        Exchange::new(self.upstream.clone(), request, refused, abandoned, limit)
    }

    /// Waits for the response to a request, up to the policy's `application.timeout`, and then for the purge that it asks for.
    pub(super) async fn response_to(
        &self,
        exchange: &mut Exchange,
        may_change_protocol: bool,
    ) -> Result<Response<Paced>, UpstreamError> {
        let outcome = match exchange.head_in_time().await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !may_change_protocol => {
                Err(UpstreamError::UnexpectedUpgrade)
            }
            Ok(response) => begun(response).await,
            Err(error) => Err(error),
        };
        let mut response = self.counted(outcome)?;
        if response.headers().contains_key(&LARDER_PURGE) {
            self.obey(response.headers()).await;
            response.headers_mut().remove(&LARDER_PURGE);
        }
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::remove_hop_by_hop(response.headers_mut());
        }
        let (head, body) = response.into_parts();
        let body = self.paced(body, exchange.limit(), head.status, &head.headers);
        Ok(Response::from_parts(head, body))
    }

    /// Sends a request without a body whose text this is, as [`Self::forward`] sends others. Returns the end-to-end fields of the
    /// response beside it.
    pub(super) async fn forward_text(
        &self,
        request: &CacheRequest,
        text: &[u8],
    ) -> Result<(Response<Paced>, FieldLines), UpstreamError> {
        let limit = application_timeout(&request.snapshot);
        // Pinned here, so that the future has room for one of it and not for one in each arm.
        let response = pin!(self.response_to_text(request, text));
        let outcome = match limit {
            Some(limit) => timeout(limit, response).await.unwrap_or(Err(UpstreamError::Timeout(limit))),
            None => response.await,
        };
        let (response, fields, purge) = self.counted(outcome)?;
        if let Some(purge) = purge {
            told::carry_out(purge).await;
        }
        let status = response.status();
        Ok((response.map(|body| self.paced(body, limit, status, &fields)), fields))
    }

    /// Waits for the final response to a text, and passes interim responses on. Beside the response are its end-to-end fields and the
    /// purge that it asks for.
    async fn response_to_text(
        &self,
        request: &CacheRequest,
        text: &[u8],
    ) -> Result<(Response<Begun<ApplicationBody>>, FieldLines, Option<BoxFuture<'static, ()>>), UpstreamError>
    {
        let (is_head, is_idempotent) = (request.is_head(), request.method.is_idempotent());
        let mut raw = RawExchange::new(&self.upstream, text.to_vec(), BodyKind::None, is_head, is_idempotent);
        loop {
            let head = poll_fn(|context| raw.poll_head(context)).await?;
            match head.status() {
                101 => return Err(UpstreamError::UnexpectedUpgrade),
                100 => {}
                102..200 => {
                    if let Ok(response) = head.response() {
                        let removed = request.snapshot.policy().removed_headers();
                        request.client.send_interim(response.status(), response.headers(), removed);
                    }
                }
                _ => {
                    let malformed =
                        |error: HeadError| UpstreamError::Exchange { source: error.into(), was_sent: true };
                    let (response, fields) = head.response_and_lines().map_err(malformed)?;
                    let response = begun(response.map(|()| raw.into_body(&head))).await?;
                    // The fields as they came decide, those for this hop included.
                    let purge = match request.snapshot.policy().obeys_responses {
                        true => self.told(&head),
                        false => None,
                    };
                    return Ok((response, fields, purge));
                }
            }
        }
    }

    fn counted<T>(&self, outcome: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
        outcome.inspect_err(|error| self.telemetry.stats.upstream_failed(error.reason()))
    }

    /// Returns the body of a response with these fields, which may pause for `limit`.
    fn paced(
        &self,
        body: Begun<ApplicationBody>,
        limit: Option<Duration>,
        status: StatusCode,
        fields: &impl Fields,
    ) -> Paced {
        let limit = limit.filter(|_| !deadline::may_be_silent(status, fields));
        let snapshot = self.config.snapshot_guard();
        Paced::new(body, limit, snapshot.policy().removed_headers(), &self.telemetry.stats)
    }

    pub(super) async fn upgrade(
        &self,
        snapshot: &Snapshot,
        request: Request<Incoming>,
        client: Client,
        protocol: HeaderValue,
        from_client: OnUpgrade,
    ) -> Box<Served> {
        match self.forward(request.map(passed_body), &client, Some(protocol), WhenRefused::Retry).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                changed_protocol(from_client, response, &client)
            }
            Ok(response) => passed(snapshot, response, Forward::Bypass(Bypass::Upgrade), None),
            Err(error) => unreachable(&error, &client, None),
        }
    }
}

/// Reads what came of a body with its head: an error that shows there is a response of the sidecar's own.
async fn begun(
    response: Response<ApplicationBody>,
) -> Result<Response<Begun<ApplicationBody>>, UpstreamError> {
    let (head, body) = response.into_parts();
    let body = Begun::read(body).await.map_err(UpstreamError::Body)?;
    Ok(Response::from_parts(head, body))
}

/// Returns the body that is sent on of a client's request.
pub(super) fn passed_body(body: Incoming) -> RequestBody {
    if body.is_end_stream() { no_body() } else { Either::Left(Upload::new(Bytes::new(), body)) }
}

/// Returns the body that is sent on of a client's request, and copied as it passes if asked for.
pub(super) fn copied_body(body: Incoming, copy: Option<&BodyCopy>) -> RequestBody {
    match (passed_body(body), copy) {
        (Either::Left(upload), Some(copy)) => Either::Left(upload.copied(copy.clone())),
        (body, _) => body,
    }
}

/// Returns a request as the application gets it.
pub(super) fn outgoing(request: Request<RequestBody>, client: IpAddr) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    headers::remove_hop_by_hop(&mut head.headers);
    headers::announce(&mut head.headers, client, head.version);
    // The host of an absolute target replaces Host (RFC 9112, section 3.2.2).
    let host = head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        head.headers.insert(HOST, host);
    } else if !head.headers.contains_key(HOST) {
        // HTTP/1.1 requires one, and servers refuse an empty one; a health check over HTTP/1.0 has none.
        head.headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    Request::from_parts(head, body)
}

/// Passes interim responses on (RFC 9110, section 15.2), except for 101 and a 100 that the client does not expect, without the header
/// fields in `removed`.
fn pass_interim_responses(
    request: &mut Request<RequestBody>,
    client: &Client,
    abandoned: &Abandoned,
    removed: &[HeaderName],
) {
    if !client.takes_interim() || request.version() < Version::HTTP_11 {
        return;
    }
    // The request's work does not last as long as this.
    let client = Client { work: None, ..client.clone() };
    let (expects, abandoned) = (headers::expects_to_go_on(request.headers()), abandoned.clone());
    let removed = removed.to_vec();
    request.extensions_mut().insert(OnInterim::new(move |status, headers| match status.as_u16() {
        // The client has a final response, and may be waiting for the next one.
        _ if abandoned.is_set() => {}
        100 if expects => client.send_go_on(),
        102.. => client.send_interim(status, headers, &removed),
        _ => {}
    }));
}

/// Responds with 101, after which bytes pass both ways.
pub(super) fn changed_protocol(
    from_client: OnUpgrade,
    mut response: Response<Paced>,
    client: &Client,
) -> Box<Served> {
    if let Some(handoff) = &client.handoff {
        handoff.change_protocol();
    }
    if let Some(application) = response.extensions_mut().remove::<SwitchedConnection>() {
        tokio::spawn(tunnel::join(from_client, application, client.handoff.clone()));
    }
    let mut served = Served::new(response.map(Body::stream), None, Outcome::Pass, Tier::Application);
    served.forward = Some(Forward::Bypass(Bypass::Upgrade));
    served
}

/// Returns the application's response to a request that was passed on, without the fields that the policy takes out of responses.
pub(super) fn passed(
    snapshot: &Snapshot,
    response: Response<Paced>,
    reason: Forward,
    route: Option<&Arc<Route>>,
) -> Box<Served> {
    let mut response = response.map(Body::stream);
    for name in snapshot.policy().removed_headers() {
        response.headers_mut().remove(name);
    }
    let status = Some(response.status());
    CacheStatus::Forwarded { reason, status, tier: Tier::Application, answer: Became::Passed }
        .append_to(response.headers_mut());
    let outcome = if route.is_some() { Outcome::Bypass } else { Outcome::Pass };
    let mut served = Served::new(response, route.cloned(), outcome, Tier::Application);
    served.forward = Some(reason);
    served
}

/// Returns the problem of a request without a response: the application's, or the client's if its request broke off.
pub(super) fn unreachable(error: &UpstreamError, client: &Client, route: Option<&Arc<Route>>) -> Box<Served> {
    if let Some(error) = client.handoff.as_deref().and_then(Handoff::error) {
        return Served::problem(Problem::Refused(error), route);
    }
    let reason = error.reason();
    tracing::warn!(reason = reason.as_str(), error = error.chain(), "the application did not respond");
    Served::problem(Problem::Upstream(reason), route)
}
