//! The application's HTTP/1.1 connections.

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

/// Shorter than the keep-alive of common servers (Node.js 5 s, Gunicorn 2 s with threads, nginx 75 s), so that an idle
/// connection is closed here before the application does.
const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Maximum time for which a connection was idle that takes a request which can't be sent twice: no server ends one so soon.
const IDLE_LIMIT_FOR_ONCE: Duration = Duration::from_millis(10);

/// The connections that have nothing to do, and how to make others.
#[derive(Debug)]
pub(super) struct Http1 {
    dialer: Arc<Dialer>,
    budget: Arc<Budget>,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// The one that was used last comes last.
    connections: Vec<(Connection, Instant)>,
    /// Somebody sees to it that those end that are not used.
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

    /// Sends a request, which `may_be_repeated` or not, over a connection that is idle, or over a new one. A request that a connection gives back, because it had
    /// ended before anything was written, is sent over another; over a second new one, but not over a third.
    ///
    /// # Errors
    /// If the application refused the connection, broke it off, or sent a response that makes no sense.
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
                        // hyper's buffer has grown with the head, and would stay so: the connection ends with the body.
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

    /// Takes the connection that was used last, if that is less than `limit` ago. One that is too old is ended, and a new one
    /// takes its place, so that there are no more of them than requests at the same time.
    fn take_idle(&self, limit: Duration) -> Option<Connection> {
        let mut idle = self.idle.lock();
        loop {
            let (connection, since) = idle.connections.pop()?;
            if connection.sender.is_ready() {
                return (since.elapsed() < limit).then_some(connection);
            }
        }
    }

    /// Takes a connection back, once the body of its response has been read.
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

    /// Ends connections that nobody uses, until there are none.
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
