//! A source that reads over HTTP.

use std::{io, sync::Arc, time::Duration};

use http::{
    Response, StatusCode, Uri,
    header::{ALT_SVC, HeaderName, SET_COOKIE, STRICT_TRANSPORT_SECURITY, VARY},
    uri::InvalidUri,
};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use larder_policy::spec;
use tokio::time::{Instant, timeout_at};

mod body;
mod client;
mod connector;

pub use body::{HttpBody, HttpBodyError};

use self::client::Clients;
use super::blames_certificate;
use crate::{
    body::Begun,
    breaker::Breaker,
    headers::{TransferCoding, remove_hop_by_hop},
    resolver::Resolver,
    upstream::blames_transfer_coding,
};

/// Fields about the source's host rather than the response, and `Vary`, because the sidecar's requests do not vary.
const OF_ITS_HOST: [HeaderName; 5] =
    [SET_COOKIE, ALT_SVC, STRICT_TRANSPORT_SECURITY, VARY, HeaderName::from_static("clear-site-data")];

/// An HTTP server that routes read from.
#[derive(Debug)]
pub struct HttpSource {
    spec: spec::Http,
    clients: Clients,
    resolver: Resolver,
    breaker: Arc<Breaker>,
}

/// Response of an HTTP source.
#[derive(Debug)]
pub enum HttpFound {
    /// A 200, without hop-by-hop fields and fields about the source's host.
    Found(Response<HttpBody>),
    /// A 404 or a 410.
    NotFound,
}

/// Failure of an HTTP source.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The breaker is open.
    #[error("the HTTP source failed repeatedly; requests to it are paused")]
    Down,
    /// No response head in time.
    #[error("the HTTP source did not respond within {0:?}")]
    Deadline(Duration),
    /// A status other than 200, 404 and 410.
    #[error("the HTTP source responded with {0}: only 200, 404 and 410 are usable")]
    Status(StatusCode),
    /// The URL and the route's path do not form a URL.
    #[error("the source's url and the route's path do not form a valid URL: {0}")]
    Target(#[from] InvalidUri),
    /// The host is not allowed.
    #[error("the HTTP source can't be used: {0}")]
    Host(#[from] io::Error),
    /// The trusted certificates can't be read.
    #[error("the HTTP source can't be used: {0}")]
    Trust(String),
    /// A body with a transfer coding that is not decoded here.
    #[error("the HTTP source's response has a transfer coding other than chunked")]
    TransferCoding,
    /// The source can't be reached, broke the connection, or sent an invalid response.
    #[error("the HTTP source failed: {0:#}")]
    Failed(anyhow::Error),
}

impl HttpSource {
    /// Creates a source, which connects on first use.
    pub fn start(spec: spec::Http) -> Self {
        Self::start_within(spec, Resolver::default())
    }

    /// Creates a source that connects to the addresses which a resolver allows.
    pub fn start_within(spec: spec::Http, resolver: Resolver) -> Self {
        let clients = Clients::new(&spec, resolver.clone());
        Self { spec, clients, resolver, breaker: Arc::default() }
    }

    /// Returns the spec that it was started from.
    pub fn spec(&self) -> &spec::Http {
        &self.spec
    }

    /// Returns true if the breaker is closed, as it is before the first request.
    pub fn is_up(&self) -> bool {
        self.breaker.is_closed() && self.resolver.refused().is_none() && self.clients.current().is_ok()
    }

    /// Returns the reason why connections are refused here, or the error in the trusted certificates; the last good ones are used
    /// meanwhile.
    pub fn last_error(&self) -> Option<String> {
        self.resolver.refused().or_else(|| self.clients.last_error())
    }

    /// Sends a GET for a path and query, appended to the path of the URL. Connecting, the head and the body share the
    /// source's hard timeout.
    ///
    /// # Errors
    /// If the source can't be reached, is too slow, or responds with a status other than 200, 404 and 410.
    pub async fn fetch(&self, path_and_query: &str) -> Result<HttpFound, HttpError> {
        let uri: Uri = format!("{}{path_and_query}", self.spec.url.trim_end_matches('/')).parse()?;
        let client = self.clients.current().map_err(HttpError::Trust)?;
        // The connector resolves names, and takes addresses as they are.
        self.resolver.check_host(uri.host().unwrap_or_default())?;
        if !self.breaker.allows() {
            return Err(HttpError::Down);
        }
        let limit = self.spec.hard_timeout().0;
        let deadline = Instant::now() + limit;
        let response = timeout_at(deadline, async {
            let (head, body) = client.get(uri).await.map_err(HttpError::of)?.into_parts();
            if TransferCoding::of(&head.headers) == TransferCoding::Unsupported {
                return Err(HttpError::TransferCoding);
            }
            // The body of another status is not read.
            let body = if head.status == StatusCode::OK {
                Begun::read(body)
                    .await
                    .map_err(|error| HttpError::Failed(HttpBodyError::from(error).into()))?
            } else {
                Begun::unread(body)
            };
            Ok(Response::from_parts(head, body))
        });
        let outcome = response.await.unwrap_or(Err(HttpError::Deadline(limit)));
        let response = outcome.inspect_err(|_| self.breaker.failed())?;
        match response.status() {
            StatusCode::OK => Ok(HttpFound::Found(self.found(response, deadline))),
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                self.breaker.succeeded();
                Ok(HttpFound::NotFound)
            }
            status => {
                if status.is_server_error() {
                    self.breaker.failed();
                } else {
                    self.breaker.succeeded();
                }
                Err(HttpError::Status(status))
            }
        }
    }

    fn found(&self, response: Response<Begun<Incoming>>, deadline: Instant) -> Response<HttpBody> {
        let (received, body) = response.into_parts();
        let limit = self.spec.hard_timeout().0;
        let mut response = Response::new(HttpBody::new(body, deadline, limit, Arc::clone(&self.breaker)));
        let headers = response.headers_mut();
        *headers = received.headers;
        remove_hop_by_hop(headers);
        for name in &OF_ITS_HOST {
            headers.remove(name);
        }
        response
    }
}

impl HttpError {
    fn of(error: legacy::Error) -> Self {
        if blames_transfer_coding(&error) {
            return Self::TransferCoding;
        }
        let blames_certificate = blames_certificate(&error);
        let error = anyhow::Error::from(error);
        Self::Failed(if blames_certificate {
            error.context("name the CA of its certificate in caFrom")
        } else {
            error
        })
    }
}
