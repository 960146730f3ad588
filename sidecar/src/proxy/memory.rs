//! The stage that looks into memory.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
};

use http::Method;
use larder_policy::{
    cache_control::RequestDirectives,
    freshness::{Freshness, State},
    range::{self, RangeRequest},
};

use super::{
    Proxy, Served,
    fetch::{Fetch, Purpose, Step},
    request::CacheRequest,
};
use crate::{
    cache_key::PrimaryKey,
    cache_status::{Bypass, Forward, Tier},
    entry::{Content, Entry},
    l2::Patience,
    problem::Problem,
    store::Missing,
};

/// Result of a lookup in a tier.
#[derive(Debug)]
pub(super) enum Lookup {
    /// A response that is served as it is: it is fresh, or stale within a window that permits that.
    Hit(Arc<Entry>, Freshness),
    /// A response that is not served as it is, and the reason: it is stale, has been in memory for longer than `l1TTL`, or the
    /// client's directives rule it out. It may be revalidated, or replace an error.
    Revalidate(Arc<Entry>, Forward),
    /// A response that recently replaced an error, and does so until the origin is tried again.
    Fallback(Arc<Entry>),
    /// A response of which the stored parts do not suffice.
    Part(Arc<Entry>),
    /// No response, and the reason.
    Miss(Forward),
    /// No response, and none to wait for: the last one could not be shared.
    Unshared,
}

impl Proxy {
    /// Responds from memory, or passes on what is known from it.
    pub(super) async fn look_in_memory(self: &Arc<Self>, request: Box<CacheRequest>) -> Step {
        let lookup = request.lookup();
        let is_unshared = matches!(lookup, Lookup::Unshared);
        let (stored, part, reason) = match lookup {
            Lookup::Hit(entry, freshness) => {
                if request.is_due_for_refresh(&entry, &freshness) {
                    self.refresh_in_background(&request, &entry);
                }
                return Break(request.hit(&entry, &freshness, Tier::L1));
            }
            Lookup::Fallback(entry) => {
                return Break(request.fallback_response(&entry, Forward::Stale, None, Tier::L1).0);
            }
            _ if request.directives.only_if_cached => {
                return Break(Box::pin(self.only_if_cached(request)).await);
            }
            Lookup::Revalidate(entry, reason) => (Some((entry, Tier::L1)), None, reason),
            Lookup::Part(entry) => (None, Some(entry), Forward::Partial),
            Lookup::Miss(reason) => (None, None, reason),
            Lookup::Unshared => (None, None, Forward::UriMiss),
        };
        let mut fetch = Fetch::new(request, Purpose::Serve, reason);
        (fetch.known.stored, fetch.known.part, fetch.known.is_unshared) = (stored, part, is_unshared);
        Continue(fetch)
    }

    /// Responds from what is stored (RFC 9111, section 5.2.1.7), which includes Redis.
    async fn only_if_cached(self: &Arc<Self>, request: Box<CacheRequest>) -> Box<Served> {
        let problem = Served::problem(Problem::OnlyIfCached, Some(&request.route));
        let mut fetch = Fetch::new(request, Purpose::Serve, Forward::UriMiss);
        self.look_in_redis(&mut fetch, Patience::Hard).await.unwrap_or(problem)
    }
}

impl CacheRequest {
    /// Looks the request up in memory: a HEAD under the key of GET as well.
    pub(super) fn lookup(&self) -> Lookup {
        let of_get = self.key_of_get.as_ref().map(|key| self.lookup_under(key));
        match of_get {
            Some(of_get @ (Lookup::Hit(..) | Lookup::Fallback(_))) => of_get,
            Some(of_get @ Lookup::Revalidate(..)) => match self.lookup_under(&self.key) {
                Lookup::Miss(_) => of_get,
                own => own,
            },
            _ => self.lookup_under(&self.key),
        }
    }

    /// Returns the stored response to GET of a HEAD.
    pub(super) fn stored_of_get(&self) -> Option<Arc<Entry>> {
        self.find(self.key_of_get.as_ref()?).ok()
    }

    fn find(&self, key: &PrimaryKey) -> Result<Arc<Entry>, Missing> {
        self.store().find((key.hash(), key.as_str()), &mut String::new(), &self.headers)
    }

