//! Requests with a target that hyper can't write.
//!
//! Each uses a separate connection, on which the target that hyper writes is replaced by the one that the client sent. Such
//! requests are rare, and this is simpler than telling the requests of a shared connection apart.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Method, Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Abandoned, RequestBody, UpstreamError,
    dial::{Dialer, WhenRefused},
    head::MAX_LINES,
    stream::{Announcement, ApplicationStream},
};
use crate::budget::Budget;

/// Sends a request in origin form with another target, `target`, in place of its own.
///
/// # Errors
/// If the application refused or closed the connection, or sent a malformed response.
pub(super) async fn send(
    dialer: &Dialer,
    budget: &Arc<Budget>,
    request: Request<RequestBody>,
    target: &[u8],
    refused: WhenRefused,
) -> Result<Response<Incoming>, UpstreamError> {
    let method = request.method().as_str();
    let announcement = Announcement::within(budget);
    let stream = dialer.connect(refused).await.map_err(UpstreamError::connect)?;
    let stream = RetargetedStream {
        stream: ApplicationStream::new(stream, announcement.clone()),
        spelled: [method.as_bytes(), b" ", target].concat().into(),
        replaced: format!("{method} {}", request.uri()).len(),
    };
    let failed = |source| UpstreamError::Exchange { source, was_sent: true };
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(MAX_LINES + 1)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to the application failed");
        }
    });
    Abandoned::check(&request)?;
    announcement.announce(*request.method() == Method::HEAD);
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if let Some(room) = announcement.take_room() {
        response.extensions_mut().insert(room);
    }
    Ok(response)
}

/// A connection whose first written bytes are replaced by others.
struct RetargetedStream {
    stream: ApplicationStream,
    /// The replacement bytes that are not written yet.
    spelled: Bytes,
    /// Number of bytes still to be written that are replaced.
    replaced: usize,
}

impl AsyncWrite for RetargetedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while !this.spelled.is_empty() {
            let written = ready!(Pin::new(&mut this.stream).poll_write(context, &this.spelled))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.spelled.advance(written);
        }
        if this.replaced > 0 {
            let replaced = this.replaced.min(bytes.len());
            this.replaced -= replaced;
            return Poll::Ready(Ok(replaced));
        }
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl AsyncRead for RetargetedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}
