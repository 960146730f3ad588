//! Storing of responses as their bodies arrive.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{StatusCode, header::CONTENT_RANGE};
use larder_flight::{GivenUp, Observer};
use larder_policy::{
    Fields, Lifetimes,
    key::path_of,
    lifetimes::TtlFrom,
    range::{ContentRange, Pieces, may_combine},
    response_meta::ResponseMeta,
    storing::NotStored,
    ttl, validation,
};

use super::{in_flight::InFlightGuard, slot::CacheSlot};
use crate::{
    budget::{Budget, Kind, Reservation},
    entry::{Content, Entry, Head},
    headers::FieldLines,
    l2::Lease,
};

/// Stores a response when its body is complete. Until then the guard holds it for requests for the same.
pub struct WholeFill {
    head: Arc<Head>,
    slot: CacheSlot,
    guard: InFlightGuard,
    room: Room,
    lease: Option<Lease>,
}

impl WholeFill {
    /// Creates the observer of a response that will be stored in `slot`, and under the lease if this pod has it.
    pub fn new(head: Arc<Head>, slot: CacheSlot, guard: InFlightGuard, lease: Option<Lease>) -> Self {
        let room = Room::in_memory_of(&slot);
        Self { head, slot, guard, room, lease }
    }
}

/// Memory that a fill holds.
struct Room {
    reservation: Reservation,
    was_refused: bool,
}

impl Room {
    fn in_memory_of(slot: &CacheSlot) -> Self {
        let reservation = Reservation::new(&slot.store.budget, Kind::Responses);
        Self { reservation, was_refused: false }
    }

    fn grow(&mut self, bytes: u64) -> bool {
        // Half as much again: a complete body is copied into a buffer of its own, and few are at the same time.
        if !self.was_refused && !self.reservation.grow(bytes + bytes / 2) {
            self.was_refused = true;
            self.reservation.refuse();
        }
        !self.was_refused
    }
}

/// Memory of the pieces that a fill retains because its readers are apart.
pub struct LagRoom {
    budget: Arc<Budget>,
    reservation: Reservation,
}

impl LagRoom {
    /// Creates the room of a fill that retains nothing.
    pub fn new(budget: &Arc<Budget>) -> Self {
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

impl Observer for WholeFill {
    fn may_keep(&mut self, bytes: u64) -> bool {
        self.room.grow(bytes)
    }

    fn complete(self: Box<Self>, body: Bytes) {
        store(&self.head, self.slot, Content::Whole(body), self.lease);
        self.guard.release();
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        if why == GivenUp::TooLarge {
            // Readers of a body that is not retained must keep up with one another: better each has its own.
            self.slot.note_unshared();
        }
        self.guard.release();
        not_stored(&self.slot, why, &self.room);
    }
}

/// Stores part of a response, combined with the parts that are stored already (RFC 9111, section 3.4).
pub struct PartFill {
    head: Head,
    slot: CacheSlot,
    range: ContentRange,
    /// The stored parts.
    known: Option<Arc<Entry>>,
    room: Room,
    lease: Option<Lease>,
}

impl PartFill {
    /// Creates the observer of the part of a response that `range` names.
    pub fn new(
        head: Head,
        slot: CacheSlot,
        range: ContentRange,
        known: Option<Arc<Entry>>,
        lease: Option<Lease>,
    ) -> Self {
        let room = Room::in_memory_of(&slot);
        Self { head, slot, range, known, room, lease }
    }
}

impl Observer for PartFill {
    fn may_keep(&mut self, bytes: u64) -> bool {
        self.room.grow(bytes)
    }

    fn complete(self: Box<Self>, body: Bytes) {
        let Self { mut head, slot, range, known, mut room, lease } = *self;
        let Some(total) = range.total.filter(|_| body.len() as u64 == range.last - range.first + 1) else {
            return slot.store.not_stored(&slot.route, NotStored::ContentRange);
        };
        let known = known.filter(|known| may_combine(&known.fields(), &*head.fields));
        let mut pieces = match known.as_ref().map(|known| &known.content) {
            Some(Content::Parts(pieces)) if pieces.total() == total => (**pieces).clone(),
            _ => Pieces::new(total),
        };
        // Those that touch become one, which is a copy.
        let (stored, length) = (pieces.bytes(), body.len() as u64);
        if stored > 0 && !room.reservation.resize(stored + 2 * length) {
            room.reservation.refuse();
            return slot.store.not_stored(&slot.route, NotStored::Busy);
        }
        let budget = &slot.store.budget;
        if !pieces.insert_as(range.first, body, |merged| budget.counted(merged))
            || pieces.bytes() > slot.store.policy.l1.max_object_size.0
        {
            return slot.store.not_stored(&slot.route, NotStored::TooLarge);
        }
        let mut headers = head.headers();
        if let Some(known) = &known {
            headers = validation::freshen(&known.headers(), &headers);
        }
        let mut status = head.meta.status();
        let content = match pieces.whole() {
            // Section 3.4: as if it had come at once.
            Some(body) => {
                status = StatusCode::OK;
                headers.remove(CONTENT_RANGE);
                Content::Whole(body)
            }
            None => Content::Parts(Box::new(pieces)),
        };
        head.meta = ResponseMeta::read(status, &headers, head.meta.times(), slot.store.policy.targets());
        head.fields = Arc::new(FieldLines::from(&headers));
        store(&head, slot, content, lease);
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        not_stored(&self.slot, why, &self.room);
    }
}

/// Returns true if a response was purged while it was on its way, as it may ask for itself.
pub fn is_purged(head: &Head, slot: &CacheSlot) -> bool {
    let path = path_of(slot.key().primary());
    slot.store.barriers.covers(head.names.iter().copied(), path, head.stamp)
}

/// Stores a response, unless it was purged while it was on its way.
pub fn store(head: &Head, slot: CacheSlot, content: Content, lease: Option<Lease>) {
    if is_purged(head, &slot) {
        return slot.store.not_stored(&slot.route, NotStored::Purged);
    }
    let ttl = ttl_from_response(&slot.route.lifetimes, &*head.fields, Some(&content));
    let meta = head.meta.clone().with_ttl_from_response(ttl);
    let entry = Arc::new(Entry::with_meta(slot.key().whole(), head, meta, content));
    slot.store(entry, lease);
}

/// Returns the TTL that a response declares in the place that its route names (`ttlFrom`).
pub fn ttl_from_response(
    lifetimes: &Lifetimes,
    headers: &impl Fields,
    content: Option<&Content>,
) -> Option<Duration> {
    match (lifetimes.ttl_from.as_ref()?, content) {
        (TtlFrom::Header(name), _) => ttl::of_header(headers, name),
        (TtlFrom::Json(pointer), Some(Content::Whole(body))) => ttl::of_json(body, pointer),
        (TtlFrom::Json(_), Some(Content::Parts(_)) | None) => None,
    }
}

fn not_stored(slot: &CacheSlot, why: GivenUp, room: &Room) {
    let reason = match why {
        GivenUp::TooLarge if room.was_refused => NotStored::Busy,
        GivenUp::TooLarge => NotStored::TooLarge,
        GivenUp::Trailers => NotStored::Trailers,
        GivenUp::Broken | GivenUp::Abandoned => NotStored::Incomplete,
    };
    slot.store.not_stored(&slot.route, reason);
}
