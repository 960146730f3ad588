//! Applications behind a sidecar, in the test's own process.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// A request as the application saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Number of requests so far, this one included.
    pub(crate) number: usize,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    /// Returns a header's value, or an empty string.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the response that the request asks for: with the status that `x-status` names, and the header fields that lines of
    /// `x-say` have, such as `etag: "a"`.
    pub(crate) fn told(&self, body: impl Into<Bytes>) -> Reply {
        let mut reply = reply(&[], body);
        if let Ok(status) = self.header("x-status").parse() {
            *reply.status_mut() = status;
        }
        for line in self.headers.get_all("x-say") {
            let (name, value) = line.to_str().unwrap().split_once(": ").unwrap();
            reply.headers_mut().append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        reply
    }
}

/// A response of the application.
pub(crate) type Reply = Response<Full<Bytes>>;

/// Returns a 200.
pub(crate) fn reply(headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into())).unwrap()
}

/// An HTTP application.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: AbortOnDropHandle<()>,
}

impl Origin {
    /// Starts an application that responds to every request with its number.
    pub(crate) async fn numbered(headers: &'static [(&'static str, &'static str)]) -> Self {
        Self::start(move |seen| async move { reply(headers, seen.number.to_string()) }).await
    }

    /// Starts an application that responds with the number of PUTs so far.
    pub(crate) async fn stateful(headers: &'static [(&'static str, &'static str)]) -> Self {
        let state = AtomicUsize::new(0);
        Self::start(move |seen| {
            let written = usize::from(seen.method == Method::PUT);
            let now = state.fetch_add(written, Ordering::SeqCst) + written;
            async move { reply(headers, now.to_string()) }
        })
        .await
    }

    /// Starts an application that responds with the request's number, as the request asks it to ([`Seen::told`]).
    pub(crate) async fn obedient() -> Self {
        Self::start(|seen| async move { seen.told(seen.number.to_string()) }).await
    }

    /// Starts an application that responds to every request with its number, and to each write only with a permit.
    pub(crate) async fn holding_writes() -> (Self, Arc<Semaphore>) {
        let permits = Arc::new(Semaphore::new(0));
        let gate = Arc::clone(&permits);
        let origin = Self::start(move |seen| {
            let gate = Arc::clone(&gate);
            async move {
                if seen.method == Method::PUT {
                    gate.acquire().await.unwrap().forget();
                }
                reply(&[], seen.number.to_string())
            }
        })
        .await;
        (origin, permits)
    }

    /// Starts an application.
    pub(crate) async fn start<F, Answer>(answer: F) -> Self
    where
        F: Fn(Seen) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Reply> + Send + 'static,
    {
        Self::start_at("127.0.0.1", answer).await
    }

    /// Starts an application that listens at one address only.
    pub(crate) async fn start_at<F, Answer>(ip: &str, answer: F) -> Self
    where
        F: Fn(Seen) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Reply> + Send + 'static,
    {
        Self::start_on(SocketAddr::new(ip.parse().unwrap(), 0), answer).await
    }

    /// Starts an application that listens at one address and port only, where another one may have listened before.
    pub(crate) async fn start_on<F, Answer>(address: SocketAddr, answer: F) -> Self
    where
        F: Fn(Seen) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Reply> + Send + 'static,
    {
        let (answer, log) = (Arc::new(answer), Arc::<Mutex<Vec<Seen>>>::default());
        let seen = Arc::clone(&log);
        let RawOrigin { address, _task } = RawOrigin::start_on(address, move |stream| {
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
            let service = service_fn(move |request: Request<Incoming>| {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                async move {
                    let (head, body) = request.into_parts();
                    // A request that breaks off was not seen.
                    let body = body.collect().await?.to_bytes();
                    let seen = {
                        let mut log = log.lock().unwrap();
                        let number = log.len() + 1;
                        let path = head.uri.to_string();
                        let seen = Seen { number, method: head.method, path, headers: head.headers, body };
                        log.push(seen.clone());
                        seen
                    };
                    Ok::<_, hyper::Error>(answer(seen).await)
                }
            });
            async move {
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await;
        Self { address, seen, _task }
    }

    /// Returns the number of requests seen.
    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Returns the last request seen.
    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

/// An application that sends raw bytes.
#[derive(Debug)]
pub(crate) struct RawOrigin {
    pub(crate) address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl RawOrigin {
    /// Starts an application that runs `talk` for each connection.
    pub(crate) async fn start<F, Talk>(talk: F) -> Self
    where
        F: Fn(TcpStream) -> Talk + Send + 'static,
        Talk: Future<Output = ()> + Send + 'static,
    {
        Self::start_at("127.0.0.1", talk).await
    }

    /// Starts an application that listens at one address only.
    pub(crate) async fn start_at<F, Talk>(ip: &str, talk: F) -> Self
    where
        F: Fn(TcpStream) -> Talk + Send + 'static,
        Talk: Future<Output = ()> + Send + 'static,
    {
        Self::start_on(SocketAddr::new(ip.parse().unwrap(), 0), talk).await
    }

    /// Starts an application that listens at one address and port only, where another one may have listened before.
    pub(crate) async fn start_on<F, Talk>(address: SocketAddr, talk: F) -> Self
    where
        F: Fn(TcpStream) -> Talk + Send + 'static,
        Talk: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.spawn(talk(stream));
            }
        });
        Self { address, _task: AbortOnDropHandle::new(task) }
    }
}

/// Reads the head of a message.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}
