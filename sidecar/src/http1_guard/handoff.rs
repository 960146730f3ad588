//! Communication between the guard of a connection and the handlers of its requests.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;
use http::{HeaderMap, HeaderName, Request, StatusCode, header::CONTENT_LENGTH};
use parking_lot::Mutex;

use super::{RequestError, aside::Aside};
use crate::{
    budget::Budget,
    connections::{Admitted, Connection},
    headers::{LARDER_PURGE, remove_hop_by_hop, write_line},
    held::Held,
};

/// State that is shared by the guard of a connection and the handlers of its requests.
#[derive(Debug, Default)]
pub struct Handoff {
    /// True once hyper has dropped the body of its response.
    answered: AtomicBool,
    changed_protocol: AtomicBool,
    has_interim: AtomicBool,
    interim: Mutex<Vec<u8>>,
    /// True if the client was sent a 100 for its body.
    told_to_go_on: AtomicBool,
    has_aside: AtomicBool,
    aside: Mutex<Aside>,
    waker: AtomicWaker,
    /// True while the guard drives an exchange itself, of which hyper does not know.
    in_exchange: AtomicBool,
    /// The index of the last error plus one; 0 without an error.
    refused: AtomicU8,
    pub(super) budget: Arc<Budget>,
    pub(super) connection: Arc<Connection>,
    /// The connection's place, held until all traffic on the connection has ended.
    _place: Option<Arc<Admitted>>,
}

impl Handoff {
    /// Creates the handoff of an admitted connection.
    pub fn new(budget: &Arc<Budget>, place: &Arc<Admitted>) -> Self {
        let (connection, _place) = (Arc::clone(place.connection()), Some(Arc::clone(place)));
        Self { budget: Arc::clone(budget), connection, _place, ..Self::default() }
    }

    /// Begins a request that is given to hyper without the parts in `aside`.
    pub(super) fn begin(&self, aside: Aside) {
        if !aside.is_empty() {
            *self.aside.lock() = aside;
            self.has_aside.store(true, Ordering::Relaxed);
        }
        self.told_to_go_on.store(false, Ordering::Relaxed);
        self.answered.store(false, Ordering::Release);
        self.connection.serves();
    }

    /// Begins an exchange that the guard drives itself.
    pub(super) fn begins_exchange(&self) {
        self.in_exchange.store(true, Ordering::Relaxed);
        self.connection.serves();
    }

    pub(super) fn ends_exchange(&self) {
        self.in_exchange.store(false, Ordering::Relaxed);
    }

    /// Returns true while the guard drives an exchange itself: hyper takes the connection for idle.
    pub fn is_in_exchange(&self) -> bool {
        self.in_exchange.load(Ordering::Relaxed)
    }

    /// Restores the parts of the current request that were set aside.
    pub fn restore<B>(&self, request: &mut Request<B>) {
        if self.has_aside.swap(false, Ordering::Relaxed) {
            mem::take(&mut *self.aside.lock()).restore(request);
        }
    }

    /// Tells the client to send the body that it has announced (RFC 9110, section 15.2.1).
    pub fn go_on(&self) {
        if !self.told_to_go_on.swap(true, Ordering::Relaxed) {
            self.send_interim(StatusCode::CONTINUE, &HeaderMap::new(), &[]);
        }
    }

    /// Returns true if the client was told to send its body.
    pub fn has_told_to_go_on(&self) -> bool {
        self.told_to_go_on.load(Ordering::Relaxed)
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    pub(super) fn has_changed_protocol(&self) -> bool {
        self.changed_protocol.load(Ordering::Acquire)
    }

    /// Records that the response to the current request is 101: the bytes that follow are not HTTP.
    pub fn change_protocol(&self) {
        self.changed_protocol.store(true, Ordering::Release);
    }

    pub(super) fn refuse(&self, error: RequestError) {
        self.refused.store(error as u8 + 1, Ordering::Release);
    }

    /// Returns the reason if a request, or its body, was rejected.
    pub fn error(&self) -> Option<RequestError> {
        let index = self.refused.load(Ordering::Acquire).checked_sub(1)?;
        RequestError::ALL.get(usize::from(index)).copied()
    }

    /// Sends an interim response (RFC 9110, section 15.2) ahead of the current response, without the header fields in `removed`.
    pub fn send_interim(&self, status: StatusCode, headers: &HeaderMap, removed: &[HeaderName]) {
        write_interim(&mut self.interim.lock(), status, headers, removed);
        self.has_interim.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Wakes a task when there is an interim response.
    pub fn wake_for_interim(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Appends the interim responses to `output`.
    pub fn take_interim(&self, output: &mut Vec<u8>) {
        if self.has_interim.load(Ordering::Relaxed) && self.has_interim.swap(false, Ordering::Acquire) {
            let mut interim = self.interim.lock();
            output.extend_from_slice(&interim);
            interim.clear();
        }
    }

    /// Returns a response body that releases the connection for its next request when hyper drops it.
    pub fn releasing<B>(self: Arc<Self>, body: B) -> ReleasingBody<B> {
        Held::new(body, ReleaseOnDrop(self))
    }
}

/// Writes an interim response (RFC 9110, section 15.2) without the header fields in `removed`.
pub fn write_interim(output: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap, removed: &[HeaderName]) {
    output.extend_from_slice(format!("HTTP/1.1 {status}\r\n").as_bytes());
    write_fields(output, &fields_of_interim(headers, removed));
    output.extend_from_slice(b"\r\n");
}

/// Returns the fields of an interim response that are passed on: without hop-by-hop fields, without `Content-Length`, which it must not
/// have (RFC 9110, section 8.6), without `Larder-Purge`, which counts in final responses alone, and without those in `removed`.
pub fn fields_of_interim(headers: &HeaderMap, removed: &[HeaderName]) -> HeaderMap {
    let mut headers = headers.clone();
    remove_hop_by_hop(&mut headers);
    headers.remove(CONTENT_LENGTH);
    headers.remove(&LARDER_PURGE);
    for name in removed {
        headers.remove(name);
    }
    headers
}

/// Writes header fields, each on a line.
pub fn write_fields(output: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        write_line(output, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// A response body that tells the guard when hyper has dropped it.
pub type ReleasingBody<B> = Held<B, ReleaseOnDrop>;

/// A response that hyper has not yet dropped.
#[derive(Debug)]
pub struct ReleaseOnDrop(Arc<Handoff>);

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        self.0.answered.store(true, Ordering::Release);
    }
}
