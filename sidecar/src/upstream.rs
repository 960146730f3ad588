//! The application.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::{COOKIE, HOST},
    uri::PathAndQuery,
};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::{cli::UpstreamUrl, headers::frame_body};

mod error;
mod h2;
mod head;
mod http1;
mod stream;

pub(crate) use error::may_have_been_dead;
pub use error::{UpstreamError, UpstreamReason};
use h2::Http2;
use http1::Http1;

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

/// The authority of a request over HTTP/2 that names no host.
const APPLICATION: &str = "application";

/// An application and the connections to it.
#[derive(Clone, Debug)]
pub struct Upstream {
    http1: Arc<Http1>,
    http2: Arc<Http2>,
    addresses: Addresses,
}

impl Upstream {
    /// An application at `url`, or, where it does not listen there, at `pod_ip`.
    pub fn new(url: UpstreamUrl, pod_ip: Option<IpAddr>) -> Self {
        let addresses = Addresses::new(&url, pod_ip);
        Self {
            http1: Arc::new(Http1::new(addresses.clone())),
            http2: Arc::new(Http2::new(addresses.clone())),
            addresses,
        }
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
        *request.uri_mut() = origin_form(request.uri());
        let again = again(&request);
        match (self.http1.send(request).await, again) {
            (Err(UpstreamError::Exchange { source, .. }), Some(again)) if may_have_been_dead(&source) => {
                self.http1.send(again).await
            }
            (outcome, _) => outcome,
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

/// The path and query as the client sent them (RFC 9112, section 3.2.1).
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
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
