//! Interim responses (RFC 9110, section 15.2) to requests that hyper serves.
//!
//! hyper's server cannot send them, and does not tell its service the stream of a request. So the guard adds a field with the stream to
//! each request, which the service takes out again ([`Interims::stream_of`]), and writes interim responses between hyper's frames.
//!
//! # Guarantees
//! - Clients cannot send the field: the guard takes it out of every header list.
//! - Interim responses stand before the final one: a stream is closed before hyper gets the response, and what was sent on it before that
//!   is written before anything that hyper writes from then on.
//! - What waits for a stream is forgotten when the client's reset arrives, and nothing is added once hyper has dropped the request.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;
use http::{HeaderMap, HeaderName, Request, StatusCode};
use parking_lot::Mutex;

use super::hpack;
use crate::http1_guard::fields_of_interim;

/// Name of the field with the number of a request's stream, in hexadecimal digits.
pub(super) const STREAM_FIELD: &str = "larder-http2-stream";
/// Number of bytes of interim responses that wait to be written at most. A client may do without those above that.
const MAX_WAITING: usize = 64 << 10;

/// Interim responses of a connection that wait to be written.
#[derive(Debug, Default)]
pub struct Interims {
    has_some: AtomicBool,
    waiting: Mutex<Vec<Interim>>,
    waker: AtomicWaker,
}

/// An interim response: its stream, and its header block.
#[derive(Debug)]
pub(super) struct Interim {
    pub(super) stream: u32,
    pub(super) block: Vec<u8>,
}

impl Interims {
    /// Takes the stream out of a request, if the guard has added it.
    pub fn stream_of<B>(self: &Arc<Self>, request: &mut Request<B>) -> Option<InterimStream> {
        let number = request.headers_mut().remove(STREAM_FIELD)?;
        let number = u32::from_str_radix(number.to_str().ok()?, 16).ok()?;
        let state = Mutex::new(State { is_open: true, has_told_to_go_on: false });
        Some(InterimStream(Arc::new(Stream { number, interims: Arc::clone(self), state })))
    }

    fn push(&self, interim: Interim) {
        let mut waiting = self.waiting.lock();
        let length: usize = waiting.iter().map(|interim| interim.block.len()).sum();
        if length + interim.block.len() > MAX_WAITING {
            return;
        }
        waiting.push(interim);
        self.has_some.store(true, Ordering::Release);
        drop(waiting);
        self.waker.wake();
    }

    /// Wakes a task when there is an interim response.
    pub(super) fn wake_for_interim(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Returns what is to be written now.
    pub(super) fn take(&self) -> Vec<Interim> {
        if !self.has_some.load(Ordering::Relaxed) || !self.has_some.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        mem::take(&mut *self.waiting.lock())
    }

    /// Forgets what waits for a stream that the client has given up.
    pub(super) fn forget(&self, stream: u32) {
        if self.has_some.load(Ordering::Relaxed) {
            self.waiting.lock().retain(|interim| interim.stream != stream);
        }
    }
}

/// The stream of a request, which takes interim responses until it is closed.
#[derive(Clone, Debug)]
pub struct InterimStream(Arc<Stream>);

#[derive(Debug)]
struct Stream {
    number: u32,
    interims: Arc<Interims>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    is_open: bool,
    has_told_to_go_on: bool,
}

impl InterimStream {
    /// Returns the number of the stream.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// Tells the client to send the body that it has announced (RFC 9110, section 15.2.1), once.
    pub fn go_on(&self) {
        let mut state = self.0.state.lock();
        if state.is_open && !mem::replace(&mut state.has_told_to_go_on, true) {
            self.push(StatusCode::CONTINUE, &HeaderMap::new());
        }
    }

    /// Sends an interim response without the header fields in `removed`.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap, removed: &[HeaderName]) {
        // Locked until it waits: a stream that is closed in between would have it behind its final response.
        let state = self.0.state.lock();
        if state.is_open {
            self.push(status, &fields_of_interim(headers, removed));
        }
    }

    /// Adds an interim response to those that wait. The caller holds the lock of a stream that is open.
    fn push(&self, status: StatusCode, headers: &HeaderMap) {
        let mut block = Vec::new();
        hpack::status(&mut block, status.as_str().as_bytes());
        for (name, value) in headers {
            hpack::field(&mut block, name.as_str().as_bytes(), value.as_bytes());
        }
        self.0.interims.push(Interim { stream: self.0.number, block });
    }

    /// Returns what closes the stream when it is dropped.
    pub fn closed_on_drop(&self) -> CloseOnDrop {
        CloseOnDrop(self.clone())
    }
}

/// A request whose final response has not begun.
#[derive(Debug)]
pub struct CloseOnDrop(InterimStream);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.0.state.lock().is_open = false;
    }
}
