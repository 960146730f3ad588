//! A body that several readers read while it arrives.

mod reader;
mod room;
mod state;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::task::Wake;
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, SizeHint};

use crate::sync::{Mutex, MutexGuard};
pub use reader::Reader;
pub use room::Room;
use room::Unbounded;
use state::{Source, State};

/// Minimum lag, in bytes, that readers may always have: more than the buffers of two sockets can differ by.
const MIN_LAG: u64 = 8 << 20;

/// Observes, once, the fate of a body as a whole.
///
/// Exactly one of `complete` and `given_up` is called, once, by the current reader, with no lock held. Implementations
/// should return at once, because that reader waits.
pub trait Observer: Send {
    /// Returns true if this many more bytes may be held. If not, the body is treated as larger than the limit. Called
    /// with a lock of the fill held: must neither wait nor call the fill.
    fn may_keep(&mut self, bytes: u64) -> bool {
        let _ = bytes;
        true
    }

    /// Receives the whole body, which has no trailers. Called before its last piece leaves to any reader.
    ///
    /// `body` is one buffer of its own: it does not keep a read buffer alive.
    fn complete(self: Box<Self>, body: Bytes);

    /// Reports that there will be no whole body.
    fn given_up(self: Box<Self>, why: GivenUp);
}

/// The reason that a body is not available as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GivenUp {
    /// The body is larger than the limit, or than the memory granted for it. Its readers continue.
    TooLarge,
    /// The body ends in trailers, which are for the readers only.
    Trailers,
    /// The source failed, or ended at another length than announced.
    Broken,
    /// All readers were dropped before the end, and the source with them.
    Abandoned,
}

impl GivenUp {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::TooLarge, Self::Trailers, Self::Broken, Self::Abandoned];

    /// A stable name, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Trailers => "trailers",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The reason that a reader does not reach the end of the body.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// The source failed, after the part read so far.
    #[error("the body is incomplete: {0}")]
    Broken(#[source] Arc<dyn Error + Send + Sync>),
    /// The reader was too far behind the others when no more memory was available.
    #[error("the reader fell too far behind the others")]
    Lagged,
}

/// Lets several readers read `source` while it arrives. Returns a handle to join, and the first reader.
///
/// The readers drive it: a reader that has read everything so far polls the source, and the data is available to all.
/// There is no task, so nothing arrives faster than somebody reads.
///
/// # Guarantees
/// - Every reader gets the bytes of the source from its start, in order, then its trailers, its end or its error. The
///   one exception is [`FillError::Lagged`].
/// - At most one reader polls the source at a time. All readers that have read everything are woken when data arrives,
///   and when the source wakes: a reader that polled the source and is then dropped, or never polled again, strands
///   nobody.
/// - No lock is held while the source is polled or dropped, while a reader is woken, or while the observer is called.
///   The source may therefore wake at once and from any thread, and all of these may use this fill.
/// - `observer` is called once, and before this returns where everything is known by then: an empty body, or one
///   announced to be larger than `limit`.
/// - At most `limit` bytes are held, and one piece of the source. Past `limit`, data that all have read is released,
///   nobody can join, and the fastest reader may be ahead of another by `limit`, or 8 MiB if that is more: then the
///   slower one is cut off, and the rest continue. A sole reader is never cut off; the source is read at its pace.
/// - The source is dropped as soon as it ended or failed, or with the last reader.
///
/// # Assumptions
/// - Every reader that is not dropped is polled when it was woken. One that stops reading without being dropped holds
///   up nobody, but holds up to the bytes above in memory, and the source open where it is the only one.
/// - The source is not polled after it returned true from `is_end_stream()`, which promises that there are no trailers
///   either.
pub fn fill<B>(source: B, limit: u64, observer: Box<dyn Observer>) -> (Fill<B>, Reader<B>)
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fill_within(Box::new(Unbounded), source, limit, observer)
}

/// Works as [`fill()`], within a room: if the room has no space for data held past the limit, readers that are more
/// than 4 MiB behind are cut off, and the rest continue.
pub fn fill_within<B>(
    room: Box<dyn Room>,
    source: B,
    limit: u64,
    observer: Box<dyn Observer>,
) -> (Fill<B>, Reader<B>)
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let hint = source.size_hint();
    let (source, joinable, observer) = if source.is_end_stream() && hint.lower() == 0 {
        observer.complete(Bytes::new());
        (Source::Ended(None), true, None)
    } else if hint.lower() > limit {
        observer.given_up(GivenUp::TooLarge);
        (Source::Idle(source), false, None)
    } else {
        (Source::Idle(source), true, Some(observer))
    };
    let mut state = State::new(source, observer, room, joinable);
    let id = state.admit();
    let shared = Arc::new(Shared { hint, limit, state: Mutex::new(state) });
    let reader = Reader::new(Arc::clone(&shared), id);
    (Fill { shared }, reader)
}

/// A handle to join a body, while it arrives and after. Holds the buffered part of the body, but not the source: that
/// is dropped with the last reader.
pub struct Fill<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Fill<B> {
    /// Adds a reader, from the start of the body.
    ///
    /// `None` once the source failed, the last reader was dropped before the end, or the start was released.
    pub fn join(&self) -> Option<Reader<B>> {
        let id = self.shared.lock().join()?;
        Some(Reader::new(Arc::clone(&self.shared), id))
    }

    /// Returns the number of readers that have not been dropped.
    pub fn readers(&self) -> usize {
        self.shared.lock().readers()
    }

    /// Returns the time since which the source has had nothing for a reader that polled it. `None` while it delivers,
    /// after its end, and while nobody polls it, because slow readers are not the source's fault.
    pub fn starved_since(&self) -> Option<Instant> {
        self.shared.lock().starved_since
    }
}

/// State shared by all readers.
struct Shared<B> {
    /// The source's size hint at the start.
    hint: SizeHint,
    limit: u64,
    state: Mutex<State<B>>,
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock()
    }

    /// Returns the maximum lag between readers once the limit is passed.
    fn lag(&self) -> u64 {
        self.limit.max(MIN_LAG)
    }

    /// Returns true if a body may end at `length`, by its announced length.
    fn may_end_at(&self, length: u64) -> bool {
        self.hint.lower() <= length && self.hint.upper().is_none_or(|upper| length <= upper)
    }
}

/// The waker that the source gets: it wakes all waiting readers, whichever polled.
impl<B: Send> Wake for Shared<B> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakes = self.lock().woken();
        wakes.wake();
    }
}

impl<B> Clone for Fill<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B> fmt::Debug for Fill<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fill").field("limit", &self.shared.limit).finish_non_exhaustive()
    }
}
