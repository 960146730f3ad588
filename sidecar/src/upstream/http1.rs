//! HTTP/1.1 to the application. Each exchange is driven by the task that waits for it, and its connection belongs to the thread.

use std::{
    future::poll_fn,
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ApplicationBody, ExchangeError, RequestBody, UpstreamError,
    dial::{Dialer, WhenRefused},
};
use crate::budget::Budget;

mod attempts;
mod body;
mod chunks;
mod connection;
mod incoming;
mod outgoing;
mod raw;
#[cfg(test)]
mod tests;

use attempts::{Attempts, Next};
pub use body::WireBody;
pub use chunks::{LAST_CHUNK, write_chunk};
use connection::Connection;
pub use incoming::RawHead;
use incoming::{IncomingHead, Received};
pub use outgoing::OnInterim;
use outgoing::Outgoing;
pub use raw::RawExchange;

/// Maximum idle time: shorter than the keep-alive of common servers (Node.js 5 s, Gunicorn 2 s with threads, nginx 75 s), so that
/// an idle connection is closed here before the application closes it.
const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Maximum idle time of a connection for a request that can't be sent twice: no server's keep-alive is so short.
const IDLE_LIMIT_FOR_ONCE: Duration = Duration::from_millis(500);

/// Maximum time since the application's last response, over any connection, for the same: a longer silence may be that of one that ends.
const SILENCE_LIMIT_FOR_ONCE: Duration = Duration::from_millis(50);

/// Maximum idle time for which what the runtime has heard of a connection is enough, if the request can be sent twice.
const IDLE_UNASKED: Duration = Duration::from_millis(50);

/// Maximum idle time for the same if it can't, on a connection that was used again before.
const IDLE_UNASKED_FOR_ONCE: Duration = Duration::from_micros(100);

/// Time for which the kernel is asked before each request that can't be sent twice, after an idle connection had ended or failed.
const CLOSING_INTERVAL: Duration = Duration::from_secs(10);

/// The idle connections, and the dialer for new ones.
#[derive(Debug)]
pub(super) struct Http1 {
    dialer: Arc<Dialer>,
    budget: Arc<Budget>,
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    /// Idle connections, the most recently used last. They move between the pool and bodies, so each has a place of its own.
    #[expect(clippy::vec_box, reason = "a connection keeps its allocation while it serves requests")]
    connections: Vec<Box<Connection>>,
    /// Time at which the last connection became idle, after a whole response.
    heard: Instant,
    /// Time at which an idle connection had last ended, or failed with the next request.
    ended: Option<Instant>,
    /// True while a task closes connections that stay idle.
    is_watched: bool,
}

/// Response extension of a 101: the connection, and what was received behind the head.
#[derive(Clone, Debug)]
pub struct SwitchedConnection(Arc<Mutex<Option<(TcpStream, BytesMut)>>>);

impl SwitchedConnection {
    /// Takes the connection.
    pub fn take(&self) -> Option<(TcpStream, BytesMut)> {
        self.0.lock().take()
    }
}

impl Http1 {
    pub(super) fn new(dialer: Arc<Dialer>, budget: Arc<Budget>) -> Self {
        let idle = Idle { connections: Vec::new(), heard: Instant::now(), ended: None, is_watched: false };
        Self { dialer, budget, idle: Mutex::new(idle) }
    }

