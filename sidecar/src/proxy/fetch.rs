//! Context of a fetch: a request that memory could not serve.

use std::{ops::ControlFlow, sync::Arc};

use http::{HeaderName, StatusCode};
use larder_flight::Lead;
use larder_policy::storing::NotStored;
use tokio::time::Instant;

use super::{Served, request::CacheRequest};
use crate::{
    barriers::Stamp,
    cache_status::{Forward, Tier},
    entry::Entry,
    l2::Lease,
    store::in_flight::FetchOutcome,
};

/// Result of a stage: a response, or the fetch for the next stage.
pub(super) type Step = ControlFlow<Box<Served>, Box<Fetch>>;

/// A request that goes beyond memory, and what its stages have learned. Boxed, because each stage passes it on.
pub(super) struct Fetch {
    pub(super) request: Box<CacheRequest>,
    pub(super) purpose: Purpose,
    /// Reason why the stored response, if there is one, does not serve the request.
    pub(super) reason: Forward,
    /// Time at which the request began to wait for others in this pod or another.
    pub(super) began_waiting: Instant,
    pub(super) known: Known,
    /// The requests that wait for the outcome.
    pub(super) lead: Option<Lead<FetchOutcome>>,
    /// The lease that this pod holds in Redis for the key.
    pub(super) lease: Option<Lease>,
    /// Tier that is asked.
    pub(super) tier: Tier,
}

/// Purpose of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A client waits for the response, which may be stored.
    Serve,
    /// No client waits: the stored response has been served.
    Refresh,
    /// A client waits for a response that is neither looked up nor stored.
    Bypass,
}

/// State of the cache as a fetch knows it.
pub(super) struct Known {
    /// The stored response that does not serve the request as it is, but may be revalidated or replace an error, and its tier.
    pub(super) stored: Option<(Arc<Entry>, Tier)>,
    /// A response of which parts are stored.
    pub(super) part: Option<Arc<Entry>>,
    /// Position in the order of purges when the fetch began, according to Redis.
    pub(super) stamp: Stamp,
    /// Position in the order of purges when the fetch began, according to this pod.
    pub(super) own_stamp: Stamp,
    /// Variant of the request according to Redis; empty if none is known.
    pub(super) variant: String,
    /// Names of the request headers that select it, according to Redis; none if the responses there do not vary.
    pub(super) vary: Vec<HeaderName>,
    /// Last purge that covers the request, according to Redis.
    pub(super) purge: u64,
    /// True if the last response was not shareable: requests do not wait for one another.
    pub(super) is_unshared: bool,
    /// True if Redis did not respond, because it was slow or because it had been and was not asked.
    pub(super) redis_is_silent: bool,
}

impl Fetch {
    /// Creates a fetch of which nothing is known.
    pub(super) fn new(request: Box<CacheRequest>, purpose: Purpose, reason: Forward) -> Box<Self> {
        let stamp = request.store().barriers.stamp();
        Box::new(Self {
            request,
            purpose,
            reason,
            began_waiting: Instant::now(),
            known: Known {
                stored: None,
                part: None,
                stamp,
                own_stamp: stamp,
                variant: String::new(),
                vary: vec![],
                purge: 0,
                is_unshared: false,
                redis_is_silent: false,
            },
            lead: None,
            lease: None,
            tier: Tier::Application,
        })
    }

    /// Shows those who wait that the fetch makes progress: one origin has given way to the next.
    pub(super) fn shows_progress(&self) {
        if let Some(lead) = &self.lead {
            lead.goes_on();
        }
    }

    /// Returns the names of the request headers by which a response with this status, and with these names in `Vary`, is found once it
    /// is stored.
    ///
    /// # Errors
    /// If it would hide others that are of use.
    pub(super) fn vary_to_store(
        &self,
        status: StatusCode,
        own: Vec<HeaderName>,
    ) -> Result<Vec<HeaderName>, NotStored> {
        let request = &self.request;
        // A response to HEAD stays in memory, under a key of its own.
        let in_redis = if request.is_head() { &[][..] } else { &self.known.vary };
        request.store().vary_to_store(request.key.as_str(), status, own, in_redis)
    }

    /// Tells those who wait the outcome.
    pub(super) fn finish(&mut self, outcome: FetchOutcome) {
        if let Some(lead) = self.lead.take() {
            drop(lead.land(outcome));
        }
    }
}

impl Known {
    /// Returns the stored response to be revalidated.
    pub(super) fn stored(&self) -> Option<&Arc<Entry>> {
        self.stored.as_ref().map(|(entry, _)| entry)
    }

    /// Returns true if a response is newer than the stored one that is to be revalidated.
    pub(super) fn is_outdated_by(&self, entry: &Entry) -> bool {
        let known = self.stored().map_or(0, |known| known.times().received_at);
        entry.times().received_at > known
    }
}
