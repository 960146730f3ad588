//! An exchange with the application that is relayed over bytes.

use std::{
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;
use larder_policy::Route;
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep},
};

use super::{
    MAX_BATCH,
    response_head::{self, Pace},
    unattended::{Unattended, response_of_write},
};
use crate::{
    body::SourceError,
    cache_status::{Became, CacheStatus, Forward, Tier},
    head_room::{self, AtClient},
    http1_guard::{Exchange, Part, RequestError, write_interim},
    problem::Problem,
    proxy::{Proxy, deadline::application_timeout, write::Write},
    snapshot::Snapshot,
    stats::Outcome,
    tail::{Answered, Arrival},
    upstream::{
        BodyFraming, ExchangeError, LAST_CHUNK, RawExchange, RawHead, UpstreamError, UpstreamReason,
        write_chunk,
    },
    work::Work,
};

/// Maximum number of bytes of a body with a length that are passed on at once. A client that does not read blocks so many.
const MAX_PLAIN_BATCH: usize = 32 << 10;

/// Facts about a request that is relayed.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) reason: Forward,
    pub(super) route: Option<Arc<Route>>,
    pub(super) is_head: bool,
    /// True if the client's connection ends after the response.
    pub(super) ends: bool,
    pub(super) arrival: Arrival,
}

/// An exchange with the application whose bytes are relayed.
#[derive(Debug)]
pub struct DirectExchange {
    proxy: Arc<Proxy>,
    snapshot: Arc<Snapshot>,
    facts: Facts,
    stage: Stage,
    raw: RawExchange,
    /// The write that it is, until its purge has begun.
    write: Option<Write>,
    /// Reason why the request's body was rejected.
    rejected: Option<RequestError>,
    /// Time for which the application may be silent: before its response, then within it.
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Time at which the application last got something to do.
    waits_since: Instant,
    work: Work,
}

enum Stage {
    Head,
    /// The purge of a write, before its response is passed on.
    Purging(BoxFuture<'static, ()>, Result<RawHead, UpstreamError>),
    /// The body of the response, which is chunked for the client if this is true.
    Body(bool),
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Head => "Head",
            Self::Purging(..) => "Purging",
            Self::Body(_) => "Body",
        })
    }
}

impl DirectExchange {
    #[inline]
    pub(super) fn new(
        proxy: Arc<Proxy>,
        snapshot: Arc<Snapshot>,
        raw: RawExchange,
        work: Work,
        facts: Facts,
        write: Option<Write>,
    ) -> Self {
        let limit = application_timeout(&snapshot);
        let waits_since = facts.arrival.at;
        let (stage, rejected, timer) = (Stage::Head, None, None);
        Self { proxy, snapshot, facts, stage, raw, write, rejected, limit, timer, waits_since, work }
    }

