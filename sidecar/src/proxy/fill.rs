//! An answer on its way into the cache.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use larder_flight::{GivenUp, Observer};
use larder_policy::{
    range::{ContentRange, Pieces, may_combine},
    storing::NotStored,
};

use super::{ask::Landing, keep::Place};
use crate::entry::{Content, Entry, Head};

/// Stores an answer when its body is whole. Until then, those who ask for the same find it in the place where it landed.
pub(super) struct WholeFill {
    pub(super) head: Head,
    pub(super) place: Place,
    pub(super) slot: Slot,
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
    fn complete(self: Box<Self>, body: Bytes) {
        store(self.head, self.place, Content::Whole(body));
        self.slot.let_go();
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        self.slot.let_go();
        not_stored(&self.place, why);
    }
}

/// Stores part of an answer, together with what is stored of it already (RFC 9111, section 3.4).
pub(super) struct PartFill {
    pub(super) head: Head,
    pub(super) place: Place,
    pub(super) range: ContentRange,
    /// What is stored of the answer.
    pub(super) known: Option<Arc<Entry>>,
}

impl Observer for PartFill {
    fn complete(self: Box<Self>, body: Bytes) {
        let Self { head, place, range, known } = *self;
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
        store(head, place, Content::Parts(pieces));
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        not_stored(&self.place, why);
    }
}

/// Stores an answer, unless it was purged while it was on its way.
pub(super) fn store(head: Head, place: Place, content: Content) {
    if place.serving.barriers.covers(&head.names, head.stamp) {
        return place.serving.not_stored(place.route, NotStored::Purged);
    }
    place.keep(Arc::new(Entry::new(head, content)));
}

fn not_stored(place: &Place, why: GivenUp) {
    let reason = match why {
        GivenUp::TooLarge => NotStored::TooLarge,
        GivenUp::Trailers => NotStored::Trailers,
        GivenUp::Broken | GivenUp::Abandoned => NotStored::Incomplete,
    };
    place.serving.not_stored(place.route, reason);
}
