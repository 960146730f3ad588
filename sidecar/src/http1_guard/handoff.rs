//! What the guard of a connection and those who answer its requests tell each other.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;
use http::{HeaderMap, Request, StatusCode, header::CONTENT_LENGTH};

use super::{RequestError, aside::Aside};
use crate::{
    budget::Budget,
    connections::{Admitted, Connection},
    headers::remove_hop_by_hop,
    held::Held,
};

/// What the guard of a connection and those who answer its requests tell each other.
#[derive(Debug, Default)]
pub struct Handoff {
    /// hyper has let go of the body of its answer.
    answered: AtomicBool,
    changed_protocol: AtomicBool,
    has_interim: AtomicBool,
    interim: Mutex<Vec<u8>>,
    /// The client was told to go on with its body.
    told_to_go_on: AtomicBool,
    has_aside: AtomicBool,
    aside: Mutex<Aside>,
    waker: AtomicWaker,
    /// 1 + the index of the last refusal.
    refused: AtomicU8,
    pub(super) budget: Arc<Budget>,
    pub(super) connection: Arc<Connection>,
    /// The place among the connections, which it keeps for as long as anything comes or goes on it.
    _place: Option<Arc<Admitted>>,
}

impl Handoff {
    /// Of a connection that has a place.
    pub fn new(budget: &Arc<Budget>, place: &Arc<Admitted>) -> Self {
        let (connection, _place) = (Arc::clone(place.connection()), Some(Arc::clone(place)));
        Self { budget: Arc::clone(budget), connection, _place, ..Self::default() }
    }

    /// hyper is given a request, without what is set aside.
    pub(super) fn begin(&self, aside: Aside) {
        if !aside.is_empty() {
            *self.aside.lock().unwrap_or_else(PoisonError::into_inner) = aside;
            self.has_aside.store(true, Ordering::Relaxed);
        }
        self.told_to_go_on.store(false, Ordering::Relaxed);
        self.answered.store(false, Ordering::Release);
        self.connection.serves();
    }

    /// Puts back what was set aside of the request under way.
    pub fn restore<B>(&self, request: &mut Request<B>) {
        if self.has_aside.swap(false, Ordering::Relaxed) {
            mem::take(&mut *self.aside.lock().unwrap_or_else(PoisonError::into_inner)).restore(request);
        }
    }

    /// Tells the client to go on with the body that it has announced (RFC 9110, section 15.2.1).
    pub fn go_on(&self) {
        if !self.told_to_go_on.swap(true, Ordering::Relaxed) {
            self.send_interim(StatusCode::CONTINUE, &HeaderMap::new());
        }
    }

    /// Whether the client was told to go on with its body.
    pub fn has_told_to_go_on(&self) -> bool {
        self.told_to_go_on.load(Ordering::Relaxed)
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    pub(super) fn has_changed_protocol(&self) -> bool {
        self.changed_protocol.load(Ordering::Acquire)
    }

    /// The answer to the request under way is 101: what comes after it is not HTTP.
    pub fn change_protocol(&self) {
        self.changed_protocol.store(true, Ordering::Release);
    }

    pub(super) fn refuse(&self, error: RequestError) {
        self.refused.store(error as u8 + 1, Ordering::Release);
    }

    /// Why a request, or the body of one, was refused.
    pub fn error(&self) -> Option<RequestError> {
        let index = self.refused.load(Ordering::Acquire).checked_sub(1)?;
        RequestError::ALL.get(usize::from(index)).copied()
    }

    /// Sends an interim response (RFC 9110, section 15.2) ahead of the answer under way, without what concerns only the
    /// connection that it came on, and without a length, which none may have (section 8.6).
    pub fn send_interim(&self, status: StatusCode, headers: &HeaderMap) {
        let mut headers = headers.clone();
        remove_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        let mut text = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in &headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        self.interim.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&text);
        self.has_interim.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn wake_for_interim(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(super) fn take_interim(&self, output: &mut Vec<u8>) {
        if self.has_interim.load(Ordering::Relaxed) && self.has_interim.swap(false, Ordering::Acquire) {
            let mut interim = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
            output.extend_from_slice(&interim);
            interim.clear();
        }
    }

    /// Returns the body of a response on this connection.
    pub fn releasing<B>(self: Arc<Self>, body: B) -> ReleasingBody<B> {
        Held::new(body, ReleaseOnDrop(self))
    }
}

/// The body of a response, with which the guard is told that hyper has let go of it.
pub type ReleasingBody<B> = Held<B, ReleaseOnDrop>;

/// A response that hyper has not let go of.
#[derive(Debug)]
pub struct ReleaseOnDrop(Arc<Handoff>);

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        self.0.answered.store(true, Ordering::Release);
    }
}
