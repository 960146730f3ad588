//! Parts of bodies. The input is field lines, then numbers: the length of a body, and the offsets and lengths of its
//! parts.

use bytes::Bytes;
use larder_policy::range::{ContentRange, Pieces, RangeRequest, Spec};

use crate::input::{Message, blocks, numbers};

/// A parsed range has the meaning of its text, and pieces equal the body that they belong to.
pub fn check(data: &[u8]) {
    let [fields, parts] = blocks(data);
    let message = Message::read(fields);
    ranges(&message);
    for value in message.values("content-range") {
        content_range(value);
    }
    pieces(numbers(parts));
}

fn ranges(message: &Message) {
    let found = RangeRequest::of(&message.map());
    assert_eq!(found, RangeRequest::of(message.lines().as_slice()), "however they are held");
    let RangeRequest::One(spec) = found else { return };
    let written = match spec {
        Spec::From { first, last: Some(last) } => format!("range: BYTES=,{first}-{last} ,"),
        Spec::From { first, last: None } => format!("range: bytes={first}-"),
        Spec::Last(bytes) => format!("range: bytes= -{bytes}"),
    };
    assert_eq!(RangeRequest::of(&Message::read(written.as_bytes()).map()), found, "{written}");
    for length in [0, 1, 2, 100, 1 << 32, u64::MAX - 1, u64::MAX] {
        let Some(range) = spec.resolve(length) else { continue };
        assert!(range.start < range.end && range.end <= length);
        match spec {
            Spec::From { first, last } => {
                assert_eq!(range.start, first);
                assert!(range.end == length || Some(range.end - 1) == last);
            }
            Spec::Last(bytes) => {
                assert_eq!(range.end, length);
                assert_eq!(range.end - range.start, bytes.min(length));
            }
        }
    }
}

fn content_range(value: &[u8]) {
    let Some(range) = ContentRange::parse(value) else { return };
    assert!(range.first <= range.last && range.total.is_none_or(|total| range.last < total));
    assert_eq!(range.range(), range.first..range.first + range.length());
    assert_eq!(ContentRange::parse(range.to_string().as_bytes()), Some(range), "what is written is read");
    if let Some(total) = range.total {
        let spec = Spec::From { first: range.first, last: Some(range.last) };
        assert_eq!(spec.resolve(total), Some(range.range()));
    }
}

/// Compares pieces with a body whose presence is known byte by byte.
fn pieces(numbers: [Option<u64>; 33]) {
    let total = numbers[0].unwrap_or(0).min(128);
    let byte = |at: usize| u8::try_from(at % 251).expect("it is less than 251");
    let mut there = vec![false; usize::try_from(total).expect("it is small")];
    let mut pieces = Pieces::new(total);
    for part in numbers[1..].chunks(2) {
        let first = part[0].unwrap_or(u64::MAX);
        let length = usize::try_from(part[1].unwrap_or(0)).unwrap_or(0).min(200);
        let from = usize::try_from(first).unwrap_or(usize::MAX);
        let end = from.checked_add(length).filter(|end| *end <= there.len());
        let bytes: Bytes = (0..length).map(|at| byte(from.wrapping_add(at))).collect();
        assert_eq!(pieces.insert(first, bytes), end.is_some());
        if let Some(end) = end {
            there[from..end].fill(true);
        }
        same(&pieces, &there, byte);
    }
}

fn same(pieces: &Pieces, there: &[bool], byte: impl Fn(usize) -> u8) {
    let mut found = vec![false; there.len()];
    let mut end = None;
    for (first, piece) in pieces.iter() {
        let first = usize::try_from(first).expect("it is in the body");
        assert!(!piece.is_empty() && end.is_none_or(|end| end < first), "they neither overlap nor touch");
        end = Some(first + piece.len());
        found[first..first + piece.len()].fill(true);
        assert!(piece.iter().enumerate().all(|(at, found)| *found == byte(first + at)));
        let range = first as u64..(first + piece.len()) as u64;
        assert_eq!(pieces.slice(range.clone()), Some(piece.clone()));
        assert_eq!(pieces.slice(range.start..range.end + 1), None);
    }
    assert_eq!(found, there);
    let count = there.iter().filter(|there| **there).count();
    assert_eq!(pieces.bytes(), count as u64);
    assert_eq!(pieces.whole().map(|whole| whole.len()), (count == there.len()).then_some(count));
    if let Some(missing) = pieces.missing() {
        let range =
            usize::try_from(missing.start).expect("small")..usize::try_from(missing.end).expect("small");
        assert!(!range.is_empty());
        assert!(
            there.iter().enumerate().all(|(at, there)| *there != range.contains(&at)),
            "only that is missing"
        );
    }
}
