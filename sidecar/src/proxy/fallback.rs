//! The stage that serves what is stored in place of an error (RFC 5861, section 4).

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use larder_policy::freshness::may_be_stale;

use super::{
    Proxy, Served,
    fetch::{Fetch, Purpose},
    forward::unreachable,
    origin::Failure,
    request::CacheRequest,
};
use crate::{
    barriers::Stamp,
    cache_status::{Became, CacheStatus, Forward, Tier},
    entry::{
        Entry,
        codec::{self, MetaFrom, Record},
    },
    l2::Patience,
    problem::Problem,
    stats::Outcome,
    store::in_flight::FetchOutcome,
};

impl Proxy {
    /// Responds to a request whose last origin failed: with a stored response, or with the error.
    pub(super) async fn handle_failure(
        self: &Arc<Self>,
        mut fetch: Box<Fetch>,
        failure: Failure,
    ) -> Box<Served> {
        let status = match &failure {
            Failure::Response(received) => Some(received.head.status),
            Failure::Sources | Failure::NoResponse(_) => None,
        };
        if let Some(served) = self.find_fallback(&mut fetch, status).await {
            if let Failure::NoResponse(error) = &failure {
                tracing::warn!(
                    reason = error.reason().as_str(),
                    error = error.chain(),
                    "the application did not respond; serving a stored response"
                );
            }
            return served;
        }
        let route = Arc::clone(&fetch.request.route);
        match failure {
            Failure::Response(received) => fetch.deliver_received(received),
            Failure::Sources => {
                fetch.finish(FetchOutcome::Problem(Problem::SourcesFailed));
                Served::problem(Problem::SourcesFailed, Some(&route))
            }
            Failure::NoResponse(error) => {
                let served = unreachable(&error, &fetch.request.client, Some(&route));
                fetch.finish(FetchOutcome::Problem(Problem::Upstream(error.reason())));
                served
            }
        }
    }

    /// Returns a stored response in place of an error with this status, or of none: from memory, from a Redis that was slow, or the
    /// last known good one.
    async fn find_fallback(
        self: &Arc<Self>,
        fetch: &mut Fetch,
        status: Option<StatusCode>,
    ) -> Option<Box<Served>> {
        if fetch.purpose == Purpose::Bypass {
            return None;
        }
        if let Some(served) = fetch.serve_stale_if_error(status) {
            return Some(served);
        }
        if std::mem::take(&mut fetch.known.redis_is_silent) {
            // The error, which may be stored, is older than this lookup.
            let stamp = fetch.known.stamp;
            let served = self.look_in_redis(fetch, Patience::Hard).await;
            fetch.known.stamp = stamp;
            if let Some(served) = served.or_else(|| fetch.serve_stale_if_error(status)) {
                return Some(served);
            }
        }
        let entry = fetch.last_known_good().await?;
        let slot = fetch.request.slot_of(&entry);
        let entry = Arc::new(entry.under(slot.key().whole()));
        Some(fetch.serve_fallback(entry, status, Tier::LastKnownGood))
    }
}

impl Fetch {
    /// Returns the stored response in place of an error, if `staleIfError` permits it.
    pub(super) fn serve_stale_if_error(&mut self, status: Option<StatusCode>) -> Option<Box<Served>> {
        let (entry, tier) = self.known.stored.clone().filter(|_| self.may_serve_stale_if_error())?;
        Some(self.serve_fallback(entry, status, tier))
    }

    fn serve_fallback(&mut self, entry: Arc<Entry>, status: Option<StatusCode>, tier: Tier) -> Box<Served> {
        entry.mark_fallback_for(self.request.lifetimes().retry_interval);
        let slot = self.request.slot_of(&entry);
        slot.store_in_memory_unless_newer(&entry);
        let (served, cache_status) = self.request.fallback_response(&entry, self.reason, status, tier);
        self.finish(FetchOutcome::Fallback(entry, cache_status, slot));
        served
    }

    /// Returns true if the stored response may be served in place of an error.
    pub(super) fn may_serve_stale_if_error(&self) -> bool {
        self.known.stored().is_some_and(|stored| {
            let freshness = self.request.freshness_of(stored);
            freshness.state.serves_on_error() && !stored.is_purged(&self.request.store().barriers)
        })
    }

