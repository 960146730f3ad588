//! Copies of request bodies that pass to the application, which are read once it has responded.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;

use crate::budget::{Budget, Kind, Reservation};

/// A copy of a body, as far as it has passed.
///
/// The body is neither delayed nor changed for it, and passes whatever becomes of the copy.
#[derive(Clone, Debug)]
pub struct BodyCopy(Arc<Mutex<Copied>>);

#[derive(Debug)]
struct Copied {
    bytes: Vec<u8>,
    reservation: Reservation,
    limit: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Incomplete,
    Complete,
    /// The body is larger than permitted, or there was no memory for it.
    Lost,
    /// The client broke the body off. What was copied before is kept.
    BrokenOff,
}

impl BodyCopy {
    /// Creates the copy of a body of at most `limit` bytes, in memory of `budget`.
    pub fn new(limit: u64, budget: &Arc<Budget>) -> Self {
        let reservation = Reservation::new(budget, Kind::Requests);
        Self(Arc::new(Mutex::new(Copied { bytes: vec![], reservation, limit, state: State::Incomplete })))
    }

    /// Reads the copy, if all of the body has passed and was copied.
    pub fn read<T>(&self, with: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let copied = self.0.lock();
        (copied.state == State::Complete).then(|| with(&copied.bytes))
    }

    /// Reads what was copied of a body that its client broke off.
    pub fn read_broken_off<T>(&self, with: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let copied = self.0.lock();
        (copied.state == State::BrokenOff).then(|| with(&copied.bytes))
    }

    /// Notes that the body has at least this length. It takes memory as it arrives: a client that only announces it takes none.
    pub(super) fn expect(&self, length: u64) {
        let mut copied = self.0.lock();
        if length > copied.limit {
            copied.lose();
        }
    }

    /// Notes what was read of the body, and whether that was the end.
    pub(super) fn note<E>(&self, read: Option<&Result<Frame<Bytes>, E>>, has_ended: bool) {
        let copied = &mut *self.0.lock();
        match read {
            Some(Err(_)) => copied.state = State::BrokenOff,
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                let length = copied.bytes.len() + data.len();
                if copied.makes_room(length as u64) {
                    copied.bytes.extend_from_slice(data);
                }
            }
            None => {}
        }
        if (has_ended || read.is_none()) && copied.state == State::Incomplete {
            copied.state = State::Complete;
        }
    }
}

impl Copied {
    /// Makes room for so many bytes. Returns false if they are too many, or there is no memory for them.
    fn makes_room(&mut self, length: u64) -> bool {
        if self.state != State::Incomplete {
            return false;
        }
        if length > self.limit {
            self.lose();
            return false;
        }
        // A vector that grows has up to twice its length.
        let fits = 2 * length <= self.reservation.bytes() || self.reservation.resize(2 * length);
        if !fits {
            self.reservation.refuse();
            self.lose();
        }
        fits
    }

    fn lose(&mut self) {
        self.state = State::Lost;
        self.bytes = vec![];
        self.reservation.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::budget::MemoryLimit;

    fn budget() -> Arc<Budget> {
        const MIB: u64 = 1 << 20;
        let budget = Budget::new(MemoryLimit { bytes: Some(134 * MIB), ..MemoryLimit::default() });
        budget.leave_room_for(64 * MIB, MIB);
        Arc::new(budget)
    }

    fn copied(
        limit: u64,
        expected: u64,
        frames: &[Result<&'static str, ()>],
        has_ended: bool,
    ) -> Option<Vec<u8>> {
        let copy = BodyCopy::new(limit, &budget());
        copy.expect(expected);
        for (number, frame) in frames.iter().enumerate() {
            let frame = frame.map(|data| Frame::data(Bytes::from_static(data.as_bytes())));
            copy.note(Some(&frame), has_ended && number + 1 == frames.len());
        }
        copy.read(<[u8]>::to_vec)
    }

    #[test]
    fn body_is_read_once_all_of_it_has_passed() {
        assert_eq!(copied(4, 0, &[Ok("ab"), Ok("cd")], true).unwrap(), b"abcd");
        assert_eq!(copied(4, 4, &[Ok("ab"), Ok("cd")], true).unwrap(), b"abcd");
        assert_eq!(copied(4, 0, &[Ok("ab"), Ok("cd")], false), None, "it goes on");
        assert_eq!(copied(4, 0, &[Ok("ab"), Ok("cd"), Ok("e")], true), None, "it is too long");
        assert_eq!(copied(4, 5, &[Ok("ab")], true), None, "it says that it is too long");
        assert_eq!(copied(4, 0, &[Ok("ab"), Err(())], true), None, "it broke off");
    }

    #[test]
    fn trailers_and_an_end_of_its_own_complete_a_body() {
        let copy = BodyCopy::new(4, &budget());
        copy.note::<()>(Some(&Ok(Frame::data(Bytes::from_static(b"ab")))), false);
        assert_eq!(copy.read(<[u8]>::to_vec), None);
        copy.note::<()>(Some(&Ok(Frame::trailers(HeaderMap::new()))), false);
        copy.note::<()>(None, false);
        assert_eq!(copy.read(<[u8]>::to_vec).unwrap(), b"ab");
    }

    #[test]
    fn copy_gives_its_memory_back_and_does_without_where_there_is_none() {
        let budget = budget();
        let reserved = || budget.reserved(Kind::Requests);
        let copy = BodyCopy::new(1 << 16, &budget);
        copy.note::<()>(Some(&Ok(Frame::data(Bytes::from_static(&[0; 1 << 10])))), true);
        assert!(reserved() >= 1 << 10);
        drop(copy);
        assert_eq!(reserved(), 0);
        let taken: Vec<_> = std::iter::from_fn(|| budget.reserve(Kind::Requests, 1 << 20)).collect();
        let (before, refused) = (reserved(), budget.refused(Kind::Requests));
        let copy = BodyCopy::new(1 << 30, &budget);
        copy.note::<()>(Some(&Ok(Frame::data(Bytes::from_static(&[0; 1 << 20])))), true);
        assert_eq!(copy.read(<[u8]>::to_vec), None);
        assert_eq!((reserved(), budget.refused(Kind::Requests)), (before, refused + 1));
        drop(taken);
    }

    #[test]
    fn announced_length_takes_no_memory() {
        let budget = budget();
        let copy = BodyCopy::new(1 << 16, &budget);
        copy.expect(1 << 16);
        assert_eq!(budget.reserved(Kind::Requests), 0);
        copy.note::<()>(Some(&Ok(Frame::data(Bytes::from_static(b"ab")))), false);
        assert!(budget.reserved(Kind::Requests) < 1 << 10);
    }

    #[test]
    fn beginning_of_a_body_that_broke_off_is_kept() {
        let copy = BodyCopy::new(4, &budget());
        copy.note::<()>(Some(&Ok(Frame::data(Bytes::from_static(b"ab")))), false);
        assert_eq!(copy.read_broken_off(<[u8]>::to_vec), None);
        copy.note(Some(&Err(())), false);
        copy.note::<()>(None, true);
        assert_eq!(copy.read_broken_off(<[u8]>::to_vec).unwrap(), b"ab");
        assert_eq!(copy.read(<[u8]>::to_vec), None);
        let too_long = BodyCopy::new(1, &budget());
        too_long.note::<()>(Some(&Ok(Frame::data(Bytes::from_static(b"ab")))), false);
        too_long.note(Some(&Err(())), false);
        assert_eq!(too_long.read_broken_off(<[u8]>::to_vec).unwrap(), b"");
    }
}
