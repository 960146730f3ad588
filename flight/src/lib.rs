//! One question to the origin for all who ask it.
//!
//! [`Flights`] sees to it that of those who ask for the same key at the same time one asks the origin; [`fill()`] lets
//! all of them read the answer's body while it comes. Neither starts tasks nor needs a runtime.

mod fill;
mod flights;
mod pieces;
mod sync;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod testing;
mod wakes;

pub use fill::{Fill, FillError, GivenUp, Observer, Reader, Room, fill, fill_within};
pub use flights::{Audience, Flights, Joined, Landed, Lead, Wait};
