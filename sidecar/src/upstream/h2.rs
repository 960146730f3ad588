//! HTTP/2 to the application without TLS (RFC 9113, section 3.3), mainly for gRPC.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::{body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Abandoned, ApplicationBody, ExchangeError, RequestBody, UpstreamError,
    dial::{Dialer, WhenRefused},
    error::{is_going_away, was_not_processed},
    head::MAX_HEAD,
    head_of,
    upload::Retained,
};
use crate::clock::monotonic_ms;

/// Maximum number of bytes that the application may send before they are read, per response and in total. Slow clients do not block
/// other responses until there are a hundred of them.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Timeout for an application to prove that it speaks HTTP/2, and the time for which a negative result is remembered.
const PROBE: Duration = Duration::from_secs(1);
const REMEMBER_NO_MS: u64 = 10_000;
/// Pauses before a request that was not processed is sent again.
const RETRY_INTERVALS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(50)];
/// The client's preface with empty settings, and the type of the frame that each side must send first (RFC 9113, sections 3.4 and
/// 6.5).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;

/// The HTTP/2 connection to the application, opened on first use.
#[derive(Debug)]
pub(super) struct Http2 {
    dialer: Arc<Dialer>,
    link: Mutex<Option<Http2Connection>>,
    /// Lock of the task that probes for HTTP/2 or connects.
    connecting: tokio::sync::Mutex<()>,
    /// Number of connections opened so far.
    made: AtomicU64,
    /// Time of the last negative probe, as [`monotonic_ms`]; 0 if there was none.
    refused_at: AtomicU64,
}

/// A connection and its number, counted from 1.
#[derive(Clone, Debug)]
struct Http2Connection {
    number: u64,
    sender: http2::SendRequest<RequestBody>,
}

impl Http2Connection {
    fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// A request that may have to be sent again.
struct Copy {
    head: Request<()>,
    body: CopiedBody,
}

enum CopiedBody {
    AtHand(Full<Bytes>),
    Retained(Retained),
    None,
}

impl Copy {
    fn of(request: &Request<RequestBody>) -> Self {
        let body = match request.body() {
            Either::Right(at_hand) => CopiedBody::AtHand(at_hand.clone()),
            Either::Left(upload) => upload.to_send_again().map_or(CopiedBody::None, CopiedBody::Retained),
        };
        Self { head: head_of(request), body }
    }

    /// Returns the request from its beginning.
    fn again(self) -> Option<Request<RequestBody>> {
        let body = match self.body {
            CopiedBody::AtHand(body) => Either::Right(body),
            CopiedBody::Retained(kept) => Either::Left(kept.again()?),
            CopiedBody::None => return None,
        };
        Some(self.head.map(|()| body))
    }

    /// Returns the request from its beginning if its body is in memory and its method is idempotent.
    fn again_if_idempotent(self) -> Option<Request<RequestBody>> {
        let may_repeat = matches!(self.body, CopiedBody::AtHand(_)) && self.head.method().is_idempotent();
        if may_repeat { self.again() } else { None }
    }

    /// Releases the retained body.
    fn forget(&self) {
        if let CopiedBody::Retained(kept) = &self.body {
            kept.forget();
        }
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

    /// Returns true if the application speaks HTTP/2, probed with a preface alone on a separate connection, so that an
    /// HTTP/1 application never sees half a request. Concurrent callers share one probe.
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
            // Waiting tasks find the connection. If there is none, sending reports the reason.
            let _ = self.connect(refused).await;
        }
        Ok(speaks)
    }

    fn is_known_to_be_spoken(&self) -> Option<bool> {
        if self.link.lock().as_ref().is_some_and(Http2Connection::is_open) {
            return Some(true);
        }
        let refused_at = self.refused_at.load(Ordering::Relaxed);
        let is_recent = refused_at != 0 && monotonic_ms().saturating_sub(refused_at) < REMEMBER_NO_MS;
        is_recent.then_some(false)
    }

    /// Forwards a request, whose target has the host.
    ///
    /// A request that the application has not processed is sent again, up to three times in total, if its body is in memory or
    /// everything read of it was retained. A request that failed in another way on an earlier connection is sent once more on a
    /// newer one, if its body is in memory and its method is idempotent.
    pub(super) async fn send(
        &self,
        mut request: Request<RequestBody>,
        refused: WhenRefused,
    ) -> Result<Response<ApplicationBody>, UpstreamError> {
        let (mut link, mut was_there) = match self.current() {
            Some(link) => (link, true),
            None => (self.newer_than(0, refused).await?, false),
        };
        let (mut pauses, mut was_sent) = (RETRY_INTERVALS.into_iter(), false);
        // hyper has no use for extensions.
        let abandoned = mem::take(request.extensions_mut()).remove();
        loop {
            Abandoned::check(abandoned.as_ref())?;
            let copy = Copy::of(&request);
            let mut failed = match link.sender.try_send_request(request).await {
                Ok(response) => {
                    copy.forget();
                    return Ok(response.map(ApplicationBody::Http2));
                }
                Err(failed) => failed,
            };
            let unsent = failed.take_message();
            let source = failed.into_error();
            let (is_refused, is_going_away) = (was_not_processed(&source), is_going_away(&source));
            let next = if unsent.is_some() || is_refused {
                match pauses.next() {
                    Some(pause) => {
                        sleep(pause).await;
                        unsent.or_else(|| copy.again())
                    }
                    None => None,
                }
            } else {
                was_sent = true;
                let may_repeat = mem::take(&mut was_there) && !source.is_user();
                if may_repeat { copy.again_if_idempotent() } else { None }
            };
            request = match next {
                Some(request) => request,
                None => {
                    let source = ExchangeError::Http2(source);
                    return Err(UpstreamError::Exchange { source, was_sent });
                }
            };
            let same = self.current().filter(|_| is_refused && !is_going_away);
            link = match same {
                Some(link) => link,
                None => self
                    .newer_than(link.number, refused)
                    .await
                    .map_err(|error| if was_sent { error.of_repetition() } else { error })?,
            };
        }
    }

    fn current(&self) -> Option<Http2Connection> {
        let link = self.link.lock();
        link.as_ref().filter(|link| link.is_open()).cloned()
    }

    /// Returns a connection that is newer than the one with this number.
    async fn newer_than(&self, number: u64, refused: WhenRefused) -> Result<Http2Connection, UpstreamError> {
        let _alone = self.connecting.lock().await;
        match self.current().filter(|link| link.number > number) {
            Some(link) => Ok(link),
            None => self.connect(refused).await,
        }
    }

    /// Replaces the current connection. The caller holds [`Self::connecting`].
    async fn connect(&self, refused: WhenRefused) -> Result<Http2Connection, UpstreamError> {
        let stream: TcpStream = self.dialer.connect(refused).await.map_err(UpstreamError::connect)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Exchange {
                source: ExchangeError::Http2(source),
                was_sent: false,
            })?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the application failed");
            }
        });
        let link = Http2Connection { number: 1 + self.made.fetch_add(1, Ordering::Relaxed), sender };
        *self.link.lock() = Some(link.clone());
        Ok(link)
    }
}
