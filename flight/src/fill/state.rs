//! State shared by the readers of a fill, and its transitions. All of them are short and run under the lock.

use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use slab::Slab;

use super::{FillError, Observer, Room};
use crate::pieces::{Pieces, Replaced};
use crate::wakes::{Bell, Wakes};

/// Minimum lag, in bytes, that readers may have even without room: the difference between the buffers of two sockets,
/// so that no reader that keeps up is cut off.
const NARROW_LAG_LIMIT: u64 = 4 << 20;

/// State of the source.
pub(super) enum Source<B> {
    /// Nobody polls the source.
    Idle(B),
    /// A reader has taken the source to poll it.
    Polled,
    /// The source ended, with these trailers.
    Ended(Option<HeaderMap>),
    Broken(Arc<dyn Error + Send + Sync>),
    /// The last reader left before the end.
    Abandoned,
}

/// A reader, as the others see it.
struct Seat {
    /// Number of bytes that the reader has read.
    read: u64,
    /// True if the reader lagged and nothing is held for it any more.
    cut: bool,
    bell: Bell,
}

pub(super) struct State<B> {
    pub(super) source: Source<B>,
    /// The observer, until it is called.
    pub(super) observer: Option<Box<dyn Observer>>,
    pub(super) pieces: Pieces,
    pub(super) room: Box<dyn Room>,
    /// True if everything since the start is held.
    joinable: bool,
    seats: Slab<Seat>,
    /// Readers that are not cut off.
    uncut: usize,
    /// True if the source woke while it was being polled.
    woken: bool,
    /// Time since which the source has had nothing for a reader that polled it.
    pub(super) starved_since: Option<Instant>,
}

/// Result of polling a reader.
pub(super) enum Step<B> {
    Data(Bytes),
    /// All data is read.
    End(Option<HeaderMap>),
    Failed(FillError),
    /// Another reader polls the source; this one is woken.
    Wait,
    /// This reader polls the source.
    Turn(B),
}

impl<B> State<B> {
    pub(super) fn new(
        source: Source<B>,
        observer: Option<Box<dyn Observer>>,
        room: Box<dyn Room>,
        joinable: bool,
    ) -> Self {
        let (pieces, seats) = (Pieces::new(), Slab::new());
        Self { source, observer, pieces, room, joinable, seats, uncut: 0, woken: false, starved_since: None }
    }

    /// Adds a reader if the body can still be read from its start.
    pub(super) fn join(&mut self) -> Option<usize> {
        match self.source {
            Source::Idle(_) | Source::Polled | Source::Ended(_) if self.joinable => Some(self.admit()),
            _ => None,
        }
    }

    pub(super) fn admit(&mut self) -> usize {
        self.uncut += 1;
        self.pieces.owe();
        self.seats.insert(Seat { read: 0, cut: false, bell: Bell::default() })
    }

    pub(super) fn readers(&self) -> usize {
        self.seats.len()
    }

    /// Returns the next step for the reader `id`. `replaced` is to be dropped outside the lock.
    pub(super) fn step(&mut self, id: usize, cx: &Context<'_>, replaced: &mut Option<Waker>) -> Step<B> {
        let seat = &mut self.seats[id];
        if seat.cut {
            return Step::Failed(FillError::Lagged);
        }
        if let Some(bytes) = self.pieces.read(seat.read) {
            seat.read += bytes.len() as u64;
            seat.bell.rest();
            self.trim();
            return Step::Data(bytes);
        }
        match &self.source {
            Source::Ended(trailers) => return Step::End(trailers.clone()),
            Source::Broken(error) => return Step::Failed(FillError::Broken(Arc::clone(error))),
            Source::Abandoned => unreachable!("a fill with a reader is not abandoned"),
            Source::Idle(_) | Source::Polled => {}
        }
        // Before the source is polled: it may wake at once, and then this reader is among those who wait.
        *replaced = seat.bell.wait(cx.waker());
        match std::mem::replace(&mut self.source, Source::Polled) {
            Source::Idle(source) => {
                self.woken = false;
                Step::Turn(source)
            }
            _ => Step::Wait,
        }
    }

    /// Returns a source that has nothing yet. Readers that arrived during the poll are woken if it woke meanwhile: its
    /// waker found them not yet waiting, or they found the source taken.
    pub(super) fn put_back(&mut self, source: B) -> Wakes {
        self.source = Source::Idle(source);
        self.starved_since.get_or_insert_with(Instant::now);
        let mut wakes = Wakes::default();
        if std::mem::take(&mut self.woken) {
            self.ring(&mut wakes);
        }
        wakes
    }