    /// Waits for the head of the final response, within the limit, and passes interim responses on.
    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
    ) -> Poll<Result<RawHead, UpstreamError>> {
        if self.rejected.is_some() {
            let source = ExchangeError::Upload("the body was rejected".into());
            return Poll::Ready(Err(UpstreamError::Exchange { source, was_sent: self.raw.was_sent() }));
        }
        loop {
            let head = match self.raw.poll_head(context) {
                Poll::Ready(head) => head?,
                Poll::Pending => {
                    let limit = ready!(self.poll_limit(context));
                    return Poll::Ready(Err(UpstreamError::Timeout(limit)));
                }
            };
            match head.status() {
                101 => return Poll::Ready(Err(UpstreamError::UnexpectedUpgrade)),
                // The client did not ask for it.
                100 => {}
                102..200 => {
                    if let Ok(response) = head.response() {
                        let removed = self.snapshot.policy().removed_headers();
                        write_interim(output, response.status(), response.headers(), removed);
                    }
                }
                _ => return Poll::Ready(Ok(head)),
            }
        }
    }

    /// Waits until the application has been silent for too long. Time in which the client was waited for does not count.
    fn poll_limit(&mut self, context: &mut Context<'_>) -> Poll<Duration> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        loop {
            ready!(timer.as_mut().poll(context));
            let left = match self.raw.waits_for_client() {
                true => limit,
                false => limit.saturating_sub(self.waits_since.elapsed()),
            };
            if left.is_zero() {
                return Poll::Ready(limit);
            }
            timer.as_mut().reset((Instant::now() + left.max(Duration::from_millis(1))).into());
        }
    }

    /// Begins the purge that follows a write, if this is one, or that the response asks for.
    fn purge(&mut self, outcome: &Result<RawHead, UpstreamError>) -> Option<BoxFuture<'static, ()>> {
        let Some(write) = self.write.take() else {
            return self.told(outcome);
        };
        if outcome.as_ref().is_err_and(|error| !error.may_have_been_sent()) {
            return None;
        }
        let proxy = Arc::clone(&self.proxy);
        if let Err(UpstreamError::Timeout(_)) = outcome {
            let (raw, work) = (self.raw.detach(), self.work.clone());
            return Some(Box::pin(Unattended { proxy, raw, write, _work: work }.purge_late()));
        }
        let response = outcome.as_ref().ok().map(response_of_write);
        Some(Box::pin(async move { write.purge(&proxy, response.as_ref()).await }))
    }

    /// Returns the purge that a response asks for.
    fn told(&self, outcome: &Result<RawHead, UpstreamError>) -> Option<BoxFuture<'static, ()>> {
        let head = outcome.as_ref().ok().filter(|_| self.snapshot.policy().obeys_responses)?;
        self.proxy.told(head)
    }

    /// Passes the outcome on: the head of the response and what came with it, or a problem.
    fn respond(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
        outcome: Result<RawHead, UpstreamError>,
    ) -> Part {
        let start = output.len();
        let outcome = outcome.and_then(|head| self.begin_response(context, output, &head));
        outcome.unwrap_or_else(|error| {
            output.truncate(start);
            self.fail(output, &error)
        })
    }

    /// Writes the head of the response, and what came with it.
    fn begin_response(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
        head: &RawHead,
    ) -> Result<Part, UpstreamError> {
        let Facts { reason, is_head, .. } = self.facts;
        let status = StatusCode::from_u16(head.status()).unwrap_or_default();
        let closes = self.proxy.asks_to_close();
        let (tier, answer) = (Tier::Application, Became::Passed);
        let cache_status = CacheStatus::Forwarded { reason, status: Some(status), tier, answer };
        self.facts.ends |= closes;
        let removed = self.snapshot.policy().removed_headers();
        let ends = self.facts.ends;
        let pace = match response_head::write_lines(output, head, is_head, removed, cache_status, ends) {
            Some(pace) => pace,
            None => match self.write_any(output, head, cache_status)? {
                Some(pace) => pace,
                None => return Ok(self.problem(output, Problem::Overloaded)),
            },
        };
        self.raw.begin_body(head);
        self.limit = self.limit.filter(|_| pace == Pace::Steady);
        self.timer = None;
        let is_chunked = head.framing().is_chunked_for_client();
        self.stage = Stage::Body(is_chunked);
        let part = match self.poll_pieces(context, output) {
            Poll::Ready(Ok(part)) => part,
            Poll::Ready(Err(error)) => return Err(UpstreamError::Body(error)),
            Poll::Pending => Part::More(Bytes::new()),
        };
        let outcome = if self.facts.route.is_some() { Outcome::Bypass } else { Outcome::Pass };
        self.record(outcome, Tier::Application, status);
        Ok(part)
    }

    /// Writes a head of which more than lines has to change; returns `None` if there is no memory for it.
    fn write_any(
        &mut self,
        output: &mut Vec<u8>,
        head: &RawHead,
        cache_status: CacheStatus,
    ) -> Result<Option<Pace>, UpstreamError> {
        let mut response = head
            .response()
            .map_err(|error| UpstreamError::Exchange { source: error.into(), was_sent: true })?;
        let pace = response_head::clean(&mut response, self.snapshot.policy().removed_headers());
        cache_status.append_to(response.headers_mut());
        match head_room::make(&mut response, &self.proxy.telemetry.stats.budget) {
            AtClient::NoRoom => return Ok(None),
            AtClient::Large => self.facts.ends = true,
            AtClient::Small => {}
        }
        let Facts { is_head, ends, .. } = self.facts;
        response_head::write(output, &response, head.framing(), is_head, ends);
        Ok(Some(pace))
    }

    /// Responds with the problem of a request without a response.
    fn fail(&mut self, output: &mut Vec<u8>, error: &UpstreamError) -> Part {
        let reason = error.reason();
        self.proxy.telemetry.stats.upstream_failed(reason);
        let problem = match self.rejected {
            Some(error) => Problem::Refused(error),
            None => {
                tracing::warn!(
                    reason = reason.as_str(),
                    error = error.chain(),
                    "the application did not respond"
                );
                Problem::Upstream(reason)
            }
        };
        self.problem(output, problem)
    }

    fn problem(&mut self, output: &mut Vec<u8>, problem: Problem) -> Part {
        let (head, content) = (problem.head(), problem.content());
        self.record(Outcome::Error, Tier::Nowhere, head.status());
        let Facts { is_head, .. } = self.facts;
        let ends = self.facts.ends || self.proxy.asks_to_close() || !self.raw.is_complete();
        let framing = BodyFraming::Length(content.len() as u64);
        response_head::write(output, &head, framing, is_head, ends);
        if !is_head {
            output.extend_from_slice(&content);
        }
        drop(self.raw.detach());
        Part::Last(Bytes::new(), ends)
    }

    fn record(&self, outcome: Outcome, tier: Tier, status: StatusCode) {
        let Facts { reason, route, arrival, .. } = &self.facts;
        let answered = Answered {
            route: route.as_ref().map(|route| &*route.name),
            outcome,
            tier,
            status: status.as_u16(),
            forward: Some(*reason),
            not_stored: None,
            took: Some(arrival.at.elapsed()),
        };
        self.proxy.record(self.snapshot.route_stats(route.as_deref()), arrival, &answered);
    }

    /// Appends the pieces of the body that are at hand.
    fn poll_pieces(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
    ) -> Poll<Result<Part, ExchangeError>> {
        let Stage::Body(is_chunked) = self.stage else { return Poll::Pending };
        let start = output.len();
        let most = if is_chunked { MAX_BATCH } else { MAX_PLAIN_BATCH };
        while !self.raw.has_ended() {
            let left = most.saturating_sub(output.len() - start);
            if left == 0 {
                return Poll::Ready(Ok(Part::More(Bytes::new())));
            }
            let polled = match is_chunked {
                true => self.poll_chunk(context, output),
                false => self.raw.poll_append(context, output, left),
            };
            match polled {
                Poll::Ready(appended) => appended?,
                Poll::Pending if output.len() > start => return Poll::Ready(Ok(Part::More(Bytes::new()))),
                Poll::Pending => return Poll::Pending,
            }
            self.timer = None;
        }
        if is_chunked {
            output.extend_from_slice(LAST_CHUNK);
        }
        Poll::Ready(Ok(Part::Last(Bytes::new(), self.facts.ends)))
    }

    /// Appends the next piece of a body as a chunk. Trailers are left out: the client did not ask for them.
    fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Vec<u8>,
    ) -> Poll<Result<(), ExchangeError>> {
        let Some(frame) = ready!(self.raw.poll_piece(context)) else {
            return Poll::Ready(if self.raw.has_ended() { Ok(()) } else { Err(ExchangeError::ClosedInBody) });
        };
        if let Ok(piece) = frame?.into_data() {
            write_chunk(output, &piece);
        }
        Poll::Ready(Ok(()))
    }

    /// Counts and logs a body that broke off: the client can't be told.
    fn broke_off(&self, reason: UpstreamReason, error: &SourceError) -> io::Error {
        self.proxy.telemetry.stats.upstream_failed(reason);
        tracing::warn!(reason = reason.as_str(), %error, "a response of the application is incomplete");
        io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string())
    }
}