    /// Sends a request, again if it may be.
    ///
    /// # Errors
    /// If the application refused or closed the connection, or sent a malformed response.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        refused: WhenRefused,
    ) -> Result<Response<ApplicationBody>, UpstreamError> {
        let mut outgoing = Outgoing::new(request);
        let mut attempts = Attempts::new(outgoing.may_be_repeated);
        let outcome = self.attempt(&mut outgoing, &mut attempts, refused).await;
        outcome.map_err(|error| attempts.error(error))
    }

    async fn attempt(
        self: &Arc<Self>,
        outgoing: &mut Outgoing,
        attempts: &mut Attempts,
        refused: WhenRefused,
    ) -> Result<Response<ApplicationBody>, UpstreamError> {
        loop {
            let mut connection = match attempts.take_idle(self) {
                Some(connection) => connection,
                None => self.connect(refused).await?,
            };
            outgoing.check()?;
            let mut head = IncomingHead::new(&self.budget, outgoing.is_head);
            match poll_fn(|context| poll_exchange(context, &mut connection, outgoing, &mut head)).await {
                Ok(received) => return self.respond(connection, received, outgoing),
                Err(source) => match attempts.failed(self, &source, outgoing.has_begun()) {
                    Next::OtherConnection => {}
                    Next::Repetition => outgoing.rewind(),
                    Next::Nothing => {
                        return Err(UpstreamError::Exchange { source, was_sent: outgoing.has_begun() });
                    }
                },
            }
        }
    }

    /// Records the failure of a connection that was idle before, if that may be because it was closed.
    fn note_failure(&self, error: &ExchangeError) {
        if error.may_have_been_dead() {
            self.idle.lock().ended = Some(Instant::now());
        }
    }

    /// Returns the response that begins with this head.
    fn respond(
        self: &Arc<Self>,
        mut connection: Box<Connection>,
        received: Received,
        outgoing: &mut Outgoing,
    ) -> Result<Response<ApplicationBody>, UpstreamError> {
        let Received { mut response, framing, is_kept_alive } = received;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let parts = if outgoing.was_written() { connection.into_parts() } else { None };
            let parts = parts.ok_or(UpstreamError::UnexpectedUpgrade)?;
            response.extensions_mut().insert(SwitchedConnection(Arc::new(Mutex::new(Some(parts)))));
            return Ok(response.map(|()| ApplicationBody::Http1(WireBody::none())));
        }
        let pool = (is_kept_alive && outgoing.was_written()).then(|| Arc::clone(self));
        let upload = (!outgoing.has_ended()).then(|| continue_upload(&mut connection, outgoing.take_rest()));
        let body = WireBody::new(connection, framing, pool, upload.flatten());
        Ok(response.map(|()| ApplicationBody::Http1(body)))
    }

    async fn connect(&self, refused: WhenRefused) -> Result<Box<Connection>, UpstreamError> {
        let stream = self.dialer.connect(refused).await.map_err(UpstreamError::connect)?;
        Ok(Box::new(Connection::new(stream)))
    }

    /// Takes the most recently used connection, if such a request may have it. One that was idle for too long is closed
    /// and replaced, so that there are never more connections than concurrent requests.
    fn take_idle(&self, may_be_repeated: bool) -> Option<Box<Connection>> {
        loop {
            let (connection, now, heard, asks_kernel) = {
                let mut idle = self.idle.lock();
                let connection = idle.connections.pop()?;
                let now = Instant::now();
                let idle_for = now - connection.since;
                let asks_kernel = match may_be_repeated {
                    true => idle_for > IDLE_UNASKED,
                    false => {
                        idle_for > IDLE_UNASKED_FOR_ONCE || !connection.is_proven() || idle.is_doubtful(now)
                    }
                };
                (connection, now, idle.heard, asks_kernel)
            };
            if !connection.is_quiet(asks_kernel) {
                self.idle.lock().ended = Some(now);
                continue;
            }
            let idle_for = now - connection.since;
            let is_fresh = match may_be_repeated {
                true => idle_for < IDLE_TIMEOUT,
                false => idle_for < IDLE_LIMIT_FOR_ONCE && now - heard < SILENCE_LIMIT_FOR_ONCE,
            };
            return is_fresh.then_some(connection);
        }
    }

    /// Returns a connection to the pool.
    fn keep(self: &Arc<Self>, mut connection: Box<Connection>) {
        connection.rest();
        let mut idle = self.idle.lock();
        idle.heard = connection.since;
        idle.connections.push(connection);
        if !mem::replace(&mut idle.is_watched, true) {
            tokio::spawn(Arc::clone(self).end_idle());
        }
    }

    /// Closes idle connections until there are none.
    async fn end_idle(self: Arc<Self>) {
        loop {
            let next = {
                let mut idle = self.idle.lock();
                let mut has_ended = false;
                idle.connections.retain(|connection| {
                    let is_quiet = connection.is_quiet(false);
                    has_ended |= !is_quiet;
                    is_quiet && connection.since.elapsed() < IDLE_TIMEOUT
                });
                if has_ended {
                    idle.ended = Some(Instant::now());
                }
                match idle.connections.first() {
                    Some(connection) => connection.since + IDLE_TIMEOUT,
                    None => {
                        idle.is_watched = false;
                        return;
                    }
                }
            };
            sleep_until(next).await;
        }
    }
}

impl Idle {
    /// Returns true if the application has closed a connection of late that it had not said to close.
    fn is_doubtful(&self, now: Instant) -> bool {
        self.ended.is_some_and(|ended| now - ended < CLOSING_INTERVAL)
    }
}

/// Writes the request and waits for the head of the final response.
fn poll_exchange(
    context: &mut Context<'_>,
    connection: &mut Connection,
    outgoing: &mut Outgoing,
    head: &mut IncomingHead,
) -> Poll<Result<Received, ExchangeError>> {
    if let Some(writer) = &mut connection.writer
        && let Poll::Ready(Err(error)) = outgoing.poll_send(context, writer)
    {
        return Poll::Ready(Err(error));
    }
    // Bytes before the request are no response.
    if !outgoing.has_begun() {
        return Poll::Pending;
    }
    loop {
        let received = match ready!(head.poll(context, connection)) {
            Ok(received) => received,
            // The reason why the request could not be written tells more than the end of the connection.
            Err(ExchangeError::Closed) => {
                let failure = outgoing.take_failure();
                return Poll::Ready(Err(failure.map_or(ExchangeError::Closed, ExchangeError::Io)));
            }
            Err(error) => return Poll::Ready(Err(error)),
        };
        let status = received.response.status();
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Poll::Ready(Ok(received));
        }
        outgoing.on_interim(status, received.response.headers());
    }
}

/// Writes the rest of a request whose response has begun in a task of its own, because the client may not read the response before
/// it has sent its request.
fn continue_upload(connection: &mut Connection, mut outgoing: Outgoing) -> Option<AbortOnDropHandle<()>> {
    let mut writer = connection.writer.take()?;
    let upload = tokio::spawn(async move {
        match poll_fn(|context| outgoing.poll_send(context, &mut writer)).await {
            // The stream stays open: at its end, many applications would cancel the request.
            Ok(()) => writer.forget(),
            Err(error) => {
                tracing::debug!(%error, "the rest of a request was not sent to the application");
            }
        }
    });
    Some(AbortOnDropHandle::new(upload))
}
