//! An application that speaks HTTP/2 without TLS (RFC 9113, section 3.3): gRPC, above all.

use std::{
    sync::{
        Mutex, PoisonError,
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

use super::{Addresses, RequestBody, UpstreamError};
use crate::clock::monotonic_ms;

/// How long an application is given to show that it speaks HTTP/2, and how long it is remembered that it does not.
const PROBE: Duration = Duration::from_secs(2);
const REMEMBER_NO_MS: u64 = 10_000;
/// The client's preface with empty settings, and the kind of the frame that must come first from either side
/// (RFC 9113, sections 3.4 and 6.5).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;

/// The connection to an application that speaks HTTP/2, made when it is needed.
#[derive(Debug)]
pub(super) struct Http2 {
    addresses: Addresses,
    sender: Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// When it was last found not to speak HTTP/2, in [`monotonic_ms`]; 0: never.
    refused_at: AtomicU64,
}

impl Http2 {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self { addresses, sender: Mutex::new(None), refused_at: AtomicU64::new(0) }
    }

    /// Whether the application speaks HTTP/2. It is asked with a preface alone, on a connection of its own, so that one which
    /// does not never sees half a request.
    pub(super) async fn is_spoken(&self) -> bool {
        if self.current().is_some() {
            return true;
        }
        let refused_at = self.refused_at.load(Ordering::Relaxed);
        if refused_at != 0 && monotonic_ms().saturating_sub(refused_at) < REMEMBER_NO_MS {
            return false;
        }
        let answered = timeout(PROBE, async {
            let mut stream = self.addresses.connect().await?;
            stream.write_all(PREFACE).await?;
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            Ok::<_, std::io::Error>(head[3] == SETTINGS)
        });
        let speaks = matches!(answered.await, Ok(Ok(true)));
        self.refused_at.store(if speaks { 0 } else { monotonic_ms().max(1) }, Ordering::Relaxed);
        speaks
    }

    /// Passes a request on. Its target names the host.
    pub(super) async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut sender = match self.current() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    fn current(&self) -> Option<http2::SendRequest<RequestBody>> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    async fn connect(&self) -> Result<http2::SendRequest<RequestBody>, UpstreamError> {
        let stream: TcpStream = self.addresses.connect().await.map_err(UpstreamError::Connect)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the application broke");
            }
        });
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }
}
