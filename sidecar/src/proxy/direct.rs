//! Requests over HTTP/1.1 that the guard of their connection serves itself: hits in memory, and plain exchanges with the application.
//!
//! The classifier ([`super::classify`]) and [`Plain`] decide what is relayed: a request with a field that means more to a
//! proxy than that its line is left out takes the general path, and so does every write that purges something.

use std::{net::IpAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::Method;
use larder_policy::{Fields as _, Route, Writing};

use super::{
    FastPath, Proxy,
    classify::{self, Disposition, classify_fields},
    write::{Target, Write, purges_of},
};
use crate::{
    cache_status::Forward,
    http1_guard::{BodyKind, Head, ImmediateResponder},
    in_progress::InProgress,
    snapshot::Snapshot,
    upstream::RawExchange,
    work::Work,
};

mod exchange;
mod request_head;
mod response_head;
#[cfg(test)]
mod tests;
mod unattended;

use exchange::DirectExchange;
use request_head::{Peer, Plain};

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
    pub fn new(proxy: &Arc<Proxy>, address: IpAddr, in_progress: &Arc<InProgress>) -> Self {
        Self {
            hits: FastPath::new(Arc::clone(proxy)),
            proxy: Arc::clone(proxy),
            address,
            client: None,
            in_progress: Arc::clone(in_progress),
        }
    }

    fn begin(&mut self, head: &Head<'_>, body: BodyKind) -> Option<DirectExchange> {
        if !self.proxy.relays {
            return None;
        }
        let started = Instant::now();
        let plain = Plain::of(head)?;
        let method = Method::from_bytes(head.method.as_bytes()).ok()?;
        let snapshot = self.proxy.config.snapshot();
        let plan = plan(&snapshot, head, &method, body)?;
        // Refused by the general path.
        let work = Work::begin(&self.proxy.telemetry.stats.budget, &self.in_progress)?;
        tracing::debug!(method = head.method, uri = head.target, "request");
        let client = self.client.get_or_insert_with(|| Peer::new(self.address));
        let text = plain.for_application(head, client);
        let (is_head, is_idempotent) = (method == Method::HEAD, method.is_idempotent());
        let raw = RawExchange::new(&self.proxy.upstream, text, body, is_head, is_idempotent);
        let write = plan.writing.map(|writing| {
            let host = head.lines.values("host").next().and_then(|host| std::str::from_utf8(host).ok());
            let target = Target::at(head.target, host.unwrap_or_default());
            Write { snapshot: Arc::clone(&snapshot), writing, target }
        });
        let (proxy, reason, route) = (Arc::clone(&self.proxy), plan.reason, plan.route);
        Some(DirectExchange::new(
            proxy,
            snapshot,
            raw,
            work,
            exchange::Facts { reason, route, is_head, ends: plain.ends, started },
            write,
        ))
    }
}

/// Returns the treatment of a request, if it is relayed as it came.
fn plan(snapshot: &Arc<Snapshot>, head: &Head<'_>, method: &Method, body: BodyKind) -> Option<Plan> {
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (head.target, None),
    };
    let has_content = body != BodyKind::None;
    let request = classify::Request {
        method,
        path,
        query,
        fields: &head.lines,
        has_content,
        has_raw_target: false,
        upgrade: None,
    };
    match classify_fields(snapshot, request) {
        Disposition::Pass(reason) => Some(Plan { reason, route: None, writing: None }),
        Disposition::Write { writing, protocol: None }
            if !snapshot.policy().is_bare() && purges_of(snapshot, &writing).is_empty() =>
        {
            Some(Plan { reason: Forward::Method, route: None, writing: Some(writing) })
        }
        Disposition::Route(routed) if !routed.route.envelope => {
            let bypass = routed.passes(has_content)?;
            Some(Plan { reason: Forward::Bypass(bypass), route: Some(routed.route), writing: None })
        }
        _ => None,
    }
}

impl ImmediateResponder for Direct {
    type Exchange = Box<DirectExchange>;

    fn respond(&mut self, head: &Head<'_>, output: &mut Vec<u8>) -> Option<Bytes> {
        self.hits.find(head, output)
    }

    fn exchange(&mut self, head: &Head<'_>, body: BodyKind) -> Option<Box<DirectExchange>> {
        self.begin(head, body).map(Box::new)
    }
}
