//! An application that speaks HTTP/2 without TLS (RFC 9113, section 3.3): gRPC, above all.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    RequestBody, UpstreamError, again,
    dial::{Dialer, WhenRefused},
    head::MAX_HEAD,
};
use crate::clock::monotonic_ms;

/// How much of one response, and of all, the application may send before it is read, in bytes. A slow client holds up no other
/// response until a hundred of them do.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long an application is given to show that it speaks HTTP/2, and how long it is remembered that it does not.
const PROBE: Duration = Duration::from_secs(1);
const REMEMBER_NO_MS: u64 = 10_000;
/// The client's preface with empty settings, and the kind of the frame that must come first from either side
/// (RFC 9113, sections 3.4 and 6.5).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;

/// The connection to an application that speaks HTTP/2, made when it is needed.
#[derive(Debug)]
pub(super) struct Http2 {
    dialer: Arc<Dialer>,
    link: Mutex<Option<Link>>,
    /// Held by the one who finds out whether HTTP/2 is spoken, or who connects.
    connecting: tokio::sync::Mutex<()>,
    /// How many connections were made.
    made: AtomicU64,
    /// When it was last found not to speak HTTP/2, in [`monotonic_ms`]; 0: never.
    refused_at: AtomicU64,
}

/// A connection, and which it is, counted from 1.
#[derive(Clone, Debug)]
struct Link {
    number: u64,
    sender: http2::SendRequest<RequestBody>,
}

impl Link {
    async fn send(mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, UpstreamError> {
        self.sender.try_send_request(request).await.map_err(|mut failed| {
            let was_sent = failed.take_message().is_none();
            UpstreamError::Exchange { source: failed.into_error(), was_sent }
        })
    }
}

impl Http2 {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self {
            dialer,
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            made: AtomicU64::new(0),
            refused_at: AtomicU64::new(0),
        }
    }

    /// Whether the application speaks HTTP/2. It is asked with a preface alone, on a connection of its own, so that one which
    /// does not never sees half a request; once, however many want to know.
    ///
    /// # Errors
    /// If the application can't be connected to.
    pub(super) async fn is_spoken(&self, refused: WhenRefused) -> Result<bool, UpstreamError> {
        if let Some(known) = self.is_known_to_be_spoken() {
            return Ok(known);
        }
        let _alone = self.connecting.lock().await;
        if let Some(known) = self.is_known_to_be_spoken() {
            return Ok(known);
        }
        let mut stream = self.dialer.connect(refused).await.map_err(UpstreamError::connect)?;
        let answered = timeout(PROBE, async {
            stream.write_all(PREFACE).await?;
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            Ok::<_, std::io::Error>(head[3] == SETTINGS)
        });
        let speaks = matches!(answered.await, Ok(Ok(true)));
        self.refused_at.store(if speaks { 0 } else { monotonic_ms().max(1) }, Ordering::Relaxed);
        if speaks {
            // Those who wait find the connection. If there is none, whoever sends learns why.
            let _ = self.connect(refused).await;
        }
        Ok(speaks)
    }

    fn is_known_to_be_spoken(&self) -> Option<bool> {
        if self.current().is_some() {
            return Some(true);
        }
        let refused_at = self.refused_at.load(Ordering::Relaxed);
        let is_recent = refused_at != 0 && monotonic_ms().saturating_sub(refused_at) < REMEMBER_NO_MS;
        is_recent.then_some(false)
    }

    /// Passes a request on. Its target names the host.
    ///
    /// One that failed on a connection which was there before is sent once more on a newer one, if it never left, or if its
    /// body is at hand and its method is idempotent.
    pub(super) async fn send(
        &self,
        request: Request<RequestBody>,
        refused: WhenRefused,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let Some(mut link) = self.current() else {
            return self.newer_than(0, refused).await?.send(request).await;
        };
        let again = again(&request);
        let mut failed = match link.sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let was_sent = unsent.is_none();
        let error = failed.into_error();
        let Some(request) = unsent.or(again).filter(|_| !error.is_user()) else {
            return Err(UpstreamError::Exchange { source: error, was_sent });
        };
        let outcome = match self.newer_than(link.number, refused).await {
            Ok(link) => link.send(request).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| if was_sent { error.of_repetition() } else { error })
    }

    fn current(&self) -> Option<Link> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| !link.sender.is_closed()).cloned()
    }

    /// A connection that was made after the one of this number.
    async fn newer_than(&self, number: u64, refused: WhenRefused) -> Result<Link, UpstreamError> {
        let _alone = self.connecting.lock().await;
        match self.current().filter(|link| link.number > number) {
            Some(link) => Ok(link),
            None => self.connect(refused).await,
        }
    }

    /// Makes a connection the current one. [`Self::connecting`] is held.
    async fn connect(&self, refused: WhenRefused) -> Result<Link, UpstreamError> {
        let stream: TcpStream = self.dialer.connect(refused).await.map_err(UpstreamError::connect)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Exchange { source, was_sent: false })?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the application broke");
            }
        });
        let link = Link { number: 1 + self.made.fetch_add(1, Ordering::Relaxed), sender };
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }
}
