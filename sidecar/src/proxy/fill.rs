//! An answer on its way into the cache.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_RANGE};
use larder_flight::{GivenUp, Observer};
use larder_policy::{
    Lifetimes,
    claims::Claims,
    lifetimes::TtlFrom,
    range::{ContentRange, Pieces, may_combine},
    storing::NotStored,
    ttl, validation,
};

use super::{ask::Landing, keep::Place};
use crate::{
    budget::{Budget, Kind, Reservation},
    entry::{Content, Entry, Head},
    l2::Lease,
};

/// Stores an answer when its body is whole. Until then, those who ask for the same find it in the place where it landed.
pub(super) struct WholeFill {
    head: Head,
    place: Place,
    slot: Slot,
    room: Room,
    lease: Option<Lease>,
}

impl WholeFill {
    pub(super) fn new(head: Head, place: Place, slot: Slot, lease: Option<Lease>) -> Self {
        let room = Room::in_memory_of(&place);
        Self { head, place, slot, room, lease }
    }
}

/// What a fill holds in memory.
struct Room {
    reservation: Reservation,
    was_refused: bool,
}

impl Room {
    fn in_memory_of(place: &Place) -> Self {
        let reservation = Reservation::new(&place.serving.budget, Kind::Responses);
        Self { reservation, was_refused: false }
    }

    fn grow(&mut self, bytes: u64) -> bool {
        // Half as much again: when it is whole, it is copied into a buffer of its own, and few are at the same time.
        if !self.was_refused && !self.reservation.grow(bytes + bytes / 2) {
            self.was_refused = true;
            self.reservation.refuse();
        }
        !self.was_refused
    }
}

/// Room for what readers that lie apart make a fill keep.
pub(super) struct LagRoom {
    budget: Arc<Budget>,
    reservation: Reservation,
}

impl LagRoom {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), reservation: Reservation::new(budget, Kind::Responses) }
    }
}

impl larder_flight::Room for LagRoom {
    fn resize(&mut self, bytes: u64) -> bool {
        let fits = self.reservation.resize(bytes);
        if !fits {
            self.reservation.refuse();
        }
        fits
    }

    fn whole(&mut self, body: Bytes) -> Bytes {
        self.budget.counted(body)
    }
}

/// Keeps an answer where those who ask for the same find it, until it is stored or will not be.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot(Arc<Mutex<Landed>>);

#[derive(Debug, Default)]
enum Landed {
    #[default]
    NotYet,
    Here(#[expect(dead_code, reason = "it is held for what its end does")] larder_flight::Landed<Landing>),
    Gone,
}

impl Slot {
    pub(super) fn hold(&self, landed: larder_flight::Landed<Landing>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, Landed::NotYet) {
            *state = Landed::Here(landed);
        }
    }

    fn let_go(&self) {
        let before = mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), Landed::Gone);
        // What it held may hold the fill: not under the lock.
        drop(before);
    }
}

impl Observer for WholeFill {
    fn may_keep(&mut self, bytes: u64) -> bool {
        self.room.grow(bytes)
    }

    fn complete(self: Box<Self>, body: Bytes) {
        store(self.head, self.place, Content::Whole(body), self.lease);
        self.slot.let_go();
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        if why == GivenUp::TooLarge {
            // Readers of a body that is let go of must keep up with one another: better each has its own.
            self.place.note_unshared();
        }
        self.slot.let_go();
        not_stored(&self.place, why, &self.room);
    }
}

/// Stores part of an answer, together with what is stored of it already (RFC 9111, section 3.4).
pub(super) struct PartFill {
    head: Head,
    place: Place,
    range: ContentRange,
    /// What is stored of the answer.
    known: Option<Arc<Entry>>,
    room: Room,
    lease: Option<Lease>,
}

impl PartFill {
    pub(super) fn new(
        head: Head,
        place: Place,
        range: ContentRange,
        known: Option<Arc<Entry>>,
        lease: Option<Lease>,
    ) -> Self {
        let room = Room::in_memory_of(&place);
        Self { head, place, range, known, room, lease }
    }
}

impl Observer for PartFill {
    fn may_keep(&mut self, bytes: u64) -> bool {
        self.room.grow(bytes)
    }

    fn complete(self: Box<Self>, body: Bytes) {
        let Self { mut head, place, range, known, room: _held, lease } = *self;
        let Some(total) = range.total.filter(|_| body.len() as u64 == range.last - range.first + 1) else {
            return place.serving.not_stored(place.route, NotStored::ContentRange);
        };
        let known = known.filter(|known| may_combine(&known.head.headers, &head.headers));
        let mut pieces = match known.as_ref().map(|known| &known.content) {
            Some(Content::Parts(pieces)) if pieces.total() == total => pieces.clone(),
            _ => Pieces::new(total),
        };
        if !pieces.insert(range.first, body) || pieces.bytes() > place.serving.policy.l1.max_object_size.0 {
            return place.serving.not_stored(place.route, NotStored::TooLarge);
        }
        if let Some(known) = &known {
            head.headers = validation::freshen(&known.head.headers, &head.headers);
        }
        let content = match pieces.whole() {
            // Section 3.4: as if it had come at once.
            Some(body) => {
                head.status = StatusCode::OK;
                head.headers.remove(CONTENT_RANGE);
                Content::Whole(body)
            }
            None => Content::Parts(pieces),
        };
        head.claims = Claims::read(head.status, &head.headers, head.times, place.serving.policy.targets());
        store(head, place, content, lease);
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        not_stored(&self.place, why, &self.room);
    }
}

/// Stores an answer, unless it was purged while it was on its way.
pub(super) fn store(mut head: Head, place: Place, content: Content, lease: Option<Lease>) {
    if place.serving.barriers.covers(&head.names, head.stamp) {
        return place.serving.not_stored(place.route, NotStored::Purged);
    }
    let lifetimes = &place.serving.policy.routes()[place.route].lifetimes;
    head.claims = head.claims.with_given_ttl(given_ttl(lifetimes, &head.headers, Some(&content)));
    place.keep(Arc::new(Entry::new(head, content)), lease);
}

/// How long an answer says that it is fresh, where its route says.
pub(super) fn given_ttl(
    lifetimes: &Lifetimes,
    headers: &HeaderMap,
    content: Option<&Content>,
) -> Option<Duration> {
    match (lifetimes.ttl_from.as_ref()?, content) {
        (TtlFrom::Header(name), _) => ttl::of_header(headers, name),
        (TtlFrom::Json(pointer), Some(Content::Whole(body))) => ttl::of_json(body, pointer),
        (TtlFrom::Json(_), Some(Content::Parts(_)) | None) => None,
    }
}

fn not_stored(place: &Place, why: GivenUp, room: &Room) {
    let reason = match why {
        GivenUp::TooLarge if room.was_refused => NotStored::Busy,
        GivenUp::TooLarge => NotStored::TooLarge,
        GivenUp::Trailers => NotStored::Trailers,
        GivenUp::Broken | GivenUp::Abandoned => NotStored::Incomplete,
    };
    place.serving.not_stored(place.route, reason);
}