impl Exchange for Box<DirectExchange> {
    fn has_room(&self) -> bool {
        self.raw.has_room()
    }

    fn add(&mut self, piece: &[u8]) {
        self.raw.add(piece);
        if self.limit.is_some() {
            self.waits_since = Instant::now();
        }
    }

    fn complete(&mut self) {
        self.raw.complete();
    }

    fn reject(&mut self, error: RequestError) {
        self.rejected = Some(error);
    }

    fn send(&mut self, context: &mut Context<'_>) {
        let _ = self.raw.poll_send(context);
    }

    fn has_sent(&self) -> bool {
        self.raw.has_sent()
    }

    fn poll(&mut self, context: &mut Context<'_>, output: &mut Vec<u8>) -> Poll<io::Result<Part>> {
        loop {
            match &mut self.stage {
                Stage::Head => {
                    let outcome = ready!(self.poll_head(context, output));
                    match self.purge(&outcome) {
                        Some(purge) => self.stage = Stage::Purging(purge, outcome),
                        None => return Poll::Ready(Ok(self.respond(context, output, outcome))),
                    }
                }
                Stage::Purging(purge, _) => {
                    ready!(purge.as_mut().poll(context));
                    let Stage::Purging(_, outcome) = mem::replace(&mut self.stage, Stage::Head) else {
                        continue;
                    };
                    return Poll::Ready(Ok(self.respond(context, output, outcome)));
                }
                Stage::Body(_) if self.rejected.is_some() => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Stage::Body(_) => {
                    return match self.poll_pieces(context, output) {
                        Poll::Ready(outcome) => {
                            Poll::Ready(outcome.map_err(|error| {
                                self.broke_off(UpstreamReason::of_body(&error), &error.into())
                            }))
                        }
                        Poll::Pending => {
                            let Some(limit) = self.limit else { return Poll::Pending };
                            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
                            ready!(timer.as_mut().poll(context));
                            let error = SourceError::Stalled(limit);
                            Poll::Ready(Err(self.broke_off(UpstreamReason::Timeout, &error)))
                        }
                    };
                }
            }
        }
    }
}

impl Drop for DirectExchange {
    fn drop(&mut self) {
        if self.write.is_none() && !matches!(self.stage, Stage::Purging(..)) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        // A write goes on without its client, and its purge with it.
        match mem::replace(&mut self.stage, Stage::Body(false)) {
            Stage::Head => {
                if let Some(write) = self.write.take() {
                    let (proxy, raw, work) = (Arc::clone(&self.proxy), self.raw.detach(), self.work.clone());
                    runtime.spawn(Unattended { proxy, raw, write, _work: work }.go_on(self.limit));
                }
            }
            Stage::Purging(purge, _) => {
                let work = self.work.clone();
                runtime.spawn(async move {
                    purge.await;
                    drop(work);
                });
            }
            Stage::Body(_) => {}
        }
    }
}