    /// Returns the time after which a slow source gives way to the stored response, if that may be served in place of an error.
    pub(super) fn soft_timeout(&self) -> Option<Duration> {
        if self.purpose == Purpose::Refresh || !self.may_serve_stale_if_error() {
            return None;
        }
        self.request.sources().filter_map(|(_, source)| source.soft_timeout()).max()
    }

    /// Returns the stale response that a slow source gives way to, and the time after which it does.
    pub(super) fn stale_when_slow(&self) -> Option<(Duration, StaleWhenSlow)> {
        let soft_timeout = self.soft_timeout()?;
        let (stored, tier) = self.known.stored.clone()?;
        Some((
            soft_timeout,
            StaleWhenSlow { request: self.request.clone(), stored, tier, reason: self.reason },
        ))
    }

    /// Returns the last known good response, unless a purge covers it: the table knows of the purges before this fetch, as far as their
    /// pods could tell it, Redis of all, if it responds, and this pod of those that it has heard of.
    async fn last_known_good(&self) -> Option<Entry> {
        let request = &self.request;
        let store = request.store();
        let table = store.last_known_good(&request.route)?;
        let record = match table.load(store.last_known_good_id(request.key_with_body().as_str())).await {
            Ok(record) => record?,
            Err(error) => {
                request.log_failure("lastKnownGood", &error);
                return None;
            }
        };
        let barriers = &store.barriers;
        // Another policy may have been in force when it was stored.
        let key = request.key_with_body().as_str();
        let decoded = codec::decode(record, request.rules(), key, MetaFrom::Fields);
        let Ok(Record::Entry(mut entry)) = decoded else { return None };
        if !may_be_stale(entry.meta(), request.lifetimes()) || !request.may_receive(&entry) {
            return None;
        }
        let (own, stamp) = (entry.stamp(), self.stamp_in(barriers.stamp().generation));
        // A response of an earlier generation is older than all purges of this one; a pod's own order means nothing to another pod.
        let is_counted = own.generation != 0 && own.generation == stamp.generation;
        let order = if is_counted { own.order } else { 0 };
        let stamp = Stamp { order, ..stamp };
        // The table knows the purges of other versions itself; the barrier on a version that begins anew, as after a flush, is none.
        let names = entry.names().filter(|name| *name != store.version);
        if barriers.covers(names, entry.path(), stamp) {
            return None;
        }
        // The table may miss a purge of a pod that does not reach Postgres, and this pod one that its bus did not bring.
        if let Some(l2) = store.l2.as_ref().filter(|_| !self.known.redis_is_silent)
            && l2.has_purged(&entry).await.unwrap_or(true)
        {
            return None;
        }
        entry.set_stamp(stamp);
        // Postgres knows nothing of soft purges.
        entry.set_outdated();
        Some(*entry)
    }

    /// Returns the position in the order of purges, in this generation, when the fetch began. Redis may have lost the order before or
    /// after the lookup: all purges of a generation that this fetch has not seen are later.
    fn stamp_in(&self, generation: u64) -> Stamp {
        let (stamp, own_stamp) = (self.known.stamp, self.known.own_stamp);
        let known = [stamp, own_stamp].into_iter().find(|stamp| stamp.generation == generation);
        known.unwrap_or(Stamp { generation, order: 0, ..own_stamp })
    }
}

/// A stale response that is served if fetching takes too long.
pub(super) struct StaleWhenSlow {
    request: Box<CacheRequest>,
    stored: Arc<Entry>,
    tier: Tier,
    reason: Forward,
}

impl StaleWhenSlow {
    /// Returns the response, unless it was purged since.
    pub(super) fn response(self) -> Option<Box<Served>> {
        let Self { request, stored, tier, reason } = self;
        let is_purged = stored.is_purged(&request.store().barriers);
        (!is_purged).then(|| request.fallback_response(&stored, reason, None, tier).0)
    }
}

impl CacheRequest {
    /// Returns a stored response in place of one that failed.
    pub(super) fn fallback_response(
        &self,
        stored: &Arc<Entry>,
        reason: Forward,
        status: Option<StatusCode>,
        tier: Tier,
    ) -> (Box<Served>, CacheStatus) {
        let cache_status = CacheStatus::Forwarded { reason, status, tier, answer: Became::StaleIfError };
        (self.response_with(stored, cache_status, Outcome::Stale, tier), cache_status)
    }
}
