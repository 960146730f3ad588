//! A body that several read while it comes.

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

/// Readers may lie as far apart, in bytes, even where less is kept: what the buffers of two sockets can differ by, and more.
const LEAST_LAG: u64 = 8 << 20;

/// Told, once, what became of a body as a whole.
///
/// Exactly one of `complete` and `given_up` is called, once, by whoever reads at that moment, with no lock held. It should return at once:
/// that reader waits for it.
pub trait Observer: Send {
    /// Whether so many bytes more may be kept. If not, it is as if the body were larger than the limit. Called with a lock of the
    /// fill held: it must neither wait nor call the fill.
    fn may_keep(&mut self, bytes: u64) -> bool {
        let _ = bytes;
        true
    }

    /// The whole body came, and there are no trailers. Called before its last piece leaves to any reader.
    ///
    /// `body` is one buffer of its own: no read buffer is kept alive by it.
    fn complete(self: Box<Self>, body: Bytes);

    /// There will be no whole body to keep.
    fn given_up(self: Box<Self>, why: GivenUp);
}

/// Why a body is not there as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GivenUp {
    /// It is larger than the limit, or than what may be kept of it. Its readers go on.
    TooLarge,
    /// It ends in trailers, which are for the readers only.
    Trailers,
    /// The source failed, or ended at another length than it had announced.
    Broken,
    /// All readers were dropped before the end, and the source with them.
    Abandoned,
}

impl GivenUp {
    /// All of them.
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

/// Why a reader does not see the end of the body.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// The source failed, after what was read so far.
    #[error("the body broke off: {0}")]
    Broken(#[source] Arc<dyn Error + Send + Sync>),
    /// This reader was too far behind the others when no more could be kept for it.
    #[error("the reader fell too far behind the others")]
    Lagged,
}

/// Lets `source` be read by several while it comes. Returns a handle to join by, and the first reader.
///
/// The readers drive it: one who has read everything so far polls the source, and what comes is there for all. There is
/// no task, so nothing comes faster than somebody reads.
///
/// # Guarantees
///
/// - Every reader gets the bytes of the source from its start, in order, then its trailers, its end or its error. The
///   one exception is [`FillError::Lagged`].
/// - At most one reader polls the source at a time. All who have read everything are woken when something came, and when
///   the source wakes: a reader that polled the source and is then dropped, or never polled again, strands nobody.
/// - No lock is held while the source is polled or dropped, while somebody is woken, or while the observer is called. So
///   the source may wake at once and from any thread, and all of these may use this fill.
/// - `observer` is told once, and before this returns where all is known by then: an empty body, or one that is
///   announced to be larger than `limit`.
/// - At most `limit` bytes are kept, and one piece of the source. Past `limit`, what all have read is let go, nobody can
///   join, and the fastest reader may be ahead of another by `limit`, or 8 MiB if that is more: then that other is cut
///   off, and the rest go on. A reader alone is never cut off; the source is read at its pace.
/// - The source is dropped as soon as it ended or failed, or with the last reader.
///
/// # Assumptions
///
/// - Every reader that is not dropped is polled when it was woken. One that stops reading without being dropped holds up
///   nobody, but keeps up to the bytes above in memory, and the source open where it is the only one.
/// - The source is not polled after it said `is_end_stream()`, which promises that there are no trailers either.
pub fn fill<B>(source: B, limit: u64, observer: Box<dyn Observer>) -> (Fill<B>, Reader<B>)
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fill_within(Box::new(Unbounded), source, limit, observer)
}

/// Does the same as [`fill()`] within a room: where that has no room for what is kept past the limit, those who lie behind by
/// more than 4 MiB are cut off, and the rest go on.
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

/// A handle to join a body by while it comes, and after. It keeps what is kept of the body, and not the source: that
/// goes with the last reader.
pub struct Fill<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Fill<B> {
    /// Another reader, from the start of the body.
    ///
    /// `None` once the source failed, the last reader was dropped before the end, or the start was let go of.
    pub fn join(&self) -> Option<Reader<B>> {
        let id = self.shared.lock().join()?;
        Some(Reader::new(Arc::clone(&self.shared), id))
    }

    /// Returns the number of readers that have not been dropped.
    pub fn readers(&self) -> usize {
        self.shared.lock().readers()
    }

    /// Returns since when the source has had nothing for a reader that asked it. `None` while it gives, after its end, and while
    /// nobody asks it: readers that read slowly are not the source's fault.
    pub fn starved_since(&self) -> Option<Instant> {
        self.shared.lock().starved_since
    }
}

/// What all readers share.
struct Shared<B> {
    /// What the source said of its length at the start.
    hint: SizeHint,
    limit: u64,
    state: Mutex<State<B>>,
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock()
    }

    /// How far the readers may lie apart once the limit is passed.
    fn lag(&self) -> u64 {
        self.limit.max(LEAST_LAG)
    }

    /// Whether a body may end at `length`, by what was announced.
    fn may_end_at(&self, length: u64) -> bool {
        self.hint.lower() <= length && self.hint.upper().is_none_or(|upper| length <= upper)
    }
}

/// The waker that the source gets: it wakes all who wait, whoever polled.
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
