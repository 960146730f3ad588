//! Requests over HTTP/1.1 that the guard of their connection serves itself: hits in memory, plain exchanges with the application, and
//! plain requests of routes.
//!
//! The classifier ([`super::classify`]) and [`Plain`] decide what the guard serves: a request with a field that means more to a
//! proxy than that its line is left out takes the general path, and so does every write that purges something. Requests that pass
//! are relayed as bytes; those that a route takes go through the stages of [`super::pipeline`], as on the general path.

use std::{
    io,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Method;
use larder_policy::{Fields as _, Route, Writing};

use super::{
    CacheRequest, Client, FastPath, Proxy, Routed,
    classify::{self, Disposition, classify_fields, path_and_query},
    fast_path::{Finding, Found},
    write::{Target, Write, must_hold, purges_of},
};
use crate::{
    cache_status::Forward,
    http1_guard::{BodyKind, Exchange, Handoff, Head, ImmediateResponder, Part, RequestError},
    in_progress::InProgress,
    snapshot::Snapshot,
    upstream::RawExchange,
    work::Work,
};

mod cached;
mod exchange;
mod request_head;
mod response_head;
#[cfg(test)]
mod tests;
mod unattended;

use cached::{Asked, CachedExchange, request_of};
use exchange::DirectExchange;
use request_head::{Peer, Plain};

/// Number of bytes of small pieces, or of chunks, from which they are passed on.
const MAX_BATCH: usize = 16 << 10;

/// Serves the requests of one connection that need no more than this.
#[derive(Debug)]
pub struct Direct {
    hits: FastPath,
    proxy: Arc<Proxy>,
    address: IpAddr,
    /// Set by the first exchange.
    client: Option<Peer>,
    /// Work for the requests of the connection.
    in_progress: Arc<InProgress>,
    handoff: Arc<Handoff>,
}

/// An exchange that the guard drives.
#[derive(Debug)]
pub enum GuardedExchange {
    /// Relayed as bytes.
    Relayed(Box<DirectExchange>),
    /// Served by a route.
    Cached(Box<CachedExchange>),
}

/// Treatment of a request by the guard.
#[derive(Debug)]
enum Treatment {
    Relay(Plan),
    LookUp(Routed),
}

/// Treatment of a request that is relayed as it came.
#[derive(Debug)]
struct Plan {
    reason: Forward,
    route: Option<Arc<Route>>,
    /// The write that it may be, which purges nothing that is known before its response.
    writing: Option<Writing>,
}

impl Direct {
    /// Serves requests of the client at `address`.
    pub fn new(
        proxy: &Arc<Proxy>,
        address: IpAddr,
        in_progress: &Arc<InProgress>,
        handoff: &Arc<Handoff>,
    ) -> Self {
        Self {
            hits: FastPath::new(Arc::clone(proxy)),
            proxy: Arc::clone(proxy),
            address,
            client: None,
            in_progress: Arc::clone(in_progress),
            handoff: Arc::clone(handoff),
        }
    }

    fn begin(&mut self, head: &Head<'_>, body: BodyKind) -> Option<GuardedExchange> {
        let found = self.hits.take_found();
        if !self.proxy.relays {
            return None;
        }
        let arrival = self.proxy.telemetry.tails.arrival(head.method, head.target);
        let plain = Plain::of(head)?;
        let method = Method::from_bytes(head.method.as_bytes()).ok()?;
        let (snapshot, treatment, key) = match found {
            Some(Found { snapshot, finding: Finding::Route(routed, key) }) => {
                (snapshot, Treatment::LookUp(routed), Some(key))
            }
            Some(Found { snapshot, finding: Finding::Pass(reason) }) => {
                (snapshot, Treatment::Relay(Plan { reason, route: None, writing: None }), None)
            }
            None => {
                let snapshot = self.proxy.config.snapshot();
                let treatment = treatment(&snapshot, head, &method, body)?;
                (snapshot, treatment, None)
            }
        };
        // Refused by the general path.
        let work = Work::begin(&self.proxy.telemetry.stats.budget, &self.in_progress)?;
        let (is_head, ends) = (method == Method::HEAD, plain.ends);
        let client = self.client.get_or_insert_with(|| Peer::new(self.address));
        match treatment {
            Treatment::LookUp(routed) => {
                let request = request_of(method, head, plain.for_application(head, client), key)?;
                tracing::debug!(method = head.method, uri = head.target, "request");
                let (handoff, work_of_client) = (Some(Arc::clone(&self.handoff)), Some(work.clone()));
                let client = Client { address: self.address, handoff, stream: None, work: work_of_client };
                let request = CacheRequest::of_guard(&snapshot, &routed, self.proxy.target, request, client);
                let served = self.proxy.look_up(request, routed.bypass);
                let asked = Asked { served, is_head, ends, arrival, work };
                let exchange = CachedExchange::new(&self.proxy, snapshot, &self.handoff, asked);
                Some(GuardedExchange::Cached(Box::new(exchange)))
            }
            Treatment::Relay(Plan { reason, route, writing }) => {
                tracing::debug!(method = head.method, uri = head.target, "request");
                let text = plain.for_application(head, client).text;
                let raw = RawExchange::new(&self.proxy.upstream, text, body, is_head, method.is_idempotent());
                let write = writing.map(|writing| {
                    let host =
                        head.lines.values("host").next().and_then(|host| std::str::from_utf8(host).ok());
                    let target = Target::at(head.target, host.unwrap_or_default());
                    Write {
                        snapshot: Arc::clone(&snapshot),
                        writing,
                        target,
                        body: None,
                        is_of_response: true,
                    }
                });
                let facts = exchange::Facts { reason, route, is_head, ends, arrival };
                let exchange =
                    DirectExchange::new(Arc::clone(&self.proxy), snapshot, raw, work, facts, write);
                Some(GuardedExchange::Relayed(Box::new(exchange)))
            }
        }
    }
}

/// Returns the treatment of a request, if the guard serves it.
fn treatment(
    snapshot: &Arc<Snapshot>,
    head: &Head<'_>,
    method: &Method,
    body: BodyKind,
) -> Option<Treatment> {
    let (path, query) = path_and_query(head.target);
    let has_content = body != BodyKind::None;
    let request = classify::Request {
        method,
        uri_host: None,
        path,
        query,
        fields: &head.lines,
        has_content,
        has_raw_target: false,
        upgrade: None,
    };
    let relay = |reason, route, writing| Some(Treatment::Relay(Plan { reason, route, writing }));
    match classify_fields(snapshot, request) {
        Disposition::Pass(reason) => relay(reason, None, None),
        Disposition::Write { writing, protocol: None }
            if !snapshot.policy().is_bare()
                && purges_of(snapshot, &writing).is_empty()
                && !must_hold(snapshot, &writing) =>
        {
            relay(Forward::Method, None, Some(writing))
        }
        Disposition::Route(routed) if !routed.route.envelope => match routed.passes(has_content) {
            Some(bypass) => relay(Forward::Bypass(bypass), Some(routed.route), None),
            // A body may be part of the key, and is not read here.
            None => (!has_content && *method != Method::POST).then_some(Treatment::LookUp(routed)),
        },
        _ => None,
    }
}

impl ImmediateResponder for Direct {
    type Exchange = GuardedExchange;

    fn respond(&mut self, head: &Head<'_>, output: &mut Vec<u8>) -> Option<Bytes> {
        self.hits.find(head, output)
    }

    fn exchange(&mut self, head: &Head<'_>, body: BodyKind) -> Option<GuardedExchange> {
        self.begin(head, body)
    }

    fn forget(&mut self) {
        drop(self.hits.take_found());
    }
}

/// Calls a method of either exchange.
macro_rules! of_either {
    ($own:expr, $exchange:ident => $call:expr) => {
        match $own {
            GuardedExchange::Relayed($exchange) => $call,
            GuardedExchange::Cached($exchange) => $call,
        }
    };
}

impl Exchange for GuardedExchange {
    fn has_room(&self) -> bool {
        of_either!(self, exchange => exchange.has_room())
    }

    fn add(&mut self, piece: &[u8]) {
        of_either!(self, exchange => exchange.add(piece))
    }

    fn complete(&mut self) {
        of_either!(self, exchange => exchange.complete())
    }

    fn reject(&mut self, error: RequestError) {
        of_either!(self, exchange => exchange.reject(error))
    }

    fn send(&mut self, context: &mut Context<'_>) {
        of_either!(self, exchange => exchange.send(context))
    }

    fn has_sent(&self) -> bool {
        of_either!(self, exchange => exchange.has_sent())
    }

    fn prepare(&mut self, context: &mut Context<'_>) {
        of_either!(self, exchange => exchange.prepare(context))
    }

    fn poll(&mut self, context: &mut Context<'_>, output: &mut Vec<u8>) -> Poll<io::Result<Part>> {
        of_either!(self, exchange => exchange.poll(context, output))
    }
}
