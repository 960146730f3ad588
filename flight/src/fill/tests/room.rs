//! A room for what is kept past the limit, that others fill too.

use super::*;

/// Room for so many bytes, and what is taken of it.
#[derive(Clone)]
struct Narrow {
    bytes: u64,
    taken: Arc<Mutex<u64>>,
}

impl Room for Narrow {
    fn resize(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.bytes;
        if fits {
            *self.taken.lock().unwrap() = bytes;
        }
        fits
    }

    fn whole(&mut self, body: Bytes) -> Bytes {
        Bytes::from([b"<", &body[..], b">"].concat())
    }
}

fn start(bytes: u64, limit: u64) -> (Wire, Narrow, Fill<Source>, Reader<Source>) {
    let (wire, room) = (Wire::default(), Narrow { bytes, taken: Arc::default() });
    let (fill, reader) =
        fill_within(Box::new(room.clone()), Source(wire.clone()), limit, Box::new(Told::default()));
    (wire, room, fill, reader)
}

#[test]
fn without_room_lagging_readers_are_cut_off_and_the_rest_go_on() {
    let piece = Bytes::from(vec![b'x'; 5 << 19]);
    let (wire, room, fill, reader) = start(6 << 20, 1);
    let mut fast = Task::new(reader);
    let mut close = Task::new(fill.join().unwrap());
    let mut behind = Task::new(fill.join().unwrap());
    for _ in 0..2 {
        wire.send(piece.clone());
        assert_eq!(fast.data().unwrap(), piece);
    }
    assert_eq!(close.data().unwrap(), piece);
    assert!(!fast.reader.is_kept());
    assert_eq!(*room.taken.lock().unwrap(), 5 << 20, "what the one behind has not read");
    assert_eq!(close.data().unwrap(), piece);
    wire.send(piece.clone());
    assert_eq!(fast.data().unwrap(), piece);
    assert!(behind.is_lagged());
    assert_eq!(close.data().unwrap(), piece);
    assert_eq!(*room.taken.lock().unwrap(), 0);
    wire.end();
    assert!(matches!(fast.poll(), Poll::Ready(None)));
    assert!(matches!(close.poll(), Poll::Ready(None)));
}

#[test]
fn room_of_a_reader_that_leaves_is_given_back() {
    let (wire, room, fill, reader) = start(100, 1);
    let mut fast = Task::new(reader);
    let behind = Task::new(fill.join().unwrap());
    wire.send("aa");
    assert_eq!(fast.data().unwrap(), "aa");
    assert_eq!(*room.taken.lock().unwrap(), 2);
    drop(behind);
    assert_eq!(*room.taken.lock().unwrap(), 0);
}

#[test]
fn readers_get_the_whole_body_as_the_room_has_it() {
    let (wire, _, fill, reader) = start(0, 100);
    wire.send("body");
    wire.end();
    assert_eq!(whole(reader), "body");
    assert_eq!(whole(fill.join().unwrap()), "<body>");
}
