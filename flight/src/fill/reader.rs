//! Reading a fill, and polling its source when it is this reader's turn.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::state::{Source, Step};
use super::{FillError, GivenUp, Shared};
use crate::pieces::concat;

type Polled = Poll<Option<Result<Frame<Bytes>, FillError>>>;

/// Reads a body from its start, while it arrives. See [`fill()`](super::fill()) for the guarantees between readers.
///
/// `size_hint` and `is_end_stream` are those of the source at this reader's position, so a `Content-Length` survives.
/// After its end or its error the reader stays at its end.
#[must_use = "dropped, it reads nothing, and the last one drops the source"]
pub struct Reader<B> {
    shared: Arc<Shared<B>>,
    id: usize,
    /// The source's waker, created when this reader first polls it.
    waker: Option<Waker>,
    done: bool,
}

impl<B> Reader<B> {
    pub(super) fn new(shared: Arc<Shared<B>>, id: usize) -> Self {
        Self { shared, id, waker: None, done: false }
    }

    /// Returns true if everything since the start is still held; if not, there will be no whole body.
    pub fn is_kept(&self) -> bool {
        self.shared.lock().is_joinable()
    }
}

impl<B> Body for Reader<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = FillError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let mut replaced = None;
        let step = this.shared.lock().step(this.id, cx, &mut replaced);
        drop(replaced);
        let polled = match step {
            Step::Data(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Step::End(trailers) => {
                this.done = true;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Step::Failed(error) => Poll::Ready(Some(Err(error))),
            Step::Wait => Poll::Pending,
            Step::Turn(source) => {
                let waker = this.waker.get_or_insert_with(|| Waker::from(Arc::clone(&this.shared)));
                Turn { shared: &this.shared, id: this.id, source: Some(source), over: false }.poll(waker)
            }
        };
        this.done |= matches!(&polled, Poll::Ready(None | Some(Err(_))))
            || matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_trailers());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.shared.lock().is_end(self.id)
    }

    fn size_hint(&self) -> SizeHint {
        if self.done {
            return SizeHint::with_exact(0);
        }
        let (left, read) = self.shared.lock().left(self.id);
        if let Some(left) = left {
            return SizeHint::with_exact(left);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(self.shared.hint.lower().saturating_sub(read));
        if let Some(upper) = self.shared.hint.upper() {
            hint.set_upper(upper.saturating_sub(read));
        }
        hint
    }
}

impl<B> Drop for Reader<B> {
    fn drop(&mut self) {
        let mut left = self.shared.lock().leave(self.id);
        drop(left.source.take());
        if let Some(observer) = left.observer.take() {
            observer.given_up(GivenUp::Abandoned);
        }
    }
}

impl<B> fmt::Debug for Reader<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("id", &self.id).field("done", &self.done).finish_non_exhaustive()
    }
}

/// A reader's turn at the source: no other reader polls it until the turn is over. Every exit reports the state of the
/// source.
struct Turn<'a, B> {
    shared: &'a Shared<B>,
    id: usize,
    /// The source, until it is returned, or dropped at its end.
    source: Option<B>,
    /// True once the others know the state of the source.
    over: bool,
}

