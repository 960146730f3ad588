//! The application.

use std::{
    error::Error,
    future::{Ready, ready},
    io, iter,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::{COOKIE, HOST},
    uri::PathAndQuery,
};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioTimer},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::{cli::UpstreamUrl, headers::frame_body};

mod h2;

use h2::Http2;

/// Shorter than the keep-alive of common servers (Node.js 5 s, Gunicorn 2 s with threads, nginx 75 s), so that we close an
/// idle connection before the application does.
const IDLE: Duration = Duration::from_millis(1500);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may be quiet before the kernel asks whether the application is still there, how often it then asks,
/// and how many times.
const QUIET: Duration = Duration::from_secs(60);
const PROBES: Duration = Duration::from_secs(15);
const MOST_PROBES: u32 = 4;

/// What is sent to the application: the client's body as it comes, or one at hand, which may be empty.
pub type RequestBody = Either<Incoming, Full<Bytes>>;

/// No body.
pub fn no_body() -> RequestBody {
    Either::Right(Full::default())
}

/// What the client calls the application. It is not an IP address, for those are connected to without asking [`Addresses`],
/// and has no port, for that would go before theirs. Nobody else sees it: `Host` is the client's.
const APPLICATION: &str = "application";

/// An application and the connections to it.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: Client<HttpConnector<Addresses>, RequestBody>,
    http2: Arc<Http2>,
    addresses: Addresses,
}

/// Why the application did not answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It refused the connection.
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    /// It refused the connection or broke it off.
    #[error(transparent)]
    Http1(#[from] hyper_util::client::legacy::Error),
    /// It broke the connection off.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl Upstream {
    /// An application at `url`, or, where it does not listen there, at `pod_ip`.
    pub fn new(url: UpstreamUrl, pod_ip: Option<IpAddr>) -> Self {
        let addresses = Addresses::new(&url, pod_ip);
        let mut connector = HttpConnector::new_with_resolver(addresses.clone());
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_DEADLINE));
        connector.set_keepalive(Some(QUIET));
        connector.set_keepalive_interval(Some(PROBES));
        connector.set_keepalive_retries(Some(MOST_PROBES));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .set_host(false)
            .build(connector);
        Self { client, http2: Arc::new(Http2::new(addresses.clone())), addresses }
    }

    /// Passes a request on: one that came over HTTP/2 in HTTP/2, if the application speaks that, and every other in HTTP/1.1.
    ///
    /// A request whose body is at hand, and that failed on a connection which may have been dead, is sent once more if its
    /// method is idempotent (RFC 9110, section 9.2.2).
    ///
    /// # Errors
    /// If the application refused the connection or broke it off.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, UpstreamError> {
        if request.version() == Version::HTTP_2 && self.http2.is_spoken().await {
            let host = request.headers_mut().remove(HOST);
            let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(APPLICATION);
            *request.uri_mut() = target(request.uri(), host).unwrap_or_else(|| request.uri().clone());
            return self.http2.send(request).await;
        }
        if request.version() == Version::HTTP_2 {
            join_crumbs(request.headers_mut());
        }
        *request.version_mut() = Version::HTTP_11;
        let (mut head, body) = request.into_parts();
        frame_body(&mut head.headers, &body);
        let mut request = Request::from_parts(head, body);
        *request.uri_mut() = target(request.uri(), APPLICATION)
            .expect("a scheme, an authority and a path that each were parsed make a URI");
        let again = again(&request);
        match (self.client.request(request).await, again) {
            (Err(error), Some(again)) if !error.is_connect() && may_have_been_dead(&error) => {
                Ok(self.client.request(again).await?)
            }
            (outcome, _) => Ok(outcome?),
        }
    }

    /// Opens a connection of its own, for what is not HTTP.
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn connect(&self) -> std::io::Result<TcpStream> {
        self.addresses.connect().await
    }
}

/// The path and query as the client sent them, at a host.
fn target(uri: &Uri, host: &str) -> Option<Uri> {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder().scheme("http").authority(host).path_and_query(path).build().ok()
}

/// HTTP/2 may have a cookie in several fields, HTTP/1.1 in one (RFC 9113, section 8.2.3).
fn join_crumbs(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, cookie);
    }
}

/// The same request, if it may be sent once more: its body is at hand and its method is idempotent.
fn again(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let body = match request.body() {
        Either::Right(at_hand) if request.method().is_idempotent() => at_hand.clone(),
        _ => return None,
    };
    let mut again = Request::new(Either::Right(body));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// Whether a request failed because its connection broke, which it may have done before; not because what came makes no sense.
pub(crate) fn may_have_been_dead(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |&error| error.source()).any(|error| {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            error.is_incomplete_message() || error.is_canceled() || error.is_closed()
        } else if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{
                BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
            };
            matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
            )
        } else {
            false
        }
    })
}

/// Where the application may listen: its own address first, then its pod's.
#[derive(Clone, Debug)]
struct Addresses {
    host: Arc<str>,
    port: u16,
    also: Option<IpAddr>,
}

impl Addresses {
    fn new(url: &UpstreamUrl, also: Option<IpAddr>) -> Self {
        let host = url.authority.host().trim_matches(['[', ']']);
        Self { host: host.into(), port: url.port(), also }
    }

    async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let own = tokio::net::lookup_host((&*self.host, self.port)).await?;
        Ok(own.chain(self.also.map(|ip| SocketAddr::new(ip, self.port))).collect())
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let addresses = self.resolve().await?;
        let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(&addresses[..])).await??;
        stream.set_nodelay(true)?;
        // Not HTTP/2's pings: servers of gRPC end a connection that is pinged more often than every five minutes.
        let keepalive = TcpKeepalive::new().with_time(QUIET).with_interval(PROBES).with_retries(MOST_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    }
}

impl tower_service::Service<Name> for Addresses {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = futures::future::Either<
        Ready<Result<Self::Response, Self::Error>>,
        futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => {
                let all: Vec<_> = [Some(ip), self.also]
                    .into_iter()
                    .flatten()
                    .map(|ip| SocketAddr::new(ip, self.port))
                    .collect();
                futures::future::Either::Left(ready(Ok(all.into_iter())))
            }
            Err(_) => {
                let addresses = self.clone();
                let resolved = async move { Ok(addresses.resolve().await?.into_iter()) };
                futures::future::Either::Right(Box::pin(resolved))
            }
        }
    }
}
