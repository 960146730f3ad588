//! A source that answers over HTTP.

use std::{sync::Arc, time::Duration};

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
    breaker::Breaker,
    headers::{TransferCoding, remove_hop_by_hop},
    upstream::blames_transfer_coding,
};

/// Failures in a row that open the breaker, and for how long.
const MAX_FAILURES: u32 = 5;
const BREAKER_INTERVAL: Duration = Duration::from_secs(1);

/// What an answer says of the host that it comes from, not of itself; and by what requests it varies, which ours don't.
const OF_ITS_HOST: [HeaderName; 5] =
    [SET_COOKIE, ALT_SVC, STRICT_TRANSPORT_SECURITY, VARY, HeaderName::from_static("clear-site-data")];

/// An HTTP server that routes read from.
#[derive(Debug)]
pub struct HttpSource {
    spec: spec::Http,
    clients: Clients,
    breaker: Arc<Breaker>,
}

/// What an HTTP source says.
#[derive(Debug)]
pub enum HttpFound {
    /// A 200. Its headers are the source's, without those of the connection and of its host.
    Found(Response<HttpBody>),
    /// A 404 or a 410.
    NotFound,
}

/// Why an HTTP source did not answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// It failed too often of late.
    #[error("the HTTP source is not asked: it failed too often of late")]
    Down,
    /// No head of an answer in time.
    #[error("the HTTP source did not answer within {0:?}")]
    Deadline(Duration),
    /// It answered with what is neither 200, 404 nor 410.
    #[error("the HTTP source answered {0}: of other statuses than 404 and 410, only 200 is an answer")]
    Status(StatusCode),
    /// Its URL and the path of the route do not make one.
    #[error("the source's url and the route's path do not make a URL: {0}")]
    Target(#[from] InvalidUri),
    /// Nobody knows whom to trust, so it was not asked.
    #[error("the HTTP source is not asked: {0}")]
    Trust(String),
    /// Its body has a transfer coding that is not decoded here.
    #[error("the HTTP source's response has a transfer coding other than chunked")]
    TransferCoding,
    /// It can't be reached, broke off, or makes no sense.
    #[error("the HTTP source: {0:#}")]
    Failed(anyhow::Error),
}

impl HttpSource {
    /// Makes one ready. It connects when it is asked.
    pub fn start(spec: spec::Http) -> Self {
        let clients = Clients::new(&spec);
        Self { spec, clients, breaker: Arc::new(Breaker::new(MAX_FAILURES, BREAKER_INTERVAL)) }
    }

    /// What it was made from.
    pub fn spec(&self) -> &spec::Http {
        &self.spec
    }

    /// Whether it is trusted to answer. One that nobody asked yet is.
    pub fn is_up(&self) -> bool {
        self.breaker.is_closed() && self.clients.current().is_ok()
    }

    /// What is wrong with the certificates that it is told to trust; the last good ones are used then, if there are any.
    pub fn last_error(&self) -> Option<String> {
        self.clients.last_error()
    }

    /// Asks it by GET for a path and query, which follow the path of its URL. Connecting, the head and the body together have
    /// the source's hard timeout.
    ///
    /// # Errors
    /// If it can't be reached, is too slow, or answers with another status than 200, 404 and 410.
    pub async fn fetch(&self, path_and_query: &str) -> Result<HttpFound, HttpError> {
        let uri: Uri = format!("{}{path_and_query}", self.spec.url.trim_end_matches('/')).parse()?;
        let client = self.clients.current().map_err(HttpError::Trust)?;
        if !self.breaker.allows() {
            return Err(HttpError::Down);
        }
        let limit = self.spec.hard_timeout().0;
        let deadline = Instant::now() + limit;
        let outcome = match timeout_at(deadline, client.get(uri)).await {
            Ok(Ok(response)) if TransferCoding::of(response.headers()) == TransferCoding::Unsupported => {
                Err(HttpError::TransferCoding)
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(HttpError::of(error)),
            Err(_) => Err(HttpError::Deadline(limit)),
        };
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

    fn found(&self, response: Response<Incoming>, deadline: Instant) -> Response<HttpBody> {
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
