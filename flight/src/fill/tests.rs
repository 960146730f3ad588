use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::testing::block_on;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};

use super::*;

mod refusing;
mod room;

type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Default)]
struct Origin {
    frames: VecDeque<Result<Frame<Bytes>, BoxError>>,
    ended: bool,
    length: Option<u64>,
    waker: Option<Waker>,
    dropped: bool,
    polls: usize,
}

/// The origin's end of a body.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Origin>>);

impl Wire {
    fn act(&self, act: impl FnOnce(&mut Origin)) {
        let waker = {
            let mut origin = self.0.lock().unwrap();
            act(&mut origin);
            origin.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn send(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.act(|origin| origin.frames.push_back(Ok(Frame::data(bytes))));
    }

    fn end(&self) {
        self.act(|origin| origin.ended = true);
    }

    fn dropped(&self) -> bool {
        self.0.lock().unwrap().dropped
    }
}

struct Source(Wire);

impl Body for Source {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut origin = self.0.0.lock().unwrap();
        origin.polls += 1;
        if let Some(frame) = origin.frames.pop_front() {
            if let (Some(left), Ok(Some(data))) =
                (&mut origin.length, frame.as_ref().map(|frame| frame.data_ref()))
            {
                *left -= data.len() as u64;
            }
            return Poll::Ready(Some(frame));
        }
        if origin.ended {
            return Poll::Ready(None);
        }
        origin.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.0.0.lock().unwrap().length == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.0.lock().unwrap().length.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().dropped = true;
    }
}

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<Result<Bytes, GivenUp>>>>);

