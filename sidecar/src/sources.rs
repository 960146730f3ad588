//! Origins besides the application that can serve a miss.
//!
//! A kind of source answers for itself: a new one is a variant here, its spec in the policy and its module.

use std::{error::Error, io, sync::Arc, time::Duration};

use ::http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use larder_policy::{
    Values,
    policy::{self, SourceRef},
    sql::BoundQuery,
};

use crate::{
    body::{IncomingBody, SourceError},
    cache_status::Tier,
    resolver::Resolver,
};

pub mod http;
pub mod last_known_good;
pub mod postgres;

use http::{HttpError, HttpFound, HttpSource};
use postgres::{PostgresError, PostgresSource};

/// An origin besides the application that can serve a miss.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Postgres server.
    Postgres(Arc<PostgresSource>),
    /// An HTTP server.
    Http(Arc<HttpSource>),
}

/// Reason why a source has no response.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The breaker is open: the source got no request.
    #[error("the source failed repeatedly; requests to it are paused")]
    Down,
    /// The source failed, or could not be used.
    #[error("{0}")]
    Failed(anyhow::Error),
}

impl Source {
    /// Starts a source in the background, which connects to the addresses that a resolver allows.
    pub fn start(spec: &policy::Source, resolver: Resolver) -> Self {
        match spec {
            policy::Source::Postgres(spec) => {
                Self::Postgres(Arc::new(PostgresSource::start_within(spec.clone(), resolver)))
            }
            policy::Source::Http(spec) => {
                Self::Http(Arc::new(HttpSource::start_within(spec.clone(), resolver)))
            }
        }
    }

    /// Returns true if the source was started from this spec.
    pub fn is_of(&self, spec: &policy::Source) -> bool {
        match (self, spec) {
            (Self::Postgres(source), policy::Source::Postgres(spec)) => source.spec() == spec,
            (Self::Http(source), policy::Source::Http(spec)) => source.spec() == spec,
            (Self::Postgres(_) | Self::Http(_), _) => false,
        }
    }

    /// Fetches the response that a route asks for; `None` if the source has none.
    ///
    /// # Errors
    /// If the source can't be asked, or fails.
    pub async fn fetch(
        &self,
        source_ref: &SourceRef,
        values: &Values<'_>,
    ) -> Result<Option<Response<IncomingBody>>, FetchError> {
        match (self, source_ref) {
            (Self::Postgres(source), SourceRef::Postgres(query)) => {
                let Some(row) = source.fetch(&query.query, values).await? else { return Ok(None) };
                let mut response = Response::new(IncomingBody::text(row));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok(Some(response))
            }
            (Self::Http(source), SourceRef::Http(request)) => {
                let Some(target) = values.expand_url(&request.path) else { return Ok(None) };
                match source.fetch(&target).await? {
                    HttpFound::NotFound => Ok(None),
                    HttpFound::Found(response) => Ok(Some(response.map(|body| {
                        IncomingBody::Source(body.map_err(|error| SourceError::Source(error.into())).boxed())
                    }))),
                }
            }
            (Self::Postgres(_) | Self::Http(_), _) => Err(self.unfit("serve what the route asks for")),
        }
    }

    /// Runs a statement that persists a response.
    ///
    /// # Errors
    /// If the source can't be asked, fails, or takes no statements.
    pub async fn execute(&self, statement: &BoundQuery, values: &Values<'_>) -> Result<(), FetchError> {
        match self {
            Self::Postgres(source) => {
                source.execute(statement, values).await?;
                Ok(())
            }
            Self::Http(_) => Err(self.unfit("persist responses")),
        }
    }

    fn unfit(&self, purpose: &str) -> FetchError {
        FetchError::Failed(anyhow::anyhow!("a source of kind {} can't {purpose}", self.label()))
    }

    /// Returns the time after which a stale response that may be served in place of an error is served in place of a slow source;
    /// `None` if the source is waited for.
    pub fn soft_timeout(&self) -> Option<Duration> {
        match self {
            Self::Postgres(_) => None,
            Self::Http(source) => Some(source.spec().timeout.0),
        }
    }

    /// Returns the tier of its responses.
    pub const fn tier(&self) -> Tier {
        match self {
            Self::Postgres(_) => Tier::Postgres,
            Self::Http(_) => Tier::Http,
        }
    }

    /// Returns true if the source is trusted to respond.
    pub fn is_up(&self) -> bool {
        match self {
            Self::Postgres(source) => source.is_up(),
            Self::Http(source) => source.is_up(),
        }
    }

    /// Returns the error in the URL or the CA that the source is given now, if there is one: the last good ones stay in use. The text
    /// has no secret in it.
    pub fn last_error(&self) -> Option<String> {
        match self {
            Self::Postgres(source) => source.last_error(),
            Self::Http(source) => source.last_error(),
        }
    }

    /// Returns the kind of the source in metrics and the admin API.
    pub const fn label(&self) -> &'static str {
        self.tier().as_str()
    }
}

impl From<PostgresError> for FetchError {
    fn from(error: PostgresError) -> Self {
        match error {
            PostgresError::Down => Self::Down,
            error => Self::Failed(error.into()),
        }
    }
}

impl From<HttpError> for FetchError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Down => Self::Down,
            error => Self::Failed(error.into()),
        }
    }
}

/// Returns true if a connection failed because of a certificate.
fn blames_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // The source of an I/O error is that of the error it wraps.
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let held = held.map(|held| -> &(dyn Error + 'static) { held });
    held.or_else(|| error.source()).is_some_and(blames_certificate)
}