impl<B> Turn<'_, B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn poll(mut self, waker: &Waker) -> Polled {
        let source = self.source.as_mut().expect("a turn begins with the source");
        let frame = match Pin::new(source).poll_frame(&mut Context::from_waker(waker)) {
            Poll::Pending => return self.pending(),
            Poll::Ready(None) => return self.ended(),
            Poll::Ready(Some(Err(error))) => return self.broken(Arc::from(error.into())),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            // Nothing came, and nothing is kept of it, or empty pieces would grow past every limit.
            Ok(bytes) if bytes.is_empty() => self.again(waker),
            Ok(bytes) => self.data(bytes),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.trailers(trailers),
                Err(_) => self.again(waker),
            },
        }
    }

    fn pending(mut self) -> Polled {
        if let Some(source) = self.source.take() {
            self.over = true;
            let wakes = self.shared.lock().put_back(source);
            wakes.wake();
        }
        Poll::Pending
    }

    /// Ends the turn with a source that must be polled again, by this reader or another, and will not wake by itself.
    fn again(self, waker: &Waker) -> Polled {
        if self.source.as_ref().is_some_and(Body::is_end_stream) {
            return self.ended();
        }
        let polled = self.pending();
        waker.wake_by_ref();
        polled
    }

    fn data(mut self, bytes: Bytes) -> Polled {
        let ends = self.source.as_ref().is_some_and(Body::is_end_stream);
        let mut state = self.shared.lock();
        let length = state.pieces.end() + bytes.len() as u64;
        // What did not fit once never does again: pieces are gone since then.
        let may_keep = state.observer.as_mut().is_some_and(|observer| observer.may_keep(bytes.len() as u64));
        let fits = may_keep && length <= self.shared.limit;
        let mut observer = None;
        if !fits {
            state.let_go();
            observer = state.observer.take();
        }
        drop(state);
        if let Some(observer) = observer {
            observer.given_up(GivenUp::TooLarge);
        }
        if ends && fits && self.shared.may_end_at(length) {
            let last = bytes.len();
            let body = self.complete(Some(bytes));
            return Poll::Ready(Some(Ok(Frame::data(body.slice(body.len() - last..)))));
        }
        let next = match self.source.take() {
            Some(source) if !ends => Source::Idle(source),
            ended => {
                // Before others learn that it ended, as with every other end.
                drop(ended);
                self.end(length)
            }
        };
        self.over = true;
        let wakes = self.shared.lock().push(self.id, &bytes, next, self.shared.lag());
        wakes.wake();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn ended(mut self) -> Polled {
        let (end, open) = {
            let state = self.shared.lock();
            (state.pieces.end(), state.observer.is_some())
        };
        if open && self.shared.may_end_at(end) {
            self.complete(None);
            return Poll::Ready(None);
        }
        drop(self.source.take());
        match self.end(end) {
            Source::Broken(error) => self.broken(error),
            next => {
                self.over = true;
                let wakes = self.shared.lock().settle(self.id, next);
                wakes.wake();
                Poll::Ready(None)
            }
        }
    }

    fn trailers(mut self, trailers: HeaderMap) -> Polled {
        drop(self.source.take());
        self.give_up(GivenUp::Trailers);
        self.over = true;
        let wakes = self.shared.lock().settle(self.id, Source::Ended(Some(trailers.clone())));
        wakes.wake();
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl<B> Turn<'_, B> {
    /// Completes the body, with `last` delivered to this reader. Returns the whole.
    fn complete(&mut self, last: Option<Bytes>) -> Bytes {
        let (observer, mut pieces) = {
            let mut state = self.shared.lock();
            (state.observer.take(), state.pieces.list())
        };
        pieces.extend(last);
        let body = self.shared.lock().room.whole(concat(pieces));
        drop(self.source.take());
        if let Some(observer) = observer {
            observer.complete(body.clone());
        }
        // From here on readers share the observer's buffer, so that the body is in memory once.
        self.over = true;
        let (wakes, before) = self.shared.lock().complete(self.id, body.clone());
        wakes.wake();
        drop(before);
        body
    }

    /// Returns the end of a source that claims to end at `length`.
    fn end(&self, length: u64) -> Source<B> {
        if self.shared.may_end_at(length) {
            return Source::Ended(None);
        }
        self.give_up(GivenUp::Broken);
        let error = "the body ended at another length than it had announced";
        Source::Broken(Arc::new(io::Error::new(io::ErrorKind::UnexpectedEof, error)))
    }

    fn broken(mut self, error: Arc<dyn Error + Send + Sync>) -> Polled {
        drop(self.source.take());
        self.fail(Arc::clone(&error));
        Poll::Ready(Some(Err(FillError::Broken(error))))
    }

    fn fail(&mut self, error: Arc<dyn Error + Send + Sync>) {
        self.give_up(GivenUp::Broken);
        self.over = true;
        let wakes = self.shared.lock().settle(self.id, Source::Broken(error));
        wakes.wake();
    }

    fn give_up(&self, why: GivenUp) {
        let observer = self.shared.lock().observer.take();
        if let Some(observer) = observer {
            observer.given_up(why);
        }
    }
}

impl<B> Drop for Turn<'_, B> {
    fn drop(&mut self) {
        if !self.over {
            // The source or the observer panicked: those who wait for this turn must not wait for ever.
            self.fail(Arc::new(io::Error::other("the source of the body panicked")));
        }
    }
}
