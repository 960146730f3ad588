//! The buffered pieces of a body, each with the number of readers that have yet to read it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Number of pieces above which small ones are joined.
const COMPACT_AT: usize = 1024;
/// Size of joined pieces, in bytes.
const MAX_JOINED: usize = 16 * 1024;

struct Piece {
    /// End offset in the body.
    end: u64,
    bytes: Bytes,
    /// Number of readers that have not read the piece to its end.
    owed: usize,
}

impl Piece {
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

/// Released pieces, to be dropped outside the lock.
#[must_use = "drop them outside the lock"]
pub(crate) struct Replaced {
    _pieces: VecDeque<Piece>,
}

/// The buffered part of a body: a run of bytes up to its current end.
///
/// Positions are offsets in the body, so pieces may be joined under a reader that is in the middle of one.
pub(crate) struct Pieces {
    pieces: VecDeque<Piece>,
    end: u64,
    kept: u64,
    compact_at: usize,
}

impl Pieces {
    pub(crate) fn new() -> Self {
        Self { pieces: VecDeque::new(), end: 0, kept: 0, compact_at: COMPACT_AT }
    }

    /// Returns the number of bytes of the body so far.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Returns the number of buffered bytes.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// Adds bytes, to be read by `owed` readers.
    pub(crate) fn push(&mut self, bytes: Bytes, owed: usize) {
        self.end += bytes.len() as u64;
        self.kept += bytes.len() as u64;
        self.pieces.push_back(Piece { end: self.end, bytes, owed });
        if self.pieces.len() >= self.compact_at {
            self.compact();
        }
    }

    /// Advances past bytes without buffering them.
    pub(crate) fn pass(&mut self, length: usize) {
        debug_assert!(self.pieces.is_empty(), "what is kept ends where the body does");
        self.end += length as u64;
    }

    /// Replaces the pieces by the whole body; `owed` readers have not read it to its end.
    pub(crate) fn replace(&mut self, whole: Bytes, owed: usize) -> Replaced {
        self.end = whole.len() as u64;
        self.kept = self.end;
        let before = std::mem::take(&mut self.pieces);
        self.pieces.push_back(Piece { end: self.end, bytes: whole, owed });
        Replaced { _pieces: before }
    }

    /// Returns the piece at `from`, for a reader at that position; `None` at the end.
    pub(crate) fn read(&mut self, from: u64) -> Option<Bytes> {
        let at = self.at(from);
        let piece = self.pieces.get_mut(at)?;
        debug_assert!(piece.start() <= from, "what a reader owes is kept");
        piece.owed -= 1;
        let skip = usize::try_from(from - piece.start()).expect("an offset in a piece that is in memory");
        Some(if skip == 0 { piece.bytes.clone() } else { piece.bytes.slice(skip..) })
    }

    /// Adds a reader that has read nothing.
    pub(crate) fn owe(&mut self) {
        for piece in &mut self.pieces {
            piece.owed += 1;
        }
    }

    /// Removes a reader that has read up to `from`.
    pub(crate) fn release(&mut self, from: u64) {
        let at = self.at(from);
        for piece in self.pieces.range_mut(at..) {
            piece.owed -= 1;
        }
    }

    /// Releases data that all have read.
    pub(crate) fn trim(&mut self) {
        while let Some(piece) = self.pieces.pop_front_if(|piece| piece.owed == 0) {
            self.kept -= piece.bytes.len() as u64;
        }
    }

    /// Returns the buffered pieces, in order.
    pub(crate) fn list(&self) -> Vec<Bytes> {
        self.pieces.iter().map(|piece| piece.bytes.clone()).collect()
    }

    /// Returns the first piece that ends past `from`.
    fn at(&self, from: u64) -> usize {
        self.pieces.partition_point(|piece| piece.end <= from)
    }

    /// Joins small neighbours: a body that arrives byte by byte must not cost a piece for each.
    fn compact(&mut self) {
        let mut joined: VecDeque<Piece> = VecDeque::new();
        let mut run: Vec<Piece> = Vec::new();
        let mut length = 0;
        for piece in std::mem::take(&mut self.pieces) {
            if length + piece.bytes.len() > MAX_JOINED {
                joined.extend(join(&mut run, length));
                length = 0;
            }
            length += piece.bytes.len();
            run.push(piece);
        }
        joined.extend(join(&mut run, length));
        self.pieces = joined;
        // Twice as many before the next time, so that every byte is copied a bounded number of times.
        self.compact_at = COMPACT_AT.max(self.pieces.len() * 2);
    }
}

/// Joins a run into one piece. A reader that has not read the last of them has not read the whole.
fn join(run: &mut Vec<Piece>, length: usize) -> Option<Piece> {
    if run.len() < 2 {
        return run.pop();
    }
    let (end, owed) = run.last().map(|last| (last.end, last.owed))?;
    let mut bytes = BytesMut::with_capacity(length);
    for piece in run.drain(..) {
        bytes.extend_from_slice(&piece.bytes);
    }
    Some(Piece { end, bytes: bytes.freeze(), owed })
}

/// Copies `pieces` into one buffer, which keeps no read buffer alive.
pub(crate) fn concat(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return own(pieces.remove(0));
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in &pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}

/// Returns `bytes` unchanged if they fill most of a buffer without other holders, otherwise a copy.
fn own(bytes: Bytes) -> Bytes {
    match bytes.try_into_mut() {
        Ok(buffer) if buffer.len() >= buffer.capacity() / 4 * 3 => buffer.freeze(),
        Ok(buffer) => Bytes::copy_from_slice(&buffer),
        Err(shared) => Bytes::copy_from_slice(&shared),
    }
}
