//! An observer that refuses further memory in the middle of a body.

use super::*;

const PIECES: [&str; 5] = ["aa", "bb", "cc", "dd", "ee"];

/// Accepts all pieces but the one at `refused`.
struct Refusing {
    told: Told,
    came: usize,
    refused: usize,
}

impl Observer for Refusing {
    fn may_keep(&mut self, _bytes: u64) -> bool {
        self.came += 1;
        self.came - 1 != self.refused
    }

    fn complete(self: Box<Self>, body: Bytes) {
        Box::new(self.told).complete(body);
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        Box::new(self.told).given_up(why);
    }
}

/// Starts a fill. If announced, its last piece is its end as well; otherwise the end comes after it.
fn start(announced: bool, refused: usize) -> (Wire, Told, Fill<Source>, Reader<Source>) {
    let (wire, told) = (Wire::default(), Told::default());
    wire.0.lock().unwrap().length = announced.then_some(10);
    let observer = Refusing { told: told.clone(), came: 0, refused };
    let (fill, reader) = fill(Source(wire.clone()), 100, Box::new(observer));
    PIECES.iter().for_each(|piece| wire.send(*piece));
    wire.end();
    (wire, told, fill, reader)
}

#[test]
fn a_reader_alone_reads_on() {
    for announced in [true, false] {
        for refused in 0..PIECES.len() {
            let (wire, told, fill, reader) = start(announced, refused);
            assert_eq!(whole(reader), "aabbccddee", "{announced} {refused}");
            assert_eq!(told.all(), [Err(GivenUp::TooLarge)], "{announced} {refused}");
            assert!(fill.join().is_none());
            assert_eq!(fill.shared.lock().pieces.end(), 10);
            assert!(wire.dropped());
        }
    }
}

#[test]
fn two_readers_read_on_wherever_the_second_is() {
    for announced in [true, false] {
        for (refused, read) in (0..PIECES.len()).flat_map(|n| (0..=n).map(move |read| (n, read))) {
            let (_wire, told, fill, reader) = start(announced, refused);
            let mut second = Task::new(fill.join().unwrap());
            let mut first = Task::new(reader);
            let mut came = Vec::new();
            for (at, piece) in PIECES.iter().enumerate() {
                assert_eq!(first.data().unwrap(), *piece);
                if at < read {
                    came.extend(second.data().unwrap());
                }
            }
            assert_eq!(first.reader.is_end_stream(), announced);
            assert!(matches!(first.poll(), Poll::Ready(None)));
            while let Some(bytes) = second.data() {
                came.extend(bytes);
            }
            assert_eq!(came, b"aabbccddee", "{announced} {refused} {read}");
            assert_eq!(told.all(), [Err(GivenUp::TooLarge)], "{announced} {refused} {read}");
        }
    }
}
