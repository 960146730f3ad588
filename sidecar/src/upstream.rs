//! The application.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::{COOKIE, HOST},
    uri::PathAndQuery,
};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use tokio::net::TcpStream;

use crate::{budget::Budget, headers::frame_body, http1_guard::RawTarget};

mod dial;
mod error;
mod h2;
mod head;
mod http1;
mod raw_target;
mod stream;
mod upload;

pub use dial::{Dialer, WhenRefused};
pub use error::{UpstreamError, UpstreamReason};
pub(crate) use error::{blames_transfer_coding, may_have_been_dead};
use h2::Http2;
pub(crate) use head::{MAX_HEAD, MAX_LINES};
use http1::Http1;
pub(crate) use stream::{Announcement, ResponseStream};
pub use upload::{Progress, Upload};

/// The body of a request to the application: the client's body as it arrives, or one in memory, possibly empty.
pub type RequestBody = Either<Upload, Full<Bytes>>;

/// Extension of a request with which its sender gives it up: it is not sent any more, unless it has been sent already.
#[derive(Clone, Debug, Default)]
pub struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// Gives the request up.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns true if the request was given up.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Checks that a request which is about to be sent was not given up.
    ///
    /// # Errors
    /// If the request was given up.
    fn check<B>(request: &Request<B>) -> Result<(), UpstreamError> {
        match request.extensions().get::<Self>() {
            Some(abandoned) if abandoned.is_set() => Err(UpstreamError::Abandoned),
            _ => Ok(()),
        }
    }
}

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
    dialer: Arc<Dialer>,
    budget: Arc<Budget>,
}

impl Upstream {
    /// An application that is connected to by `dialer`. Large heads of its responses take room of `budget`.
    pub fn new(dialer: Arc<Dialer>, budget: Arc<Budget>) -> Self {
        Self {
            http1: Arc::new(Http1::new(Arc::clone(&dialer), Arc::clone(&budget))),
            http2: Arc::new(Http2::new(Arc::clone(&dialer))),
            dialer,
            budget,
        }
    }

    /// Passes a request on: one that came over HTTP/2 in HTTP/2, if the application speaks that, and every other in HTTP/1.1.
    ///
    /// A request whose body is at hand, and that failed on a connection which may have been dead, is sent once more if its
    /// method is idempotent (RFC 9110, section 9.2.2).
    ///
    /// # Errors
    /// If the application refused the connection or broke it off.
    pub async fn send(
        &self,
        mut request: Request<RequestBody>,
        refused: WhenRefused,
    ) -> Result<Response<Incoming>, UpstreamError> {
        if request.version() == Version::HTTP_2 && self.http2.is_spoken(refused).await? {
            let host = request.headers_mut().remove(HOST);
            let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(APPLICATION);
            *request.uri_mut() = target(request.uri(), host).unwrap_or_else(|| request.uri().clone());
            return self.http2.send(request, refused).await;
        }
        if request.version() == Version::HTTP_2 {
            join_crumbs(request.headers_mut());
        }
        *request.version_mut() = Version::HTTP_11;
        let (mut head, body) = request.into_parts();
        frame_body(&mut head.headers, &body);
        let mut request = Request::from_parts(head, body);
        *request.uri_mut() = origin_form(request.uri());
        if let Some(RawTarget(raw)) = request.extensions_mut().remove() {
            return raw_target::send(&self.dialer, &self.budget, request, &raw, refused).await;
        }
        let again = again(&request);
        match (self.http1.send(request, refused, again.is_some()).await, again) {
            (Err(UpstreamError::Exchange { source, .. }), Some(again)) if may_have_been_dead(&source) => {
                self.http1.send(again, refused, true).await.map_err(UpstreamError::of_repetition)
            }
            (outcome, _) => outcome,
        }
    }

    /// Opens a connection of its own, for what is not HTTP.
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn connect(&self, refused: WhenRefused) -> std::io::Result<TcpStream> {
        self.dialer.connect(refused).await
    }

    /// Returns true if the application has refused connections for longer than a restart takes.
    pub fn is_gone(&self) -> bool {
        self.dialer.is_gone()
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
    Some(head_of(request).map(|()| Either::Right(body)))
}

/// A request without its body.
fn head_of(request: &Request<RequestBody>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    *head.extensions_mut() = request.extensions().clone();
    head
}