    fn lookup_under(&self, key: &PrimaryKey) -> Lookup {
        match self.find(key) {
            Ok(entry) => match self.evaluate(entry) {
                Lookup::Revalidate(entry, _)
                    if entry.is_fallback() && self.may_keep_replacing_errors(&entry) =>
                {
                    Lookup::Fallback(entry)
                }
                // Another pod may have stored something newer in L2.
                Lookup::Hit(entry, _) if !self.is_within_l1_ttl(&entry) => {
                    if entry.is_fallback() && self.directives.is_empty() {
                        Lookup::Fallback(entry)
                    } else {
                        Lookup::Revalidate(entry, self.why(Forward::Stale))
                    }
                }
                looked => looked,
            },
            Err(Missing::Nothing) => Lookup::Miss(self.why(Forward::UriMiss)),
            Err(Missing::OtherVariants) => Lookup::Miss(self.why(Forward::VaryMiss)),
            Err(Missing::Unshared) => Lookup::Unshared,
        }
    }

    /// Returns true if a response that replaced an error may still do so: while `staleIfError` or `lastKnownGood` permits it.
    fn may_keep_replacing_errors(&self, entry: &Entry) -> bool {
        let freshness = self.freshness_of(entry);
        self.directives.is_empty()
            && (freshness.state.serves_on_error() || self.route.last_known_good.is_some())
    }

    /// Returns the freshness of a stored response for this request.
    pub(super) fn freshness_of(&self, entry: &Entry) -> Freshness {
        entry.freshness(self.lifetimes(), &self.directives, &self.store().barriers)
    }

    /// Returns the freshness of a stored response, whatever the client's directives say.
    pub(super) fn freshness_for_anybody(&self, entry: &Entry) -> Freshness {
        entry.freshness(self.lifetimes(), &RequestDirectives::default(), &self.store().barriers)
    }

    /// Returns true if a response in memory serves without another look into L2.
    fn is_within_l1_ttl(&self, entry: &Entry) -> bool {
        self.lifetimes().l1_ttl.is_none_or(|most| entry.here_for() < most)
    }

    /// Returns true if a response that is served is to be refreshed in the background.
    fn is_due_for_refresh(&self, entry: &Entry, freshness: &Freshness) -> bool {
        // A refresh has just failed.
        if entry.is_fallback() {
            return false;
        }
        let is_early =
            |left| self.lifetimes().early_refresh && (entry.takes_renewal() || entry.is_renewed_early(left));
        match freshness.state {
            State::Fresh { ttl } => is_early(ttl),
            state => state.refreshes(),
        }
    }

    /// Returns true if a stored response may be served to this client (RFC 9111, section 3.5).
    pub(super) fn may_receive(&self, entry: &Entry) -> bool {
        let directives = entry.meta().directives();
        let may_be_shared = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
        may_be_shared || !self.is_authorized
    }

    /// Evaluates a stored response for this request.
    pub(super) fn evaluate(&self, entry: Arc<Entry>) -> Lookup {
        if !self.may_receive(&entry) {
            return Lookup::Miss(Forward::Bypass(Bypass::Credentials));
        }
        if entry.is_purged(&self.store().barriers) {
            return Lookup::Miss(self.why(Forward::Stale));
        }
        let freshness = self.freshness_of(&entry);
        if let Content::Parts(pieces) = &entry.content {
            let range = match &self.range {
                RangeRequest::One(spec) => spec.resolve(pieces.total()),
                _ => None,
            };
            let is_there = range.is_some_and(|range| pieces.slice(range).is_some())
                && range::if_range_holds(&self.headers, &entry.fields());
            if !is_there || !freshness.state.serves_now() || self.is_head() {
                return Lookup::Part(entry);
            }
        }
        if freshness.state.serves_now() {
            Lookup::Hit(entry, freshness)
        } else {
            let serves_others = self.freshness_for_anybody(&entry).state.serves_now();
            let reason = if serves_others { Forward::Request } else { Forward::Stale };
            Lookup::Revalidate(entry, self.why(reason))
        }
    }

    fn why(&self, reason: Forward) -> Forward {
        if self.is_authorized {
            Forward::Bypass(Bypass::Credentials)
        } else if self.directives.no_store && self.method == Method::GET {
            Forward::Request
        } else {
            reason
        }
    }
}
