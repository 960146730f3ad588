//! Room in memory for what a fill keeps.

use bytes::Bytes;

/// Room in memory for what is kept of a body for readers that lie apart, once it can't be joined any more.
///
/// Called with a lock of the fill held: it must neither wait nor call the fill.
pub trait Room: Send {
    /// Makes the room so many bytes. Returns whether there is as much; if not, it stays as it was.
    fn resize(&mut self, bytes: u64) -> bool;

    /// Returns the whole body as its readers are to get it, such as one that notes who holds it.
    fn whole(&mut self, body: Bytes) -> Bytes {
        body
    }
}

/// Room without end.
pub(super) struct Unbounded;

impl Room for Unbounded {
    fn resize(&mut self, _: u64) -> bool {
        true
    }
}
