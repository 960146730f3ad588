//! A connection to the admin API of another pod.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use larder_api::admin::{PeerReply, PeerRequest, path};
use tokio::net::TcpStream;

use super::authentication::{Credentials, Keys, challenge};

/// Maximum length of a reply in bytes: twice that of all purges that a pod lists.
const MAX_REPLY: usize = 2 << 20;

/// Reason why another pod was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("the connection failed: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("the token of this pod can't be read")]
    NoToken,
    #[error("it is no sidecar, or one of an earlier version, which pods of this one do not hear of")]
    NoChallenge,
    #[error("it does not take this pod's token, or it is not the pod of this address")]
    Token,
    #[error("it does not prove that it has this pod's token")]
    Unproven,
    #[error("it responded with {0}")]
    Status(StatusCode),
    #[error("its reply can't be read: {0}")]
    Reply(Box<dyn std::error::Error + Send + Sync>),
    #[error("no reply in time")]
    Late,
}

impl PeerError {
    /// Returns true if nobody accepts connections at the address.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// A connection that is opened when it is needed.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    open: Option<Open>,
}

/// An open connection.
#[derive(Debug)]
struct Open {
    sender: SendRequest<Full<Bytes>>,
    /// Challenge for the next request, once the other side has said one.
    challenge: Option<blake3::Hash>,
}

impl Client {
    pub(super) const fn new(address: SocketAddr) -> Self {
        Self { address, open: None }
    }

    /// Closes the connection: a reply may still come over it.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Sends a request, once more over a new connection if the one that was open has ended.
    pub(super) async fn send(&mut self, keys: &Keys, request: &PeerRequest) -> Result<PeerReply, PeerError> {
        let body = Bytes::from(serde_json::to_vec(request).map_err(|error| PeerError::Reply(error.into()))?);
        if let Some(mut open) = self.open.take()
            && open.sender.ready().await.is_ok()
        {
            match self.send_over(open, keys, body.clone()).await {
                Err(PeerError::Exchange(_)) => {}
                outcome => return outcome,
            }
        }
        let open = self.connect().await?;
        self.send_over(open, keys, body).await
    }

    async fn connect(&self) -> Result<Open, PeerError> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender, or with the other side.
        tokio::spawn(connection);
        Ok(Open { sender, challenge: None })
    }

    /// Sends a request with the challenge that was said last, and once more if that is not the one to use, or there is none yet.
    async fn send_over(&mut self, mut open: Open, keys: &Keys, body: Bytes) -> Result<PeerReply, PeerError> {
        for is_first in [true, false] {
            let credentials =
                open.challenge.map(|challenge| Credentials::sign(keys, &challenge, self.address, &body));
            let content = if credentials.is_some() { body.clone() } else { Bytes::new() };
            let value = credentials.as_ref().map(Credentials::value);
            let (head, reply) = self.exchange(&mut open.sender, value, content).await?.into_parts();
            let reply = read(reply).await?;
            open.challenge = challenge(&head.headers);
            match (head.status, credentials) {
                (StatusCode::OK, Some(credentials)) => {
                    if !keys.have_made(&head.headers, &credentials, &reply) {
                        return Err(PeerError::Unproven);
                    }
                    self.open = Some(open);
                    return serde_json::from_slice(&reply).map_err(|error| PeerError::Reply(error.into()));
                }
                (StatusCode::UNAUTHORIZED, _) if is_first && open.challenge.is_some() => {
                    open.sender.ready().await?;
                }
                (StatusCode::UNAUTHORIZED, Some(_)) => return Err(PeerError::Token),
                (StatusCode::UNAUTHORIZED | StatusCode::OK, None) => return Err(PeerError::NoChallenge),
                (status, _) => return Err(PeerError::Status(status)),
            }
        }
        Err(PeerError::Token)
    }

    async fn exchange(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        credentials: Option<HeaderValue>,
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(path::PEER_PURGES);
        let host = HeaderValue::from_str(&self.address.to_string()).expect("an address is a value");
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().extend(credentials.map(|value| (header::AUTHORIZATION, value)));
        sender.send_request(request).await
    }
}

async fn read(body: Incoming) -> Result<Bytes, PeerError> {
    let body = Limited::new(body, MAX_REPLY).collect().await;
    let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
        Ok(error) => PeerError::Reply(error),
        Err(error) => error.downcast().map_or_else(PeerError::Reply, |error| PeerError::Exchange(*error)),
    })?;
    Ok(body.to_bytes())
}
