//! Places besides the application that can answer a miss.

use std::sync::Arc;

use larder_policy::policy;

pub mod http;
pub mod postgres;

use http::HttpSource;
use postgres::PostgresSource;

/// A place besides the application that can answer a miss.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Postgres server.
    Postgres(Arc<PostgresSource>),
    /// An HTTP server.
    Http(Arc<HttpSource>),
}

impl Source {
    /// Makes one ready, in the background.
    pub fn start(spec: &policy::Source) -> Self {
        match spec {
            policy::Source::Postgres(spec) => Self::Postgres(Arc::new(PostgresSource::start(spec.clone()))),
            policy::Source::Http(spec) => Self::Http(Arc::new(HttpSource::start(spec.clone()))),
        }
    }

    /// Whether it was made from this.
    pub fn is_of(&self, spec: &policy::Source) -> bool {
        match (self, spec) {
            (Self::Postgres(source), policy::Source::Postgres(spec)) => source.spec() == spec,
            (Self::Http(source), policy::Source::Http(spec)) => source.spec() == spec,
            (Self::Postgres(_) | Self::Http(_), _) => false,
        }
    }

    /// Whether it is trusted to answer.
    pub fn is_up(&self) -> bool {
        match self {
            Self::Postgres(source) => source.is_up(),
            Self::Http(source) => source.is_up(),
        }
    }

    /// What it is, as metrics and the admin API have it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Http(_) => "http",
        }
    }
}
