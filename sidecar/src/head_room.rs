//! Memory reservations for large response heads. Small ones, as most are, count as part of their request.
//!
//! A head is in memory several times: as received, parsed, stored, and written to the client. Room for all of this is
//! reserved while the head arrives, and held with the body until the client's connection has taken over the head.

use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode};

use crate::budget::{Budget, Kind, Reservation};

/// Maximum length of a small head, in bytes.
pub const SMALL: usize = 16 << 10;
/// Factor by which a head counts: buffers double as they grow, and a field takes memory besides its text.
const COPIES: u64 = 8;
/// Memory per field besides its text, in bytes.
const FIELD: usize = 32;

/// A reservation for one head.
#[derive(Clone, Debug)]
pub struct HeadRoom(#[expect(dead_code, reason = "held until it is dropped")] Arc<Reservation>);

impl HeadRoom {
    /// Reserves room for a head of at most `length` bytes; `None` if there is none.
    pub fn reserve(budget: &Arc<Budget>, length: usize) -> Option<Reservation> {
        budget.reserve(Kind::Responses, COPIES * length as u64)
    }

    /// Shrinks a reservation to a head of `length` bytes.
    pub fn of(mut reservation: Reservation, length: usize) -> Self {
        reservation.resize((COPIES * length as u64).min(reservation.bytes()));
        Self(Arc::new(reservation))
    }
}

/// Result of reserving room for a response's head.
#[derive(Debug, Eq, PartialEq)]
pub enum AtClient {
    /// A small head, which counts as part of its request.
    Small,
    /// A large head, with a reservation in the response's extensions.
    Large,
    /// A large head without room.
    NoRoom,
}

/// Reserves room for the head of a response if it is large, or keeps the reservation made while it arrived, in the
/// extensions.
pub fn make<B>(response: &mut Response<B>, budget: &Arc<Budget>) -> AtClient {
    let made = response.extensions_mut().remove::<HeadRoom>();
    let length = length_of(response.headers());
    if length <= SMALL || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return AtClient::Small;
    }
    let room = made.or_else(|| HeadRoom::reserve(budget, length).map(|room| HeadRoom::of(room, length)));
    let Some(room) = room else { return AtClient::NoRoom };
    response.extensions_mut().insert(room);
    AtClient::Large
}

/// Takes the reservation from a response's extensions, for its body to hold.
pub fn take<B>(response: &mut Response<B>) -> Option<HeadRoom> {
    response.extensions_mut().remove()
}

fn length_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::budget::MemoryLimit;

    #[test]
    fn a_large_head_has_room_and_a_small_one_none() {
        let memory = MemoryLimit { bytes: Some(128 << 20), ..MemoryLimit::default() };
        let budget = Arc::new(Budget::new(memory));
        let with = |length| {
            Response::builder()
                .header("a", HeaderValue::from_bytes(&vec![b'v'; length]).unwrap())
                .body(())
                .unwrap()
        };
        assert_eq!(make(&mut with(1_000), &budget), AtClient::Small);
        assert_eq!(budget.reserved(Kind::Responses), 0);
        let mut response = with(200_000);
        assert_eq!(make(&mut response, &budget), AtClient::Large);
        let reserved = budget.reserved(Kind::Responses);
        assert!(reserved > 800_000, "{reserved}");
        assert_eq!(make(&mut response, &budget), AtClient::Large);
        assert_eq!(budget.reserved(Kind::Responses), reserved, "the room that it has is taken over");
        let room = take(&mut response);
        drop(response);
        assert_eq!(budget.reserved(Kind::Responses), reserved);
        drop(room);
        assert_eq!(budget.reserved(Kind::Responses), 0);
        let _all = budget.reserve(Kind::Responses, budget.bytes() / 4 * 3 - 100_000).unwrap();
        assert_eq!(make(&mut with(200_000), &budget), AtClient::NoRoom);
    }
}
