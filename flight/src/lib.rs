//! One request to the origin for all concurrent requests of a key.
//!
//! [`Flights`] lets one of the concurrent requests for a key reach the origin; [`fill()`] lets all of them read the
//! response body while it arrives. Neither starts tasks nor needs a runtime.

mod fill;
mod flights;
mod pieces;
mod sync;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod testing;
mod wakes;

pub use fill::{Fill, FillError, GivenUp, Observer, Reader, Room, fill, fill_within};
pub use flights::{Audience, FlightKey, Flights, Joined, Landed, Lead, Wait};