impl Told {
    fn all(&self) -> Vec<Result<Bytes, GivenUp>> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Told {
    fn complete(self: Box<Self>, body: Bytes) {
        self.0.lock().unwrap().push(Ok(body));
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        self.0.lock().unwrap().push(Err(why));
    }
}

fn start(length: Option<u64>, limit: u64) -> (Wire, Told, Fill<Source>, Reader<Source>) {
    let (wire, told) = (Wire::default(), Told::default());
    wire.0.lock().unwrap().length = length;
    let (fill, reader) = fill(Source(wire.clone()), limit, Box::new(told.clone()));
    (wire, told, fill, reader)
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A task that is polled by hand.
struct Task {
    wakes: Arc<Count>,
    reader: Reader<Source>,
}

impl Task {
    fn new(reader: Reader<Source>) -> Self {
        Self { wakes: Arc::default(), reader }
    }

    fn poll(&mut self) -> Poll<Option<Result<Frame<Bytes>, FillError>>> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        std::pin::Pin::new(&mut self.reader).poll_frame(&mut Context::from_waker(&waker))
    }

    /// The data that there is now.
    fn data(&mut self) -> Option<Bytes> {
        match self.poll() {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    fn is_lagged(&mut self) -> bool {
        matches!(self.poll(), Poll::Ready(Some(Err(FillError::Lagged))))
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::SeqCst)
    }
}

fn whole(reader: Reader<Source>) -> Bytes {
    block_on(reader.collect()).unwrap().to_bytes()
}

#[test]
fn the_first_byte_leaves_before_the_second_comes() {
    let (wire, told, _fill, reader) = start(None, 100);
    let mut task = Task::new(reader);
    assert!(task.poll().is_pending());
    wire.send("a");
    assert_eq!(task.wakes(), 1);
    assert_eq!(task.data().unwrap(), "a");
    assert!(task.poll().is_pending());
    assert!(told.all().is_empty());
    wire.send("b");
    wire.end();
    assert_eq!(task.data().unwrap(), "b");
    assert!(matches!(task.poll(), Poll::Ready(None)));
    assert!(matches!(task.poll(), Poll::Ready(None)));
    assert_eq!(told.all(), [Ok(Bytes::from("ab"))]);
    assert!(wire.dropped());
}

#[test]
fn late_reader_reads_from_the_start() {
    let (wire, _, fill, reader) = start(None, 100);
    let mut first = Task::new(reader);
    wire.send("a");
    assert_eq!(first.data().unwrap(), "a");
    let mut second = Task::new(fill.join().unwrap());
    assert_eq!(second.data().unwrap(), "a");
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());
    wire.send("b");
    assert_eq!((first.wakes(), second.wakes()), (1, 1));
    assert_eq!(second.data().unwrap(), "b");
    assert_eq!(first.data().unwrap(), "b");
    wire.end();
    assert_eq!(whole(fill.join().unwrap()), "ab");
    drop((first, second));
    assert_eq!(whole(fill.join().unwrap()), "ab", "the end is reached, and the body kept by the handle");
}

#[test]
fn a_reader_that_polled_and_left_strands_nobody() {
    let (wire, _, fill, reader) = start(None, 100);
    let mut first = Task::new(reader);
    let mut second = Task::new(fill.join().unwrap());
    assert!(second.poll().is_pending());
    assert!(first.poll().is_pending());
    drop(first);
    wire.send("a");
    assert_eq!(second.wakes(), 1);
    assert_eq!(second.data().unwrap(), "a");
}

#[test]
fn slow_reader_reads_the_retained_pieces() {
    let (wire, told, fill, reader) = start(None, 100);
    let slow = fill.join().unwrap();
    for n in 0..10 {
        wire.send(n.to_string());
    }
    wire.end();
    assert_eq!(whole(reader), "0123456789");
    assert_eq!(told.all().len(), 1);
    assert_eq!(whole(slow), "0123456789");
}

#[test]
fn laggard_past_the_limit_is_cut_off_and_nothing_is_retained() {
    let (wire, told, fill, reader) = start(None, 10);
    let mut fast = Task::new(reader);
    let mut slow = Task::new(fill.join().unwrap());
    let mut stuck = Task::new(fill.join().unwrap());
    let piece = Bytes::from(vec![b'x'; 2 << 20]);
    wire.send(piece.clone());
    assert_eq!(fast.data().unwrap(), piece);
    assert_eq!(told.all(), [Err(GivenUp::TooLarge)]);
    assert!(fill.join().is_none());
    assert_eq!(slow.data().unwrap(), piece);
    for _ in 0..3 {
        wire.send(piece.clone());
        assert!(fast.data().is_some());
    }
    assert_eq!(fill.shared.lock().pieces.kept(), 8 << 20);
    wire.send(piece.clone());
    assert!(fast.data().is_some(), "the fast one is not held up");
    assert_eq!(fill.shared.lock().pieces.kept(), 8 << 20);
    assert!(stuck.is_lagged());
    assert!(matches!(stuck.poll(), Poll::Ready(None)), "after its error it is at its end");
    for _ in 0..4 {
        assert_eq!(slow.data().unwrap(), piece);
    }
    assert_eq!(fill.shared.lock().pieces.kept(), 0);
    wire.end();
    assert!(matches!(slow.poll(), Poll::Ready(None)));
    assert!(matches!(fast.poll(), Poll::Ready(None)));
    assert_eq!(told.all().len(), 1);
}

#[test]
fn piece_larger_than_any_lag_cuts_off_no_reader_that_is_up_to_date() {
    let (wire, _, fill, reader) = start(None, 10);
    let (mut first, mut second) = (Task::new(reader), Task::new(fill.join().unwrap()));
    for _ in 0..3 {
        wire.send(vec![0; 10 << 20]);
        assert_eq!(first.data().unwrap().len(), 10 << 20);
        assert_eq!(second.data().unwrap().len(), 10 << 20);
    }
}

#[test]
fn a_reader_alone_is_never_cut_off_and_costs_no_memory() {
    let (wire, told, fill, reader) = start(Some(64 * 1024 * 1024), 10);
    assert_eq!(told.all(), [Err(GivenUp::TooLarge)], "announced: known before the first byte");
    assert!(fill.join().is_none());
    let mut task = Task::new(reader);
    for _ in 0..64 {
        wire.send(vec![0; 1024 * 1024]);
        assert_eq!(task.data().unwrap().len(), 1024 * 1024);
        assert_eq!(fill.shared.lock().pieces.kept(), 0);
    }
    assert!(task.reader.is_end_stream());
    assert!(wire.dropped());
}

#[test]
fn the_last_reader_takes_the_source_with_it() {
    let (wire, told, fill, reader) = start(None, 100);
    let second = fill.join().unwrap();
    wire.send("a");
    let mut first = Task::new(reader);
    assert!(first.data().is_some());
    drop(first);
    assert!(!wire.dropped());
    drop(second);
    assert!(wire.dropped());
    assert_eq!(told.all(), [Err(GivenUp::Abandoned)]);
    assert!(fill.join().is_none());
    assert_eq!(Arc::strong_count(&fill.shared), 1, "no waker keeps it alive");
}

#[test]
fn error_reaches_every_reader_after_the_pieces_before_it() {
    let (wire, told, fill, reader) = start(None, 100);
    let mut first = Task::new(reader);
    let mut second = Task::new(fill.join().unwrap());
    wire.send("a");
    wire.act(|origin| origin.frames.push_back(Err("reset".into())));
    assert_eq!(first.data().unwrap(), "a");
    assert!(matches!(first.poll(), Poll::Ready(Some(Err(FillError::Broken(_))))));
    assert!(fill.join().is_none());
    assert_eq!(second.data().unwrap(), "a");
    let Poll::Ready(Some(Err(error))) = second.poll() else { panic!("no error") };
    assert_eq!(error.to_string(), "the body is incomplete: reset");
    assert!(matches!(second.poll(), Poll::Ready(None)));
    assert_eq!(told.all(), [Err(GivenUp::Broken)]);
    assert!(wire.dropped());
}

#[test]
fn trailers_reach_all_and_the_body_is_not_kept() {
    let (wire, told, fill, reader) = start(None, 100);
    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"1\""))]);
    wire.send("a");
    wire.act(|origin| origin.frames.push_back(Ok(Frame::trailers(trailers.clone()))));
    let second = fill.join().unwrap();
    for reader in [reader, second] {
        assert!(reader.size_hint().exact().is_none());
        let collected = block_on(reader.collect()).unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "a");
    }
    assert_eq!(told.all(), [Err(GivenUp::Trailers)]);
}

