//! Requests in progress on an HTTP/2 connection, and the memory of their heads.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::Request;

use crate::{
    budget::{Budget, Kind, Reservation},
    connections::Admitted,
};

/// Memory per field besides its text, in bytes.
const FIELD: usize = 104;

/// The requests in progress on a connection.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    place: Arc<Admitted>,
    count: Arc<AtomicUsize>,
}

impl Requests {
    pub(super) fn new(place: &Arc<Admitted>) -> Self {
        place.connection().rests();
        Self { place: Arc::clone(place), count: Arc::default() }
    }

    /// Counts a request until the returned guard is dropped; `None` if there is no room for its head.
    pub(super) fn admit<B>(&self, request: &Request<B>, budget: &Arc<Budget>) -> Option<Underway> {
        let fields = request.headers().iter();
        let fields = fields.map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum::<usize>();
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        // Doubled, because the application's request has a copy.
        let reservation = budget.reserve(Kind::Heads, 2 * (fields + target) as u64)?;
        self.count.fetch_add(1, Ordering::Relaxed);
        self.place.connection().serves();
        Some(Underway { requests: self.clone(), _reservation: reservation })
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct Underway {
    requests: Requests,
    _reservation: Reservation,
}

impl Drop for Underway {
    fn drop(&mut self) {
        if self.requests.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.requests.place.connection().rests();
        }
    }
}
