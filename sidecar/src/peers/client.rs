//! A connection to the admin API of another pod.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use larder_api::admin::{PeerReply, PeerRequest, path};
use tokio::net::TcpStream;

/// Maximum length of a reply in bytes: twice that of all purges that a pod lists.
const MAX_REPLY: usize = 2 << 20;

/// Reason why another pod was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("the connection failed: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("it does not take this pod's token")]
    Token,
    #[error("it responded with {0}")]
    Status(StatusCode),
    #[error("its reply can't be read: {0}")]
    Reply(Box<dyn std::error::Error + Send + Sync>),
    #[error("no reply in time")]
    Late,
}

/// A connection that is opened when it is needed.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(super) const fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// Closes the connection: a reply may still come over it.
    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    /// Sends a request, once more over a new connection if the one that was open has ended.
    pub(super) async fn send(&mut self, token: &str, request: &PeerRequest) -> Result<PeerReply, PeerError> {
        let body = Bytes::from(serde_json::to_vec(request).map_err(|error| PeerError::Reply(error.into()))?);
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            match self.send_over(sender, token, body.clone()).await {
                Err(PeerError::Exchange(_)) => {}
                outcome => return outcome,
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender, or with the other side.
        tokio::spawn(connection);
        self.send_over(sender, token, body).await
    }

    async fn send_over(
        &mut self,
        mut sender: SendRequest<Full<Bytes>>,
        token: &str,
        body: Bytes,
    ) -> Result<PeerReply, PeerError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path::PEER_PURGES)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Full::new(body))
            .map_err(|_| PeerError::Token)?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(error) => PeerError::Reply(error),
            Err(error) => error.downcast().map_or_else(PeerError::Reply, |error| PeerError::Exchange(*error)),
        })?;
        self.sender = Some(sender);
        match status {
            StatusCode::OK => {
                serde_json::from_slice(&body.to_bytes()).map_err(|error| PeerError::Reply(error.into()))
            }
            StatusCode::UNAUTHORIZED => Err(PeerError::Token),
            status => Err(PeerError::Status(status)),
        }
    }
}
