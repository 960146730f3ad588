//! The available parts of a body that arrived in pieces (RFC 9110, section 15.3.7.3; RFC 9111, section 3.4).

use std::ops::Range;

use bytes::Bytes;

/// Parts of a body. They never overlap or touch, because they are merged as they arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    total: u64,
    /// Pieces, sorted by offset.
    pieces: Vec<(u64, Bytes)>,
}

impl Pieces {
    /// Creates an empty set for a body of this length.
    pub fn new(total: u64) -> Self {
        Self { total, pieces: Vec::new() }
    }

    /// The length of the whole body.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the pieces with their offsets, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.pieces.iter().map(|(first, bytes)| (*first, bytes))
    }

    /// Adds a part. Returns `false`, without effect, for one that extends past the end.
    pub fn insert(&mut self, first: u64, bytes: Bytes) -> bool {
        self.insert_as(first, bytes, |merged| merged)
    }

    /// Adds a part as [`Pieces::insert`] does. A buffer that is made of it and those that it touches is kept as what `hold` returns,
    /// such as one that is counted.
    pub fn insert_as(&mut self, first: u64, bytes: Bytes, hold: impl FnOnce(Bytes) -> Bytes) -> bool {
        let Some(end) = first.checked_add(length(&bytes)).filter(|end| *end <= self.total) else {
            return false;
        };
        if bytes.is_empty() || self.slice(first..end).is_some() {
            return true;
        }
        // Those that overlap or touch it: they become one piece with it.
        let from = self.pieces.partition_point(|piece| piece.end() < first);
        let to = self.pieces.partition_point(|piece| piece.0 <= end);
        let touched = &self.pieces[from..to];
        let mut start = first;
        let last = touched.last().map_or(end, |piece| piece.end().max(end));
        let length = last - touched.first().map_or(first, |piece| piece.0.min(first));
        let mut whole = Vec::with_capacity(if touched.is_empty() { 0 } else { index(length) });
        if let Some((before, old)) = self.pieces[from..to].first().filter(|(before, _)| *before < first) {
            start = *before;
            whole.extend_from_slice(&old[..index(first - before)]);
        }
        let merged = if from == to {
            bytes
        } else {
            whole.extend_from_slice(&bytes);
            if let Some(piece) = self.pieces[from..to].last().filter(|piece| piece.end() > end) {
                whole.extend_from_slice(&piece.1[index(end - piece.0)..]);
            }
            hold(whole.into())
        };
        self.pieces.splice(from..to, [(start, merged)]);
        true
    }

    /// Returns a part of the body, if all of it is available.
    pub fn slice(&self, range: Range<u64>) -> Option<Bytes> {
        if range.start >= range.end {
            return None;
        }
        let at = self.pieces.partition_point(|piece| piece.0 <= range.start).checked_sub(1)?;
        let piece = &self.pieces[at];
        (range.end <= piece.end())
            .then(|| piece.1.slice(index(range.start - piece.0)..index(range.end - piece.0)))
    }

    /// Returns the whole body, if all of it is available.
    pub fn whole(&self) -> Option<Bytes> {
        if self.total == 0 { Some(Bytes::new()) } else { self.slice(0..self.total) }
    }

    /// Returns the one range that would complete the body; `None` if nothing is missing, nothing is available, or
    /// several ranges are missing.
    pub fn missing(&self) -> Option<Range<u64>> {
        let (first, last) = (self.pieces.first()?, self.pieces.last()?);
        match (first.0, last.end() == self.total, self.pieces.as_slice()) {
            (0, false, [_]) => Some(last.end()..self.total),
            (0, true, [_, _]) => Some(first.end()..last.0),
            (missing @ 1.., true, [_]) => Some(0..missing),
            _ => None,
        }
    }

    /// Returns the number of available bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| length(bytes)).sum()
    }
}

/// A piece, with the offset at which the next may begin.
trait Piece {
    fn end(&self) -> u64;
}

impl Piece for (u64, Bytes) {
    fn end(&self) -> u64 {
        self.0 + length(&self.1)
    }
}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).expect("a usize fits into 64 bits")
}

/// Converts an offset inside a piece that is in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("the offset is inside a buffer in memory")
}
