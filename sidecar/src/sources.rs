//! Places besides the application that can answer a miss.

use std::{error::Error, io, sync::Arc};

use larder_policy::policy;

pub mod http;
pub mod last_known_good;
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

    /// What is wrong with what it was told of where it is and whom to trust, if anything is; what it was told before counts as
    /// long as it works. There is no secret in it.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Postgres(source) => source.trouble(),
            Self::Http(source) => source.trouble(),
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

/// Whether a connection failed because of a certificate.
fn blames_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // Its source is that of what it holds.
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let held = held.map(|held| -> &(dyn Error + 'static) { held });
    held.or_else(|| error.source()).is_some_and(blames_certificate)
}
