//! Memory reserved for the data that a fill holds.

use bytes::Bytes;

/// Memory for data of a body that is held for lagging readers, once the body can no longer be joined.
///
/// Called with a lock of the fill held: must neither wait nor call the fill.
pub trait Room: Send {
    /// Resizes the room to this many bytes. Returns true on success; if not, the size is unchanged.
    fn resize(&mut self, bytes: u64) -> bool;

    /// Returns the whole body in the form for its readers, such as one that tracks its holders.
    fn whole(&mut self, body: Bytes) -> Bytes {
        body
    }
}

/// A room without a limit.
pub(super) struct Unbounded;

impl Room for Unbounded {
    fn resize(&mut self, _: u64) -> bool {
        true
    }
}
