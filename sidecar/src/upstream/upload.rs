//! Request bodies on their way to the application, with their progress, and bodies that can be sent twice.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::body_copy::BodyCopy;
use crate::{
    budget::{Budget, Kind, Reservation},
    clock::monotonic_ms,
};
use parking_lot::{Mutex, MutexGuard};

/// Maximum length of a body that is retained until the response begins, in bytes; most gRPC calls are shorter.
const MAX_REPLAYED: usize = 64 << 10;

/// A client's body as it arrives, which records when the application takes a piece of it.
#[derive(Debug)]
pub struct Upload {
    body: UploadSource,
    progress: Arc<Progress>,
}

#[derive(Debug)]
enum UploadSource {
    Once(ClientBody),
    /// The number of the reader, and the number of frames that it has taken.
    Retained(Retained, u64, usize),
}

/// The body of a client's request, the beginning of which may have been read already.
#[derive(Debug)]
struct ClientBody {
    /// The beginning that has been read and not yet passed on.
    read: Bytes,
    rest: Incoming,
    copy: Option<BodyCopy>,
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = if self.read.is_empty() {
            Pin::new(&mut self.rest).poll_frame(context)
        } else {
            Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.read)))))
        };
        if let (Some(copy), Poll::Ready(frame)) = (&self.copy, &polled) {
            copy.note(frame.as_ref(), self.is_end_stream());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, read) = (self.rest.size_hint(), self.read.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + read);
        }
        hint.set_lower(hint.lower() + read);
        hint
    }
}

/// A body of which everything that was read is retained, as far as memory permits.
#[derive(Clone, Debug)]
pub(super) struct Retained(Arc<Mutex<Inner>>, Arc<Progress>);

#[derive(Debug)]
struct Inner {
    body: ClientBody,
    /// The frames read so far; `None` once they exceeded the limit.
    taken: Option<Vec<RetainedFrame>>,
    reservation: Reservation,
    /// The number of the current reader. Earlier readers get no further frames.
    reader: u64,
}

#[derive(Clone, Debug)]
enum RetainedFrame {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl From<RetainedFrame> for Frame<Bytes> {
    fn from(piece: RetainedFrame) -> Self {
        match piece {
            RetainedFrame::Data(data) => Self::data(data),
            RetainedFrame::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

/// Progress of an upload, for the task that waits for the response.
#[derive(Debug)]
pub struct Progress {
    /// Time at which the application last took a piece or the body ended, as [`monotonic_ms`].
    taken_at: AtomicU64,
    /// True while the client has not sent the next piece.
    waits_for_client: AtomicBool,
}

impl Upload {
    /// Wraps the body of a client's request, of which `read` has been read already.
    pub fn new(read: Bytes, rest: Incoming) -> Self {
        let body = ClientBody { read, rest, copy: None };
        let progress =
            Progress { taken_at: AtomicU64::new(monotonic_ms()), waits_for_client: AtomicBool::new(false) };
        Self { body: UploadSource::Once(body), progress: Arc::new(progress) }
    }

    /// Has the body copied as it passes.
    pub fn copied(mut self, copy: BodyCopy) -> Self {
        if let UploadSource::Once(body) = &mut self.body {
            copy.expect(body.size_hint().lower());
            body.copy = Some(copy);
        }
        self
    }

    /// Retains the parts of the body that are read until the response begins, as far as `budget` permits, so that they can be sent
    /// again.
    pub fn kept(self, budget: &Arc<Budget>) -> Self {
        let UploadSource::Once(body) = self.body else { return self };
        let (taken, reservation) = (Some(Vec::new()), Reservation::new(budget, Kind::Requests));
        let inner = Inner { body, taken, reservation, reader: 0 };
        let kept = Retained(Arc::new(Mutex::new(inner)), Arc::clone(&self.progress));
        Self { body: UploadSource::Retained(kept, 0, 0), progress: self.progress }
    }

    /// Returns the part of the body that is held to be sent again, if any is.
    pub(super) fn to_send_again(&self) -> Option<Retained> {
        match &self.body {
            UploadSource::Once(_) => None,
            UploadSource::Retained(kept, ..) => Some(kept.clone()),
        }
    }

    /// Returns the state of the upload.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl Retained {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// Returns the body from its beginning, if everything that was read of it is retained. The previous reader gets no further
    /// frames.
    pub(super) fn again(&self) -> Option<Upload> {
        let mut inner = self.lock();
        inner.taken.as_ref()?;
        inner.reader += 1;
        Some(Upload {
            body: UploadSource::Retained(self.clone(), inner.reader, 0),
            progress: Arc::clone(&self.1),
        })
    }

    /// Releases the retained frames, because the application has received the body.
    pub(super) fn forget(&self) {
        self.lock().forget();
    }
}

impl Inner {
    fn forget(&mut self) {
        self.taken = None;
        self.reservation.resize(0);
    }

    /// Retains a frame that was read, if memory permits.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(taken) = &mut self.taken else { return };
        let length = match frame.data_ref() {
            Some(data) => data.len(),
            None => frame
                .trailers_ref()
                .map_or(0, |trailers| trailers.iter().map(|(_, value)| 104 + value.len()).sum()),
        };
        let fits = self.reservation.bytes() + length as u64 <= MAX_REPLAYED as u64;
        if !fits || !self.reservation.grow(length as u64) {
            return self.forget();
        }
        // The frame is copied, because it may be part of a larger buffer.
        taken.extend(frame.data_ref().map(|data| RetainedFrame::Data(Bytes::copy_from_slice(data))));
        taken.extend(frame.trailers_ref().map(|trailers| RetainedFrame::Trailers(trailers.clone())));
    }

    /// Returns the next frame for a reader that has had this many.
    fn poll_frame(
        &mut self,
        reader: u64,
        had: usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if reader != self.reader {
            return Poll::Pending;
        }
        if let Some(piece) = self.taken.as_ref().and_then(|taken| taken.get(had)) {
            return Poll::Ready(Some(Ok(piece.clone().into())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.keep(frame),
            Poll::Ready(Some(Err(_))) => self.forget(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }
}

impl Progress {
    /// Returns the time for which the upload has waited for the application: to take a piece, or to respond.
    pub fn waited_for_application(&self) -> Duration {
        if self.waits_for_client.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_millis(monotonic_ms().saturating_sub(self.taken_at.load(Ordering::Relaxed)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.body {
            UploadSource::Once(body) => Pin::new(body).poll_frame(context),
            UploadSource::Retained(kept, reader, had) => {
                let polled = kept.lock().poll_frame(*reader, *had, context);
                *had += usize::from(polled.is_ready());
                polled
            }
        };
        this.progress.taken_at.store(monotonic_ms(), Ordering::Relaxed);
        this.progress.waits_for_client.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            UploadSource::Once(body) => body.is_end_stream(),
            UploadSource::Retained(kept, _, had) => {
                let inner = kept.lock();
                inner.taken.as_ref().is_none_or(|taken| *had >= taken.len()) && inner.body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            UploadSource::Once(body) => body.size_hint(),
            UploadSource::Retained(kept, _, had) => {
                let inner = kept.lock();
                let left = inner.taken.iter().flat_map(|taken| taken.iter().skip(*had));
                let left: usize = left
                    .map(|piece| if let RetainedFrame::Data(data) = piece { data.len() } else { 0 })
                    .sum();
                let mut hint = inner.body.size_hint();
                if let Some(upper) = hint.upper() {
                    hint.set_upper(upper + left as u64);
                }
                hint.set_lower(hint.lower() + left as u64);
                hint
            }
        }
    }
}
