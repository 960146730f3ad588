//! Connections to a sidecar's admin API over a forwarded port.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use kube::api::Portforwarder;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Time for which the kubelet's own words on the end of a connection are waited for.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection, which ends when this is dropped.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// The kubelet's words on a port that it can't forward.
    refusal: Option<BoxFuture<'static, Option<String>>>,
    _driver: AbortOnDropHandle<()>,
    _forwarded: Portforwarder,
}

impl Connection {
    /// Takes over a port that is forwarded.
    ///
    /// # Errors
    /// The reason in words.
    pub(super) async fn over(mut forwarded: Portforwarder, port: u16) -> Result<Self, String> {
        let stream = forwarded.take_stream(port).ok_or("the port is not forwarded")?;
        let refusal = forwarded.take_error(port).map(FutureExt::boxed);
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its error is that of the response as well.
            let _ = connection.await;
        }));
        Ok(Self { sender, refusal, _driver: driver, _forwarded: forwarded })
    }

    /// Sends a request, once the body of the response before is read.
    ///
    /// # Errors
    /// The reason in words.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let sent = match self.sender.ready().await {
            Ok(()) => self.sender.send_request(request).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(response) => Ok(response),
            Err(error) => {
                // The kubelet's own words, if it has any, tell more than the end of the connection.
                let words = match self.refusal.take() {
                    Some(refusal) => timeout(REFUSAL_TIMEOUT, refusal).await.ok().flatten(),
                    None => None,
                };
                Err(words.unwrap_or_else(|| error.to_string()))
            }
        }
    }
}