    /// Handles a wake of the source.
    pub(super) fn woken(&mut self) -> Wakes {
        self.woken = true;
        let mut wakes = Wakes::default();
        self.ring(&mut wakes);
        wakes
    }

    /// Adds `bytes`, which arrived at the reader `id` in its turn; `next` is the source after it. `lag` is the maximum
    /// distance between readers if not everything is held.
    pub(super) fn push(&mut self, id: usize, bytes: &Bytes, next: Source<B>, lag: u64) -> Wakes {
        let mut wakes = self.settle(id, next);
        if !self.joinable {
            self.trim();
            let coming = bytes.len() as u64;
            self.cut(id, lag, coming, &mut wakes);
            if self.uncut > 1 && !self.room.resize(self.pieces.kept() + coming) {
                self.cut(id, NARROW_LAG_LIMIT, coming, &mut wakes);
            }
        }
        let owed = self.uncut - 1;
        if owed == 0 && !self.joinable {
            self.pieces.pass(bytes.len());
        } else {
            self.pieces.push(bytes.clone(), owed);
        }
        self.seats[id].read = self.pieces.end();
        wakes
    }

    /// Completes the body; its last part arrived at the reader `id`, or all had arrived before.
    pub(super) fn complete(&mut self, id: usize, body: Bytes) -> (Wakes, Replaced) {
        let wakes = self.settle(id, Source::Ended(None));
        let end = body.len() as u64;
        self.seats[id].read = end;
        let owed = self.seats.iter().filter(|(_, seat)| seat.read < end).count();
        (wakes, self.pieces.replace(body, owed))
    }

    /// Ends the turn of `id`; all other waiting readers are woken.
    pub(super) fn settle(&mut self, id: usize, next: Source<B>) -> Wakes {
        self.source = next;
        self.starved_since = None;
        self.seats[id].bell.rest();
        let mut wakes = Wakes::default();
        self.ring(&mut wakes);
        wakes
    }

    /// Closes the body to new readers, so that data that all have read can be released.
    pub(super) fn let_go(&mut self) {
        self.joinable = false;
    }

    /// Removes the reader `id`. If it was the last before the end, the source and the observer leave with it.
    pub(super) fn leave(&mut self, id: usize) -> Left<B> {
        let seat = self.seats.remove(id);
        if !seat.cut {
            self.uncut -= 1;
            self.pieces.release(seat.read);
            self.trim();
        }
        let mut left = Left { _bell: seat.bell, source: None, observer: None };
        if self.seats.is_empty() && matches!(self.source, Source::Idle(_)) {
            left.source = Some(std::mem::replace(&mut self.source, Source::Abandoned));
            left.observer = self.observer.take();
            self.joinable = false;
            self.trim();
        }
        left
    }

    /// Returns true if everything since the start is held, and will be as long as there is room.
    pub(super) fn is_joinable(&self) -> bool {
        self.joinable
    }

    /// Returns true if the reader `id` has nothing more to read.
    pub(super) fn is_end(&self, id: usize) -> bool {
        let seat = &self.seats[id];
        matches!(self.source, Source::Ended(None)) && !seat.cut && seat.read == self.pieces.end()
    }

    /// Returns the number of bytes left for the reader `id` if known, and the number it has read.
    pub(super) fn left(&self, id: usize) -> (Option<u64>, u64) {
        let read = self.seats[id].read;
        // With trailers to come the length stays open, or a server would announce it and drop them.
        let left = matches!(self.source, Source::Ended(None)).then(|| self.pieces.end() - read);
        (left, read)
    }

    /// Cuts off readers that would lag by more than `lag` with `coming` more bytes. A reader that has read everything
    /// does not lag.
    fn cut(&mut self, id: usize, lag: u64, coming: u64, wakes: &mut Wakes) {
        if self.pieces.kept() + coming <= lag {
            return;
        }
        let end = self.pieces.end();
        for (other, seat) in &mut self.seats {
            if other != id && !seat.cut && seat.read < end && end + coming - seat.read > lag {
                seat.cut = true;
                seat.bell.ring(wakes);
                self.uncut -= 1;
                self.pieces.release(seat.read);
            }
        }
        self.pieces.trim();
    }

    fn trim(&mut self) {
        if !self.joinable {
            self.pieces.trim();
            // Less always fits.
            let _ = self.room.resize(self.pieces.kept());
        }
    }

    fn ring(&mut self, wakes: &mut Wakes) {
        for (_, seat) in &mut self.seats {
            seat.bell.ring(wakes);
        }
    }
}

/// Parts that a leaving reader takes with it, to be dropped and called outside the lock.
pub(super) struct Left<B> {
    _bell: Bell,
    pub(super) source: Option<Source<B>>,
    pub(super) observer: Option<Box<dyn Observer>>,
}
