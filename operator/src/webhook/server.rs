//! The webhook's HTTPS server.
//!
//! Everybody who reaches the port can connect, so a stranger gets little of the operator and learns nothing of it.
//!
//! # Guarantees
//! - Connections, the bytes of bodies in progress and the time that a body takes are bounded. At [`MAX_CONNECTIONS`] the
//!   connection that has been idle longest makes room.
//! - With a client CA, nobody else's body is read.
//! - A refusal has a status and no text.

use std::{
    collections::HashMap,
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, extract::Request, response::Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    HeaderMap, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use larder_policy::writing::is_json;
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::SHUTDOWN_TIMEOUT;
use crate::{
    error::{Error, Result},
    tls::Loaded,
};

/// Maximum size of an AdmissionReview: a pod of etcd's limit of 1.5 MiB and the operation's options, with a margin.
pub const MAX_REVIEW_BYTES: usize = 3 << 20;
/// Maximum of the sizes of all reviews in progress.
const MAX_BYTES_IN_PROGRESS: usize = 4 * MAX_REVIEW_BYTES;
/// The size that a review counts with at least, which bounds the number of reviews in progress.
const MIN_COUNTED_BYTES: usize = 1 << 10;
/// Time for the body of a review. API servers wait as long for the whole call.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the head of a request, and until the next one of a connection: more than the 90 s after which an API server
/// closes an idle connection itself, because a call on a connection that is being closed fails.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Interval at which peers over HTTP/2 have to show that they are there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 256;
/// Maximum number of calls of a connection at a time.
const MAX_STREAMS: u32 = 128;
/// Maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// The certificate to serve with, and the CA whose clients may call.
///
/// # Errors
/// If one of them is not PEM.
pub fn config(loaded: &Loaded, client_ca: Option<&str>) -> Result<Arc<ServerConfig>> {
    let invalid = |reason: String| Error::Tls { reason };
    let builder = match client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| invalid(format!("the client CA: {error}")))?;
                roots.add(certificate).map_err(|error| invalid(format!("the client CA: {error}")))?;
            }
            // The operator asks its own readiness without a certificate; `review` requires one.
            let verifier = WebPkiClientVerifier::builder(roots.into()).allow_unauthenticated().build();
            let verifier = verifier.map_err(|error| invalid(format!("the client CA: {error}")))?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let chain = CertificateDer::pem_slice_iter(loaded.certificate.as_bytes()).collect::<Result<_, _>>();
    let chain = chain.map_err(|error| invalid(format!("the certificate: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(loaded.key.as_bytes());
    let key = key.map_err(|error| invalid(format!("the key: {error}")))?;
    let mut config =
        builder.with_single_cert(chain, key).map_err(|error| invalid(format!("the certificate: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Reads the file with the client CA.
///
/// # Errors
/// If it cannot be read.
pub fn read_client_ca(path: Option<&Path>) -> Result<Option<String>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Error::Tls { reason: format!("the client CA in {}: {error}", path.display()) })
    };
    path.map(read).transpose()
}

/// The peer of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// True if it has a certificate of the client CA.
    pub(super) is_verified: bool,
}

/// Serves `app` until `stop`. Calls in progress then have [`SHUTDOWN_TIMEOUT`].
pub(super) async fn serve<S>(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    app: S,
    stop: &CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let connections = Connections::default();
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // The process has no file descriptor left, or the peer is gone.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let Some(connection) = connections.admit() else { continue };
        let (config, watcher, app) = (tls.borrow().clone(), graceful.watcher(), app.clone());
        tokio::spawn(async move {
            let evicted = connection.state.evicted.clone();
            tokio::select! {
                () = evicted.cancelled() => {}
                _ = converse(stream, config, watcher, app, &connection) => {}
            }
        });
    }
    drop(listener);
    drop(tokio::time::timeout(SHUTDOWN_TIMEOUT, graceful.shutdown()).await);
}

/// Serves a connection until its end.
async fn converse<S>(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    watcher: Watcher,
    app: S,
    connection: &Connection,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await??;
    let session = stream.get_ref().1;
    let caller = Caller { is_verified: session.peer_certificates().is_some() };
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let state = connection.state.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller);
        let busy = Busy::new(state.clone());
        let response = app.call(request);
        async move {
            let response = response.await;
            drop(busy);
            response
        }
    });
    let io = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .keep_alive_interval(PING_INTERVAL);
        watcher.watch(builder.serve_connection(io, service)).await?;
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
        watcher.watch(builder.serve_connection(io, service)).await?;
    }
    Ok(())
}

