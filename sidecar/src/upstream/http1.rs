//! HTTP/1.1 connections to the application.

use std::{mem, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::{
    Abandoned, RequestBody, UpstreamError,
    dial::{Dialer, WhenRefused},
    head::{MAX_HEAD, MAX_LINES},
    stream::{Announcement, ApplicationStream},
};
use crate::budget::Budget;

/// Maximum idle time: shorter than the keep-alive of common servers (Node.js 5 s, Gunicorn 2 s with threads, nginx 75 s), so that
/// an idle connection is closed here before the application closes it.
const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Maximum idle time of a connection for a request that can't be sent twice: no server closes one so soon.
const IDLE_LIMIT_FOR_ONCE: Duration = Duration::from_millis(10);

/// The idle connections, and the dialer for new ones.
#[derive(Debug)]
pub(super) struct Http1 {
    dialer: Arc<Dialer>,
    budget: Arc<Budget>,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// Idle connections, the most recently used last.
    connections: Vec<(Connection, Instant)>,
    /// True while a task closes connections that stay idle.
    is_watched: bool,
}

#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<RequestBody>,
    announcement: Announcement,
}

impl Http1 {
    pub(super) fn new(dialer: Arc<Dialer>, budget: Arc<Budget>) -> Self {
        Self { dialer, budget, idle: Mutex::default() }
    }

    /// Sends a request over an idle connection or a new one; `may_be_repeated` tells if it can be sent twice. A request that a
    /// connection returns, because it had been closed before anything was written, is sent over another connection: over a second
    /// new one, but not over a third.
    ///
    /// # Errors
    /// If the application refused or closed the connection, or sent a malformed response.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        refused: WhenRefused,
        may_be_repeated: bool,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let idle_limit = if may_be_repeated { IDLE_TIMEOUT } else { IDLE_LIMIT_FOR_ONCE };
        let mut may_give_back = true;
        loop {
            let idle = self.take_idle(idle_limit);
            let is_new = idle.is_none();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.connect(refused).await?,
            };
            Abandoned::check(&request)?;
            connection.announcement.announce(*request.method() == Method::HEAD);
            let mut failed = match connection.sender.try_send_request(request).await {
                Ok(mut response) => {
                    match connection.announcement.take_room() {
                        // hyper's buffer has grown with the head and never shrinks, so the connection is closed after the body.
                        Some(room) => drop(response.extensions_mut().insert(room)),
                        None => self.take_back(connection),
                    }
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            match failed.take_message() {
                Some(unsent) if !is_new || mem::take(&mut may_give_back) => request = unsent,
                unsent => {
                    let was_sent = unsent.is_none();
                    return Err(UpstreamError::Exchange { source: failed.into_error(), was_sent });
                }
            }
        }
    }

    async fn connect(&self, refused: WhenRefused) -> Result<Connection, UpstreamError> {
        let stream = self.dialer.connect(refused).await.map_err(UpstreamError::connect)?;
        let announcement = Announcement::within(&self.budget);
        let stream = ApplicationStream::new(stream, announcement.clone());
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_LINES + 1)
            .max_buf_size(MAX_HEAD + (64 << 10))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Exchange { source, was_sent: false })?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the application failed");
            }
        });
        Ok(Connection { sender, announcement })
    }

    /// Takes the most recently used connection, if it was idle for less than `limit`. An older one is closed and replaced, so that
    /// there are never more connections than concurrent requests.
    fn take_idle(&self, limit: Duration) -> Option<Connection> {
        let mut idle = self.idle.lock();
        loop {
            let (connection, since) = idle.connections.pop()?;
            if connection.sender.is_ready() {
                return (since.elapsed() < limit).then_some(connection);
            }
        }
    }

    /// Returns a connection to the pool once the body of its response has been read.
    fn take_back(self: &Arc<Self>, mut connection: Connection) {
        if connection.sender.is_ready() {
            return self.keep(connection);
        }
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            if connection.sender.ready().await.is_ok() {
                pool.keep(connection);
            }
        });
    }

    fn keep(self: &Arc<Self>, connection: Connection) {
        let mut idle = self.idle.lock();
        idle.connections.push((connection, Instant::now()));
        if !mem::replace(&mut idle.is_watched, true) {
            tokio::spawn(Arc::clone(self).end_idle());
        }
    }

    /// Closes idle connections until there are none.
    async fn end_idle(self: Arc<Self>) {
        loop {
            let next = {
                let mut idle = self.idle.lock();
                idle.connections.retain(|(connection, since)| {
                    !connection.sender.is_closed() && since.elapsed() < IDLE_TIMEOUT
                });
                match idle.connections.first() {
                    Some((_, since)) => *since + IDLE_TIMEOUT,
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