#[test]
fn a_known_length_survives_and_its_last_byte_completes() {
    let (wire, told, fill, reader) = start(Some(3), 100);
    let mut first = Task::new(reader);
    assert_eq!(first.reader.size_hint().exact(), Some(3));
    wire.send("ab");
    assert!(first.data().is_some());
    assert_eq!(first.reader.size_hint().exact(), Some(1));
    assert_eq!(fill.join().unwrap().size_hint().exact(), Some(3));
    wire.send("c");
    assert_eq!(first.data().unwrap(), "c");
    assert!(first.reader.is_end_stream());
    assert_eq!(told.all(), [Ok(Bytes::from("abc"))], "without a poll past the end");
    assert!(wire.dropped());
    let late = fill.join().unwrap();
    assert!(!late.is_end_stream());
    assert_eq!(late.size_hint().exact(), Some(3));
    assert_eq!(whole(late), "abc");
}

#[test]
fn a_body_shorter_than_announced_is_broken() {
    let (wire, told, _fill, reader) = start(Some(3), 100);
    wire.send("ab");
    wire.end();
    assert!(block_on(reader.collect()).is_err());
    assert_eq!(told.all(), [Err(GivenUp::Broken)]);
}

#[test]
fn an_empty_body_is_complete_at_once() {
    let (_, told, fill, reader) = start(Some(0), 100);
    assert_eq!(told.all(), [Ok(Bytes::new())]);
    assert!(reader.is_end_stream());
    assert_eq!(whole(reader), "");
    assert_eq!(whole(fill.join().unwrap()), "");
}

#[test]
fn empty_pieces_are_passed_over_without_starving_anybody() {
    let (wire, told, _fill, reader) = start(None, 100);
    wire.send("");
    wire.send("a");
    wire.send("");
    wire.end();
    assert_eq!(whole(reader), "a");
    assert_eq!(told.all(), [Ok(Bytes::from("a"))]);
}

#[test]
fn body_that_comes_byte_by_byte_is_joined_unchanged() {
    let body: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    let (wire, told, fill, reader) = start(None, 100_000);
    let mut first = Task::new(reader);
    let mut middle = Task::new(fill.join().unwrap());
    let mut read = Vec::new();
    for (at, byte) in body.iter().enumerate() {
        wire.send(vec![*byte]);
        assert_eq!(first.data().unwrap(), &body[at..=at]);
        if at % 3 == 0 {
            read.extend_from_slice(&middle.data().unwrap());
        }
    }
    assert!(fill.shared.lock().pieces.list().len() < 2 * 1024);
    assert_eq!(fill.shared.lock().pieces.kept(), 20_000);
    wire.end();
    let late = fill.join().unwrap();
    read.extend_from_slice(&whole(middle.reader));
    assert!(read == body);
    assert!(whole(late) == body);
    assert!(told.all() == [Ok(Bytes::from(body))]);
}

#[test]
fn a_large_buffer_is_not_kept_for_a_small_body() {
    let (wire, told, fill, reader) = start(Some(3), 100);
    let mut buffer = bytes::BytesMut::with_capacity(8192);
    buffer.extend_from_slice(b"abc");
    wire.send(buffer.split_to(3).freeze());
    drop(buffer);
    assert_eq!(whole(reader), "abc");
    let Ok(body) = told.all().remove(0) else { panic!("not complete") };
    drop((told, fill));
    assert!(body.try_into_mut().is_ok_and(|body| body.capacity() < 100));
}

#[test]
fn a_buffer_that_the_body_fills_is_not_copied() {
    let (wire, told, _fill, reader) = start(Some(4096), 4096);
    let buffer = vec![1; 4096];
    let at = buffer.as_ptr();
    wire.send(buffer);
    assert_eq!(whole(reader).as_ptr(), at);
    assert_eq!(told.all()[0].as_ref().unwrap().as_ptr(), at);
}

#[test]
fn any_body_type_is_accepted() {
    let told = Told::default();
    let body: Full<Bytes> = Full::from("abc");
    let (_, reader) = fill::<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>(
        body.boxed_unsync(),
        10,
        Box::new(told.clone()),
    );
    assert_eq!(block_on(reader.collect()).unwrap().to_bytes(), "abc");
    assert_eq!(told.all(), [Ok(Bytes::from("abc"))]);
}

/// A source that wakes while it is polled, and one that panics.
struct Odd(usize);

impl Body for Odd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 -= 1;
        assert!(self.0 > 0, "over");
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[test]
fn a_source_may_wake_while_it_is_polled_and_a_panic_reaches_the_others_as_an_error() {
    let told = Told::default();
    let (fill, mut first) = fill(Odd(3), 10, Box::new(told.clone()));
    let second = fill.join().unwrap();
    let wakes = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&wakes));
    for _ in 0..2 {
        let polled = std::pin::Pin::new(&mut first).poll_frame(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(first.frame()).is_some()));
    assert!(caught.is_err());
    drop(first);
    assert!(block_on(second.collect()).is_err());
    assert_eq!(told.all(), [Err(GivenUp::Broken)]);
}
