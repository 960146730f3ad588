//! Responses that are being fetched, for requests that wait for the same.

use std::{mem, sync::Arc};

use larder_flight::{Fill, Landed};
use parking_lot::Mutex;

use super::slot::CacheSlot;
use crate::{
    body::Source,
    cache_status::{CacheStatus, Tier},
    entry::{Entry, Head},
    problem::Problem,
};

/// Outcome of a fetch, for the requests that waited for it.
#[derive(Clone, Debug)]
pub enum FetchOutcome {
    /// A response that is on its way into the cache.
    InFlight(Arc<InFlight>),
    /// A response that is stored, and its tier. Its variant may be another than that of a request which waits.
    Stored(Arc<Entry>, Tier, CacheSlot),
    /// A stored response that is served in place of an error.
    Fallback(Arc<Entry>, CacheStatus, CacheSlot),
    /// An error of the sidecar's own.
    Problem(Problem),
    /// A response that must not be shared: each request fetches its own.
    Unshared,
}

impl FetchOutcome {
    /// Returns the place where the response is stored, or will be.
    pub fn slot(&self) -> Option<&CacheSlot> {
        match self {
            Self::InFlight(response) => Some(&response.slot),
            Self::Stored(_, _, slot) | Self::Fallback(_, _, slot) => Some(slot),
            Self::Problem(_) | Self::Unshared => None,
        }
    }
}

/// A response on its way into the cache.
#[derive(Debug)]
pub struct InFlight {
    /// Head of the response.
    pub head: Arc<Head>,
    /// Place where the response will be stored.
    pub slot: CacheSlot,
    /// Body of the response, for several readers.
    pub fill: Fill<Source>,
    /// Tier that the response comes from.
    pub tier: Tier,
}

/// Holds a response where requests for the same find it, until it is stored or can't be.
#[derive(Clone, Debug, Default)]
pub struct InFlightGuard(Arc<Mutex<Guarded>>);

#[derive(Debug, Default)]
enum Guarded {
    #[default]
    NotYet,
    Held(#[expect(dead_code, reason = "held for the effect of its drop")] Landed<FetchOutcome>),
    Released,
}

impl InFlightGuard {
    /// Holds a response, unless it has been released already.
    pub fn hold(&self, landed: Landed<FetchOutcome>) {
        let mut state = self.0.lock();
        if matches!(*state, Guarded::NotYet) {
            *state = Guarded::Held(landed);
        }
    }

    /// Releases the response: from now on requests find what is stored.
    pub fn release(&self) {
        let before = mem::replace(&mut *self.0.lock(), Guarded::Released);
        // Dropping the response may drop its fill, which must not happen under the lock.
        drop(before);
    }
}
