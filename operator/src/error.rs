//! What can go wrong in the operator.

use crate::listen::ListenAddress;

/// Why a reconciliation or a task failed. Names of variants are the values of the metrics' label `error`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("kubernetes api: {0}")]
    Kubernetes(#[from] kube::Error),
    /// A watch ended, which only happens when the process is ending.
    #[error("a watch has ended; the process is shutting down or must be restarted")]
    WatchEnded,
    /// A certificate could not be made.
    #[error("could not make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS Secret does not hold what it should; it is replaced.
    #[error("the Secret {secret} holds no usable {key}; delete it to have it made anew")]
    BadSecret {
        /// The Secret.
        secret: &'static str,
        /// The key in it.
        key: &'static str,
    },
    /// An object could not be turned into JSON.
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
    /// The system has no random numbers.
    #[error("the system gave no random bytes")]
    Random,
    /// The webhook does not answer through its Service.
    #[error("the webhook does not answer at {address}: {reason}")]
    WebhookUnreachable {
        /// Where it was asked.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// A server could not be started, or failed.
    #[error("could not serve on {address}: {source}")]
    Serve {
        /// Where it should listen.
        address: ListenAddress,
        /// Why it does not.
        source: std::io::Error,
    },
    /// The lease can't be held.
    #[error("leader election: {0}")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
}

impl Error {
    /// The variant's name, for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "Kubernetes",
            Self::WatchEnded => "WatchEnded",
            Self::Certificate(_) => "Certificate",
            Self::BadSecret { .. } => "BadSecret",
            Self::Json(_) => "Json",
            Self::Random => "Random",
            Self::WebhookUnreachable { .. } => "WebhookUnreachable",
            Self::Serve { .. } => "Serve",
            Self::Lease(_) => "Lease",
        }
    }
}

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
