//! Readers of a body that comes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use larder_flight::{Fill, FillError, GivenUp, Observer, Reader, fill};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::{future, thread};

use super::check;

#[derive(Clone, Debug)]
enum Sent {
    Data(Bytes),
    Trailers,
    Failure,
    End,
}

#[derive(Default)]
struct Origin {
    sent: VecDeque<Sent>,
    waker: Option<Waker>,
    polled: bool,
    dropped: bool,
}

#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Origin>>);

impl Wire {
    /// Sends all items from a thread of its own, with a wake after each.
    fn send(&self, all: Vec<Sent>) -> thread::JoinHandle<()> {
        let wire = self.clone();
        thread::spawn(move || {
            for sent in all {
                wire.0.lock().unwrap().sent.push_back(sent);
                wire.wake();
                thread::yield_now();
            }
        })
    }

    fn wake(&self) {
        let waker = self.0.lock().unwrap().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Source {
    wire: Wire,
    left: Option<u64>,
}

impl Body for Source {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        {
            let mut origin = self.wire.0.lock().unwrap();
            assert!(!std::mem::replace(&mut origin.polled, true), "two poll at once");
        }
        if thread_rng().gen_bool(0.2) {
            cx.waker().wake_by_ref();
        }
        // What is sent from here on wakes while this poll is still under way.
        let sent = {
            let mut origin = self.wire.0.lock().unwrap();
            let sent = origin.sent.pop_front();
            if sent.is_none() {
                origin.waker = Some(cx.waker().clone());
            }
            sent
        };
        thread::yield_now();
        self.wire.0.lock().unwrap().polled = false;
        match sent {
            None => Poll::Pending,
            Some(Sent::Data(bytes)) => {
                if let Some(left) = &mut self.left {
                    *left -= bytes.len() as u64;
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Sent::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
            Some(Sent::Failure) => Poll::Ready(Some(Err(std::io::Error::other("reset")))),
            Some(Sent::End) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut origin = self.wire.0.lock().unwrap();
        assert!(!std::mem::replace(&mut origin.dropped, true));
    }
}

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<Result<Bytes, GivenUp>>>>);

impl Told {
    fn once(&self) -> Result<Bytes, GivenUp> {
        let told = self.0.lock().unwrap();
        assert_eq!(told.len(), 1, "told once");
        told[0].clone()
    }
}

impl Observer for Told {
    fn complete(self: Box<Self>, body: Bytes) {
        thread::yield_now();
        self.0.lock().unwrap().push(Ok(body));
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        thread::yield_now();
        self.0.lock().unwrap().push(Err(why));
    }
}

fn start(length: Option<u64>, limit: u64) -> (Wire, Told, Fill<Source>, Reader<Source>) {
    let (wire, told) = (Wire::default(), Told::default());
    let source = Source { wire: wire.clone(), left: length };
    let (fill, reader) = fill(source, limit, Box::new(told.clone()));
    (wire, told, fill, reader)
}

fn data(piece: &'static str) -> Sent {
    Sent::Data(Bytes::from_static(piece.as_bytes()))
}

/// Reads to the end; returns the data and how it ended.
async fn read(mut reader: Reader<Source>) -> (Vec<u8>, Option<FillError>) {
    let mut read = Vec::new();
    while let Some(frame) = reader.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(bytes)) => read.extend_from_slice(&bytes),
            Ok(Err(_trailers)) => {}
            Err(error) => return (read, Some(error)),
        }
    }
    (read, None)
}

/// Polls this many times, ready or not.
async fn poll(reader: &mut Reader<Source>, times: usize) {
    for _ in 0..times {
        poll_fn(|cx| {
            let _ = Pin::new(&mut *reader).poll_frame(cx);
            Poll::Ready(())
        })
        .await;
        future::yield_now().await;
    }
}

#[test]
fn every_reader_sees_the_whole_body() {
    check(|| {
        let (length, end) = if thread_rng().gen_bool(0.5) {
            (Some(6), vec![])
        } else {
            (None, vec![if thread_rng().gen_bool(0.5) { Sent::End } else { Sent::Trailers }])
        };
        let trailers = matches!(end[..], [Sent::Trailers]);
        let (wire, told, fill, reader) = start(length, 100);
        let sent = [data("ab"), data("c"), data(""), data("def")].into_iter().chain(end).collect();
        let origin = wire.send(sent);
        let mut readers = vec![future::spawn(read(reader))];
        for _ in 0..2 {
            readers.push(future::spawn(read(fill.join().expect("all is kept"))));
        }
        for reader in readers {
            let (read, error) = future::block_on(reader).unwrap();
            assert_eq!(read, b"abcdef");
            assert!(error.is_none());
        }
        origin.join().unwrap();
        assert!(wire.0.lock().unwrap().dropped);
        let expected = if trailers { Err(GivenUp::Trailers) } else { Ok(Bytes::from("abcdef")) };
        assert_eq!(told.once(), expected);
    });
}