/// The open connections.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    states: HashMap<u64, Arc<ConnectionState>>,
}

/// A connection, until it is dropped.
struct Connection {
    connections: Connections,
    number: u64,
    state: Arc<ConnectionState>,
}

struct ConnectionState {
    since: Instant,
    in_progress: AtomicUsize,
    /// Time of the last response, in milliseconds after `since`.
    last: AtomicU64,
    evicted: CancellationToken,
}

impl Connections {
    /// Adds a connection, at the limit in the place of the one that has been idle longest; `None` if none is idle.
    fn admit(&self) -> Option<Connection> {
        let mut open = self.0.lock();
        if open.states.len() >= MAX_CONNECTIONS {
            let idle = open.states.iter().filter(|(_, state)| state.in_progress.load(Ordering::Relaxed) == 0);
            let number = *idle.min_by_key(|(_, state)| state.used())?.0;
            if let Some(state) = open.states.remove(&number) {
                state.evicted.cancel();
            }
        }
        let number = open.next;
        open.next += 1;
        let state = Arc::new(ConnectionState {
            since: Instant::now(),
            in_progress: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            evicted: CancellationToken::new(),
        });
        open.states.insert(number, state.clone());
        Some(Connection { connections: self.clone(), number, state })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.0.lock().states.remove(&self.number);
    }
}

impl ConnectionState {
    fn used(&self) -> Instant {
        self.since + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A call in progress.
struct Busy(Arc<ConnectionState>);

impl Busy {
    fn new(state: Arc<ConnectionState>) -> Self {
        state.in_progress.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let last = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(last, Ordering::Relaxed);
        self.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads bodies of bounded size, in bounded time, so many bytes at a time. Bytes count when they arrive, so that bodies
/// that are announced and not sent keep nobody out.
#[derive(Clone)]
pub(super) struct Reader {
    kibibytes: Arc<Semaphore>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { kibibytes: Arc::new(Semaphore::new(MAX_BYTES_IN_PROGRESS >> 10)) }
    }
}

/// A body, which counts as in progress until it is dropped.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Reads a JSON body.
    ///
    /// # Errors
    /// The status of the refusal.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Received, StatusCode> {
        if !headers.get(CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes())) {
            return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let length = headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse::<usize>().ok());
        let length = match length {
            None => MAX_REVIEW_BYTES,
            Some(Some(length)) if length <= MAX_REVIEW_BYTES => length,
            Some(_) => return Err(StatusCode::PAYLOAD_TOO_LARGE),
        };
        match tokio::time::timeout(BODY_TIMEOUT, self.collect(Limited::new(body, length))).await {
            Ok(received) => received,
            Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
        }
    }

    async fn collect(&self, mut body: Limited<Body>) -> Result<Received, StatusCode> {
        let mut permit = self.count(MIN_COUNTED_BYTES)?;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => StatusCode::PAYLOAD_TOO_LARGE,
                false => StatusCode::BAD_REQUEST,
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let counted = permit.num_permits() << 10;
            permit.merge(self.count((bytes.len() + data.len()).saturating_sub(counted))?);
            bytes.extend_from_slice(&data);
        }
        Ok(Received { bytes: bytes.into(), _permit: permit })
    }

    /// Counts bytes, rounded up to KiB.
    fn count(&self, bytes: usize) -> Result<OwnedSemaphorePermit, StatusCode> {
        let kibibytes = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let permit = self.kibibytes.clone().try_acquire_many_owned(kibibytes);
        permit.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
    }
}

#[cfg(test)]
mod tests;
