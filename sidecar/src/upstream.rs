//! Connections and requests to the application.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::{COOKIE, HOST},
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{Either, Full};
use hyper::body::Bytes;
use tokio::net::TcpStream;

use crate::budget::Budget;

mod body;
mod body_copy;
mod dial;
mod error;
mod h2;
mod head;
mod http1;
mod stream;
mod upload;

pub use body::ApplicationBody;
pub use body_copy::BodyCopy;
pub use dial::{Dialer, WhenRefused};
pub use error::{ExchangeError, UpstreamError, UpstreamReason};
pub(crate) use error::{blames_transfer_coding, may_have_been_dead};
use h2::Http2;
pub use head::{BodyFraming, FieldLine, HeadError};
pub(crate) use head::{MAX_HEAD, MAX_LINES};
use http1::Http1;
pub use http1::{LAST_CHUNK, OnInterim, RawExchange, RawHead, SwitchedConnection, WireBody, write_chunk};
pub(crate) use stream::ResponseStream;
pub use upload::{Progress, Upload};

/// Maximum length of a piece of a body that is copied behind the text before it, in bytes.
pub const MAX_COPIED: usize = 4 << 10;

/// The body of a request to the application: the client's body as it arrives, or one in memory, possibly empty.
pub type RequestBody = Either<Upload, Full<Bytes>>;

/// Request extension by which the sender cancels the request: it is not sent, unless it has been sent already.
#[derive(Clone, Debug, Default)]
pub struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// Cancels the request.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns true if the request was cancelled.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Checks that a request which is about to be sent was not cancelled.
    ///
    /// # Errors
    /// If the request was cancelled.
    fn check(abandoned: Option<&Self>) -> Result<(), UpstreamError> {
        if abandoned.is_some_and(Self::is_set) { Err(UpstreamError::Abandoned) } else { Ok(()) }
    }
}

/// Returns an empty body.
pub fn no_body() -> RequestBody {
    Either::Right(Full::default())
}

/// Authority of an HTTP/2 request that has no host.
const APPLICATION: &str = "application";

/// An application and the connections to it.
#[derive(Clone, Debug)]
pub struct Upstream {
    http1: Arc<Http1>,
    http2: Arc<Http2>,
    dialer: Arc<Dialer>,
}

impl Upstream {
    /// Creates the client of an application to which `dialer` connects. Large response heads take memory from `budget`.
    pub fn new(dialer: Arc<Dialer>, budget: Arc<Budget>) -> Self {
        Self {
            http1: Arc::new(Http1::new(Arc::clone(&dialer), budget)),
            http2: Arc::new(Http2::new(Arc::clone(&dialer))),
            dialer,
        }
    }

    /// Forwards a request: over HTTP/2 if it was received over HTTP/2 and the application supports that, otherwise over HTTP/1.1.
    ///
    /// # Errors
    /// If the application refused or closed the connection.
    pub async fn send(
        &self,
        mut request: Request<RequestBody>,
        refused: WhenRefused,
    ) -> Result<Response<ApplicationBody>, UpstreamError> {
        if request.version() == Version::HTTP_2 && self.http2.is_spoken(refused).await? {
            let host = request.headers_mut().remove(HOST);
            let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(APPLICATION);
            if !names(request.uri(), host) {
                *request.uri_mut() = target(request.uri(), host).unwrap_or_else(|| request.uri().clone());
            }
            return self.http2.send(request, refused).await;
        }
        if request.version() == Version::HTTP_2 {
            join_crumbs(request.headers_mut());
        }
        self.http1.send(request, refused).await
    }

    /// Opens a separate connection, for protocols other than HTTP.
    ///
    /// # Errors
    /// If the application does not listen.
    pub async fn connect(&self, refused: WhenRefused) -> std::io::Result<TcpStream> {
        self.dialer.connect(refused).await
    }

    /// Returns true if the application has refused connections for longer than a restart takes.
    pub fn is_gone(&self) -> bool {
        self.dialer.is_gone()
    }
}

/// Returns true if a target is in absolute form, with this host.
fn names(uri: &Uri, host: &str) -> bool {
    uri.scheme() == Some(&Scheme::HTTP) && uri.authority().is_some_and(|authority| authority.as_str() == host)
}

/// Returns the target in absolute form, with the path and query as the client sent them.
fn target(uri: &Uri, host: &str) -> Option<Uri> {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder().scheme("http").authority(host).path_and_query(path).build().ok()
}

/// Joins the `Cookie` fields of an HTTP/2 request into one, as HTTP/1.1 requires (RFC 9113, section 8.2.3).
fn join_crumbs(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, cookie);
    }
}

/// Returns a copy of a request without its body and extensions.
fn head_of(request: &Request<RequestBody>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}