#[test]
fn reader_that_leaves_or_stops_strands_no_other() {
    check(|| {
        let (wire, told, fill, reader) = start(None, 100);
        let mut leaves = fill.join().unwrap();
        let mut stops = fill.join().unwrap();
        let origin = wire.send(vec![data("a"), data("b"), data("c"), Sent::End]);
        let times = thread_rng().gen_range(1..4);
        let leaver = future::spawn(async move { poll(&mut leaves, times).await });
        let stopper = future::spawn(async move {
            poll(&mut stops, times).await;
            stops
        });
        let late = future::spawn(async move {
            match fill.join() {
                Some(reader) => read(reader).await.0,
                None => b"abc".to_vec(),
            }
        });
        let (whole, error) = future::block_on(read(reader));
        assert_eq!(whole, b"abc");
        assert!(error.is_none());
        assert_eq!(future::block_on(late).unwrap(), b"abc");
        future::block_on(leaver).unwrap();
        let stopped = future::block_on(stopper).unwrap();
        assert_eq!(told.once(), Ok(Bytes::from("abc")));
        drop(stopped);
        origin.join().unwrap();
    });
}

#[test]
fn observer_is_notified_once_after_the_last_reader() {
    check(|| {
        let (wire, told, fill, mut reader) = start(None, 100);
        let mut second = fill.join().unwrap();
        let origin = wire.send(vec![data("a"), Sent::End]);
        let times = thread_rng().gen_range(0..4);
        let first = future::spawn(async move { poll(&mut reader, times).await });
        let second = future::spawn(async move { poll(&mut second, times).await });
        future::block_on(first).unwrap();
        future::block_on(second).unwrap();
        assert!(wire.0.lock().unwrap().dropped, "nobody reads it");
        match told.once() {
            Ok(body) => assert_eq!(body, "a"),
            Err(why) => {
                assert_eq!(why, GivenUp::Abandoned);
                assert!(fill.join().is_none());
            }
        }
        origin.join().unwrap();
    });
}

#[test]
fn an_error_reaches_every_reader() {
    check(|| {
        let (wire, told, fill, reader) = start(None, 100);
        let second = fill.join().unwrap();
        let origin = wire.send(vec![data("a"), Sent::Failure]);
        let second = future::spawn(read(second));
        for (read, error) in [future::block_on(read(reader)), future::block_on(second).unwrap()] {
            assert_eq!(read, b"a");
            assert!(matches!(error, Some(FillError::Broken(_))));
        }
        assert_eq!(told.once(), Err(GivenUp::Broken));
        origin.join().unwrap();
    });
}

#[test]
fn reader_past_the_limit_sees_all_or_gets_the_lag_error() {
    check(|| {
        const PIECE: usize = 150 * 1024;
        let (wire, told, fill, reader) = start(None, 10);
        let second = fill.join().unwrap();
        let piece = |n| Sent::Data(Bytes::from_owner(vec![n; PIECE]));
        let origin = wire.send(vec![piece(0), piece(1), piece(2), piece(3), Sent::End]);
        let readers = [future::spawn(read(reader)), future::spawn(read(second))];
        let mut whole = 0;
        for reader in readers {
            let (read, error) = future::block_on(reader).unwrap();
            assert!(read.chunks(PIECE).enumerate().all(|(n, piece)| piece.iter().all(|b| *b == n as u8)));
            match error {
                None => {
                    assert_eq!(read.len(), 4 * PIECE);
                    whole += 1;
                }
                Some(error) => assert!(matches!(error, FillError::Lagged)),
            }
        }
        assert!(whole >= 1, "the first of them is never cut off");
        assert_eq!(told.once(), Err(GivenUp::TooLarge));
        assert!(fill.join().is_none());
        origin.join().unwrap();
    });
}

/// Accepts all pieces but one.
struct Refusing {
    told: Told,
    left: usize,
}

impl Observer for Refusing {
    fn may_keep(&mut self, _bytes: u64) -> bool {
        let (left, refuses) = self.left.overflowing_sub(1);
        self.left = left;
        !refuses
    }

    fn complete(self: Box<Self>, body: Bytes) {
        Box::new(self.told).complete(body);
    }

    fn given_up(self: Box<Self>, why: GivenUp) {
        Box::new(self.told).given_up(why);
    }
}

#[test]
fn every_reader_sees_the_whole_body_when_no_more_may_be_retained() {
    check(|| {
        let (wire, told) = (Wire::default(), Told::default());
        let announced = thread_rng().gen_bool(0.5);
        let source = Source { wire: wire.clone(), left: announced.then_some(10) };
        let observer = Refusing { told: told.clone(), left: thread_rng().gen_range(0..5) };
        let (fill, reader) = fill(source, 100, Box::new(observer));
        let readers = [reader, fill.join().unwrap(), fill.join().unwrap()];
        let end = (!announced).then_some(Sent::End);
        let sent = ["aa", "bb", "cc", "dd", "ee"].map(data).into_iter().chain(end).collect();
        let origin = wire.send(sent);
        for reader in readers.map(|reader| future::spawn(read(reader))) {
            let (read, error) = future::block_on(reader).unwrap();
            assert_eq!(read, b"aabbccddee");
            assert!(error.is_none());
        }
        origin.join().unwrap();
        assert_eq!(told.once(), Err(GivenUp::TooLarge));
        assert!(fill.join().is_none());
    });
}
