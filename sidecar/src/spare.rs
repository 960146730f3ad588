//! Buffers that the connections of a thread use in turn.
//!
//! A connection needs a buffer from the arrival of bytes until they are processed, mostly within one poll. With a buffer of its own each connection would
//! hold memory while it waits, and touch memory at every request that no processor's cache has when there are many connections.

use std::{cell::RefCell, mem, ops::Deref, thread::LocalKey};

use bytes::BytesMut;

/// Maximum number of spare buffers of a kind, for each thread. One connection uses two of a kind: one for its client, one for the application.
const MAX_SPARE: usize = 2;

/// Maximum capacity of a spare buffer, in bytes. All of a thread are a quarter of a MiB, which the process takes by itself.
const MAX_CAPACITY: usize = 64 << 10;

/// A buffer of which threads have spare ones.
pub(crate) trait Buffer: Default + Deref<Target = [u8]> + 'static {
    /// The thread's spare buffers.
    const SPARE: &'static LocalKey<RefCell<Vec<Self>>>;

    /// Number of bytes for which there is room.
    fn room(&self) -> usize;
}

thread_local! {
    static INPUTS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Buffer for BytesMut {
    const SPARE: &'static LocalKey<RefCell<Vec<Self>>> = &INPUTS;

    fn room(&self) -> usize {
        self.capacity()
    }
}

impl Buffer for Vec<u8> {
    const SPARE: &'static LocalKey<RefCell<Vec<Self>>> = &OUTPUTS;

    fn room(&self) -> usize {
        self.capacity()
    }
}

/// Replaces a buffer without room by a spare one, if there is one.
pub(crate) fn take<B: Buffer>(buffer: &mut B) {
    if buffer.room() == 0
        && let Some(spare) = B::SPARE.with_borrow_mut(Vec::pop)
    {
        *buffer = spare;
    }
}

/// Makes an empty buffer a spare one.
pub(crate) fn give_back<B: Buffer>(buffer: &mut B) {
    if !buffer.is_empty() || buffer.room() == 0 {
        return;
    }
    let buffer = mem::take(buffer);
    B::SPARE.with_borrow_mut(|spare| {
        if buffer.room() <= MAX_CAPACITY && spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_buffer_is_used_again_by_another_connection() {
        let mut first = Vec::with_capacity(100);
        give_back(&mut first);
        assert_eq!(first.capacity(), 0);
        let mut second = Vec::<u8>::new();
        take(&mut second);
        assert!(second.is_empty() && second.capacity() >= 100);
    }

    #[test]
    fn buffer_with_content_stays() {
        let mut buffer = BytesMut::from("GET");
        give_back(&mut buffer);
        take(&mut buffer);
        assert_eq!(buffer, "GET");
    }

    #[test]
    fn few_buffers_of_a_limited_size_are_kept() {
        let spare = || OUTPUTS.with_borrow(|spare| (spare.len(), spare.iter().map(Vec::capacity).max()));
        give_back(&mut Vec::<u8>::with_capacity(MAX_CAPACITY + 1));
        assert_eq!(spare(), (0, None));
        (0..10).for_each(|_| give_back(&mut Vec::<u8>::with_capacity(64)));
        assert_eq!(spare(), (MAX_SPARE, Some(64)));
    }
}
